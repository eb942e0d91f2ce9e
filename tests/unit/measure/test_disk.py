from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_infer.measure.counters import cgroup, disk


def test_physical_bytes_chars_and_calls(proc) -> None:
    instrument = disk.ProcessIo(proc.root)
    before = instrument.read()
    own = len((proc.root / "self/io").read_text())
    proc.write(
        "self/io",
        f"rchar: {6976 + own + 100}\nwchar: 25\nsyscr: 13\nsyscw: 3\nread_bytes: 8192\nwrite_bytes: 8192\n",
    )
    readings = instrument.readings(before, instrument.read())
    assert {name: reading.value for name, reading in readings.items()} == {
        "read_bytes": 4096,
        "write_bytes": 0,
        "read_chars": 100,  # without the instrument's own read
        "write_chars": 5,
        "read_calls": 2,
        "write_calls": 1,
    }
    instrument.close()


def test_denied_io_has_the_reason(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def denied(path: Path, *args: int, **kwargs: int) -> int:
        if Path(path).name == "io":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", denied)
    instrument = disk.ProcessIo(proc.root)
    readings = instrument.readings(instrument.read(), instrument.read())
    assert {reading.value for reading in readings.values()} == {None}
    assert readings["read_bytes"].reason == f"permission denied: {proc.root}/self/io"


def test_device_operations_are_those_of_the_whole_group(proc, groups) -> None:
    top = groups.mount("cgroup2", "", "/a")
    (top / "a").mkdir()
    stat = top / "a/io.stat"
    stat.write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:0 rbytes=1 rios=10 wios=1\n254:0\n")
    instrument = disk.GroupIo(cgroup.discover(proc.root))
    before = instrument.read()
    stat.write_text("8:0 rbytes=1 wbytes=2 rios=5 wios=4 dbytes=0 dios=0\n253:0 rbytes=1 rios=10 wios=2\n")
    readings = instrument.readings(before, instrument.read())
    assert (readings["read_ops"].value, readings["write_ops"].value) == (2, 1)
    assert "whole cgroup" in readings["read_ops"].source
    instrument.close()


def test_no_group_has_the_reason() -> None:
    instrument = disk.GroupIo(cgroup.ControlGroups())
    reading = instrument.readings(instrument.read(), instrument.read())["read_ops"]
    assert reading.value is None
    assert reading.reason == "the kernel counts device operations per control group only; no cgroup v2"
    instrument.close()
