from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest

import pytest_infer
from processes import wait_for_a_sample, wait_until
from pytest_infer.measure.timeline import helper
from pytest_infer.measure.timeline.recorder import TimelineSampler, timeline_of

MB = 1_000_000
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the timeline reads /proc")


@pytest.fixture
def sampler():
    made = TimelineSampler(usable_cores=4)
    yield made
    made.close()
    made.close()  # again does nothing


def state(pid):
    """Return the letter of a process's state (proc(5)): `S` sleeps, `Z` has ended but nobody has waited for it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def alive(pid):
    """Return whether a process runs: a zombie has ended."""
    try:
        return state(pid) != "Z"
    except OSError:
        return False


@needs_proc
def test_a_spike_is_seen(sampler):
    started = time.perf_counter_ns()
    with sampler.sampling() as window:
        wait_for_a_sample(sampler.helper)
        with mmap.mmap(-1, 500 * MB) as spike:
            for _ in range(500):
                spike.write(b"\1" * MB)
            wait_for_a_sample(sampler.helper)
        wait_for_a_sample(sampler.helper)
    ended = time.perf_counter_ns()
    seen = window.timeline
    assert window.absent is None
    assert seen.absent == {}
    rise = max(seen.rss_bytes) - seen.rss_bytes[0]
    assert 495 * MB < rise < 600 * MB
    assert max(seen.rss_bytes) - seen.rss_bytes[-1] > 495 * MB
    # The helper reads the same clock as the rounds' stamps.
    assert all(a < b for a, b in zip(seen.at_ns, seen.at_ns[1:], strict=False))
    assert started < seen.at_ns[0]
    assert seen.at_ns[-1] < ended


@needs_proc
def test_cores_and_io_count_from_the_first_sample(sampler):
    with sampler.sampling() as window:
        until = time.process_time() + 1
        while time.process_time() < until:
            pass
    seen = window.timeline
    assert len(seen.core_busy_s) == len(seen.at_ns) == len(seen.read_bytes) == len(seen.write_bytes)
    assert {len(row) for row in seen.core_busy_s} == {os.cpu_count()}
    assert set(seen.core_busy_s[0]) == {0.0}
    # Of 1 s of our own, less a tick at either end of each core that it ran on.
    assert sum(seen.core_busy_s[-1]) > 0.8
    assert (seen.read_bytes[0], seen.write_bytes[0]) == (0, 0)
    assert 0 < seen.helper_cpu_s < (seen.at_ns[-1] - seen.at_ns[0]) / 1e9


@needs_proc
def test_one_helper_for_all_rounds_which_sleeps_between_them(sampler):
    with sampler.sampling():
        pass
    first = sampler.helper

    # What it was scheduled, which every wake-up counts (3rd field, sched-stats.rst).
    def wakes():
        return Path(f"/proc/{first}/schedstat").read_text().split()[2]

    wait_until(lambda: state(first) == "S")
    before = wakes()
    time.sleep(0.3)
    assert wakes() == before
    with sampler.sampling() as again:
        pass
    assert sampler.helper == first
    assert again.timeline is not None
    sampler.close()
    assert not alive(first)


@needs_proc
def test_a_round_that_fails_leaves_the_next_one_whole(sampler):
    with pytest.raises(KeyError), sampler.sampling():
        raise KeyError
    with sampler.sampling() as window:
        pass
    assert len(window.timeline.at_ns) >= 2


@needs_proc
def test_a_helper_that_dies_is_a_reason_and_not_an_error(sampler):
    with sampler.sampling() as window:
        os.kill(sampler.helper, signal.SIGKILL)
    assert window.timeline is None
    assert "helper" in window.absent
    with sampler.sampling() as window:
        pass
    assert "helper" in window.absent


PARENT = """
import os, sys, time
from pytest_infer.measure.timeline.recorder import TimelineSampler
sampler = TimelineSampler(usable_cores=4)
manager = sampler.sampling()
manager.__enter__()
if sys.argv[1] == "idle":
    manager.__exit__(None, None, None)
if sys.argv[2] == "forked" and os.fork() == 0:
    os.close(1)
    time.sleep(600)
    os._exit(0)
