"""The counters of another process's tree on systems without /proc, as far as psutil has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psutil

from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference, now
from pytest_infer.records import Quality, Reading

_FAILURES = (psutil.Error, OSError, NotImplementedError, AttributeError)
_DIFFERENCES = {
    "cpu_s": "cpu",
    "cpu_user_s": "user",
    "cpu_system_s": "system",
    "read_chars": "read_chars",
    "write_chars": "write_chars",
    "read_calls": "read_calls",
    "write_calls": "write_calls",
}


class PsutilTree:
    """CPU time, memory and I/O of root processes with the children that live; what ended ones used is lost."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots

    def read(self) -> Sample | Unavailable:
        """Return sums over the processes that live now, and how many they are."""
        total: Sample = {"processes": 0}
        try:
            for process in self._living():
                for name, value in {**_of(process), "processes": 1}.items():
                    total[name] = total.get(name, 0) + value
        except _FAILURES as error:
            return Unavailable(f"psutil: {error}")
        return total

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return differences and sizes; a lower bound where processes came or went."""
        source = f"psutil, process {', '.join(map(str, self._roots))} with children"
        changed = {s["processes"] for s in (before, after) if isinstance(s, dict)} - {1}
        found = {
            name: difference(before, after, key, source, quality=Quality.BOUND if changed else Quality.EXACT)
            for name, key in _DIFFERENCES.items()
        }
        found["rss_before_bytes"] = now(before, "rss", source)
        found["rss_bytes"] = now(after, "rss", source)
        return found

    def used_s(self) -> float:
        """Return the CPU seconds of all that live."""
        sample = self.read()
        return 0.0 if isinstance(sample, Unavailable) else sample["cpu"]

    def close(self) -> None:
        """Nothing is held open."""

    def _living(self) -> Iterator[psutil.Process]:
        for pid in self._roots:
            root = psutil.Process(pid)
            yield root
            yield from root.children(recursive=True)


def _of(process: psutil.Process) -> Sample:
    with process.oneshot():
        times = process.cpu_times()
        sample: Sample = {
            "cpu": times.user + times.system,
            "user": times.user,
            "system": times.system,
            "rss": process.memory_info().rss,
        }
        io = process.io_counters() if hasattr(process, "io_counters") else None
    if io is not None:
        sample |= {"read_chars": io.read_bytes, "write_chars": io.write_bytes}
        sample |= {"read_calls": io.read_count, "write_calls": io.write_count}
    return sample
