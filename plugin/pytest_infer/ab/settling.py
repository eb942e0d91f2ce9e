"""What is done before a turn, so that both sides start alike: a pause, and the same cores."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from pytest_infer.measure.counters.kernel_files import Sources

SETTLE_S = 0.02
"""Pause before each turn, never inside one, and in the process whose turn it is: both then start alike, from a sleep.

OpenMP's threads spin after their last parallel region: libgomp's for 8 to 11 ms (CPU time of torch's idle threads, on
this project's 2-core machine), and on a full machine they would take the other side's cores.
"""


def settle() -> None:
    """Let the threads of the side that measured last go to sleep."""
    time.sleep(SETTLE_S)


class CoreSchedule:
    """Which cores a pair of rounds runs on: the same for both sides, and other ones two pairs later.

    A process stays on the core where it ran last. With fewer threads than cores the two sides would keep to different
    ones, and what else lives on a core (on a virtual machine another guest, unseen) would be taken for a difference
    between commits.
    """

    def __init__(self, threads: int | None) -> None:
        here = Sources().ask("cores", lambda: os.sched_getaffinity(0), "affinity") if sys.platform == "linux" else ()
        self.all = tuple(sorted(here or ()))
        self._threads = threads if threads is not None and threads < len(self.all) else 0

    def of(self, pair: int) -> tuple[int, ...]:
        """Return the cores of a pair, counted from 0; none where all are used, or where they cannot be chosen."""
        first = pair // 2 * self._threads
        return tuple(sorted({self.all[(first + number) % len(self.all)] for number in range(self._threads)}))


def most_threads(*sides: int | None) -> int | None:
    """Return the threads of the side that has more, None where one does not tell: on fewer cores these would wait for
    each other, and what that costs be taken for a difference between commits."""
    known = [threads for threads in sides if threads is not None]
    return max(known) if len(known) == len(sides) else None


def pin(cores: tuple[int, ...]) -> None:
    """Let every thread of this process run on these cores only; nothing for none."""
    if not cores or sys.platform != "linux":
        return
    tasks = Sources().matching("threads", Path("/proc/self/task"), "*")
    # 0 is this thread; those that it starts follow it.
    for thread in [int(task.name) for task in tasks] or [0]:
        try:
            os.sched_setaffinity(thread, cores)
        except ProcessLookupError:
            # It ended meanwhile.
            continue
