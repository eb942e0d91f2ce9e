"""What the system grants this process, from a tree of the kernel's files and from the kernel itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.measure.counters.cgroup import ControlGroups
from pytest_infer.measure.machine import scheduling

CORES = "sys/devices/system/cpu"


def granted(root: Path, files: dict[str, str], **groups: tuple[Path, ...]) -> dict[str, str]:
    for name, text in files.items():
        root.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
        root.joinpath(name).write_text(text, encoding="utf-8")
    return scheduling.granted(ControlGroups(**groups), proc=root / "proc", sys_folder=root / "sys") or {}


@pytest.mark.parametrize(
    ("files", "name", "value"),
    [
        ({"group/cpu.weight": "20\n"}, "cpu_weight", "20"),
        ({"group/above/cpu.weight": "20\n"}, "cpu_weight", None),
        ({"v1/cpu.shares": "512\n"}, "cpu_shares", "512"),
        ({"proc/self/status": "Name:\tx\nMems_allowed:\t1\nMems_allowed_list:\t0-1\n"}, "memory_nodes", "0-1"),
        ({"proc/self/status": "Name:\tx\n"}, "memory_nodes", None),
        ({"proc/self/numa_maps": "55a7 bind:1 file=/bin/x\n7f00 default\n"}, "memory_policy", "bind:1"),
        ({"proc/self/numa_maps": ""}, "memory_policy", None),
        ({f"{CORES}/cpufreq/boost": "1\n"}, "turbo", "on"),
        ({f"{CORES}/cpufreq/boost": "0\n"}, "turbo", "off"),
        ({f"{CORES}/intel_pstate/no_turbo": "1\n"}, "turbo", "off"),
        ({f"{CORES}/intel_pstate/no_turbo": "0\n"}, "turbo", "on"),
        ({f"{CORES}/cpu0/cpufreq/energy_performance_preference": "power\n"}, "energy_preference", "power"),
    ],
)
def test_each_source(tmp_path: Path, files: dict[str, str], name: str, value: str | None) -> None:
    groups = {"unified": (tmp_path / "group",), "cpu_v1": (tmp_path / "v1",)}
    assert granted(tmp_path, files, **groups).get(name) == value


def test_the_nearest_group_that_has_a_weight_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.weight": "20\n", "a/cpu.weight": "300\n"}
    assert granted(tmp_path, files, unified=(tmp_path / "a/b", tmp_path / "a"))["cpu_weight"] == "20"


def test_of_this_process(tmp_path: Path) -> None:
    found = granted(tmp_path, {})
    assert found["nice"] == str(os.getpriority(os.PRIO_PROCESS, 0))
    assert found["policy"] == "other"


def test_where_the_system_knows_no_priorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getpriority")
    monkeypatch.delattr(os, "sched_getscheduler")
    assert scheduling.granted(ControlGroups(), proc=tmp_path, sys_folder=tmp_path) is None


@pytest.mark.parametrize(
    ("known", "told"),
    [
        (None, {}),
        ({"nice": "0", "policy": "other", "cpu_weight": "100", "memory_nodes": "0-7", "turbo": "on"}, {}),
        ({"nice": "10", "turbo": "off"}, {"nice": "10", "turbo": "off"}),
        (
            {"cpu_shares": "512", "memory_policy": "interleave:0-1"},
            {"cpu_shares": "512", "memory_policy": "interleave:0-1"},
        ),
    ],
)
def test_only_what_is_not_as_by_default_is_told(known: dict[str, str] | None, told: dict[str, str]) -> None:
    assert scheduling.unusual(known) == told


def test_each_is_a_fact_that_must_be_equal(tmp_path: Path) -> None:
    every = {
        "group/cpu.weight": "20",
        "v1/cpu.shares": "512",
        "proc/self/status": "Mems_allowed_list:\t0\n",
        "proc/self/numa_maps": "1 default\n",
        f"{CORES}/cpufreq/boost": "1",
        f"{CORES}/cpu0/cpufreq/energy_performance_preference": "power",
    }
    found = granted(tmp_path, every, unified=(tmp_path / "group",), cpu_v1=(tmp_path / "v1",))
    assert set(found) == set(fingerprint.SCHEDULING)
