"""Instructions, cycles and misses of all threads of this process in user mode, where the kernel allows it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytest_infer.measure.counters.cpu import has_hypervisor_flag
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference, why
from pytest_infer.records import Quality, Reading, absent

SOURCE = "perf_event_open(2), user mode"
Event = tuple[int, int]
"""`type` and `config` of `struct perf_event_attr` (linux/perf_event.h)."""

HARDWARE: Mapping[str, Event] = {
    "instructions": (0, 1),
    "cycles": (0, 0),
    "cache_misses": (0, 3),
    "branch_misses": (0, 5),
}
"""PERF_TYPE_HARDWARE: generalised events, which the kernel maps to the processor's own; the cache is the last level."""

Opener = Callable[[Event, int], int]
"""Opens an event on a thread and returns its file descriptor; raises OSError."""

_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_ATTR = struct.Struct("=IIQQQQQIIQ")  # the first published size of the struct, 64 bytes
_INHERIT, _EXCLUDE_KERNEL, _EXCLUDE_HV, _INHERIT_THREAD = 1 << 1, 1 << 5, 1 << 6, 1 << 35
_TIMES = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED and PERF_FORMAT_TOTAL_TIME_RUNNING
_READ = struct.Struct("=QQQ")
_CLOEXEC = 8


class PerfCounters:
    """Events of every thread, opened once: a thread that starts later is counted with the one that started it.

    The events of a processor can be more than it has counters for: the kernel then counts them in turns and says how
    long each was counted. Such a count is scaled up and marked as an estimate.
    `events`, `opener`, `threads` and `proc` are parameters for tests.
    """

    def __init__(
        self,
        events: Mapping[str, Event] = HARDWARE,
        *,
        opener: Opener | None = None,
        threads: Sequence[int] | None = None,
        proc: Path = Path("/proc"),
    ) -> None:
        self._open: dict[str, list[int]] = {}
        self._unavailable: dict[str, Unavailable] = {}
        try:
            threads = [int(path.name) for path in Path("/proc/self/task").iterdir()] if threads is None else threads
        except OSError as error:
            self._unavailable = dict.fromkeys(events, Unavailable(why(error, "/proc/self/task")))
            return
        wanted, most = len(threads) * len(events), _most_descriptors()
        # Of too many threads one tells whether there are counters at all.
        opened = threads if wanted <= most else threads[:1]
        for name, event in events.items():
            self._add(name, event, opened, opener or perf_event_open, proc)
        if wanted > most:
            self._end(f"{len(threads)} threads take {wanted} file descriptors, and at most {most} are used: ulimit -n")

    def _add(self, name: str, event: Event, threads: Sequence[int], opener: Opener, proc: Path) -> None:
        found = self._open[name] = []
        for thread in threads:
            try:
                found.append(opener(event, thread))
            except ProcessLookupError:
                continue  # it ended meanwhile
            except OSError as error:
                _close(self._open.pop(name))
                self._unavailable[name] = Unavailable(_why(error, proc))
                return

    def read(self) -> Sample | Unavailable:
        """Return count and times of each event, over all threads."""
        sample: Sample = {}
        for name, descriptors in self._open.items():
            totals = [0, 0, 0]
            try:
                for descriptor in descriptors:
                    one = _READ.unpack(os.read(descriptor, _READ.size))
                    totals = [total + value for total, value in zip(totals, one, strict=True)]
            except (OSError, struct.error) as error:
                self._unavailable[name] = Unavailable(f"{SOURCE}: {error}")
                continue
            sample |= {name: totals[0], f"{name} enabled": totals[1], f"{name} running": totals[2]}
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the counts between two samples."""
        found = {name: absent(missing.reason, SOURCE) for name, missing in self._unavailable.items()}
        names = [name for name in self._open if name not in self._unavailable]
        return found | {name: _count(name, before, after) for name in names}

    def close(self) -> None:
        """Give the file descriptors back."""
        self._end("the counters were closed")

    def _end(self, reason: str) -> None:
        for descriptors in self._open.values():
            _close(descriptors)
        self._unavailable |= dict.fromkeys(self._open, Unavailable(reason))
        self._open = {}


def _most_descriptors() -> int:
    """Return how many files the events may take: half of those that this process may open (getrlimit(2))."""
    limit = os.sysconf("SC_OPEN_MAX")
    return limit // 2 if limit > 0 else sys.maxsize


def _count(name: str, before: Sample | Unavailable, after: Sample | Unavailable) -> Reading:
    counted, enabled, running = (
        difference(before, after, key, SOURCE).value for key in (name, f"{name} enabled", f"{name} running")
    )
    if counted is None or enabled is None or running is None:
        return difference(before, after, name, SOURCE)
    if running >= enabled:
        return Reading(value=counted, source=SOURCE)
    if running <= 0:
        return absent("others used the processor's counters all the time", SOURCE)
    source = f"{SOURCE}, multiplexed: counted {100 * running / enabled:.0f} % of the time and scaled up"
    return Reading(value=round(counted * enabled / running), source=source, quality=Quality.ESTIMATED)


def perf_event_open(event: Event, thread: int) -> int:
    """Open an event of one thread, on whatever core it runs, in user mode; raise OSError where that cannot be done."""
    number = _SYSCALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HV
    try:
        return _call(number, event, thread, flags | _INHERIT_THREAD)
    except OSError as error:
        # Before Linux 5.13 child processes cannot be told from threads.
        if error.errno != errno.EINVAL:
            raise
        return _call(number, event, thread, flags)


def _call(number: int, event: Event, thread: int, flags: int) -> int:
    attributes = _ATTR.pack(event[0], _ATTR.size, event[1], 0, 0, _TIMES, flags, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(number, attributes, thread, -1, -1, ctypes.c_ulong(_CLOEXEC))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def _why(error: OSError, proc: Path) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        if has_hypervisor_flag(proc):
            return "this virtual machine is given no performance counters"
        return "this processor does not count it"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"not permitted: kernel.perf_event_paranoid is {_paranoid(proc)} and must be 2 or less, "
            "and a container must allow perf_event_open"
        )
    if error.errno == errno.ENOSYS:
        return "this system has no perf_event_open"
    return f"perf_event_open: {error.strerror or error}"


def _paranoid(proc: Path) -> str:
    try:
        return (proc / "sys/kernel/perf_event_paranoid").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return "not known"


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
