"""The counters of another process's tree on systems without /proc, as far as psutil has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import psutil

from pytest_infer.measure.counters.elsewhere.memory import SUMMED
from pytest_infer.measure.counters.elsewhere.use import by_process
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference
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
    """CPU time, memory and I/O of root processes with their children; what ended ones used in the window is lost."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots
        self._used: dict[str, float] = {}

    def read(self) -> Sample | Unavailable:
        """Return the values of each process that lives now, by its number, the time of its start, and a name."""
        sample: Sample = {}
        try:
            for process in self._living():
                try:
                    key, one = f"{process.pid}@{process.create_time()}", _of(process)
                except psutil.NoSuchProcess:
                    if process.pid in self._roots:
                        raise
                    continue
                sample |= {f"{key} {name}": value for name, value in one.items()}
        except _FAILURES as error:
            return Unavailable(f"psutil: {error}")
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the growth of those that live, and sizes; of more than one process lower bounds, and estimates."""
        source = f"psutil, process {', '.join(map(str, self._roots))} with children"
        if isinstance(before, Unavailable) or isinstance(after, Unavailable):
            names = (*_DIFFERENCES, "rss_before_bytes", "rss_bytes")
            return {name: difference(before, after, name, source) for name in names}
        old, new = by_process(before), by_process(after)
        quality = Quality.EXACT if len(old) == len(new) == 1 else Quality.BOUND
        found = {"rss_before_bytes": _resident(old, source), "rss_bytes": _resident(new, source)}
        for figure, name in _DIFFERENCES.items():
            grown = [one[name] - old.get(key, {}).get(name, 0) for key, one in new.items() if name in one]
            unknown = difference({}, {}, name, source)
            found[figure] = Reading(value=sum(grown), source=source, quality=quality) if grown else unknown
        return found

    def used_s(self) -> float:
        """Return the CPU seconds of all that were ever seen, of those that ended as far as they were seen."""
        sample = self.read()
        if not isinstance(sample, Unavailable):
            self._used |= {key: one["cpu"] for key, one in by_process(sample).items()}
        return sum(self._used.values())

    def close(self) -> None:
        """Nothing is held open."""

    def _living(self) -> Iterator[psutil.Process]:
        for pid in self._roots:
            root = psutil.Process(pid)
            yield root
            yield from root.children(recursive=True)


def _resident(processes: Mapping[str, Sample], source: str) -> Reading:
    shared, quality = ("", Quality.EXACT) if len(processes) == 1 else (SUMMED, Quality.ESTIMATED)
    return Reading(value=sum(one["rss"] for one in processes.values()), source=source + shared, quality=quality)


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
