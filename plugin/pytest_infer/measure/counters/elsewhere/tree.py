"""A tree of processes, followed by their ids: who belongs to it now, and what the kernel tells of each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pytest_infer.measure.counters.kernel_files import FAILURES, why

GONE = (FileNotFoundError, ProcessLookupError)
"""What reading the files of a process raises once it has ended."""

_READ_SIZE = 16_384

T = TypeVar("T")


class Member:
    """One process. Its files are this process's only, whoever is given its number later: its folder is kept open."""

    def __init__(self, pid: int, key: str, proc: Path) -> None:
        """Take it into view; raise OSError where there is no such process, or it is not shown."""
        self.pid, self.key = pid, key
        self._folder = os.open(proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files: dict[str, int] = {}

    def read(self, name: str) -> bytes:
        """Return up to 16 KiB of a file that is read often, and kept open; raise OSError, one of GONE once it ended."""
        if name not in self._files:
            self._files[name] = self._open(name, os.O_RDONLY)
        return os.pread(self._files[name], _READ_SIZE, 0)

    def write(self, name: str, data: bytes) -> None:
        """Write to a file that is written to often; raise OSError."""
        if name not in self._files:
            self._files[name] = self._open(name, os.O_WRONLY)
        os.write(self._files[name], data)

    def whole(self, name: str) -> bytes:
        """Return all of a file that is read once in a while; raise OSError."""
        with os.fdopen(self._open(name, os.O_RDONLY), "rb") as file:
            return file.read()

    def threads(self) -> list[str]:
        """Return the ids of its threads; raise OSError."""
        descriptor = self._open("task", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(descriptor)  # noqa: PTH208 - pathlib cannot list an open descriptor
        finally:
            os.close(descriptor)

    def children(self) -> list[int]:
        """Return the ids of the children of all its threads (proc(5)); raise OSError."""
        found: list[int] = []
        for thread in self.threads():
            with suppress(ProcessLookupError):
                found += map(int, self.whole(f"task/{thread}/children").split())
        return found

    def close(self) -> None:
        """Give the file descriptors back."""
        for descriptor in (*self._files.values(), self._folder):
            os.close(descriptor)
        self._files.clear()

    def _open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._folder)


class Tree:
    """Root processes with all their children; whoever was seen in it stays in it until it ends.

    A child that its parent left to another process is still followed if it was seen before that.
    `unseen` says why children may be missing.
    """

    def __init__(self, roots: Collection[int], proc: Path = Path("/proc")) -> None:
        self._proc, self._roots = proc, tuple(roots)
        self._numbers = itertools.count()
        self._members: dict[int, Member] = {}
        self._denied: dict[int, str] = {}
        self.unseen: str | None = None
        for pid in self._roots:
            self._add(pid)
        self.refresh()

    @property
    def roots(self) -> tuple[int, ...]:
        """Return the ids of the roots."""
        return self._roots

    def missing(self) -> str | None:
        """Return why a root cannot be observed, or None."""
        for pid in self._roots:
            if pid not in self._members:
                return self._denied.get(pid, f"process {pid} has ended")
        return None

    def refresh(self) -> list[Member]:
        """Return who belongs to it now: forget those that ended, and find children that are new."""
        for member in list(self._members.values()):
            if _parent(member) is None:
                self._members.pop(member.pid).close()
        self.unseen = None
        looked_at: set[int] = set()
        while left := [m for pid, m in self._members.items() if pid not in looked_at]:
            for member in left:
                looked_at.add(member.pid)
                for child in self._children(member):
                    self._add(child, of=member.pid)
        return self.members()

    def members(self) -> list[Member]:
        """Return who belonged to it at the last look."""
        return list(self._members.values())

    def each(self, read: Callable[[Member], T]) -> Iterator[tuple[Member, T]]:
        """Yield what is read of each that lives still; raise OSError or ValueError where that fails otherwise."""
        for member in self.members():
            try:
                found = read(member)
            except GONE:
                # A file that this kernel does not have is another matter.
                if _parent(member) is not None:
                    raise
            else:
                yield member, found

    def source(self, what: str) -> str:
        """Return the words for a source: what of whose files in /proc, for people."""
        own = ",".join(map(str, self._roots))
        return f"/proc/{own if len(self._roots) == 1 else '{' + own + '}'}/{what}{self.with_children()}"

    def with_children(self) -> str:
        """Return the words that stand behind a source: how many children are in it, if any are."""
        others = len(self._members) - len(self._roots)
        text = f", with {others} child{'' if others == 1 else 'ren'}" if others > 0 else ""
        return text if self.unseen is None else f"{text}, without children: {self.unseen}"

    @property
    def size(self) -> int:
        """Return how many processes belong to it, as of the last look."""
        return len(self._members)

    def close(self) -> None:
        """Give the file descriptors back."""
        while self._members:
            self._members.popitem()[1].close()

    def _add(self, pid: int, of: int | None = None) -> None:
        if pid in self._members:
            return
        try:
            member = Member(pid, f"{pid}.{next(self._numbers)}", self._proc)
        except FAILURES as error:
            if not isinstance(error, GONE):
                self._denied[pid] = why(error, self._proc / str(pid))
            return
        # The number of one that ended may already be another's.
        if of is not None and _parent(member) != of:
            member.close()
            return
        self._members[pid] = member

    def _children(self, member: Member) -> list[int]:
        try:
            return member.children()
        except ProcessLookupError:
            return []
        except FAILURES:
            # A kernel without CONFIG_PROC_CHILDREN: every process says who its parent is.
            return self._children_by_parent(member)

    def _children_by_parent(self, parent: Member) -> list[int]:
        found: list[int] = []
        try:
            for name in os.listdir(self._proc):  # noqa: PTH208 - without a Path for each process
                if name.isdecimal():
                    with suppress(*GONE):
                        if _fields((self._proc / name / "stat").read_bytes())[1] == b"%d" % parent.pid:
                            found.append(int(name))
        except FAILURES as error:
            self.unseen = why(error, self._proc / "*/stat")
        return found


def _parent(member: Member) -> int | None:
    """Return the id of its parent; None once it has ended, 0 where that is not told."""
    try:
        return int(_fields(member.read("stat"))[1])
    except GONE:
        return None
    except FAILURES:
        return 0


def _fields(stat: bytes) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the state on: the name before it may hold spaces and parentheses."""
    return stat.rpartition(b")")[2].split()
