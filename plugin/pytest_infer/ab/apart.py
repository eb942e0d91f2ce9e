"""A prompt's steps taken apart in turns of a token, in all launches, once it is known that something changed."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from pytest_infer.ab import passes
from pytest_infer.ab.launch import Launch
from pytest_infer.ab.passes import Cost
from pytest_infer.measure.breakdown.taken import AUTO, MOST_STEPS, ON
from pytest_infer.metrics.breakdown import TOKENISE
from pytest_infer.records import Role, RoleTurns, Turns

SHARE = 0.25
"""So much of the time of a prompt this may take beside all else."""
_TIMES = 5
"""So often a side encodes the prompt when it is asked to, of which the median counts."""
_SHORT = (False, True, True, False)
_LONG = (True, False)
"""Whether this checkout begins, in the passes of one token and of more."""


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
    """Run observed passes in all launches and return what each role took, by phase; or why there is nothing."""
    from pytest_infer.analysis.breakdown import paired  # noqa: PLC0415 - with what compares

    asked = replace(passes.asked(threads), every=turns.every)
    tokens = _tokens(cost, len(used), time_s)
    found = []
    for launch in used:
        observed = paired.Observed()
        plan = [(1, begins, observed.short) for begins in _SHORT]
        plan += [(tokens, begins, observed.long) for begins in _LONG if tokens > 1]
        for limit, begins, kept in plan:
            before, after = launch.take_apart(replace(asked, tokens=limit, begins=begins))
            if before.parts is None or after.parts is None:
                return {}, before.absent or after.absent
            kept.append((before.parts, after.parts))
        found.append(observed)
    return paired.roles(found, turns.every), None


def tokenised(used: Sequence[Launch]) -> dict[str, tuple[RoleTurns, ...]]:
    """Return what the tokeniser takes in each launch, as a phase of its own."""
    took = [launch.encode(_TIMES) for launch in used]
    before, after = (tuple(round(one[side]) for one in took) for side in (0, 1))
    return {TOKENISE: (RoleTurns(role=Role.TOKENISER, before_ns=before, after_ns=after),)}


def _tokens(cost: Cost, launches: int, time_s: float) -> int:
    """Return how many tokens an observed pass generates: all, but no more than fit the time, and a few at least."""
    room = SHARE * time_s / launches - (len(_SHORT) + len(_LONG)) * cost.first_s
    fit = int(room / (len(_LONG) * cost.token_s)) if cost.token_s > 0 else cost.generated
    return min(cost.generated, MOST_STEPS + 1, max(passes.LEAST_TOKENS, fit + 1))
