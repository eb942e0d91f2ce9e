"""The kernel's own counters, against known work; never against a known speed."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import wait_for_a_sample
from pytest_infer.measure import disturbance
from pytest_infer.measure.counters import cpu
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.records import Counters, Quality, Reading

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own counters"),
]
MB = 1_000_000
SPIKE = 500 * MB
FILE = 64 * 2**20


@pytest.fixture
def system() -> Iterator[SystemCounters]:
    counters = SystemCounters()
    yield counters
    counters.close()


@pytest.fixture
def unresettable(tmp_path: Path) -> Iterator[SystemCounters]:
    """Counters of this process, seen through a /proc without clear_refs."""
    mine = tmp_path / "self"
    mine.mkdir()
    for name in ("status", "io", "schedstat", "task", "cgroup", "mountinfo"):
        (mine / name).symlink_to(f"/proc/self/{name}")
    counters = SystemCounters(proc=tmp_path)
    yield counters
    counters.close()


def told(reading: Reading) -> float:
    assert reading.value is not None, reading.reason
    return reading.value


def growth(counters: Counters) -> float:
    return told(counters.peak_rss_bytes) - told(counters.rss_before_bytes)


def spike(size: int, held: Callable[[], object] = lambda: None) -> None:
    """Touch so many bytes, call what is to see them, and give them back to the system."""
    with mmap.mmap(-1, size) as memory:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset] = 1
        held()


def exact_peak(counters: Counters) -> None:
    if counters.peak_rss_bytes.quality is not Quality.EXACT:
        pytest.skip(f"no exact peak here: {counters.peak_rss_bytes.source}")


def test_a_spike_of_20_ms_is_seen_whole(system: SystemCounters) -> None:
    before = system.begin()
    spike(SPIKE, lambda: time.sleep(0.02))
    counters = system.end(before)
    exact_peak(counters)
    assert growth(counters) == pytest.approx(SPIKE, rel=0.02)
    assert told(counters.rss_bytes) < told(counters.peak_rss_bytes) - SPIKE / 2


def test_the_next_window_does_not_see_the_spike(system: SystemCounters) -> None:
    before = system.begin()
    spike(SPIKE)
    exact_peak(system.end(before))
    counters = system.end(system.begin())
    assert growth(counters) < 0.02 * SPIKE


def test_a_window_sees_the_spikes_before_and_in_a_window_within_it(system: SystemCounters) -> None:
    outer = system.begin()
    spike(SPIKE)
    inner = system.begin()
    spike(SPIKE // 3)
    inside, outside = system.end(inner), system.end(outer)
    exact_peak(outside)
    assert growth(inside) == pytest.approx(SPIKE // 3, rel=0.05)
    assert growth(outside) == pytest.approx(SPIKE, rel=0.02)


def test_without_a_reset_the_helper_samples_the_peak(unresettable: SystemCounters) -> None:
    spike(2 * SPIKE)  # the unreset mark is higher than what follows: it could not tell
    before = unresettable.begin()
    helper = unresettable._peak._source._process.pid
    spike(SPIKE, lambda: wait_for_a_sample(helper))
    counters = unresettable.end(before)
    assert counters.peak_rss_bytes.quality is Quality.SAMPLED
    assert "helper process every" in counters.peak_rss_bytes.source
    assert growth(counters) == pytest.approx(SPIKE, rel=0.02)
    assert growth(unresettable.end(unresettable.begin())) < 0.02 * SPIKE


def test_resident_memory_is_the_sum_of_its_kinds(system: SystemCounters) -> None:
    counters = system.end(system.begin())
    parts = told(counters.rss_anon_bytes) + told(counters.rss_file_bytes)
    assert parts == pytest.approx(told(counters.rss_bytes), rel=0.02)
    assert told(counters.rss_bytes) < told(counters.memory_limit_bytes)
    assert 0 < told(counters.system_memory_percent) < 100


def resident_pages(path: Path) -> int:
    """Return how many pages of a file are in the page cache (mincore(2))."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), flags)
        del start  # or the mapping cannot be closed
        assert failed == 0, os.strerror(ctypes.get_errno())
        return sum(flag & 1 for flag in flags)


