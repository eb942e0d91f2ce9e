"""macOS and Windows through fakes of what psutil tells there."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import psutil
import pytest

from pytest_infer.measure.counters import cpu, peak, portable
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.records import Counters


class NoHelper:
    """Stands for a helper process that does not start."""

    source = "none"

    def __init__(self, interval_s: float, *, linux: bool) -> None:
        assert not linux

    def take(self) -> Unavailable:
        return Unavailable("no helper in this test")

    def close(self) -> None:
        pass


def in_turn(*values: object) -> object:
    iterator = iter(values)
    return lambda self=None: next(iterator)


@pytest.fixture
def fake_psutil(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(peak, "HelperPeak", NoHelper)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000, available=250))
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=5.0, system=1.0, idle=100.0))
    return monkeypatch


def measure(platform: str) -> Counters:
    system = SystemCounters(platform=platform)
    counters = system.end(system.begin())
    system.close()
    return counters


def test_windows(fake_psutil: pytest.MonkeyPatch) -> None:
    fake_psutil.setattr(cpu, "resource", None)
    memory = [SimpleNamespace(rss=10, peak_wset=50), SimpleNamespace(rss=20, peak_wset=60)]
    fake_psutil.setattr(psutil.Process, "memory_info", in_turn(*memory))
    io = [
        SimpleNamespace(read_bytes=1, write_bytes=2, read_count=3, write_count=4),
        SimpleNamespace(read_bytes=11, write_bytes=22, read_count=4, write_count=6),
    ]
    fake_psutil.setattr(psutil.Process, "io_counters", in_turn(*io))
    counters = measure("win32")
    assert (counters.rss_before_bytes.value, counters.rss_bytes.value) == (10, 20)
    assert counters.peak_rss_bytes.value == 60
    assert (counters.read_chars.value, counters.write_chars.value) == (10, 20)
    assert (counters.read_calls.value, counters.write_calls.value) == (1, 2)
    assert counters.read_bytes.value is None
    assert "reached the disk" in (counters.read_bytes.reason or "")
    assert "children" in (counters.cpu_children_s.reason or "")
    assert "voluntary" in (counters.involuntary_switches.reason or "")
    assert counters.system_memory_percent.value == 75
    assert counters.memory_limit_bytes.value == 1000
    assert counters.cpu_s.value is not None
    assert counters.cpu_user_s.value is not None
    assert counters.other_cpu_s.value == 0


def test_macos(fake_psutil: pytest.MonkeyPatch) -> None:
    fake_psutil.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=10))
    fake_psutil.setattr(portable, "peak_rss_bytes", lambda: 80)
    fake_psutil.delattr(psutil.Process, "io_counters", raising=False)
    counters = measure("darwin")
    assert counters.rss_bytes.value == 10
    assert counters.peak_rss_bytes.value is None
    assert "did not rise" in (counters.peak_rss_bytes.reason or "")
    assert counters.minor_faults.value is not None
    assert counters.involuntary_switches.value is not None
    assert "no account" in (counters.read_chars.reason or "")
    assert "nominal" in (counters.frequency_hz.reason or "")


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_every_absent_figure_has_a_reason(fake_psutil: pytest.MonkeyPatch, platform: str) -> None:
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied(1)

    def broken() -> None:
        raise OSError(5, "Input/output error")

    fake_psutil.setattr(psutil.Process, "memory_info", denied)
    fake_psutil.setattr(psutil.Process, "io_counters", denied, raising=False)
    system = SystemCounters(platform=platform)
    before = system.begin()
    fake_psutil.setattr(psutil, "virtual_memory", broken)
    fake_psutil.setattr(psutil, "cpu_times", broken)
    counters = system.end(before)
    system.close()
    readings = {field.name: getattr(counters, field.name) for field in fields(counters) if field.name != "wall_s"}
    assert {name for name, reading in readings.items() if reading.value is None and not reading.reason} == set()
    assert "psutil" in (counters.rss_bytes.reason or "")
    assert "psutil" in (counters.other_cpu_s.reason or "")
    assert counters.system_memory_percent.value is None
