"""The state of the machine now: memory that is free, swap, other load, and the requested threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.kernel_files import FAILURES

WINDOW_S = 0.2
_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What changes from minute to minute; None where it is unknown.

    `available_bytes` can be allocated without swapping, within the control group's limit. `busy_cores` is the CPU time
    of all other processes over a moment, in cores. `threads` is the value of OMP_NUM_THREADS.
    """

    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    load_1m: float | None = None
    busy_cores: float | None = None
    threads: int | None = None


def describe(
    *,
    platform: str = sys.platform,
    proc: Path = Path("/proc"),
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> Host:
    """Look at the machine for a fifth of a second."""
    swap = _swap(proc) if platform == "linux" else (psutil.swap_memory().total, psutil.swap_memory().used)
    return Host(
        available_bytes=available_bytes(platform=platform, proc=proc),
        swap_total_bytes=swap[0],
        swap_used_bytes=swap[1],
        load_1m=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        busy_cores=_busy_cores(sleep),
        threads=_threads(environ.get("OMP_NUM_THREADS", "")),
    )


def available_bytes(*, platform: str = sys.platform, proc: Path = Path("/proc")) -> int | None:
    """Return the bytes that a process can still allocate: the machine's, limited by its control groups."""
    if platform != "linux":
        return int(psutil.virtual_memory().available)
    machine = _meminfo(proc).get("MemAvailable")
    left = cgroup.memory_left_bytes(cgroup.discover(proc))
    return min((n for n in (machine, left) if n is not None), default=None)


def _swap(proc: Path) -> tuple[int | None, int | None]:
    lines = _meminfo(proc)
    total, free = lines.get("SwapTotal"), lines.get("SwapFree")
    return total, None if total is None or free is None else total - free


def _meminfo(proc: Path) -> dict[str, int]:
    """Return /proc/meminfo in bytes (proc(5))."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        return {name: int(rest.split()[0]) * _KIB for name, _, rest in (line.partition(":") for line in lines)}
    except FAILURES:
        return {}


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
