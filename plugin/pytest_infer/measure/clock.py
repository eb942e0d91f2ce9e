"""The token clock: engines tick it, it stamps; one trace of nanosecond stamps per round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from operator import index
from time import perf_counter_ns
from typing import Protocol

from pytest_infer import untrusted
from pytest_infer.errors import EngineError, alternatives
from pytest_infer.records import Reported, StopReason, TokenTrace

_NOTHING = nullcontext()
_LARGEST = 2**31 - 1
"""The largest id that a sidecar holds."""


class TokenClock:
    """Stamps the moments when tokens become available.

    An engine calls `tick` with the ids the moment it has them, and does nothing else for the timing. `now` is a
    parameter for tests with a fake clock.
    """

    __slots__ = (
        "_arrived_ns",
        "_counts",
        "_ids",
        "_now",
        "_prefill_end_ns",
        "_reported",
        "_spanned",
        "_stamps",
        "_start_ns",
        "_texts",
    )

    def __init__(self, now: Callable[[], int] = perf_counter_ns) -> None:
        self._now = now
        self._start_ns = 0
        self._arrived_ns: int | None = None
        self._prefill_end_ns: int | None = None
        self._stamps: list[int] = []
        self._ids: list[Sequence[int]] = []
        self._texts: list[str] = []
        self._counts: list[int] = []
        self._reported: Reported | None = None
        self._spanned = False

    def start(self) -> None:
        """Read the clock: the ids are ready and the device is idle. The harness calls it, not the engine."""
        self._stamps.clear()
        self._ids.clear()
        self._texts.clear()
        self._counts.clear()
        self._reported = None
        self._prefill_end_ns = self._arrived_ns = None
        self._start_ns = self._now()

    def tick(self, token_ids: Sequence[int]) -> None:
        """Stamp the moment at which these ids (one or more, in order) became available."""
        self._stamp()
        self._ids.append(token_ids)

    def tick_text(self, text: str, tokens: int = 1) -> None:
        """Stamp the moment at which a piece of text became available, of so many tokens whose ids nobody tells."""
        self._stamp()
        self._texts.append(text)
        self._counts.append(tokens)

    def now(self) -> int:
        """Read the clock."""
        return self._now()

    def arrived(self, at_ns: int) -> None:
        """Stamp the ticks that follow with this moment, until it is called again."""
        self._arrived_ns = at_ns

    def _stamp(self) -> None:
        self._stamps.append(self._now() if self._arrived_ns is None else self._arrived_ns)

    def reported(
        self,
        *,
        prompt: int | None = None,
        generated: int | None = None,
        cached: int | None = None,
        allowed: int | None = None,
    ) -> None:
        """Take what a server counted; what is None leaves what it said before."""
        told = {"prompt": prompt, "generated": generated, "cached": cached, "allowed": allowed}
        said = {name: int(count) for name, count in told.items() if count is not None}
        self._reported = replace(self._reported or Reported(), **said)

    def prefilled(self) -> None:
        """Stamp the end of the prompt's forward pass, if an engine knows it apart from the first token's arrival."""
        self._prefill_end_ns = self._now()

    def span(self, role: str, layer: int | None = None) -> AbstractContextManager[object]:  # noqa: ARG002 - as Clock says
        """Note that there are spans, and time none of them."""
        self._spanned = True
        return _NOTHING

    def trace(self, *, prompt_tokens: int, requested_tokens: int, stopped_by: StopReason | None) -> TokenTrace:
        """Return what was stamped since `start`; `prompt_tokens` of 0 are those that the server counted.

        Raises:
            EngineError: no tick, a tick without ids, more ids than requested, or what is no id, text, time or reason.
        """
        if self._ids and self._texts:
            raise EngineError("the engine ticked ids and texts in one generation")
        sizes, token_ids, texts = self._said()
        if not sizes:
            raise EngineError("the engine generated no token, or never called clock.tick(token_ids)")
        if min(sizes) < 1:
            tick = next(number for number, count in enumerate(sizes) if count < 1)
            raise EngineError(f"the engine ticked without token ids (tick {tick})")
        if sum(sizes) > requested_tokens:
            raise EngineError(f"the engine ticked {sum(sizes)} tokens where {requested_tokens} were asked for")
        if any(later < earlier for earlier, later in pairwise((self._start_ns, *self._stamps))):
            raise EngineError("clock.arrived was given a time before the last one: give it what clock.now() returned")
        if stopped_by is not None and stopped_by not in tuple(StopReason):
            raise EngineError(f"the engine ended with {alternatives('reason', str(stopped_by), StopReason)}")
        return TokenTrace(
            prompt_tokens=prompt_tokens or (self._reported.prompt if self._reported else None) or 0,
            requested_tokens=requested_tokens,
            start_ns=self._start_ns,
            stamps_ns=tuple(self._stamps),
            tick_sizes=sizes,
            token_ids=token_ids,
            prefill_end_ns=self._prefill_end_ns,
            stopped_by=None if stopped_by is None else StopReason(stopped_by),
            spanned=self._spanned,
            texts=texts or None,
            reported=self._reported,
        )

    def _said(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]:
        """Return how many tokens each tick brought, and their ids or texts; raise EngineError where they are none."""
        try:
            sizes = tuple(map(index, self._counts)) if self._texts else tuple(len(ids) for ids in self._ids)
            ids, texts = tuple(int(i) for ids in self._ids for i in ids), tuple(map(untrusted.writable, self._texts))
        except (TypeError, ValueError) as error:
            what = "tick_text takes a text and a number" if self._texts else "tick takes a list of token ids"
            raise EngineError(f"clock.{what}: {error}") from error
        if ids and max(ids) > _LARGEST:
            raise EngineError(f"the engine ticked the id {max(ids)}: ids go up to {_LARGEST}")
        return sizes, ids, texts


class TurnTaker(Protocol):
    """Who computes when, of two that take turns."""

    def await_first(self) -> None:
        """Return when the first turn is ours."""

    def after(self, tick: int) -> bool:
        """After a tick (from 0), let others go on if it is their turn, and return whether this one waited."""


class TurnClock(TokenClock):
    """A token clock that lets another process go on between ticks. Its stamps are in this side's own time.

    The time between losing the turn and having it again belongs to no token.
    """

    __slots__ = ("_turns", "_waited_ns")

    def __init__(self, turns: TurnTaker, now: Callable[[], int] = perf_counter_ns) -> None:
        super().__init__(now)
        self._turns = turns
        self._waited_ns = 0

    def start(self) -> None:
        """Read the clock, as ever."""
        self._waited_ns = 0
        super().start()

    def _stamp(self) -> None:
        """Stamp the moment of the tick, at which a turn may end, and wait for the next if this one is over."""
        now = self._now()
        self._stamps.append(now - self._waited_ns)
        if self._turns.after(len(self._stamps) - 1):
            self._waited_ns += self._now() - now

    def prefilled(self) -> None:
        """Stamp the end of the prompt's forward pass."""
        self._prefill_end_ns = self._now() - self._waited_ns
