"""The timeline helper's program: samples another process's memory, I/O and every core's time between two marks."""

# Run by path (`python -I -S helper.py PARENT_PID INTERVAL_S PROC [PID,…]`), so it imports the standard library only.

from __future__ import annotations

import itertools
import json
import os
import select
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

BEGIN, END = b"b", b"e"
"""Marks. After BEGIN it samples; after END it answers with a line of JSON and the samples as 64-bit integers."""

MOST = 4096
"""More samples are merged two by two, and the interval doubles: long rounds have coarser timelines, not larger ones."""


_LOOK_EVERY = 20
"""After so many samples it looks for children again."""


class Source(Protocol):
    """Something to sample; `name` is what is absent where it cannot be."""

    name: str
    columns: tuple[str, ...]

    def read(self) -> Sequence[int]:
        """Return a number for each column."""


class SampledFile:
    """One kernel file, kept open and read with one `pread` per sample."""

    def __init__(
        self, name: str, path: str, columns: Sequence[str], parse: Callable[[bytes], Sequence[int]], size: int
    ) -> None:
        self.name, self.columns = name, tuple(columns)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._parse, self._size = parse, size
        if len(self.read()) != len(self.columns):
            raise ValueError(f"{path} is not in the expected form")

    def read(self) -> Sequence[int]:
        """Return a number for each column."""
        return self._parse(os.pread(self._fd, self._size, 0))


class SampledTree:
    """A file of each of some processes and of all their children, as sums; the children are looked for now and then."""

    def __init__(
        self,
        name: str,
        proc: str,
        roots: Sequence[int],
        file: str,
        columns: Sequence[str],
        parse: Callable[[bytes], Sequence[int]],
    ) -> None:
        self.name, self.columns = name, tuple(columns)
        self._proc, self._roots, self._file, self._parse = proc, roots, file, parse
        self._samples = itertools.count()
        for pid in roots:
            parse(Path(f"{proc}/{pid}/{file}").read_bytes())

    def read(self) -> Sequence[int]:
        """Return the sums; raise ProcessLookupError once no root is left, PermissionError for a child of others."""
        if next(self._samples) % _LOOK_EVERY == 0:
            self._members = with_children(self._proc, self._roots)
        total = [0] * len(self.columns)
        for pid in self._members:
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):
                found = self._parse(Path(f"{self._proc}/{pid}/{self._file}").read_bytes())
                total = [a + b for a, b in zip(total, found, strict=True)]
        if not self._members:
            raise ProcessLookupError
        return total


