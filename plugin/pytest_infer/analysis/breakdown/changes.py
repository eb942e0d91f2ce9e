"""Which roles carry the change of a step, with intervals: in turns of a token, or between stored runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean, variance

from pytest_infer.analysis.breakdown.outcome import PhaseChange, RoleChange
from pytest_infer.analysis.compare.stats import Student
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement, holm
from pytest_infer.metrics.breakdown import PhaseParts
from pytest_infer.records import RoleTurns, Turns

_ALPHA = 0.05
"""The chance that a role is named which did not change, in all roles of a phase together."""
_AGREES = 0.9
"""Steps whose figure is known to have moved must differ from 0 with this confidence: 95 % on the side it moved to."""
_WORTH = 0.1
"""A role is named from this share of the whole's change on."""
_ALMOST_ALL = 0.8
"""One that carries this share of the change carries it, however large a part of the step it is anyway."""
_FEW_LAYERS = 0.75
"""Layers are named where the change is in no more than this share of them."""
_LEAST_SHARE = 0.002
"""Of a step: a smaller role scatters no less than one of this size."""
_LONGEST_NS = 10**15
"""No step takes eleven days."""
_DEVIATIONS = 4
"""An interval is about so many standard deviations wide."""
_RUNS = 3
"""And in no more than so many runs of neighbouring ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A role's time before and its change, nanoseconds, with what else of it is known beside chance."""

    role: str
    before: float
    change: Student
    excess: Student
    """Of its change over what it would be had all of the step changed alike."""
    layers: str = ""


def of_turns(tests: Sequence[Turns], phase: str, *, known: bool = False) -> PhaseChange | None:
    """Return the change of a step, the mean over some tests; None where one of them was not taken apart.

    If it is `known` that their figure moved, from more passes than those taken apart, these need not show it beyond
    doubt once more to name a role.

    The launches are the observations: how far the code of a process lies from another's is in their spread. Tests are
    measured in the same launches, so each launch's mean over them is one observation: of those that all tests had.
    """
    tables = [{one.role: one for one in turns.parts.get(phase, ())} for turns in tests]
    if not tables or not all(tables) or not all(_sound(one) for table in tables for one in table.values()):
        return None
    shared = sorted(set.intersection(*(set(_numbers(one)) for table in tables for one in table.values())))
    if len(shared) < 2:
        return None
    launches = len(shared)
    tables = [{role: _of_launches(one, shared) for role, one in table.items()} for table in tables]
    names = dict.fromkeys(role for table in tables for role in table)
    before = {role: _means([t[role].before_ns for t in tables if role in t], launches, len(tables)) for role in names}
    after = {role: _means([t[role].after_ns for t in tables if role in t], launches, len(tables)) for role in names}
    change = {role: [b - a for a, b in zip(before[role], after[role], strict=True)] for role in names}
    step = [sum(before[role][n] for role in names) for n in range(launches)]
    whole = [sum(change[role][n] for role in names) for n in range(launches)]
    if sum(step) <= 0:
        return None
    share = {role: sum(before[role]) / sum(step) for role in names}
    excess = {role: [c - share[role] * d for c, d in zip(change[role], whole, strict=True)] for role in names}
    spreads, over = _spreads(change, share), _spreads(excess, share)
    parts = [
        _Part(
            role=role,
            before=fmean(before[role]),
            change=Student(fmean(change[role]), *spreads[role]),
            excess=Student(fmean(excess[role]), *over[role]),
            layers=_layers([t[role] for t in tables if role in t], launches, len(tables)),
        )
        for role in names
    ]
    return _told(phase, fmean(step), _student(whole), parts, _AGREES if known else CONFIDENCE)


def _sound(one: RoleTurns) -> bool:
    """Return whether a role's times are such as a run stores, and not of a damaged file."""
    rows = [one.before_ns, one.after_ns, *one.layer_change_ns]
    aligned = len({len(row) for row in rows}) == 1 and len(one.layers) == len(one.layer_change_ns)
    numbered = len(set(_numbers(one))) == len(one.before_ns)
    return aligned and numbered and all(abs(took) < _LONGEST_NS for row in rows for took in row)


