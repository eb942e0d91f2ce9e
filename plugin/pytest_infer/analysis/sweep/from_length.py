"""From which length on a change shows: what the judgements of a curve's lengths say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement, holm, worse_sign

BEYOND = 0.01
"""Changes of less are nothing to tell where all lengths show that they have no larger one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Lengths, by their numbers, that show a change in one direction; `on`: the last one and all before it up to one.

    `worse` tells the direction.
    """

    numbers: tuple[int, ...]
    worse: bool
    on: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one figure's lengths say: claims that hold together, or none.

    Without one, `bound` is the largest change that an interval allows, at length number `widest`, and `within` says
    that no interval reaches beyond 1 %. `unknown` are the numbers of lengths that were not compared.
    """

    claims: tuple[Claim, ...] = ()
    within: bool = False
    bound: float | None = None
    widest: int | None = None
    unknown: tuple[int, ...] = ()


def find(figures: Sequence[Sequence[Judgement]], confidence: float = CONFIDENCE) -> list[Finding]:
    """Return what is found in each figure, whose judgements are in the order of the lengths, the shortest first.

    If nothing changed, any claim at all about any of the figures has a probability of 1 − `confidence` at most. One
    half of it is for the walk from the longest length to shorter ones, which ends at the first that is not significant
    in the same direction: tests in an order that was fixed before need no further correction (Maurer, Hothorn &
    Lehmacher 1995), but figures do (Bonferroni). A quarter is for single lengths, corrected for all of them (Holm), and
    a quarter is left: p-values that small are known less well where launches are few.
    """
    level = (1 - confidence) / 2 * (1 + 1e-9)
    singly = level / 2
    every = [_p(judgement) for judgements in figures for judgement in judgements]
    adjusted = iter(holm(every))
    return [
        _finding(judgements, level / len(figures), [p <= singly for p in (next(adjusted) for _ in judgements)])
        for judgements in figures
    ]


def _p(judgement: Judgement) -> float:
    return 1.0 if judgement.p is None else judgement.p


def _worse(judgement: Judgement) -> bool:
    return (judgement.mid or 0.0) * worse_sign(judgement.metric) > 0


def _finding(judgements: Sequence[Judgement], level: float, single: Sequence[bool]) -> Finding:
    unknown = tuple(n for n, j in enumerate(judgements) if j.low is None and j.high is None)
    ends = {n: _reach(j) for n, j in enumerate(judgements) if n not in unknown}
    bound = max((end for end in ends.values() if end is not None), default=None)
    open_ended = [n for n, end in ends.items() if end is None]
    widest = open_ended[0] if open_ended else next((n for n, end in ends.items() if end == bound), None)
    if not unknown and not open_ended and bound is not None and bound <= BEYOND:
        return Finding(within=True, bound=bound, widest=widest)
    claims = []
    walked = _walk(judgements, level)
    if walked:
        claims.append(Claim(numbers=walked, worse=_worse(judgements[-1]), on=True))
    for worse in (True, False):
        rest = tuple(n for n, j in enumerate(judgements) if single[n] and n not in walked and _worse(j) is worse)
        claims += [Claim(numbers=rest, worse=worse, on=False)] if rest else []
    return Finding(claims=tuple(claims), bound=None if open_ended else bound, widest=widest, unknown=unknown)


def _reach(judgement: Judgement) -> float | None:
    """Return how large a change the interval allows; None for any."""
    if judgement.low is None or judgement.high is None:
        return None
    return max(abs(judgement.low), abs(judgement.high))


def _walk(judgements: Sequence[Judgement], level: float) -> tuple[int, ...]:
    found: list[int] = []
    for number in range(len(judgements) - 1, -1, -1):
        judgement = judgements[number]
        if _p(judgement) > level or _worse(judgement) is not _worse(judgements[-1]):
            break
        found.insert(0, number)
    return tuple(found)
