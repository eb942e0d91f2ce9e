"""The state of the machine now: memory that is free, swap, other load, and the requested threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.kernel_files import Sources

WINDOW_S = 0.2
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What changes from minute to minute; None where it is unknown.

    `available_bytes` can be allocated without swapping, within the control group's limit. `busy_cores` is the CPU time
    of all other processes over a moment, in cores. `threads` is the value of OMP_NUM_THREADS. `unread` says, by name,
    why something is unknown, or may be less than what is told.
    """

    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    load_1m: float | None = None
    busy_cores: float | None = None
    threads: int | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


def describe(
    *,
    platform: str = sys.platform,
    proc: Path = Path("/proc"),
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> Host:
    """Look at the machine for a fifth of a second."""
    sources = Sources()
    swap = sources.ask("swap", lambda: _swap(platform, proc), str(proc / "meminfo")) or (None, None)
    return Host(
        available_bytes=available_bytes(platform=platform, proc=proc, sources=sources),
        swap_total_bytes=swap[0],
        swap_used_bytes=swap[1],
        load_1m=sources.ask("load_1m", _load, "/proc/loadavg"),
        busy_cores=sources.ask("busy_cores", lambda: _busy_cores(sleep), "/proc/stat"),
        threads=_threads(environ.get("OMP_NUM_THREADS", "")),
        unread=sources.unread,
    )


def available_bytes(
    *, platform: str = sys.platform, proc: Path = Path("/proc"), sources: Sources | None = None
) -> int | None:
    """Return the bytes that a process can still allocate: the machine's, limited by its control groups."""
    ours = sources or Sources()
    if platform != "linux":
        return ours.ask("available_bytes", lambda: int(psutil.virtual_memory().available), "psutil virtual_memory")
    found = ours.read("available_bytes", proc / "meminfo", _meminfo, optional=False)
    machine = None if found is None else found.get("MemAvailable")
    left = cgroup.memory_left_bytes(cgroup.discover(proc), ours)
    return min((n for n in (machine, left) if n is not None), default=None)


def _swap(platform: str, proc: Path) -> tuple[int | None, int | None]:
    if platform != "linux":
        return psutil.swap_memory().total, psutil.swap_memory().used
    lines = _meminfo((proc / "meminfo").read_text(encoding="utf-8", errors="replace"))
    total, free = lines.get("SwapTotal"), lines.get("SwapFree")
    return total, None if total is None or free is None else total - free


def _meminfo(text: str) -> dict[str, int]:
    """Return what /proc/meminfo holds in bytes (proc(5)); raise ValueError or LookupError if it is no such text."""
    lines = (line.partition(":") for line in text.splitlines())
    found = {name: int(rest.split()[0]) * _KIB for name, _, rest in lines}
    if "MemTotal" not in found:
        raise ValueError("no line of the memory's size")
    return found


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _busy_cores(sleep: Callable[[float], None]) -> float | None:
    """Return the cores that other processes keep busy, time stolen by a hypervisor left out."""
    own, before, started = time.process_time(), psutil.cpu_times(), time.perf_counter()
    sleep(WINDOW_S)
    wall = time.perf_counter() - started
    own, after = time.process_time() - own, psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq")
    spent = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in names)
    return max(0.0, (spent - own) / wall) if wall > 0 else None


def _threads(text: str) -> int | None:
    """Return the threads of OMP_NUM_THREADS, whose list is one number for each level of nesting."""
    first = text.partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) else None
