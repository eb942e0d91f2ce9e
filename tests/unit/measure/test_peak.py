from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from processes import runs, wait_until
from pytest_infer.measure.counters import peak, peak_helper
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.records import Quality

MEMORY = {"rss": 10.0, "peak": 50.0}


class Scripted:
    """A source that gives the values it was made with, in order."""

    source = "scripted"
    quality = Quality.EXACT

    def __init__(self, values: Iterable[float | Unavailable]) -> None:
        self._values = iter(values)
        self.closed = False

    def take(self) -> float | Unavailable:
        return next(self._values)

    def close(self) -> None:
        self.closed = True


def test_a_window_has_what_was_taken_at_its_end() -> None:
    source = Scripted([100, 7, 9, 8])
    meter = peak.Peak(source)
    first = meter.begin()
    assert meter.end(first, MEMORY, MEMORY).value == 7
    second = meter.begin()
    assert meter.end(second, MEMORY, MEMORY).value == 8
    meter.close()
    assert source.closed


def test_an_outer_window_has_the_peaks_of_those_inside() -> None:
    meter = peak.Peak(Scripted([1, 30, 20, 10, 5]))
    outer = meter.begin()
    inner = meter.begin()  # takes 30, which was reached in the outer window only
    assert meter.end(inner, MEMORY, MEMORY).value == 20
    assert meter.end(outer, MEMORY, MEMORY).value == 30


def test_a_window_that_never_ends_is_forgotten() -> None:
    meter = peak.Peak(Scripted([1, 2, 3]))
    meter.begin()
    window = meter.begin()
    assert len(meter._open) == 1
    assert meter.end(window, MEMORY, MEMORY).value == 3


@pytest.mark.parametrize("values", [[Unavailable("refused"), 5.0], [1.0, Unavailable("refused")]])
def test_a_source_that_fails_leaves_the_unreset_peak(values: list[float | Unavailable]) -> None:
    meter = peak.Peak(Scripted(values), "no clear_refs")
    reading = meter.end(meter.begin(), MEMORY, {"rss": 10.0, "peak": 60.0})
    assert (reading.value, reading.quality) == (60, Quality.EXACT)
    assert "rose" in reading.source


def test_an_unreset_peak_that_did_not_rise_is_absent() -> None:
    reading = peak.Peak(Scripted([Unavailable("refused")] * 2), "no clear_refs")
    window = reading.begin()
    figure = reading.end(window, MEMORY, MEMORY)
    assert figure.value is None
    assert figure.reason == "no clear_refs; refused; the peak since the start did not rise"
    assert peak.unreset_peak(MEMORY, Unavailable("gone"), "x").value is None
    assert peak.unreset_peak({"rss": 1.0}, MEMORY, "x").reason == "x; the system tells no peak since the start"


def test_a_mark_that_does_not_fall_is_not_used(proc) -> None:
    proc.write("self/clear_refs", "")
    kernel = peak.KernelPeak(proc.root)
    assert "does not reset" in (kernel.problem() or "")
    proc.write("self/status", "Name: x\n")
    assert "no VmHWM" in (kernel.problem() or "")
    kernel.close()
    meter = peak.choose(proc.root, linux=True, usable_cores=2)
    assert isinstance(meter._source, peak.HelperPeak)
    assert meter._source.source.endswith("every 50 ms")
    meter.close()


def test_a_reset_that_the_kernel_refuses_is_missing(proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.write("self/clear_refs", "")
    kernel = peak.KernelPeak(proc.root)

    def refuse(fd: int, data: bytes) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "write", refuse)
    assert kernel.take() == Unavailable(f"permission denied: {proc.root}/self/clear_refs")
    kernel.close()


def test_without_a_mark_the_helper_is_chosen_but_not_started(proc) -> None:
    for meter in (
        peak.choose(proc.root, linux=True, usable_cores=8),
        peak.choose(proc.root, linux=False, usable_cores=8),
    ):
        assert isinstance(meter._source, peak.HelperPeak)
        assert meter._source._process is None
        assert meter._source.source.endswith("every 10 ms")
        meter.close()


def test_the_helpers_maximum_between_marks() -> None:
    sizes = iter([5, 9, 7, 8, 3])
    requests = iter([None, None, peak_helper.MARK, peak_helper.MARK, b""])
    answers: list[bytes] = []
    peak_helper.watch(lambda: next(sizes), lambda: next(requests), answers.append)
    assert answers == [b"9\n", b"8\n"]


def test_requests_come_through_the_pipe_and_end_with_it() -> None:
    reading, writing = os.pipe()
    wait = peak_helper.requests(reading, 0.01)
    assert wait() is None
    os.write(writing, peak_helper.MARK)
    os.close(writing)
    asked = [request for request in (wait(), wait(), wait()) if request is not None]
    assert asked[0] == peak_helper.MARK
    assert wait() in {b"", None}
    os.close(reading)


def test_psutil_tells_the_helper_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=12))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert peak_helper.psutil_reader(os.getpid(), "/folder")() == 12
    assert sys.path[-1] == "/folder"


def test_a_helper_that_cannot_start_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    helper = peak.HelperPeak(0.01, linux=True)
    taken = helper.take()
    assert isinstance(taken, Unavailable)
    assert "No such file" in taken.reason
    assert helper.take() == taken
    helper.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_helper_that_was_killed_has_the_reason() -> None:
    helper = peak.HelperPeak(0.01, linux=True)
    assert not isinstance(helper.take(), Unavailable)
    process = helper._process
    assert process is not None
    process.kill()
    process.wait()
    assert isinstance(helper.take(), Unavailable)
    helper.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_helper_asks_psutil_elsewhere() -> None:
    helper = peak.HelperPeak(0.01, linux=False)
    taken = helper.take()
    assert not isinstance(taken, Unavailable)
    assert taken > 2**20
    helper.close()


PARENT = """
import sys, time
from pytest_infer.measure.counters.peak import HelperPeak
helper = HelperPeak(0.01, linux=True)
helper.take()
print(helper._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_helper_dies_with_its_parent() -> None:
    package = Path(peak.__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package)},
    )
    stdout = parent.stdout
    assert isinstance(stdout, io.TextIOBase)
    child = psutil.Process(int(stdout.readline()))
    parent.kill()
    parent.wait()
    stdout.close()
    wait_until(lambda: not runs(child))
