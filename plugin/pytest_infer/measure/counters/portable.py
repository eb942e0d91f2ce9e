"""The same counters on systems without /proc, as far as psutil has them, and the reasons for those it lacks."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from pytest_infer.measure.counters.contention import other_cpu, own_cpu_s
from pytest_infer.measure.counters.cpu import peak_rss_bytes
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference, now
from pytest_infer.measure.counters.memory import system_memory
from pytest_infer.records import Reading, absent

_FAILURES = (psutil.Error, OSError, NotImplementedError, AttributeError)
"""What psutil raises: its own errors, the system's, and missing names where a platform lacks a method."""

_LINUX_ONLY = "only Linux tells it"

_EVERYWHERE = {
    "rss_anon_bytes": "only Linux tells anonymous from file-backed memory",
    "rss_file_bytes": "only Linux tells anonymous from file-backed memory",
    "rss_anon_before_bytes": "only Linux tells anonymous from file-backed memory",
    "rss_shmem_bytes": "only Linux tells anonymous from file-backed memory",
    "swap_bytes": _LINUX_ONLY,
    "run_queue_wait_s": _LINUX_ONLY,
    "steal_s": _LINUX_ONLY,
    "pressure_cpu_s": _LINUX_ONLY,
    "pressure_memory_s": _LINUX_ONLY,
    "pressure_io_s": _LINUX_ONLY,
    "read_ops": "this system counts no device operations of a process or group",
    "write_ops": "this system counts no device operations of a process or group",
    "thermal_throttles": _LINUX_ONLY,
    **dict.fromkeys(("instructions", "cycles", "cache_misses", "branch_misses"), "perf_event_open is Linux's"),
    "energy_j": "RAPL is read on Linux only",
    "frequency_hz": "this system tells the nominal frequency only, not what its cores run at",
}
_WINDOWS = {
    "cpu_children_s": "Windows keeps no account of a process's children",
    "minor_faults": "Windows counts faults with and without disk access together",
    "major_faults": "Windows counts faults with and without disk access together",
    "voluntary_switches": "Windows does not tell voluntary from involuntary switches",
    "involuntary_switches": "Windows does not tell voluntary from involuntary switches",
    "read_bytes": "Windows counts what was asked for, not what reached the disk",
    "write_bytes": "Windows counts what was asked for, not what reached the disk",
}
_OTHERS = dict.fromkeys(
    ("read_bytes", "write_bytes", "read_chars", "write_chars", "read_calls", "write_calls"),
    "this system keeps no account of a process's I/O that psutil reads",
)


def unavailable_on(platform: str) -> dict[str, Reading]:
    """Return the counters that a system (a `sys.platform`) lacks, each with the reason; none on Linux."""
    if platform == "linux":
        return {}
    reasons = _EVERYWHERE | (_WINDOWS if platform == "win32" else _OTHERS)
    return {name: absent(reason) for name, reason in reasons.items()}


class PsutilMemory:
    """Resident size and the unreset peak of this process (Windows: peak_wset, elsewhere ru_maxrss)."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def read(self) -> Sample | Unavailable:
        """Return resident bytes, and the most since the process started."""
        try:
            memory = self._process.memory_info()
        except _FAILURES as error:
            return Unavailable(f"psutil: {error}")
        sample: Sample = {"rss": memory.rss}
        peak = getattr(memory, "peak_wset", None) or peak_rss_bytes()
        if peak is not None:
            sample["peak"] = peak
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the resident size before and after."""
        return {
            "rss_before_bytes": now(before, "rss", "psutil rss"),
            "rss_bytes": now(after, "rss", "psutil rss"),
        }

    def close(self) -> None:
        """Nothing is held open."""


class PsutilSystemMemory:
    """How full the machine is."""

    def read(self) -> Sample | Unavailable:
        """Return total and available bytes of the machine."""
        try:
            memory = psutil.virtual_memory()
        except _FAILURES as error:
            return Unavailable(f"psutil: {error}")
        return {"total": memory.total, "available": memory.available}

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the machine's memory and its percent; these systems have no control groups."""
        del before  # both are states at the end of the window
        return system_memory(after, None, "psutil")

    def close(self) -> None:
        """Nothing is held open."""


class PsutilIo:
    """What this process asked to read and write, where psutil has it (Windows, FreeBSD)."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def read(self) -> Sample | Unavailable:
        """Return bytes and calls since the process started."""
        try:
            io = self._process.io_counters()
        except _FAILURES as error:
            return Unavailable(f"psutil: {error}")
        return {
            "read_chars": io.read_bytes,
            "write_chars": io.write_bytes,
            "read_calls": io.read_count,
            "write_calls": io.write_count,
        }

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return bytes and calls between two samples."""
        names = ("read_chars", "write_chars", "read_calls", "write_calls")
        return {name: difference(before, after, name, "psutil io_counters") for name in names}

    def close(self) -> None:
        """Nothing is held open."""


class PsutilMachineTime:
    """CPU time of the whole machine."""

    def __init__(self, own_s: Callable[[], float] = own_cpu_s) -> None:
        """Take what returns the CPU seconds that are no other process's."""
        self._own_s = own_s

    def read(self) -> Sample | Unavailable:
        """Return busy seconds of all cores since boot, and the workload's own at the same moment."""
        try:
            times = psutil.cpu_times()
        except _FAILURES as error:
            return Unavailable(f"psutil: {error}")
        # Windows counts interrupts within system time already.
        return {"busy": times.user + times.system + getattr(times, "nice", 0.0), "own": self._own_s()}

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the seconds that other processes used."""
        return {"other_cpu_s": other_cpu(before, after, "psutil cpu_times")}

    def close(self) -> None:
        """Nothing is held open."""
