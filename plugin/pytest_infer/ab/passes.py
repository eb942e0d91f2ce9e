"""A prompt in turns of a token: what a pass is, how many fit the time, and when there are enough."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from pytest_infer.ab import protocol
from pytest_infer.ab.launch import Launch
from pytest_infer.ab.settling import CoreSchedule
from pytest_infer.records import Round, Turns

WARM_TOKENS = 4
"""So many tokens warm up a launch but the first: the prefill's shape and a few steps."""
LEAST_LAUNCHES = 3
"""Fewer cannot tell how far launches lie apart: so many are measured whatever the time."""
_SHORT = (False, True, True, False)
"""Whether this checkout begins, in passes of one token. Such a pass has no neighbours within to average over, and who
ended a pass finds its own weights in the caches if it begins the next: in this order either side does equally often."""
_LEAST_QUADS = 4
"""Turns are short enough for so many quads in a pass, whatever that costs."""
_MOST_OVERHEAD = 2.0
"""A turn may cost so many times what is computed in it; else it takes several tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a prompt costs, by a pair of whole rounds: seconds of both, and of both first tokens."""

    pair_s: float
    first_s: float

    @classmethod
    def of(cls, pair: tuple[Round, Round]) -> Cost:
        """Return that of a pair."""
        traces = [one.trace for one in pair]
        return cls(
            pair_s=sum(one.stamps_ns[-1] - one.start_ns for one in traces) / 1e9,
            first_s=sum(one.stamps_ns[0] - one.start_ns for one in traces) / 1e9,
        )

    @property
    def short(self) -> int:
        """Return how many passes of one token a cycle has: fewer where they would cost more than the whole ones."""
        return len(_SHORT) * (2 if 2 * len(_SHORT) * self.first_s <= 2 * self.pair_s else 1)

    def launches(self, budget_s: float, *, turns: bool) -> int:
        """Return in how many launches the prompt can be measured: a pair of whole rounds and a cycle of passes each.

        An engine that takes no turns has three pairs instead.
        """
        each = self.pair_s * 3 + (self.short * self.first_s if turns else 0)
        return max(LEAST_LAUNCHES, int(budget_s / each))


def _cycle(short: int, *, reverse: bool) -> list[tuple[int | None, bool]]:
    """Return the passes of a launch in a cycle, their tokens and whether this checkout begins: the short ones, then
    two whole ones. Every other cycle is the reverse."""
    passes = [*((1, begins) for begins in _SHORT * (short // len(_SHORT))), (None, True), (None, False)]
    return [(tokens, begins is not reverse) for tokens, begins in passes]


def measure(
    launches: Sequence[Launch],
    cost: Cost,
    *,
    threads: int | None,
    rounds: int,
    budget_s: float,
    enough: Callable[[Turns], bool],
) -> Turns:
    """Run cycles of passes in all launches until there are enough or the time is up, and return the ratios.

    `rounds` whole ones were measured in each; `budget_s` is what the passes may take.
    """
    # Imported late: numpy and scipy are for runs that compare.
    from pytest_infer.analysis.compare import launches as estimates  # noqa: PLC0415

    started = time.monotonic()
    how = asked(threads)
    how = replace(how, every=_ticks_a_turn(launches[0].take_turns(how)))
    cycles = 0
    while True:
        begun = time.monotonic()
        for launch in launches:
            for tokens, begins in _cycle(cost.short, reverse=cycles % 2 == 1):
                took = launch.take_turns(replace(how, tokens=tokens, begins=begins))
                launch.keep(took, first_token=tokens is not None)
        cycles += 1
        now = time.monotonic()
        found = Turns(
            every=how.every,
            cycles=cycles,
            seconds=now - started,
            ratios=estimates.ratios([(one.first_tokens, one.passes) for one in launches], how.every),
            rounds=rounds,
        )
        if enough(found) or now - started + now - begun > budget_s:
            return dataclasses.replace(found, strayed=sum(launch.strayed for launch in launches))


def warm_up(launch: Launch, threads: int | None) -> None:
    """Run a few tokens on both sides, which do not count."""
    launch.take_turns(replace(asked(threads), tokens=WARM_TOKENS))


def asked(threads: int | None) -> protocol.TakeTurns:
    """Return what every pass of a prompt has in common."""
    cores = CoreSchedule(None).all if threads == 1 else ()
    return protocol.TakeTurns(number=0, begins=False, every=1, cores=cores)


def _ticks_a_turn(took: Sequence[protocol.TookTurns]) -> int:
    """Return how many ticks a turn should have, by what handing over cost in a pass with one tick a turn."""
    own = [(one.taken.stamps_ns[-1] - one.taken.start_ns) for one in took]
    ticks = sum(len(one.taken.stamps_ns) for one in took)
    overhead = max(0, max(one.wall_ns for one in took) - sum(own)) / ticks
    most = (min(len(one.taken.stamps_ns) for one in took) - 1) // (2 * _LEAST_QUADS)
    return max(1, min(most, math.ceil(overhead / (_MOST_OVERHEAD * sum(own) / ticks))))
