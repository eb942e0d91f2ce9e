"""Which roles carried a lasting change of a history, from what each took of a step in the runs on both levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from pytest_infer.analysis.compare.stats import Student
from pytest_infer.analysis.compare.verdicts import holm
from pytest_infer.metrics.breakdown import PhaseParts

MIN_RUNS = 3
"""A level needs so many runs that were taken apart, as a change point does."""
_ALPHA = 0.01
_LEAST = 0.1
"""A role carries a change only with so much of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarryingRole:
    """A role's mean self time of a step on both levels, seconds."""

    role: str
    before_s: float
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """The mean step of a phase on both levels, seconds, and the roles that carried its change, the largest first.

    There is none where all changed alike, or where runs scatter too much for one to stand out.
    """

    phase: str
    before_s: float
    after_s: float
    roles: tuple[CarryingRole, ...] = ()


def lasting(phase: str, before: Sequence[PhaseParts], after: Sequence[PhaseParts]) -> Lasting | None:
    """Return what carried the change of a step; None below three runs a side, or where the step shows no change.

    A role carries it if both its self time and its share of the step moved the way the step did (Welch, p < 0.01,
    Holm over all roles; of a role's two p-values the larger counts), by a tenth of the step's change or more. The share
    is what tells a role from a machine that became slower as a whole. Of several the largest is found first, and the
    shares of the others are those of what is left without it. A role that a run does not have took 0 there.
    """
    if min(len(before), len(after)) < MIN_RUNS:
        return None
    times = [[{part.role: part.seconds for part in parts.parts} for parts in side] for side in (before, after)]
    wholes = _sums(times)
    if min(map(min, wholes)) <= 0 or _p(*wholes) >= _ALPHA:
        return None
    levels = [fmean(side) for side in wholes]
    found: list[CarryingRole] = []
    while (one := _largest(times, levels[1] - levels[0])) is not None:
        found.append(one)
        times = [[{role: own for role, own in run.items() if role != one.role} for run in side] for side in times]
    return Lasting(phase=phase, before_s=levels[0], after_s=levels[1], roles=tuple(found))


def _largest(times: Sides, way: float) -> CarryingRole | None:
    """Return the role that carries the most of a change; None where none stands out."""
    wholes = _sums(times)
    if min(map(min, wholes)) <= 0:
        return None
    shares = [
        [{role: own / whole for role, own in run.items()} for run, whole in zip(*side, strict=True)]
        for side in zip(times, wholes, strict=True)
    ]
    roles = sorted({role for side in times for run in side for role in run})
    adjusted = holm([max(_p(*_of(role, times)), _p(*_of(role, shares))) for role in roles])
    found = []
    for role in (role for role, p in zip(roles, adjusted, strict=True) if p < _ALPHA):
        (before_s, after_s), (first, last) = (map(fmean, _of(role, sides)) for sides in (times, shares))
        if (last - first) * way > 0 and (after_s - before_s) / way >= _LEAST:
            found.append(CarryingRole(role=role, before_s=before_s, after_s=after_s))
    return max(found, key=lambda one: abs(one.after_s - one.before_s), default=None)


Sides = Sequence[Sequence[Mapping[str, float]]]
"""Both sides' runs, each the seconds or the shares of its roles."""


def _sums(times: Sides) -> list[list[float]]:
    return [[sum(run.values()) for run in side] for side in times]


def _of(role: str, sides: Sides) -> list[list[float]]:
    return [[run.get(role, 0.0) for run in side] for side in sides]


def _p(before: Sequence[float], after: Sequence[float]) -> float:
    """Return Welch's two-sided p of a difference of means, with Satterthwaite's degrees of freedom."""
    mid = fmean(after) - fmean(before)
    squared = [variance(side) / len(side) for side in (before, after)]
    if sum(squared) <= (1e-9 * max(map(abs, (*before, *after)))) ** 2:  # what rounding leaves of equal values
        return float(abs(mid) <= 1e-9 * max(map(abs, (*before, *after))))
    freedom = sum(squared) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(squared, (before, after), strict=True)
    )
    estimate = Student(mid, sum(squared) ** 0.5, freedom)
    return min(1.0, 2 * min(estimate.p_above(0), estimate.p_below(0)))
