from __future__ import annotations

import ctypes
from types import SimpleNamespace

import psutil
import pytest

from pytest_infer.measure.counters import cgroup, memory
from pytest_infer.measure.counters.kernel_files import Unavailable

MIB = 2**20
ROLLUP = b"""560e3a380000-7ffc85670000 ---p 00000000 00:00 0                          [rollup]
Rss:                1696 kB
Pss:                 421 kB
Pss_Anon:            112 kB
Private_Clean:        60 kB
Private_Dirty:       112 kB
Private_Hugetlb:       4 kB
"""


def test_status_sizes(proc) -> None:
    sample = memory.parse_status((proc.root / "self/status").read_bytes())
    assert sample == {"rss": 200 * MIB, "peak": 300 * MIB, "anon": 100 * MIB, "swap": MIB, "file": 100 * MIB}


def test_status_of_an_old_or_other_kernel() -> None:
    assert memory.parse_status(b"Name: x\nVmRSS:\t 10 kB\n") == {"rss": 10_240}
    assert memory.parse_status(b"Name: x\n") == {}


def test_resident_memory_figures(proc) -> None:
    instrument = memory.ResidentMemory(proc.root)
    before = instrument.read()
    status = (proc.root / "self/status").read_text()
    proc.write("self/status", status.replace("204800", "409600").replace("RssAnon", "RssOther"))
    readings = instrument.readings(before, instrument.read())
    assert readings["rss_before_bytes"].value == 200 * MIB
    assert readings["rss_bytes"].value == 400 * MIB
    assert readings["swap_bytes"].value == MIB
    assert (readings["rss_anon_bytes"].value, readings["rss_anon_bytes"].reason) == (
        None,
        "this system does not tell /proc/self/status RssAnon",
    )
    instrument.close()


def test_machine_percent_is_of_what_is_not_available(proc) -> None:
    instrument = memory.SystemMemory(proc.root, cgroup.ControlGroups())
    readings = instrument.readings(Unavailable("not needed"), instrument.read())
    assert readings["system_memory_percent"].value == 60
    assert readings["memory_limit_bytes"].value == 1000 * 1024
    assert readings["memory_limit_bytes"].source == "/proc/meminfo"
    instrument.close()


@pytest.mark.parametrize(("limit", "expected"), [("4096", 4096), ("999999999999", 1000 * 1024)])
def test_the_limit_is_the_least_of_group_and_machine(proc, groups, limit: str, expected: int) -> None:
    groups.limit(groups.mount("cgroup2", "", "/"), memory_max=limit)
    instrument = memory.SystemMemory(proc.root)
    readings = instrument.readings(Unavailable("not needed"), instrument.read())
    assert readings["memory_limit_bytes"].value == expected
    assert ("control group" in readings["memory_limit_bytes"].source) == (expected == 4096)
    instrument.close()


def test_no_meminfo_has_the_reason(proc) -> None:
    proc.remove("meminfo")
    instrument = memory.SystemMemory(proc.root, cgroup.ControlGroups())
    readings = instrument.readings(instrument.read(), instrument.read())
    assert [reading.value for reading in readings.values()] == [None, None]
    assert "has no" in (readings["memory_limit_bytes"].reason or "")


def test_footprint(proc) -> None:
    proc.write("self/smaps_rollup", ROLLUP.decode())
    pss, uss = memory.footprint(proc.root, "linux")
    assert (pss.value, uss.value) == (421 * 1024, 176 * 1024)


def test_footprint_without_rollup_has_the_reason(proc) -> None:
    pss, uss = memory.footprint(proc.root, "linux")
    assert (pss.value, uss.value) == (None, None)
    assert "has no" in (uss.reason or "")


def test_footprint_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda self: SimpleNamespace(uss=77))
    pss, uss = memory.footprint(platform="darwin")
    assert (pss.value, uss.value) == (None, 77)

    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    assert memory.footprint(platform="darwin")[1].value is None


def test_trim_heap_prefers_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(psutil, "heap_trim", lambda: called.append("psutil"), raising=False)
    assert memory.trim_heap()
    assert called == ["psutil"]


def test_trim_heap_through_glibc_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "heap_trim", raising=False)
    called: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=called.append))
    assert memory.trim_heap()
    assert called == [0]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert not memory.trim_heap()
