from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable
from pytest_infer.measure.counters.snapshot import (
    Instrument,
    SystemCounters,
    linux_instruments,
    portable_instruments,
)
from pytest_infer.records import Counters, Observed, Reading
from pytest_infer.records.reading import NOT_READ

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fakes of /proc are read with Linux calls")


def readings(counters: Counters) -> dict[str, Reading]:
    return {field.name: getattr(counters, field.name) for field in fields(counters) if field.name != "wall_s"}


def test_every_figure_is_told_or_has_a_reason(proc) -> None:
    system = SystemCounters(platform="linux", proc=proc.root)
    counters = system.end(system.begin())
    system.close()
    for name, reading in readings(counters).items():
        assert (reading.value is None) == (reading.reason is not None), name
    assert counters.wall_s > 0


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_every_system_reads_every_counter_or_says_why_not(platform: str) -> None:
    system = SystemCounters(platform=platform)
    read = readings(system.end(system.begin()))
    system.close()
    # What no instrument fills has the reason of files that an older version wrote, and none of this one may.
    assert [name for name, reading in read.items() if reading == NOT_READ] == []


def test_with_nothing_in_proc_the_window_is_still_measured(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    system = SystemCounters(platform="linux", proc=tmp_path)
    counters = system.end(system.begin())
    system.close()
    told = {name for name, reading in readings(counters).items() if reading.value is not None}
    assert told == {
        "cpu_s",
        "cpu_user_s",
        "cpu_system_s",
        "cpu_children_s",
        "minor_faults",
        "major_faults",
        "voluntary_switches",
        "involuntary_switches",
        "peak_rss_bytes",  # sampled: the helper watches the real /proc
    }
    assert {
        name for name, reading in readings(counters).items() if reading.value is None and not reading.reason
    } == set()


def test_the_instruments_nearest_the_window_are_read_nearest(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    system = SystemCounters(platform="linux", proc=proc.root)
    order: list[str] = []

    class Noting:
        def __init__(self, inner: Instrument) -> None:
            self._inner = inner

        def read(self) -> Sample | Unavailable:
            order.append(type(self._inner).__name__)
            return self._inner.read()

        def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
            return self._inner.readings(before, after)

        def close(self) -> None:
            self._inner.close()

    system._instruments = tuple(Noting(instrument) for instrument in system._instruments)
    system.end(system.begin())
    system.close()
    half = len(order) // 2
    assert order[half - 2 : half + 2] == ["ProcessIo", "CpuTime", "CpuTime", "ProcessIo"]
    assert order == order[::-1]


def test_the_files_are_opened_anew_after_a_fork(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    system = SystemCounters(platform="linux", proc=proc.root)
    instruments = system._instruments
    system.begin()
    assert system._instruments is instruments
    monkeypatch.setattr(os, "getpid", lambda: 1)
    system.begin()
    assert system._instruments is not instruments
    monkeypatch.undo()
    system.close()


@pytest.mark.parametrize("shown", [True, False])
def test_limits_and_pressure_are_of_whoever_is_observed(proc, groups, shown: bool) -> None:
    top = groups.mount("cgroup2", "", "/ours")
    groups.limit(top / "ours", memory_max="1024\n", cpu_pressure="some total=5\n", io_stat="8:0 rios=1 wios=1\n")
    groups.limit(top / "theirs", memory_max="4096\n", io_stat="8:0 rios=9 wios=9\n")
    groups.join(7, "/theirs" if shown else "/../theirs")
    counters = SystemCounters(observed=Observed(pids=(7,)), proc=proc.root)
    before = counters.begin()
    (top / "theirs/io.stat").write_text("8:0 rios=11 wios=12\n")
    found = counters.end(before)
    counters.close()
    assert found.pressure_cpu_s.source == "/proc/pressure/cpu some"
    if shown:
        assert (found.memory_limit_bytes.value, found.read_ops.value, found.write_ops.value) == (4096, 2, 3)
    else:
        why = "the control group of process 7 is not shown to this one"
        assert (found.memory_limit_bytes.value, found.memory_limit_bytes.reason) == (None, why)
        assert found.read_ops.reason.endswith(why)


def test_no_file_stays_open(proc) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    system = SystemCounters(platform="linux", proc=proc.root)
    system.end(system.begin())
    system.close()
    system.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_figure_comes_from_two_instruments(proc) -> None:
    for instruments in (linux_instruments(proc.root, cgroup.ControlGroups()), portable_instruments()):
        names = [name for i in instruments for name in i.readings(i.read(), i.read())]
        assert len(names) == len(set(names))
        assert set(names) <= {field.name for field in fields(Counters)}
        for instrument in instruments:
            instrument.close()
