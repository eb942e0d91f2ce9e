"""The helper process's program: watches another process's resident size, and reports its maximum between marks."""

# Run by path (`python -I -S peak_helper.py PID|tree:PID,… INTERVAL_S [PSUTIL_FOLDER]`), so it imports the standard
# library only.

from __future__ import annotations

import importlib
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

MARK = b"m"
"""A request; the answer is a line with the maximum since the last mark in bytes."""

TREE = "tree:"
"""Stands before ids of processes whose children are watched with them, all as one sum."""

_LOOK_EVERY = 20
"""After so many samples it looks for children again: at most once a second, with few cores."""


def watch(resident: Callable[[], int], wait: Callable[[], bytes | None], answer: Callable[[bytes], object]) -> None:
    """Sample until the end of requests: `wait` returns a request, b"" at the end, or None after an interval."""
    highest = resident()
    while (request := wait()) != b"":
        current = resident()
        highest = max(highest, current)
        if request is not None:
            answer(b"%d\n" % highest)
            highest = current


def statm_reader(pid: int) -> Callable[[], int]:
    """Return a function that reads the resident bytes from /proc/<pid>/statm in 2 µs (proc(5))."""
    fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(os.pread(fd, 64, 0).split()[1]) * page


def tree_reader(roots: Sequence[int], proc: str = "/proc") -> Callable[[], int]:
    """Return a function that reads the sum of the resident bytes of processes and all their children (proc(5)).

    It raises ProcessLookupError once none of the roots is left.
    """
    page, samples = os.sysconf("SC_PAGE_SIZE"), itertools.count()
    members = list(roots)

    def read() -> int:
        if next(samples) % _LOOK_EVERY == 0:
            members[:] = list(_with_children(roots, proc))
        total = 0
        for pid in members:
            with suppress(FileNotFoundError, ProcessLookupError):
                total += int(Path(f"{proc}/{pid}/statm").read_bytes().split()[1]) * page
        if not members:
            raise ProcessLookupError
        return total

    return read


def _with_children(roots: Sequence[int], proc: str) -> Iterator[int]:
    parents: dict[int, list[int]] = {}
    for folder in Path(proc).glob("[0-9]*"):
        with suppress(FileNotFoundError, PermissionError, ProcessLookupError):  # with hidepid, of other users
            parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
            parents.setdefault(int(parent), []).append(int(folder.name))
    living = {child for children in parents.values() for child in children}
    left = [pid for pid in roots if pid in living]
    while left:
        yield (pid := left.pop())
        left += parents.get(pid, [])


def psutil_reader(pid: int, folder: str) -> Callable[[], int]:
    """Return a function that asks psutil, imported from `folder` as this interpreter runs without site-packages."""
    sys.path.append(folder)
    process = importlib.import_module("psutil").Process(pid)
    return lambda: int(process.memory_info().rss)


def requests(descriptor: int, interval_s: float) -> Callable[[], bytes | None]:
    """Return `wait` for `watch`: a thread reads the pipe, as Windows cannot wait for one with a time limit."""
    received: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        while (request := os.read(descriptor, 1)) != b"":
            received.put(request)
        received.put(b"")

    threading.Thread(target=read, daemon=True).start()

    def wait() -> bytes | None:
        try:
            return received.get(timeout=interval_s)
        except queue.Empty:
            return None

    return wait


def main(arguments: list[str]) -> None:
    """Watch the process with the given id until it ends, or its end of the pipe is closed."""
    watched, interval_s = arguments[0], float(arguments[1])
    if watched.startswith(TREE):
        resident = tree_reader([int(pid) for pid in watched.removeprefix(TREE).split(",")])
    elif len(arguments) > 2:
        resident = psutil_reader(int(watched), arguments[2])
    else:
        resident = statm_reader(int(watched))
    try:
        watch(resident, requests(0, interval_s), lambda line: os.write(1, line))
    except (ProcessLookupError, BrokenPipeError):
        # The parent has ended; so does its watcher.
        return


if __name__ == "__main__":
    main(sys.argv[1:])
