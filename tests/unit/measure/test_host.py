"""What is free now, by fake control groups, and the pitfalls that follow from plain facts."""

from __future__ import annotations

import pytest

from pytest_infer.analysis.doctor import pitfalls
from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.machine import host
from pytest_infer.measure.machine.host import Host
from pytest_infer.records import MachineInfo


def test_a_group_leaves_its_limit_less_what_is_no_file_page(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/box")
    groups.limit(top / "box", memory_max="100000\n", memory_current="60000\n")
    groups.limit(top / "box", memory_stat="anon 30000\nactive_file 10000\ninactive_file 20000\n")
    assert cgroup.memory_left_bytes(cgroup.discover(proc.root)) == 70_000
    # The machine has 400 kB available, more than the group leaves.
    assert host.available_bytes(platform="linux", proc=proc.root) == 70_000


def test_version_1_counts_the_whole_group(proc, groups) -> None:
    memory = groups.mount("cgroup", "memory", "/a")
    groups.limit(memory / "a", memory_limit_in_bytes="9000\n", memory_usage_in_bytes="8000\n")
    groups.limit(memory / "a", memory_stat="active_file 1\ntotal_active_file 500\ntotal_inactive_file 1500\n")
    assert cgroup.memory_left_bytes(cgroup.discover(proc.root)) == 3000


def test_without_a_limit_the_machine_counts(proc, groups) -> None:
    groups.mount("cgroup2", "", "/")
    assert host.available_bytes(platform="linux", proc=proc.root) == 400 * 1024


def test_threads_and_swap_are_read(proc) -> None:
    proc.write("meminfo", "MemTotal: 9 kB\nMemAvailable: 5 kB\nSwapTotal: 4 kB\nSwapFree: 1 kB\n")
    told = host.describe(platform="linux", proc=proc.root, environ={"OMP_NUM_THREADS": "4,2"}, sleep=lambda _: None)
    assert (told.threads, told.swap_total_bytes, told.swap_used_bytes) == (4, 4096, 3072)


def info(**changes) -> MachineInfo:
    plain = {
        "cpu": "c",
        "logical_cores": 4,
        "physical_cores": 4,
        "affinity_cores": 4,
        "quota_cores": None,
        "usable_cores": 4.0,
        "memory_bytes": 1 << 30,
        "memory_limit_bytes": 1 << 30,
        "system": "Linux",
        "kernel": "6",
        "architecture": "x86_64",
        "python": "CPython",
    }
    return MachineInfo(**{**plain, **changes})


@pytest.mark.parametrize(
    ("machine", "state", "words"),
    [
        ({}, {"threads": 8}, "OMP_NUM_THREADS asks for 8 threads, and 4.00 cores"),
        ({"quota_cores": 1.5, "usable_cores": 1.5}, {"threads": 1}, "a control group allows 1.50 cores' time"),
        ({"logical_cores": 4, "physical_cores": 2}, {}, "4 logical cores are 2 physical ones"),
        ({"memory_limit_bytes": 1 << 29}, {}, "a control group allows 512 MiB of the machine's 1.00 GiB"),
        ({}, {"swap_total_bytes": 1 << 30, "swap_used_bytes": 1 << 20}, "1.00 MiB are swapped out"),
        ({}, {"swap_total_bytes": 1 << 30, "swap_used_bytes": 0}, "there are 1.00 GiB of swap"),
        ({}, {"busy_cores": 0.5}, "other processes use 0.50 cores"),
        ({"governor": "powersave"}, {}, "the frequency governor is powersave"),
        ({"virtualization": "kvm"}, {}, "a virtual machine (kvm)"),
    ],
)
def test_each_pitfall_shows_its_numbers(machine, state, words) -> None:
    (found,) = pitfalls.find(info(**machine), Host(**state))
    assert words in found.evidence


@pytest.mark.parametrize(
    ("machine", "state", "threads"),
    [
        ({}, {}, 4),
        ({"logical_cores": 16, "affinity_cores": 16, "physical_cores": 8}, {}, 8),
        ({"logical_cores": 16, "affinity_cores": 3, "physical_cores": 8}, {}, 3),
        ({"logical_cores": 16, "affinity_cores": None, "physical_cores": None}, {}, 16),
        ({"logical_cores": 16, "affinity_cores": 16, "physical_cores": 8}, {"threads": 12}, 12),
        ({"logical_cores": None, "affinity_cores": None, "physical_cores": None}, {}, None),
    ],
)
def test_torch_starts_a_thread_a_physical_core(machine, state, threads) -> None:
    assert pitfalls.torch_threads(info(**machine), Host(**state)) == threads


def test_a_quota_as_large_as_the_physical_cores_starts_no_thread_too_many() -> None:
    machine = info(logical_cores=16, affinity_cores=16, physical_cores=8, quota_cores=8.0, usable_cores=8.0)
    assert not any("PyTorch starts" in found.evidence for found in pitfalls.find(machine, Host()))


def test_a_quiet_machine_has_none() -> None:
    assert pitfalls.find(info(governor="performance"), Host(threads=4, busy_cores=0.01)) == ()
