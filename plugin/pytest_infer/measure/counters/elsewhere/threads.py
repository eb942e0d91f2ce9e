"""What the threads of a tree of processes waited for, and how often they gave up their cores."""

from __future__ import annotations

import re
from collections.abc import Callable

from pytest_infer.measure.counters.elsewhere.tree import GONE, Member, Tree
from pytest_infer.measure.counters.kernel_files import FAILURES, Sample, Unavailable, why
from pytest_infer.records import Reading, absent

_NS = 1e9
_SWITCHES = re.compile(rb"^(voluntary|nonvoluntary)_ctxt_switches:\s+(\d+)$", re.MULTILINE)


def parse_schedstat(text: bytes) -> Sample:
    """Return the nanoseconds that a thread ran, and waited for a core: the fields of schedstat (sched-stats.rst)."""
    ran, waited = text.split()[:2]
    return {"ran": int(ran), "waited": int(waited)}


def parse_switches(text: bytes) -> Sample:
    """Return how often a thread gave up its core, and how often it lost it, from its status file (proc(5))."""
    found = {name.decode(): int(count) for name, count in _SWITCHES.findall(text)}
    return {"voluntary": found["voluntary"], "involuntary": found["nonvoluntary"]}


class TreeThreads:
    """Run-queue wait and context switches of all threads; what a thread counted is lost when it ends."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._unread: dict[str, str] = {}

    def read(self) -> Sample | Unavailable:
        """Return the counts of each thread since its start, by the key of its process, its id and a name."""
        sample: Sample = {}
        for file, parse in (("schedstat", parse_schedstat), ("status", parse_switches)):
            try:
                for member, counts in self._tree.each(lambda m, f=file, p=parse: _of_threads(m, f, p)):  # type: ignore[misc]
                    sample |= {f"{member.key}.{name}": value for name, value in counts.items()}
            except FAILURES as error:
                self._unread[file] = why(error, self._tree.source(f"task/*/{file}"))
        if not any(value for key, value in sample.items() if key.endswith(" ran")):
            self._unread.setdefault("schedstat", "this kernel does not count how long threads wait for a core")
        missing = self._tree.missing()
        return sample if missing is None else Unavailable(missing)

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the sums of all threads that lived to the end of the window."""
        return {
            "run_queue_wait_s": self._grown(before, after, "waited", "schedstat", _NS),
            "voluntary_switches": self._grown(before, after, "voluntary", "status"),
            "involuntary_switches": self._grown(before, after, "involuntary", "status"),
        }

    def close(self) -> None:
        """The tree is closed by whoever made it."""

    def _grown(
        self, before: Sample | Unavailable, after: Sample | Unavailable, name: str, file: str, per_unit: float = 1
    ) -> Reading:
        source = self._tree.source(f"task/*/{file}")
        for sample in (before, after):
            if isinstance(sample, Unavailable):
                return absent(sample.reason, source)
        if file in self._unread:
            return absent(self._unread[file], source)
        old, new = ({k: v for k, v in s.items() if k.endswith(f" {name}")} for s in (before, after))  # type: ignore[union-attr]
        # A thread id can be reused by a new thread, which starts from 0.
        total = sum(value - old.get(key, 0) if value >= old.get(key, 0) else value for key, value in new.items())
        ended = len(old.keys() - new.keys())
        if ended:
            source += f", without {ended} thread{'' if ended == 1 else 's'} that ended"
        return Reading(value=total if per_unit == 1 else total / per_unit, source=source)


def _of_threads(member: Member, file: str, parse: Callable[[bytes], Sample]) -> Sample:
    sample: Sample = {}
    gone: Exception | None = None
    for thread in member.threads():
        try:
            counts = parse(member.whole(f"task/{thread}/{file}"))
        except GONE as error:
            gone = error
            continue
        sample |= {f"{thread} {name}": value for name, value in counts.items()}
    if gone is not None and not sample:
        raise gone
    return sample
