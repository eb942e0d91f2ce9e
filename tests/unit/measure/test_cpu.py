from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from pytest_infer.measure.counters import cgroup, cpu
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.records import Quality


def test_usable_cores_are_the_least_of_affinity_and_quota(proc, groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    top = groups.mount("cgroup2", "", "/")
    assert cpu.cores(cgroup.discover(proc.root)).usable == 4
    groups.limit(top, cpu_max="250000 100000")
    counted = cpu.cores(cgroup.discover(proc.root))
    assert (counted.logical, counted.physical, counted.affinity) == (8, 4, 4)
    assert (counted.quota, counted.usable) == (2.5, 2.5)


def test_without_affinity_all_logical_cores_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    counted = cpu.cores(cgroup.ControlGroups())
    assert (counted.affinity, counted.usable) == (None, 8)


def test_cpu_time_is_the_difference_of_the_process_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1_000_000_000, 3_500_000_000])
    monkeypatch.setattr(time, "process_time_ns", lambda: next(now))
    instrument = cpu.CpuTime()
    before, after = instrument.read(), instrument.read()
    readings = instrument.readings(before, after)
    assert readings["cpu_s"].value == 2.5
    assert readings["cpu_user_s"].quality is Quality.ESTIMATED
    assert readings["minor_faults"].value is not None


def test_without_getrusage_only_times_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "resource", None)
    instrument = cpu.CpuTime()
    readings = instrument.readings(instrument.read(), instrument.read())
    assert readings["cpu_user_s"].value is not None
    assert readings["cpu_children_s"].value is None
    assert readings["major_faults"].value is None
    assert cpu.children_s() == 0.0
    assert cpu.peak_rss_bytes() is None


def policies(sys: Path, *khz: int) -> Path:
    for number, value in enumerate(khz):
        folder = sys / f"devices/system/cpu/cpufreq/policy{number}"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{value}\n")
    return sys


def test_frequency_is_the_mean_before_and_after(tmp_path: Path, proc) -> None:
    sys = policies(tmp_path / "sys", 1_000_000, 3_000_000)
    instrument = cpu.Frequency(sys, proc.root)
    before = instrument.read()
    (sys / "devices/system/cpu/cpufreq/policy0/scaling_cur_freq").write_text("3000000\n")
    reading = instrument.readings(before, instrument.read())["frequency_hz"]
    assert (reading.value, reading.quality) == (2.5e9, Quality.SAMPLED)
    instrument.close()
    assert isinstance(instrument.read(), Unavailable)


def test_of_many_policies_a_few_stand_for_all(tmp_path: Path, proc) -> None:
    instrument = cpu.Frequency(policies(tmp_path / "sys", *[2_000_000] * 20), proc.root)
    reading = instrument.readings(instrument.read(), instrument.read())["frequency_hz"]
    assert reading.value == 2e9
    assert "mean of 7 policies" in reading.source
    instrument.close()


def test_an_unreadable_frequency_has_the_reason(tmp_path: Path, proc) -> None:
    instrument = cpu.Frequency(policies(tmp_path / "sys", 1_000_000), proc.root)
    before = instrument.read()
    instrument.close()
    reading = instrument.readings(before, instrument.read())["frequency_hz"]
    assert reading.value is None
    assert reading.reason is not None
    assert "closed" in reading.reason


@pytest.mark.parametrize(("flags", "reason"), [("fpu hypervisor", "virtual machine"), ("fpu", "no cpufreq policy in")])
def test_no_policy_has_the_reason(tmp_path: Path, proc, flags: str, reason: str) -> None:
    proc.write("cpuinfo", f"flags : {flags}\n")
    (tmp_path / "sys/devices/system/cpu/cpufreq").mkdir(parents=True)
    instrument = cpu.Frequency(tmp_path / "sys", proc.root)
    reading = instrument.readings(instrument.read(), instrument.read())["frequency_hz"]
    assert reading.value is None
    assert reason in (reading.reason or "")
    proc.remove("cpuinfo")
    assert not cpu.has_hypervisor_flag(proc.root)
