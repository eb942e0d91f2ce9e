"""Resident memory of this process and of the machine, and how to return freed memory to the system."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

import psutil

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.kernel_files import FAILURES, KernelFile, Sample, Unavailable, now, why
from pytest_infer.records import Reading, absent

_STATUS_LINE = re.compile(rb"(VmHWM|VmRSS|RssAnon|RssFile|RssShmem|VmSwap):\s+(\d+) kB")
# All of them lie within so many bytes from the first: looking at the whole file costs 10 µs more.
_STATUS_BLOCK = 512
_KEYS = (("rss", b"VmRSS"), ("peak", b"VmHWM"), ("anon", b"RssAnon"), ("swap", b"VmSwap"), ("shmem", b"RssShmem"))
_KIB = 1024

SIZES = {
    "rss_anon_before_bytes": ("anon", "RssAnon", False),
    "rss_shmem_bytes": ("shmem", "RssShmem", True),
    "rss_before_bytes": ("rss", "VmRSS", False),
    "rss_bytes": ("rss", "VmRSS", True),
    "rss_anon_bytes": ("anon", "RssAnon", True),
    "rss_file_bytes": ("file", "RssFile + RssShmem", True),
    "swap_bytes": ("swap", "VmSwap", True),
}
"""Readings by the key of `parse_status`, the lines that it is from, and whether it is that of the end of a window."""


def parse_status(text: bytes) -> Sample:
    """Return bytes resident now, at most (`peak`), by kind and swapped out, from /proc/self/status (proc(5)).

    `shmem` is the part of `file` that is shared memory, or files of a tmpfs.
    """
    start = text.find(b"VmHWM:")
    found = _STATUS_LINE.findall(text, start, start + _STATUS_BLOCK) if start >= 0 else _STATUS_LINE.findall(text)
    lines = {name: int(kib) * _KIB for name, kib in found}
    sample: Sample = {}
    for key, name in _KEYS:
        if name in lines:
            sample[key] = lines[name]
    if b"RssFile" in lines:
        # Shared memory is not the process's own either: together they are what is not anonymous.
        sample["file"] = lines[b"RssFile"] + lines.get(b"RssShmem", 0)
    return sample


def parse_meminfo(text: bytes) -> Sample:
    """Return the machine's total and available bytes from /proc/meminfo (proc(5))."""
    lines = dict(line.split(b":", 1) for line in text.splitlines()[:8] if b":" in line)
    total, available = (int(lines[name].split()[0]) * _KIB for name in (b"MemTotal", b"MemAvailable"))
    if total <= 0:
        raise ValueError("no memory at all")
    return {"total": total, "available": available}


