"""What a tree of processes used: CPU time, page faults and I/O, of children that ended within the window as well."""

from __future__ import annotations

import os
import time

from pytest_infer.measure.counters.elsewhere.tree import Member, Tree
from pytest_infer.measure.counters.kernel_files import FAILURES, Sample, Unavailable, why
from pytest_infer.records import Quality, Reading, absent

_NS = 1e9
_TICK_NS = round(_NS / os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 10_000_000
_STAT = {"minor": 7, "ended minor": 8, "major": 9, "ended major": 10}
_TIMES = {"user": 11, "system": 12, "ended user": 13, "ended system": 14}
_IO = {
    "read_bytes": b"read_bytes",
    "write_bytes": b"write_bytes",
    "read_chars": b"rchar",
    "write_chars": b"wchar",
    "read_calls": b"syscr",
    "write_calls": b"syscw",
}


def parse_stat(text: bytes) -> Sample:
    """Return faults, and CPU times in ns, from /proc/PID/stat (proc(5)): its own, and those of `ended` children."""
    fields = text.rpartition(b")")[2].split()
    sample: Sample = {name: int(fields[place]) for name, place in _STAT.items()}
    return sample | {name: int(fields[place]) * _TICK_NS for name, place in _TIMES.items()}


def parse_io(text: bytes) -> Sample:
    """Return the counts of /proc/PID/io (proc(5)), which are those of ended children too."""
    counts = dict(line.split(b":") for line in text.splitlines())
    return {name: int(counts[field]) for name, field in _IO.items()}


def process_clock_ns(pid: int) -> int:
    """Return the CPU time of a process with all its threads, exact, from its clock (clock_getcpuclockid(3)).

    Raises:
        OSError: there is no such process, or the system has no clocks of other processes.
    """
    return time.clock_gettime_ns(~pid << 3 | 2)  # CPUCLOCK_SCHED of the whole group (linux/posix-timers_types.h)


def _one(member: Member) -> Sample:
    try:
        clock = process_clock_ns(member.pid)
    except OSError:
        clock = None
    # Read second: its number was still its own when its clock was read.
    sample = parse_stat(member.read("stat"))
    if clock is None:
        return sample | {"cpu": sample["user"] + sample["system"], "ticks": 1}
    return sample | {"cpu": clock, "ticks": 0}


class TreeUse:
    """The use of a tree. What a process used moves to its parent when that waits for its end, and is found there."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._io_unread: str | None = None

    def read(self) -> Sample | Unavailable:
        """Return the counts of each process since its start, by its key and a name."""
        sample: Sample = {}
        try:
            self._tree.refresh()
            for member, one in self._tree.each(_one):
                sample.update({f"{member.key} {name}": value for name, value in one.items()})
        except FAILURES as error:
            return Unavailable(why(error, self._tree.source("stat")))
        missing = self._tree.missing()
        if missing is not None:
            return Unavailable(missing)
        try:
            for member, one in self._tree.each(lambda m: parse_io(m.read("io"))):
                sample.update({f"{member.key} {name}": value for name, value in one.items()})
        except FAILURES as error:
            self._io_unread = why(error, self._tree.source("io"))
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return CPU seconds, page faults and I/O of the whole tree between two samples."""
        spent = Spent(before, after, self._tree)
        split = self._tree.source("stat {0}, in clock ticks, ended children too")
        own = ", ".join(map(str, self._tree.roots))
        found = {
            "cpu_s": spent.cpu(f"CPU clock of process {own}, ended children too{self._tree.with_children()}"),
            "cpu_user_s": spent.ns("user", split.format("utime"), Quality.ESTIMATED),
            "cpu_system_s": spent.ns("system", split.format("stime"), Quality.ESTIMATED),
            "cpu_children_s": spent.ended_s(self._tree.source("stat cutime + cstime, in clock ticks")),
            "minor_faults": spent.total("minor", self._tree.source("stat minflt + cminflt")),
            "major_faults": spent.total("major", self._tree.source("stat majflt + cmajflt")),
        }
        for name, field in _IO.items():
            source = self._tree.source(f"io {field.decode()}, ended children too")
            found[name] = absent(self._io_unread, source) if self._io_unread else spent.total(name, source)
        return found

    def used_s(self) -> float:
        """Return the CPU seconds of all processes since they started, those of ended children too."""
        return sum(one["cpu"] + one["ended user"] + one["ended system"] for _, one in self._tree.each(_one)) / _NS

    def close(self) -> None:
        """The tree is closed by whoever made it."""


class Spent:
    """What was spent between two samples: sums over those that lived at their times, ended ones taken off again.

    A process that ended in the window and was waited for has left all its counts with its parent, those from before
    the window too: these are subtracted. What one that nobody waited for has used since is lost: a lower bound then.
    """

    def __init__(self, before: Sample | Unavailable, after: Sample | Unavailable, tree: Tree) -> None:
        self._missing = next((s.reason for s in (before, after) if isinstance(s, Unavailable)), None)
        self._before = {} if isinstance(before, Unavailable) else by_process(before)
        self._after = {} if isinstance(after, Unavailable) else by_process(after)
        self._gone = self._before.keys() - self._after.keys()
        # Every process has faults: its parent has at least as many once it has waited for it.
        left = sum(self._before[key]["minor"] + self._before[key]["ended minor"] for key in self._gone)
        self._lost = self._grown("ended minor", self._after) < left
        self._partial = self._lost or tree.unseen is not None

    def total(self, name: str, source: str, quality: Quality = Quality.EXACT) -> Reading:
        """Return the growth of a count, over all processes and ended children."""
        if self._missing is not None:
            return absent(self._missing, source)
        value = sum(self._grown(field, self._after) for field in (name, f"ended {name}"))
        value -= sum(self._before[key].get(field, 0) for key in self._gone for field in (name, f"ended {name}"))
        if self._partial:
            source += ", without what ended unwaited for" if self._lost else ""
            return Reading(value=max(0, value), source=source, quality=Quality.BOUND)
        return Reading(value=max(0, value), source=source, quality=quality)

    def ns(self, name: str, source: str, quality: Quality = Quality.EXACT) -> Reading:
        """Return the growth of a time in seconds."""
        found = self.total(name, source, quality)
        return found if found.value is None else Reading(value=found.value / _NS, source=source, quality=found.quality)

    def cpu(self, source: str) -> Reading:
        """Return the CPU seconds: exact, but for ticks that children left behind when they ended."""
        found = self.ns("user", source)
        if found.value is None:
            return found
        ended_ns = self._grown("ended user", self._after) + self._grown("ended system", self._after)
        gone_ns = sum(sum(self._before[key][n] for n in ("cpu", "ended user", "ended system")) for key in self._gone)
        ticks = ended_ns > 0 or any(one["ticks"] for one in self._after.values())
        quality = found.quality if self._partial else Quality.ESTIMATED if ticks else Quality.EXACT
        value = (self._grown("cpu", self._after) + ended_ns - gone_ns) / _NS
        return Reading(value=max(0.0, value), source=source, quality=quality)

    def ended_s(self, source: str) -> Reading:
        """Return the CPU seconds of children that ended in the window, of their whole lives."""
        if self._missing is not None:
            return absent(self._missing, source)
        value = sum(self._grown(name, self._after) for name in ("ended user", "ended system")) / _NS
        return Reading(value=value, source=source, quality=Quality.ESTIMATED if value else Quality.EXACT)

    def _grown(self, name: str, now: dict[str, Sample]) -> float:
        """Return by how much a count of those that live grew; all of it, of those that are new."""
        return sum(one.get(name, 0) - self._before.get(key, {}).get(name, 0) for key, one in now.items())


def by_process(sample: Sample) -> dict[str, Sample]:
    """Return a sample of each process, by its key."""
    found: dict[str, Sample] = {}
    for name, value in sample.items():
        key, _, field = name.partition(" ")
        found.setdefault(key, {})[field] = value
    return found
