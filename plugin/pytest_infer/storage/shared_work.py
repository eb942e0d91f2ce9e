"""Reading many files on all cores: JSON is decoded by one thread at a time, so processes share them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

WORTH_BYTES = 64 * 2**20
"""Below so much to read, all in all, no other process is started."""

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


def by_all_cores(work: Callable[[Sequence[_Item]], list[_Found]], items: Sequence[_Item], size: int) -> list[_Found]:
    """Return what `work` makes of all items, in their order, where they are `size` bytes to read.

    A part of them may be worked on in another process, so `work` returns what can be pickled and changes nothing.
    """
    cores = min(_cores(), len(items)) if size >= WORTH_BYTES else 1
    if cores < 2:
        return work(items)
    edges = [len(items) * number // cores for number in range(cores + 1)]
    parts = [items[start:end] for start, end in pairwise(edges)]
    started = [_started(work, part) for part in parts[1:]]
    found = work(parts[0])
    for part, child in zip(parts[1:], started, strict=True):
        answer: list[_Found] | None = None if child is None else _answer(*child)
        found += work(part) if answer is None else answer
    return found


def _cores() -> int:
    """Return how many processes may share the work; a process with threads is not forked, as they hold locks."""
    if sys.platform != "linux":
        return 1
    try:
        threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return 1
    if threads > 1:
        return 1
    from pytest_infer.measure.counters import cgroup  # noqa: PLC0415 - where there is little to read nobody needs it

    allowed, quota = len(os.sched_getaffinity(0)), cgroup.quota_cores(cgroup.discover())
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def _started(work: Callable[[Sequence[_Item]], list[_Found]], part: Sequence[_Item]) -> tuple[int, int] | None:
    """Return a child that works on a part, and the pipe on which it will answer; None where there can be none."""
    import pickle  # noqa: PLC0415 - where there is little to read nobody needs it

    try:
        answer, own = os.pipe()
    except OSError:
        return None
    try:
        child = os.fork()
    except OSError:  # as many processes, or as much memory, as there may be
        os.close(answer)
        os.close(own)
        return None
    if child:
        os.close(own)
        return child, answer
    # Nothing of the parent's is ended or flushed here, whatever happens.
    try:
        with os.fdopen(own, "wb") as file:
            file.write(pickle.dumps(work(part)))
    finally:
        os._exit(0)


def _answer(child: int, answer: int) -> list[_Found] | None:
    """Return what a child found; None where it was killed, or failed: then the parent finds out by itself."""
    import pickle  # noqa: PLC0415

    with os.fdopen(answer, "rb") as file:
        content = file.read()
    with suppress(ChildProcessError):
        os.waitpid(child, 0)
    try:
        found: list[_Found] = pickle.loads(content)  # noqa: S301 - written by a fork of this process
    except (EOFError, pickle.UnpicklingError):
        return None
    return found


def bytes_of(paths: Sequence[Path]) -> int:
    """Return how large files are together; one that is gone counts as empty."""
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.stat().st_size
    return total