def parse_smaps_rollup(text: bytes) -> Sample:
    """Return proportional (`pss`) and unique (`uss`) bytes from /proc/self/smaps_rollup (proc(5))."""
    values = {
        fields[0]: int(fields[1]) * _KIB
        for fields in (line.split() for line in text.splitlines()[1:])
        if len(fields) == 3 and fields[2] == b"kB"
    }
    private = (b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:")
    return {"pss": values[b"Pss:"], "uss": sum(values.get(name, 0) for name in private)}


class ResidentMemory:
    """Resident and swapped bytes of this process, and its high-water mark, from /proc/self/status."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._file = KernelFile(proc / "self/status", parse_status)

    def read(self) -> Sample | Unavailable:
        """Return bytes as `parse_status` names them."""
        return self._file.read()

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the sizes at the end of the window, and the resident and anonymous sizes before it."""
        return {
            name: now(after if at_end else before, key, f"/proc/self/status {lines}")
            for name, (key, lines, at_end) in SIZES.items()
        }

    def close(self) -> None:
        """Give the file descriptor back."""
        self._file.close()


class SystemMemory:
    """The memory that a process may use at all, by default this one, and how full the machine is."""

    def __init__(self, proc: Path = Path("/proc"), groups: cgroup.ControlGroups | None = None) -> None:
        self._file = KernelFile(proc / "meminfo", parse_meminfo, size=512)
        groups = cgroup.discover(proc) if groups is None else groups
        self._limit, self._unknown = cgroup.memory_limit_bytes(groups), groups.why

    def read(self) -> Sample | Unavailable:
        """Return total and available bytes of the machine."""
        return self._file.read()

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the limit, and the machine's percent as psutil defines it: (total - available) / total."""
        del before  # both are states at the end of the window
        found = system_memory(after, self._limit, "/proc/meminfo")
        return found if self._unknown is None else found | {"memory_limit_bytes": absent(self._unknown)}

    def close(self) -> None:
        """Give the file descriptor back."""
        self._file.close()


def system_memory(sample: Sample | Unavailable, limit: int | None, source: str) -> dict[str, Reading]:
    """Return the two readings of the machine's memory; `limit` is the control group's, if it has one."""
    if isinstance(sample, Unavailable):
        return {name: absent(sample.reason, source) for name in ("memory_limit_bytes", "system_memory_percent")}
    total = sample["total"]
    limited = limit is not None and limit < total
    return {
        "memory_limit_bytes": Reading(
            value=limit if limited else total, source="memory limit of the control group" if limited else source
        ),
        "system_memory_percent": Reading(
            value=100 * (total - sample["available"]) / total, source=f"{source} (total - available) / total"
        ),
    }


def trim_heap() -> bool:
    """Return freed heap memory to the system, so that a rising peak becomes visible (about 23 ms).

    Without it glibc serves the next round from memory that never left the resident size. Returns whether the
    allocator could be asked; what then follows faults its pages in again, so it must not be a timed round.
    """
    if hasattr(psutil, "heap_trim"):  # psutil >= 7.2, where the system has an allocator that can be trimmed
        psutil.heap_trim()
        return True
    try:
        trim = cast("Callable[[int], int]", ctypes.CDLL(None).malloc_trim)
    except (OSError, TypeError, AttributeError):
        # No glibc: another libc, macOS, or Windows (where CDLL(None) is a TypeError).
        return False
    trim(0)
    return True


def footprint(proc: Path = Path("/proc"), platform: str = sys.platform) -> tuple[Reading, Reading]:
    """Return (proportional, unique) set size in bytes, read once: 14 to 125 ms, never within a round."""
    if platform == "linux":
        path = proc / "self/smaps_rollup"
        try:
            sample: Sample | Unavailable = parse_smaps_rollup(path.read_bytes())
        except FAILURES as error:
            sample = Unavailable(why(error, path))
        source = "/proc/self/smaps_rollup"
        return now(sample, "pss", f"{source} Pss"), now(sample, "uss", f"{source} Private_*")
    pss = absent("only Linux divides shared pages among the processes that share them", "psutil")
    try:
        return pss, Reading(value=psutil.Process().memory_full_info().uss, source="psutil uss")
    except (AttributeError, NotImplementedError, psutil.Error) as error:
        return pss, absent(f"psutil: {error}", "psutil uss")


def mapped(files: Sequence[Path], proc: Path = Path("/proc"), platform: str = sys.platform) -> Reading:
    """Return the resident bytes of these files that this process has mapped; 30 to 100 ms, never within a round.

    Pages that were written to, which are copies of its own, do not count. Source: /proc/self/smaps, Rss - Anonymous.
    """
    path = proc / "self/smaps"
    source = "/proc/self/smaps Rss - Anonymous"
    if platform != "linux":
        return absent("only Linux tells what of a mapped file is resident", source)
    if not files:
        return absent("the engine does not tell the files of the weights", source)
    try:
        return Reading(value=resident_of(path.read_bytes(), files), source=source)
    except FAILURES as error:
        return absent(why(error, path), source)


def resident_of(smaps: bytes, files: Sequence[Path]) -> int:
    """Return the resident bytes of these files by the text of /proc/PID/smaps, pages that are copies taken off."""
    return sum(_resident_of(smaps, {os.fsencode(file.resolve()) for file in files}))


def _resident_of(smaps: bytes, names: Collection[bytes]) -> Iterator[int]:
    """Yield the bytes of each mapping of one of these files, those that are copies taken off."""
    ours = False
    for line in smaps.splitlines():
        fields = line.split(None, 5)
        if not fields[0].endswith(b":"):
            ours = len(fields) == 6 and fields[5] in names
        elif ours and fields[0] in (b"Rss:", b"Anonymous:"):
            yield int(fields[1]) * _KIB * (1 if fields[0] == b"Rss:" else -1)