print(sampler.helper, flush=True)
time.sleep(600)
"""


@needs_proc
@pytest.mark.parametrize("children", ["alone", "forked"])
@pytest.mark.parametrize("state", ["idle", "sampling"])
def test_the_helper_dies_with_its_parent(state, children):
    if children == "forked" and not helper.parent_watch(os.getpid()):
        pytest.skip("this kernel has no pidfd")
    folder = str(Path(pytest_infer.__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, state, children],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": folder},
        start_new_session=True,
    )
    try:
        helper_pid = int(parent.stdout.readline())
        assert alive(helper_pid)
        parent.kill()
        wait_until(lambda: not alive(helper_pid))
    finally:
        # Its forked child too.
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()


@needs_proc
def test_no_counter_is_absent_with_the_reason(proc):
    # Of the helper's three files this /proc has the cores' only.
    sampler = TimelineSampler(usable_cores=1, proc=proc.root)
    with sampler.sampling() as window:
        pass
    sampler.close()
    seen = window.timeline
    assert (seen.rss_bytes, seen.read_bytes, seen.write_bytes) == (None, None, None)
    assert set(seen.absent) == {"rss", "io"}
    assert "No such file" in seen.absent["rss"]
    assert seen.core_busy_s[0] == (0.0,)


def test_elsewhere_there_is_none():
    sampler = TimelineSampler(usable_cores=8, platform="darwin")
    with sampler.sampling() as window:
        pass
    assert window.timeline is None
    assert "Linux" in window.absent
    assert sampler.helper is None


@pytest.mark.parametrize(("cores", "interval"), [(1, 0.05), (2, 0.05), (2.5, 0.01), (64, 0.01)])
def test_few_cores_are_sampled_less_often(cores, interval):
    assert TimelineSampler(usable_cores=cores).interval_s == interval


def test_the_answer_by_columns():
    head = {
        "columns": ["at", "rss", "read", "write", "cpu0", "cpu1"],
        "ticks_per_s": 100,
        "interval_s": 0.01,
        "cpu_s": 0.002,
        "absent": {},
    }
    seen = timeline_of(head, array("q", [5, 100, 7, 8, 1000, 2000, 15, 300, 17, 8, 1001, 2000]))
    assert (seen.at_ns, seen.rss_bytes) == ((5, 15), (100, 300))
    assert (seen.read_bytes, seen.write_bytes) == ((0, 10), (0, 0))
    assert seen.core_busy_s == ((0.0, 0.0), (0.01, 0.0))


def test_thinning_keeps_the_peak_and_the_later_counts():
    rows = array("q", [1, 50, 10, 2, 40, 20, 3, 30, 30, 4, 90, 40])
    assert list(helper.thinned(rows, 3, 1)) == [2, 50, 20, 4, 90, 40]
    assert list(helper.thinned(rows, 3, None)) == [2, 40, 20, 4, 90, 40]


def test_a_long_round_is_merged_and_not_cut(monkeypatch):
    class Counting:
        name, columns = "rss", ("rss",)
        now = 0

        def read(self):
            self.now += 1
            return [10**6 if self.now == 3 else self.now]

    monkeypatch.setattr(helper, "MOST", 8)
    recording = helper.Recording([Counting()], {}, 0.01)
    for _ in range(21):
        recording.sample()
    head, _, data = recording.answer().partition(b"\n")
    told = json.loads(head)
    rows = array("q", data)
    assert told["samples"] == len(rows) // 2 < 8
    assert told["interval_s"] == 0.16  # merged after samples 8, 12, 16 and 20
    assert max(rows[1::2]) == 10**6
    assert rows[-1] == 21


def test_a_child_that_may_not_be_read_costs_its_own_figures_alone():
    """The helper ended, and with it the memory and the cores of the round."""

    class Memory:
        name, columns = "rss", ("rss",)

        def read(self):
            return [7]

    class Io:
        name, columns = "io", ("read", "write")
        asked = 0

        def read(self):
            self.asked += 1
            if self.asked == 2:
                raise PermissionError(errno.EACCES, "Permission denied", "/proc/12/io")
            return [1, 2]

    recording = helper.Recording([Io(), Memory()], {}, 0.01)
    for _ in range(3):
        recording.sample()
    head, _, data = recording.answer().partition(b"\n")
    seen = timeline_of(json.loads(head), array("q", data))
    assert seen.rss_bytes == (7, 7, 7)
    assert (seen.read_bytes, seen.write_bytes) == (None, None)
    assert seen.absent == {"io": "/proc/12/io: Permission denied"}
