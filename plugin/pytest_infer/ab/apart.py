"""A prompt's steps taken apart in turns of a token, in all launches, once it is known that something changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from pytest_infer.ab import passes
from pytest_infer.ab.launch import Launch
from pytest_infer.ab.passes import Cost
from pytest_infer.measure.breakdown.taken import AUTO, MOST_STEPS, ON
from pytest_infer.metrics.breakdown import TOKENISE
from pytest_infer.records import Role, RoleTurns, Turns
from pytest_infer.units import seconds

SHARE = 0.25
"""So much of the time of a prompt this may take beside all else."""
LEAST_LAUNCHES = 2
"""Of fewer nothing is told."""
_TIMES = 5
"""So often a side encodes the prompt when it is asked to, of which the median counts."""
_SHORT = ((False, True, True, False), (False, True), ())
"""Whether this checkout begins, in the passes of one token: those of more tell the first one, too, so that there are
fewer where it takes long."""
_FEW_TOKENS = 5
"""A pass of more tokens has so many where the time is short: twice two turns a side that are compared."""
_LONG = (True, False)
"""The same of the passes of more tokens."""


def wanted(turns: Turns, when: str) -> bool:
    """Return whether steps are to be taken apart: always, never, or where the time of a step or first token moved."""
    if when != AUTO:
        return when == ON
    # Imported late: numpy and scipy are for runs that compare.
    from pytest_infer.analysis.compare import launches  # noqa: PLC0415

    found = [launches.estimate(launches.means(launches.calm(turns, name))) for name in turns.ratios]
    intervals = [one.interval(0.95) for one in found if one is not None]
    return any(low > 0 or high < 0 for low, high in intervals)


def measure(
    used: Sequence[Launch], cost: Cost, turns: Turns, *, threads: int | None, time_s: float
) -> tuple[dict[str, tuple[RoleTurns, ...]], str | None]:
    """Run observed passes in as many launches as have the time, two at least, and return what each role took, by phase;
    or why there is nothing."""
    from pytest_infer.analysis.breakdown import paired  # noqa: PLC0415 - with what compares

    asked, room_s = replace(passes.asked(threads), every=turns.every), SHARE * time_s
    plan, too_long = _Plan.within(room_s, cost, len(used)), f"more than a quarter of --infer-time {time_s:g}s"
    if plan.launches < LEAST_LAUNCHES:
        return {}, f"two launches of them take {seconds(LEAST_LAUNCHES * plan.cost_s(cost))}, {too_long}"
    found: dict[int, paired.Observed] = {}
    started, spent_s = time.monotonic(), 0.0
    for launch in used[: plan.launches]:
        if found and spent_s * (1 + 1 / len(found)) > room_s:
            break
        observed = paired.Observed()
        passes_ = [(1, begins, observed.short) for begins in plan.short]
        passes_ += [(plan.tokens, begins, observed.long) for begins in _LONG if plan.tokens > 1]
        for limit, begins, kept in passes_:
            before, after = launch.take_apart(replace(asked, tokens=limit, begins=begins))
            if before.parts is None or after.parts is None:
                return {}, before.absent or after.absent
            kept.append((before.parts, after.parts))
        found[launch.serial] = observed
        spent_s = time.monotonic() - started
    if len(found) < LEAST_LAUNCHES:
        return {}, f"one launch took {seconds(spent_s)}, and two {too_long}"
    return paired.roles(found, turns.every), None


def tokenised(used: Sequence[Launch]) -> dict[str, tuple[RoleTurns, ...]]:
    """Return what the tokeniser takes in each launch, as a phase of its own."""
    took = [launch.encode(_TIMES) for launch in used]
    before, after = (tuple(round(one[side]) for one in took) for side in (0, 1))
    serials = tuple(launch.serial for launch in used)
    return {TOKENISE: (RoleTurns(role=Role.TOKENISER, before_ns=before, after_ns=after, launches=serials),)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """In how many launches steps are taken apart, by which passes of one token, and how many tokens the others have."""

    launches: int
    short: tuple[bool, ...]
    tokens: int

    @classmethod
    def within(cls, room_s: float, cost: Cost, launches: int) -> _Plan:
        """Return what fits the time: as many launches as can be, then some tokens, then passes of one token, then more
        tokens. To hand over may make passes dearer."""
        most = min(cost.generated, MOST_STEPS + 1)
        short = _SHORT if most > 1 else _SHORT[:-1]
        plans = [cls(launches=launches, short=one, tokens=min(most, passes.LEAST_TOKENS)) for one in short]
        fewest = cls(launches=launches, short=short[-1], tokens=min(most, _FEW_TOKENS))
        count = min(launches, int(room_s / max(1e-9, fewest.cost_s(cost))))
        each_s = room_s / passes.MOST_PACE / max(1, count)
        chosen = next((one for one in plans if one.cost_s(cost) <= each_s), fewest)
        more_s = each_s - chosen.cost_s(cost)
        more = int(more_s / (len(_LONG) * cost.token_s)) if cost.token_s > 0 else most
        return cls(launches=count, short=chosen.short, tokens=min(most, chosen.tokens + max(0, more)))

    def cost_s(self, cost: Cost) -> float:
        """Return what a launch takes."""
        long = len(_LONG) if self.tokens > 1 else 0
        return (len(self.short) + long) * cost.first_s + long * (self.tokens - 1) * cost.token_s
