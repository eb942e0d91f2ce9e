"""Events of the processor: threads that start later, other users of its counters, and every reason for none."""

import errno
import mmap
import os
import struct
import threading

import pytest

from pytest_infer.measure.counters import perf
from pytest_infer.measure.counters.perf import PerfCounters
from pytest_infer.records import Quality

FAULTS = {"faults": (1, 2)}  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS: there without counters in the processor
PAGES = 1000


def touch():
    with mmap.mmap(-1, PAGES * mmap.PAGESIZE) as memory:
        for page in range(PAGES):
            memory[page * mmap.PAGESIZE] = 1


@pytest.fixture
def faults():
    counters = PerfCounters(FAULTS)
    if counters._unavailable:
        pytest.skip(counters._unavailable["faults"].reason)
    yield counters
    counters.close()


def counted(counters, call):
    before = counters.read()
    call()
    return counters.readings(before, counters.read())["faults"]


def test_a_thread_that_starts_later_is_counted(faults):
    def in_a_thread():
        thread = threading.Thread(target=touch)
        thread.start()
        thread.join()

    found = counted(faults, in_a_thread)
    assert found.quality is Quality.EXACT
    assert PAGES <= found.value < 1.5 * PAGES


def test_a_thread_that_was_there_is_counted():
    go, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (go.wait(), touch(), done.set()))
    thread.start()
    counters = PerfCounters(FAULTS)
    found = counted(counters, lambda: (go.set(), done.wait(), thread.join()))
    counters.close()
    if found.value is None:
        pytest.skip(str(found.reason))
    assert found.value >= PAGES


def test_a_child_process_is_not_counted(faults):
    def in_a_child():
        if not (child := os.fork()):
            touch()
            os._exit(0)
        os.waitpid(child, 0)

    assert counted(faults, in_a_child).value < PAGES / 2


class Device:
    """Stands for the kernel: each event is a pipe, filled with what it shall say."""

    def __init__(self, *samples, error=None):
        self._samples, self._error = samples, error

    def __call__(self, event, thread):
        if self._error is not None:
            raise OSError(self._error, os.strerror(self._error))
        ours, theirs = os.pipe()
        for sample in self._samples:
            os.write(theirs, struct.pack("=QQQ", *sample))
        os.close(theirs)
        return ours


def between(counters):
    found = counters.readings(counters.read(), counters.read())
    counters.close()
    return found["instructions"]


def test_what_is_counted_all_the_time_is_exact():
    found = between(PerfCounters(threads=[1], opener=Device((100, 50, 50), (350, 80, 80))))
    assert (found.value, found.quality, found.source) == (250, Quality.EXACT, perf.SOURCE)


def test_what_is_counted_in_turns_is_scaled_and_says_so():
    found = between(PerfCounters(threads=[1], opener=Device((0, 0, 0), (300, 100, 75))))
    assert (found.value, found.quality) == (400, Quality.ESTIMATED)
    assert "75 %" in found.source


def test_what_is_never_counted_is_absent():
    found = between(PerfCounters(threads=[1], opener=Device((0, 0, 0), (0, 100, 0))))
    assert found.value is None
    assert "others used" in found.reason


def test_an_event_that_stops_answering_is_absent():
    found = between(PerfCounters(threads=[1], opener=Device((1, 1, 1))))
    assert found.value is None
    assert perf.SOURCE in found.reason


@pytest.mark.parametrize(
    ("error", "flags", "said"),
    [
        (errno.ENOENT, "fpu hypervisor", "virtual machine"),
        (errno.ENOENT, "fpu", "this processor"),
        (errno.EOPNOTSUPP, "fpu", "this processor"),
        (errno.EACCES, "fpu", "kernel.perf_event_paranoid is 4 and must be 2 or less"),
        (errno.EPERM, "fpu", "a container must allow perf_event_open"),
        (errno.ENOSYS, "fpu", "no perf_event_open"),
        (errno.EMFILE, "fpu", "Too many open files"),
    ],
)
def test_the_reason_for_none(tmp_path, proc, error, flags, said):
    proc.write("cpuinfo", f"flags : {flags}\n")
    (proc.root / "sys/kernel").mkdir(parents=True)
    proc.write("sys/kernel/perf_event_paranoid", "4\n")
    found = between(PerfCounters(threads=[1], opener=Device(error=error), proc=proc.root))
    assert found.value is None
    assert said in found.reason


def test_after_close_nothing_is_counted():
    counters = PerfCounters(FAULTS)
    counters.close()
    assert counters.readings(counters.read(), counters.read())["faults"].value is None


def test_many_threads_leave_half_of_the_descriptors_to_others(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_OPEN_MAX": 64}.__getitem__)
    opened = []

    def opener(event, thread):
        opened.append(thread)
        return os.open(os.devnull, os.O_RDONLY)

    few = PerfCounters(opener=opener, threads=range(8))
    assert len(opened) == 4 * 8
    few.close()
    opened.clear()
    many = PerfCounters(opener=opener, threads=range(15))
    assert opened == [0] * 4
    found = many.readings({}, {})
    assert set(found) == set(perf.HARDWARE)
    (reason,) = {reading.reason for reading in found.values()}
    assert reason == "15 threads take 60 file descriptors, and at most 32 are used: ulimit -n"


def test_many_threads_without_counters_are_told_so(monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_OPEN_MAX": 64}.__getitem__)

    def opener(event, thread):
        raise OSError(errno.EACCES, "denied")

    found = PerfCounters(opener=opener, threads=range(15)).readings({}, {})
    assert all(reading.reason.startswith("not permitted") for reading in found.values())