@pytest.fixture
def cold_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(FILE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_pages(path) > 0:
        pytest.skip(f"the file system of {tmp_path} keeps the file in memory (tmpfs?)")
    return path


def read_whole(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(2**20):
            pass


def touch_mapped(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for offset in range(0, len(mapped), mmap.PAGESIZE):
            mapped[offset]


@pytest.mark.parametrize(("read", "chars"), [(read_whole, FILE), (touch_mapped, 0)])
def test_a_cold_file_is_read_from_the_device(
    system: SystemCounters, cold_file: Path, read: Callable[[Path], None], chars: int
) -> None:
    before = system.begin()
    read(cold_file)
    cold = system.end(before)
    if cold.read_bytes.value is None:
        pytest.skip(f"no I/O accounting here: {cold.read_bytes.reason}")
    before = system.begin()
    read(cold_file)
    warm = system.end(before)
    assert told(cold.read_bytes) == pytest.approx(FILE, rel=0.02)
    assert told(cold.read_chars) == pytest.approx(chars, abs=4096)
    assert told(warm.read_bytes) == 0


def test_the_instruments_own_reads_are_not_counted(system: SystemCounters) -> None:
    counters = system.end(system.begin())
    if counters.read_chars.value is None:
        pytest.skip(f"no I/O accounting here: {counters.read_chars.reason}")
    assert (counters.read_chars.value, counters.read_calls.value) == (0, 0)


def burn(seconds: float) -> float:
    """Use this much CPU time of this thread, mostly without the GIL; returns what it was by the thread's own clock."""
    start = time.thread_time_ns()
    while time.thread_time_ns() - start < seconds * 1e9:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2000)
    return (time.thread_time_ns() - start) / 1e9


def test_cpu_time_is_that_of_the_thread_that_worked(system: SystemCounters) -> None:
    before = system.begin()
    used = burn(0.4)
    counters = system.end(before)
    assert told(counters.cpu_s) == pytest.approx(used, rel=0.02)
    split = told(counters.cpu_user_s) + told(counters.cpu_system_s)
    assert split == pytest.approx(used, rel=0.1)


def in_threads(system: SystemCounters, work: Callable[[], float], number: int) -> tuple[Counters, float]:
    """Run the work in so many threads that begin it together and live until the window has ended; returns what they
    used together."""
    used: list[float] = []
    begun, done, measured = threading.Barrier(number), threading.Barrier(number + 1), threading.Event()

    def run() -> None:
        begun.wait()
        used.append(work())
        done.wait()
        measured.wait()

    threads = [threading.Thread(target=run) for _ in range(number)]
    before = system.begin()
    for thread in threads:
        thread.start()
    done.wait()
    counters = system.end(before)
    measured.set()
    for thread in threads:
        thread.join()
    return counters, sum(used)


def test_cpu_time_counts_all_threads(system: SystemCounters) -> None:
    usable, shares = cpu.cores().usable, []
    for _ in range(3):
        counters, used = in_threads(system, lambda: burn(0.4), 2)
        assert told(counters.cpu_s) == pytest.approx(used, rel=0.02)
        if not disturbance.reasons(counters, usable) and told(counters.other_cpu_s) <= 0.1 * counters.wall_s:
            shares.append(told(counters.cpu_s) / counters.wall_s)
    if usable < 2 or not shares:
        pytest.skip("the machine is not quiet: two threads need not run side by side")
    # One that is stopped for a while is disturbed as well, and no counter tells.
    assert max(shares) > 1.5


def test_threads_that_share_a_core_wait_for_it(system: SystemCounters) -> None:
    core = min(os.sched_getaffinity(0))

    def pinned() -> float:
        os.sched_setaffinity(0, {core})  # of this thread only
        return burn(0.4)

    counters, used = in_threads(system, pinned, 2)
    if counters.run_queue_wait_s.value is None:
        pytest.skip(f"no wait is told here: {counters.run_queue_wait_s.reason}")
    assert told(counters.run_queue_wait_s) > 0.25 * used
    assert any("for a core" in reason for reason in disturbance.reasons(counters, cpu.cores().usable))


def test_children_are_counted_apart(system: SystemCounters) -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass"
    before = system.begin()
    subprocess.run([sys.executable, "-S", "-E", "-c", work], check=True)
    counters = system.end(before)
    assert told(counters.cpu_children_s) >= 0.5
    assert told(counters.cpu_s) < 0.25


def test_every_absent_figure_says_why(system: SystemCounters) -> None:
    counters = system.end(system.begin())
    for name in Counters.__dataclass_fields__:
        if name != "wall_s":
            reading = getattr(counters, name)
            assert (reading.value is None) == bool(reading.reason), name
