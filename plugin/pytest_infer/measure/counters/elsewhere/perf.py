"""Instructions, cycles and misses of a tree of processes, where the kernel allows that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_infer.measure.counters.elsewhere.tree import GONE, Tree
from pytest_infer.measure.counters.kernel_files import FAILURES, Sample, Unavailable
from pytest_infer.measure.counters.perf import HARDWARE, SOURCE, Opener, PerfCounters
from pytest_infer.records import Quality, Reading, absent


class TreePerf:
    """Events of every thread that ran when this was made, and of threads that these start; not of newer processes."""

    def __init__(self, tree: Tree, proc: Path = Path("/proc"), opener: Opener | None = None) -> None:
        self._tree = tree
        self._counted = {member.key for member in tree.members()}
        threads: list[int] = []
        for member in tree.members():
            try:
                threads += map(int, member.threads())
            except GONE:
                continue
            except FAILURES:
                self._counted.discard(member.key)
        self._missing = None if threads else "no thread could be listed"
        self._perf = PerfCounters(threads=threads, proc=proc, opener=opener)

    def read(self) -> Sample | Unavailable:
        """Return count and times of each event, over all threads."""
        return self._perf.read()

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the counts between two samples, lower bounds where processes are in it that are not counted."""
        if self._missing is not None:
            return dict.fromkeys(HARDWARE, absent(self._missing, SOURCE))
        found = self._perf.readings(before, after)
        if {member.key for member in self._tree.members()} <= self._counted:
            return found
        return {n: r if r.value is None else replace(r, quality=Quality.BOUND) for n, r in found.items()}

    def close(self) -> None:
        """Give the file descriptors back."""
        self._perf.close()
