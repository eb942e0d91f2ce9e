"""Turns of a token: which of two processes computes, and how one hands over to the other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pytest_infer.measure.counters.contention import RunQueue

ENVIRONMENT = "PYTEST_INFER_TURNS"
"""The variable that gives a side its ends of the two pipes: the one to read from, a comma, the one to write to."""
_NUMBERS = 0x80
_END = 0x80


class Baton:
    """One side's ends of the two pipes between the sides of a pair: a byte is the turn.

    A byte says to which pass it belongs, so that one left over by a pass that ended early is not taken for a turn of
    the next, and whether its sender is through with the pass. A side whose process is gone is through.

    With a `partner` (its process number) whoever has the turn stops the other process: its idle threads spin for a
    while, and would take cores. Stopped (SIGSTOP) they neither do, nor go to sleep and have to be woken.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._number = 0
        self._partner = 0
        self.alone = True

    @classmethod
    def inherited(cls) -> Baton | None:
        """Return the baton that this process was started with, or None; what it starts has none."""
        ends = os.environ.pop(ENVIRONMENT, None)
        if ends is None:
            return None
        read, write = map(int, ends.split(","))
        for end in (read, write):
            os.set_inheritable(end, False)
        return cls(read, write)

    def begin(self, number: int, partner: int = 0) -> None:
        """Begin a pass; both sides give it the same number, and another than the pass before."""
        self._number = number % _NUMBERS
        self._partner = partner
        self.alone = False

    def give(self) -> None:
        """Let the other side go on."""
        if not self.alone:
            self._signal(signal.SIGCONT)
        self._send(self._number)

    def take(self) -> None:
        """Wait until the other side hands over, or is through: then `alone` is set, and nothing waits any more."""
        while not self.alone:
            got = os.read(self._read, 1)
            if not got or got[0] == self._number | _END:
                self.alone = True
            elif got[0] == self._number:
                self._signal(signal.SIGSTOP)
                return

    def end(self) -> None:
        """Say that this side is through with the pass."""
        self._signal(signal.SIGCONT)
        self._send(self._number | _END)
        self.alone = True

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read)
        os.close(self._write)

    def _signal(self, number: int) -> None:
        if self._partner:
            with suppress(ProcessLookupError):
                os.kill(self._partner, number)

    def _send(self, byte: int) -> None:
        if self.alone and not byte & _END:
            return
        try:
            os.write(self._write, bytes([byte]))
        except BrokenPipeError:
            self.alone = True


class Waits:
    """How long this process's threads waited for cores in each of its turns, as far as the kernel tells."""

    def __init__(self) -> None:
        self._queue = RunQueue()
        self._begun = self._queue.read()
        self._lost = False
        self.turns_ns: list[int] = []

    def begin(self) -> None:
        """Begin a turn."""
        self._begun = self._queue.read()

    def end(self) -> None:
        """End it; after one that is not known, none is told."""
        waited = self._queue.readings(self._begun, self._queue.read())["run_queue_wait_s"].value
        if waited is None:
            self._lost = True
        elif not self._lost:
            self.turns_ns.append(round(waited * 1e9))

    def close(self) -> None:
        """Give the file descriptors back."""
        self._queue.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTurns:
    """The turns of one pass, for one side: a chunk of `every` ticks, then perhaps the other side's, and so on.

    The first tick, which ends the prefill, is a chunk of its own: chunk 0. The sides alternate A | B B | A A | B B …,
    where A is the side that begins: of two neighbouring chunks each side has one in either place (A B B A, a quad), so
    that what one finds of the other's making in the caches is alike for both. `cores` are taken quad by quad in turns,
    for engines of one thread.
    """

    baton: Baton
    begins: bool
    waits: Waits
    every: int = 1
    cores: Sequence[int] = ()
    shift: int = 0
    """How far the cores are shifted: passes begin on different ones."""
    idle: Callable[[], object] = lambda: None
    """Waits for this side's accelerator, before the other side has it: its process may then be stopped, too."""

    def await_first(self) -> None:
        """Wait for the first turn of the pass, which begins when both sides are here: their preparations take cores."""
        if not self.begins:
            self.baton.give()
        self.baton.take()
        self._settle(0)
        self.waits.begin()

    def after(self, tick: int) -> bool:
        """Hand over after a tick if a chunk ends with it, and return whether one did."""
        chunk, within = divmod(tick, self.every)
        if within or self.baton.alone:
            return False
        self.waits.end()
        if (chunk % 2 == 0) is self.begins:
            self.idle()
            self.baton.give()
            self.baton.take()
        self._settle(chunk + 1)
        self.waits.begin()
        return True

    def _settle(self, chunk: int) -> None:
        """Before a chunk: take its core."""
        if self.cores and sys.platform == "linux":
            quad = (chunk - 1) // 2
            os.sched_setaffinity(0, {self.cores[(quad + self.shift) % len(self.cores)]})