def _numbers(one: RoleTurns) -> Sequence[int]:
    return one.launches or range(len(one.before_ns))


def _of_launches(one: RoleTurns, numbers: Sequence[int]) -> RoleTurns:
    """Return a role's times in the launches of these numbers."""
    places = [_numbers(one).index(number) for number in numbers]
    before, after, *layers = (
        tuple(row[place] for place in places) for row in (one.before_ns, one.after_ns, *one.layer_change_ns)
    )
    return replace(one, before_ns=before, after_ns=after, layer_change_ns=tuple(layers), launches=tuple(numbers))


def doubt(change: Judgement) -> float | None:
    """Return what `of_stored` calls so, from the interval of the whole step's figure; None where that has no end."""
    if change.low is None or change.high is None or not math.isfinite(change.high - change.low):
        return None
    return (change.high - change.low) / _DEVIATIONS


def of_stored(phase: str, before: PhaseParts, after: PhaseParts, doubt: float) -> PhaseChange | None:
    """Return the change between two stored runs, which is known worse than within one; None without errors.

    `doubt` is how far the whole step may be off between runs of the same code on such a machine, as a standard
    deviation, a share: each role's time may be off by as much beside its own error.
    """
    sides = [{part.role: part for part in one.parts} for one in (before, after)]
    if any(part.error_s is None for side in sides for part in side.values()):
        return None
    step = sum(part.seconds for part in sides[0].values())
    if not step:
        return None
    whole = sum(part.seconds for part in sides[1].values()) - step
    df = max(1, min(before.observed, after.observed) - 1)
    parts = []
    for role in dict.fromkeys((*sides[0], *sides[1])):
        a, b = ((side[role].seconds, side[role].error_s or 0.0) if role in side else (0.0, 0.0) for side in sides)
        error = math.hypot(a[1], b[1])
        change = Student(1e9 * (b[0] - a[0]), 1e9 * math.hypot(error, doubt * a[0]), df)
        # All of a run is off alike: that is no excess of a role.
        excess = Student(1e9 * (b[0] - a[0] - a[0] / step * whole), 1e9 * error, df)
        parts.append(_Part(role=role, before=1e9 * a[0], change=change, excess=excess))
    error = math.hypot(*(part.error_s or 0.0 for side in sides for part in side.values()), doubt * step)
    return _told(phase, 1e9 * step, Student(1e9 * whole, 1e9 * error, df), parts, CONFIDENCE)


def _told(phase: str, step: float, whole: Student, parts: Sequence[_Part], confidence: float) -> PhaseChange:
    """Return the change in seconds, with the roles that carry it if the whole differs from 0 with this confidence."""
    real = _differ([part.change for part in parts])
    own = _differ([part.excess for part in parts])
    low, high = whole.interval(confidence)
    moved = low > 0 or high < 0
    low, high = whole.interval(CONFIDENCE)
    everywhere = moved and _everywhere(whole, parts, own)
    roles = []
    for number, part in enumerate(parts):
        share = part.change.mid / whole.mid if whole.mid else 0.0
        concentrated = number in own and part.excess.mid * part.change.mid > 0
        carries = concentrated if abs(share) < _ALMOST_ALL else share > 0
        ends = part.change.interval(CONFIDENCE)
        roles.append(
            RoleChange(
                role=part.role,
                before_s=part.before / 1e9,
                after_s=(part.before + part.change.mid) / 1e9,
                low_s=ends[0] / 1e9,
                high_s=ends[1] / 1e9,
                named=moved and not everywhere and number in real and carries and abs(share) >= _WORTH,
                layers=part.layers,
            )
        )
    return PhaseChange(
        phase=phase,
        before_s=step / 1e9,
        after_s=(step + whole.mid) / 1e9,
        low_s=low / 1e9,
        high_s=high / 1e9,
        roles=tuple(sorted(roles, key=lambda one: -abs(one.change_s))),
        everywhere=everywhere,
    )


