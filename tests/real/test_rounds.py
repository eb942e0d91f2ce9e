"""Known loads inside a timed round show in its counters."""

import os
import statistics
import time

import pytest

from asked import asked
from pytest_infer.engines.base import Engine
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.rounds import timed_round
from pytest_infer.records import Limits

pytestmark = pytest.mark.real

MB = 10**6


class Loaded(Engine):
    """Does some work between its only two ticks."""

    def __init__(self, work):
        self.work = work

    def load(self):
        raise NotImplementedError

    def encode(self, prompt):
        raise NotImplementedError

    def decode(self, token_ids):
        raise NotImplementedError

    def generate(self, prompt_ids, limits, clock):
        clock.tick([1])
        self.work()
        clock.tick([2])


@pytest.fixture
def system():
    counters = SystemCounters()
    yield counters
    counters.close()


def run(work, system):
    return timed_round(Loaded(work), asked([1, 2, 3]), Limits(max_new_tokens=2), system).counters


def test_a_brief_allocation_shows_in_the_peak(system):
    def spike():
        block = bytearray(300 * MB)
        # Zeroed memory is mapped on demand: touch every page.
        for place in range(0, len(block), 4096):
            block[place] = 1
        time.sleep(0.02)
        del block

    counters = run(spike, system)
    growth = counters.peak_rss_bytes.value - counters.rss_before_bytes.value
    assert growth == pytest.approx(300 * MB, rel=0.02)
    assert counters.rss_bytes.value < counters.rss_before_bytes.value + 150 * MB


def test_a_read_of_an_uncached_file_shows_in_disk_bytes(system, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(os.urandom(64 * MB))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read():
        while os.read(descriptor, MB):
            pass

    counters = run(read, system)
    os.close(descriptor)
    assert counters.read_chars.value >= 64 * MB
    if counters.read_bytes.value == 0:
        pytest.skip("this filesystem keeps no file that could be dropped from the page cache")
    assert counters.read_bytes.value == pytest.approx(64 * MB, rel=0.02)


def test_a_busy_loop_shows_in_cpu_time(system):
    def burn():
        until = time.process_time() + 0.5
        while time.process_time() < until:
            pass

    # The best of three: another thread's work in the round would count as well, and rightly.
    measured = min(run(burn, system).cpu_s.value for _ in range(3))
    assert measured == pytest.approx(0.5, rel=0.02)


def test_a_sleep_uses_no_cpu(system):
    measured = statistics.median(run(lambda: time.sleep(0.2), system).cpu_s.value for _ in range(3))
    assert measured < 0.05