def with_children(proc: str, roots: Sequence[int]) -> list[int]:
    """Return the ids of processes that live and of all their children (proc(5))."""
    parents: dict[int, int] = {}
    for folder in Path(proc).glob("[0-9]*"):
        with suppress(FileNotFoundError, PermissionError, ProcessLookupError, IndexError):  # with hidepid, of others
            parents[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
    found: list[int] = []
    left = [pid for pid in roots if pid in parents]
    while left:
        found.append(left.pop())
        left += [child for child, parent in parents.items() if parent == found[-1]]
    return found


def resident(proc: str, pid: int, roots: Sequence[int]) -> Source:
    """Resident bytes, from statm (proc(5)): 2 µs a process."""
    page = os.sysconf("SC_PAGE_SIZE")

    def parse(text: bytes) -> Sequence[int]:
        return [int(text.split(None, 2)[1]) * page]

    if roots:
        return SampledTree("rss", proc, roots, "statm", ["rss"], parse)
    return SampledFile("rss", f"{proc}/{pid}/statm", ["rss"], parse, 64)


def input_output(proc: str, pid: int, roots: Sequence[int]) -> Source:
    """Bytes that came from the device and that are on their way to it, since the process started (proc(5))."""

    def parse(text: bytes) -> Sequence[int]:
        fields = dict(line.split(b":") for line in text.splitlines())
        return [int(fields[b"read_bytes"]), int(fields[b"write_bytes"])]

    if roots:
        return SampledTree("io", proc, roots, "io", ["read", "write"], parse)
    return SampledFile("io", f"{proc}/{pid}/io", ["read", "write"], parse, 512)


def core_time(proc: str) -> SampledFile:
    """Ticks for which each core was busy since boot, whatever ran there (proc(5)); what the host took is left out."""
    path = f"{proc}/stat"
    names = [line.split(None, 1)[0] for line in Path(path).read_text().splitlines() if line[3:4].isdigit()]
    names = [name for name in names if name.startswith("cpu")]

    def parse(text: bytes) -> Sequence[int]:
        ticks = []
        for line in text.split(b"\n", len(names) + 1)[1 : len(names) + 1]:
            user, nice, system, _idle, _iowait, irq, softirq = line.split(None, 8)[1:8]
            ticks.append(int(user) + int(nice) + int(system) + int(irq) + int(softirq))
        return ticks

    # A line a core, of at most ten numbers; the long line of interrupts that follows them is cut off.
    return SampledFile("cores", path, names, parse, 256 * (len(names) + 1))


def sources(proc: str, pid: int, roots: Sequence[int] = ()) -> tuple[list[Source], dict[str, str]]:
    """Return what can be read here, and why the rest cannot: of a process alone, or of `roots` with all children."""
    found, absent = [], {}
    makers: dict[str, Callable[[], Source]] = {
        "rss": lambda: resident(proc, pid, roots),
        "io": lambda: input_output(proc, pid, roots),
        "cores": lambda: core_time(proc),
    }
    for name, make in makers.items():
        try:
            found.append(make())
        except OSError as error:
            absent[name] = f"{error.filename or proc}: {error.strerror}"
        except (ValueError, LookupError) as error:
            absent[name] = f"a file of {proc} is not in the expected form: {error}"
    return found, absent


def thinned(rows: array[int], columns: int, highest: int | None) -> array[int]:
    """Return the later row of every two, with the larger of both in the column `highest`."""
    kept = array("q")
    for start in range(0, len(rows) - columns, 2 * columns):
        later = rows[start + columns : start + 2 * columns]
        if highest is not None:
            later[highest] = max(later[highest], rows[start + highest])
        kept.extend(later)
    return kept


class Recording:
    """The samples between two marks."""

    def __init__(self, found: Sequence[Source], absent: dict[str, str], interval_s: float) -> None:
        self._found, self._absent, self._interval_s = found, dict(absent), interval_s
        self._columns = ["at", *(column for source in found for column in source.columns)]
        self._highest = self._columns.index("rss") if "rss" in self._columns else None
        self._rows = array("q")
        self._cpu_ns = time.process_time_ns()

    @property
    def interval_s(self) -> float:
        """Return how long to wait for the next sample, seconds."""
        return self._interval_s

    def sample(self) -> None:
        """Take one; `at` is `perf_counter_ns`, which all processes of a Linux machine share."""
        row = [time.perf_counter_ns()]
        for source in self._found:
            row += self._read(source)
        self._rows.extend(row)
        if len(self._rows) >= MOST * len(row):
            self._rows = thinned(self._rows, len(row), self._highest)
            self._interval_s *= 2

    def _read(self, source: Source) -> Sequence[int]:
        """Return a source's numbers, zeros once a part of it may not be read: then none of them are told."""
        if source.name not in self._absent:
            try:
                return source.read()
            except PermissionError as error:
                self._absent[source.name] = f"{error.filename}: {error.strerror}"
                self._columns = [f"part of {c}" if c in source.columns else c for c in self._columns]
        return [0] * len(source.columns)

    def answer(self) -> bytes:
        """Return everything as the parent reads it."""
        head = {
            "columns": self._columns,
            "samples": len(self._rows) // len(self._columns),
            "interval_s": self._interval_s,
            "ticks_per_s": os.sysconf("SC_CLK_TCK"),
            "cpu_s": (time.process_time_ns() - self._cpu_ns) / 1e9,
            "absent": self._absent,
        }
        return json.dumps(head).encode() + b"\n" + self._rows.tobytes()


def parent_watch(pid: int) -> list[int]:
    """Return a descriptor that becomes readable when the parent ends, where the kernel offers that; else nothing.

    The end of the pipe shows this too, but not while a child that the parent forked still holds the other end.
    """
    try:
        return [os.pidfd_open(pid)]
    except (AttributeError, OSError):
        return []


def serve(proc: str, pid: int, interval_s: float, requests: int, answers: int, roots: Sequence[int] = ()) -> None:
    """Answer marks until the parent ends. Between a round's END and the next BEGIN nothing wakes this process."""
    ends = parent_watch(pid)
    found, absent = sources(proc, pid, roots)
    recording: Recording | None = None
    due = 0.0
    while True:
        wait = None if recording is None else max(0.0, due - time.monotonic())
        ready = select.select([requests, *ends], [], [], wait)[0]
        if any(end in ready for end in ends):
            return
        request = os.read(requests, 1) if ready else None
        if request == b"":
            return
        if request == BEGIN:
            recording = Recording(found, absent, interval_s)
        if recording is None:
            continue
        recording.sample()
        due = time.monotonic() + recording.interval_s
        if request == END:
            send(answers, recording.answer())
            recording = None


def send(descriptor: int, data: bytes) -> None:
    """Write all of it, however little the pipe takes at a time."""
    while data:
        data = data[os.write(descriptor, data) :]


def main(arguments: list[str]) -> None:
    """Sample the process with the given id, or others, until it ends, or its end of the pipe is closed."""
    pid, interval_s, proc, *others = int(arguments[0]), float(arguments[1]), *arguments[2:]
    roots = [int(root) for root in ",".join(others).split(",") if root]
    send(1, b"ready\n")
    try:
        serve(proc, pid, interval_s, 0, 1, roots)
    except (ProcessLookupError, BrokenPipeError):
        # The parent has ended; so does its watcher.
        return


if __name__ == "__main__":
    main(sys.argv[1:])