def _everywhere(whole: Student, parts: Sequence[_Part], own: set[int]) -> bool:
    """Return whether all of a step changed alike: no role beyond its share, by less than half of the whole's change
    each, and what is beside the largest role changed too."""
    if own or len(parts) < 2:
        return False
    half = abs(whole.mid) / 2
    within = all(max(map(abs, part.excess.interval(CONFIDENCE))) < half for part in parts)
    largest = max(range(len(parts)), key=lambda number: parts[number].before)
    return within and any(
        number in _differ([part.change for part in parts]) for number in range(len(parts)) if number != largest
    )


def _differ(found: Sequence[Student]) -> set[int]:
    """Return the numbers of those that are not 0, by the method of Holm (1979)."""
    p = holm([2 * min(one.p_above(0.0), one.p_below(0.0)) for one in found])
    return {number for number, value in enumerate(p) if value <= _ALPHA}


def _student(values: Sequence[float]) -> Student:
    return Student(fmean(values), math.sqrt(variance(values) / len(values)), len(values) - 1)


def _means(tests: Sequence[Sequence[float]], launches: int, of: int) -> list[float]:
    """Return the mean over `of` tests in each launch; a test that does not have it counts as 0."""
    return [sum(one[number] for one in tests) / of for number in range(launches)]


def _spreads(values: Mapping[str, Sequence[float]], share: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Return the standard error of each role's mean over the launches, and its degrees of freedom.

    A few launches tell the spread of one role badly and that of all well: the variance is taken to grow with the role's
    share of the step, and each role's own is helped by the others' (see `moderation.moderated`).
    """
    # Imported late: numpy and scipy are for what compares.
    import numpy as np  # noqa: PLC0415

    from pytest_infer.analysis.compare.launches import ByLaunch  # noqa: PLC0415
    from pytest_infer.analysis.compare.moderation import moderated  # noqa: PLC0415

    scale = {role: math.sqrt(max(share[role], _LEAST_SHARE)) for role in values}
    by_role = [ByLaunch.first(np.divide(own, scale[role])) for role, own in values.items()]
    return {
        role: (scale[role] * math.sqrt(spread.variance / len(own)), spread.df) if spread is not None else (math.inf, 1)
        for (role, own), spread in zip(values.items(), moderated(by_role), strict=True)
    }


def _layers(tests: Sequence[RoleTurns], launches: int, of: int) -> str:
    """Return the layers that carry a role's change, "" where it is in all, in scattered ones, or cannot be told."""
    numbers = sorted({layer for one in tests for layer in one.layers})
    rows = [
        _means([one.layer_change_ns[one.layers.index(n)] for one in tests if n in one.layers], launches, of)
        for n in numbers
    ]
    if len(rows) < 2:
        return ""
    # What scatters in one layer does in the others; their launches are the same, so that all together tell little more.
    pooled = fmean(variance(row) for row in rows)
    found = [Student(fmean(row), math.sqrt(pooled / launches), 2 * (launches - 1)) for row in rows]
    whole = sum(one.mid for one in found)
    carry = sorted(number for number in _differ(found) if found[number].mid * whole > 0)
    told = sum(found[number].mid for number in carry)
    if not carry or len(carry) > _FEW_LAYERS * len(rows) or abs(told) < _ALMOST_ALL * abs(whole):
        return ""
    runs: list[list[int]] = [[carry[0]]]
    for before, number in pairwise(carry):
        if number == before + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(runs) > _RUNS:
        return ""
    named = [f"{numbers[run[0]]}-{numbers[run[-1]]}" if len(run) > 1 else f"{numbers[run[0]]}" for run in runs]
    return f"layer{'s' if len(carry) > 1 else ''} {', '.join(named)}"
