from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from pathlib import Path
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
    kinds = {"anon": 100 * MIB, "swap": MIB, "file": 100 * MIB, "shmem": 50 * MIB}
    assert sample == {"rss": 200 * MIB, "peak": 300 * MIB, **kinds}


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


def test_what_of_the_resident_size_is_shared_memory(proc) -> None:
    assert memory.parse_status((proc.root / "self/status").read_bytes())["shmem"] == 50 * MIB
    assert "shmem" not in memory.parse_status(b"VmRSS:\t 10 kB\n")
    instrument = memory.ResidentMemory(proc.root)
    before = instrument.read()
    status = (proc.root / "self/status").read_text()
    proc.write("self/status", status.replace("102400", "204800"))
    readings = instrument.readings(before, instrument.read())
    assert (readings["rss_anon_before_bytes"].value, readings["rss_anon_bytes"].value) == (100 * MIB, 200 * MIB)
    assert (readings["rss_file_bytes"].value, readings["rss_shmem_bytes"].value) == (100 * MIB, 50 * MIB)
    instrument.close()


SMAPS = """\
7f00-7f10 r--p 00000000 103:01 12 {path}
Size:               4096 kB
Rss:                3000 kB
Pss:                1500 kB
Anonymous:           100 kB
VmFlags: rd mr mw me
7f10-7f20 rw-p 00000000 103:01 12 {path}
Rss:                 500 kB
Anonymous:           500 kB
7f20-7f30 r--p 00000000 103:01 13 /usr/lib/libtorch.so
Rss:                9000 kB
Anonymous:             0 kB
7f30-7f40 rw-p 00000000 00:00 0
Rss:                7000 kB
Anonymous:          7000 kB
7f40-7f50 rw-p 00000000 00:00 0                          [heap]
Rss:                 700 kB
Anonymous:           700 kB
"""


def test_resident_pages_of_mapped_files(proc, tmp_path) -> None:
    weights = tmp_path / "model of mine.safetensors"
    proc.write("self/smaps", SMAPS.format(path=weights))
    link = tmp_path / "link"
    link.symlink_to(weights)
    assert memory.mapped([link], proc.root).value == 2900 * 1024
    assert memory.mapped([tmp_path / "other"], proc.root).value == 0
    for reading in (memory.mapped([], proc.root), memory.mapped([link], proc.root, "darwin")):
        assert (reading.value, bool(reading.reason)) == (None, True)
    proc.remove("self/smaps")
    assert "has no" in (memory.mapped([link], proc.root).reason or "")


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's kernel")
def test_what_this_process_has_mapped(tmp_path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 4 * MIB)
    assert memory.mapped([path]).value == 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert len(mapped[:]) == 4 * MIB
        assert memory.mapped([path]).value == 4 * MIB
        mapped[:MIB] = b"y" * MIB  # copies, which are anonymous, and may be made of whole huge pages
        left = memory.mapped([path]).value
        assert left is not None
        assert 0 < left <= 3 * MIB


SHARED = Path("/dev/shm")  # noqa: S108 - the one that Linux has


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared memory here")
def test_a_file_in_shared_memory_is_not_what_the_kernel_can_drop() -> None:
    instrument = memory.ResidentMemory()
    before = instrument.read()
    with tempfile.TemporaryFile(dir=SHARED) as file:
        file.truncate(8 * MIB)
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[:] = b"x" * 8 * MIB
            after = instrument.read()
    instrument.close()
    assert not isinstance(before, Unavailable)
    assert not isinstance(after, Unavailable)
    assert after["shmem"] - before["shmem"] == pytest.approx(8 * MIB, rel=0.1)
    assert after["file"] - after["shmem"] - (before["file"] - before["shmem"]) < MIB


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
