"""The helper process's program: watches another process's resident size, and reports its maximum between marks."""

# Run by path (`python -I -S peak_helper.py PID INTERVAL_S [PSUTIL_FOLDER]`), so it imports the standard library only.

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
from collections.abc import Callable

MARK = b"m"
"""A request; the answer is a line with the maximum since the last mark in bytes."""


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
    pid, interval_s = int(arguments[0]), float(arguments[1])
    resident = psutil_reader(pid, arguments[2]) if len(arguments) > 2 else statm_reader(pid)
    try:
        watch(resident, requests(0, interval_s), lambda line: os.write(1, line))
    except (ProcessLookupError, BrokenPipeError):
        # The parent has ended; so does its watcher.
        return


if __name__ == "__main__":
    main(sys.argv[1:])
