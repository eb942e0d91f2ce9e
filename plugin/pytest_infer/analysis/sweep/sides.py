"""A sweep or a curve that was measured on both sides of a comparison: what changed, where, and from where on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from pytest_infer.analysis.compare import comparison, fingerprint
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.stats import Student
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement, holm
from pytest_infer.analysis.sweep import axes, curve, from_length, shifts
from pytest_infer.analysis.sweep.curve import Coefficient, Curve
from pytest_infer.analysis.sweep.from_length import Finding
from pytest_infer.analysis.sweep.shifts import Shifts
from pytest_infer.metrics import by_key
from pytest_infer.storage.runs import Row

FIGURES = {"ttft_s": "prefill", "tpot_s": "decode"}
"""The figures of a curve, and what people call the phase that they are about."""
OF_CONFIGURATIONS = ("ttft_s", "tpot_s", "peak_rss_bytes")
_COEFFICIENTS = {"ttft_s": ("fixed", "a token", "a token²"), "tpot_s": ("fixed", "a position")}


@dataclass(frozen=True, slots=True, kw_only=True)
class CoefficientChange:
    """A coefficient of a curve's fit on both sides, seconds, with 95 % intervals, and its change, with 99 %.

    The change is that of the fit to the lengths' own changes, which are paired, and thus known better than either side;
    `share` is the change by the other side's coefficient where that is distinct from 0.
    """

    name: str
    before: Coefficient
    after: Coefficient
    change: Coefficient | None = None
    share: Coefficient | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSides:
    """One figure of a curve on both sides: a judgement a length, what they say together, and the fit's changes."""

    metric_key: str
    judgements: tuple[Judgement, ...]
    finding: Finding
    coefficients: tuple[CoefficientChange, ...] = ()

    @property
    def phase(self) -> str:
        """Return the phase that it is about."""
        return FIGURES[self.metric_key]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSides:
    """A curve of the other side and of this checkout, of the same lengths."""

    before: Curve
    after: Curve
    figures: tuple[FigureSides, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A relative change over the prompts of a configuration (0.02 is +2 %) with its 99 % interval.

    `shown`: it is distinct from 0, corrected for all configurations and figures. Without an interval nothing is, and
    `reason` says why there is none, where that is not that there were too few rounds.
    """

    mid: float
    low: float | None = None
    high: float | None = None
    shown: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationSides:
    """What changed in a configuration, by metric key, over so many prompts (at each length)."""

    config: dict[str, str]
    label: str
    workloads: int
    changes: dict[str, Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptSides:
    """What a sweep on both sides says; `before` names the other side. Tests of other work are `left_out`."""

    before: str
    curves: tuple[CurveSides, ...]
    configurations: tuple[ConfigurationSides, ...]
    left_out: tuple[str, ...] = ()


def of(rows: Iterable[Row]) -> SweptSides | None:
    """Return what the swept rows of a run that compared two sides say; None where there are none."""
    swept = [row for row in rows if row.config and row.against is not None]
    pairs = {row.test: pair for row in swept if (pair := _pair(row)) is not None}
    if not swept or swept[0].against is None:
        return None
    doubted = _doubted(pairs.values())
    found = _judged(list(pairs.values()), doubted)
    compared = [row for row in swept if row.test in pairs]
    against = swept[0].against
    return SweptSides(
        before=f"{against.rev} ({against.commit[:8]})" if against.commit else against.rev,
        curves=_curves(curve.groups(compared), pairs, found),
        configurations=_configurations(compared, pairs, found, doubted),
        left_out=tuple(
            f"{row.title}: {', '.join(row.against.differ or ('not measured on the other side',))}"
            for row in swept
            if row.test not in pairs and row.against is not None
        ),
    )


_Judged = Mapping[tuple[str, str], Judgement]
"""Judgements by test and metric key."""


def _pair(row: Row) -> RowPair | None:
    """Return both sides of a row; None where they did other work."""
    against = row.against
    if against is None or against.differ or (row.curve is not None and "ttft_s" not in against.metrics):
        return None
    before = replace(row, metrics=against.metrics, against=None)
    if against.rounds is not None:
        before = replace(before, disturbed=against.rounds.numbers, timed=against.rounds.timed or row.timed)
    spread = comparison.block_spread(before, row) if against.sequential else None
    return RowPair(before=before, after=row, paired=not against.sequential, block_spread=spread, turns=against.turns)


def _doubted(pairs: Iterable[RowPair]) -> frozenset[tuple[str, str]]:
    """Return the figures, by test and metric key, of which disturbed rounds conclude nothing."""
    metrics = [by_key(key) for key in OF_CONFIGURATIONS]
    return frozenset((pair.after.test, one.key) for pair in pairs for one in metrics if pair.disturbed(one))


def _judged(pairs: Sequence[RowPair], doubted: Collection[tuple[str, str]]) -> dict[tuple[str, str], Judgement]:
    wanted = comparison.all_metrics([by_key(key) for key in OF_CONFIGURATIONS])
    # What is stored of the work says that it was equal, or accepted; an older run did not store that.
    allowed = fingerprint.OF_SIDES if all(_known(pair.after) for pair in pairs) else ()
    judged = comparison.judge(pairs, lambda _row: wanted, allowed=allowed)
    # Without a p-value nothing is claimed of a figure, and without an interval nothing ruled out.
    return {
        (j.test, j.metric_key): msgspec.structs.replace(j, p=None, low=None, high=None)
        if (j.test, j.metric_key) in doubted
        else j
        for j in judged
        if j.metric_key is not None
    }


def _known(row: Row) -> bool:
    return row.against is not None and row.against.differ is not None


# curves


def _curves(groups: Sequence[Sequence[Row]], pairs: Mapping[str, RowPair], found: _Judged) -> tuple[CurveSides, ...]:
    # All figures of all curves at once: what is said of them holds together.
    series = {
        (number, key): [found[row.test, key] for row in group]
        for number, group in enumerate(groups)
        for key in FIGURES
        if any(found[row.test, key].before is not None for row in group)
    }
    findings = dict(zip(series, from_length.find(list(series.values())), strict=True))
    made = []
    for number, group in enumerate(groups):
        before, after = _both(group, pairs, found)
        own = [pairs[row.test] for row in group]
        figures = tuple(
            FigureSides(
                metric_key=key,
                judgements=tuple(series[number, key]),
                finding=findings[number, key],
                coefficients=_coefficients(key, before, after, shifts.of(own, series[number, key])),
            )
            for key in FIGURES
            if (number, key) in series
        )
        made.append(CurveSides(before=before, after=after, figures=figures))
    return tuple(made)


def _both(group: Sequence[Row], pairs: Mapping[str, RowPair], found: _Judged) -> tuple[Curve, Curve]:
    """Return the curves of both sides."""
    points = [_points(pairs[row.test], [found[row.test, key].mid for key in FIGURES]) for row in group]
    return curve.of_points(group, [one for one, _ in points]), curve.of_points(group, [one for _, one in points])


def _points(pair: RowPair, changes: Sequence[float | None]) -> tuple[curve.Point, curve.Point]:
    """Return the points of both sides: their level from the rounds of both, their difference from the change.

    Single rounds scatter more than the change that pairs of them, or turns of a token, tell.
    """
    points = (curve.point(pair.before), curve.point(pair.after))
    sides: list[list[float | None]] = [[], []]
    for key, change in zip(FIGURES, changes, strict=True):
        times = [getattr(point, key) for point in points]
        if change is not None and None not in times:
            level, half = statistics.geometric_mean(times), math.sqrt(1 + change)
            times = [level / half, level * half]
        for side, time in zip(sides, times, strict=True):
            side.append(time)
    first, second = (
        replace(point, ttft_s=ttft or point.ttft_s, tpot_s=tpot)
        for point, (ttft, tpot) in zip(points, sides, strict=True)
    )
    return first, second


def _coefficients(key: str, before: Curve, after: Curve, told: Shifts | None) -> tuple[CoefficientChange, ...]:
    fits = [_fit_of(key, one) for one in (before, after)]
    if not fits[0] or not fits[1]:
        return ()
    if key == "ttft_s":
        known = [(float(point.tokens), point.ttft_s) for point in before.points]
    else:
        known = [(p.depth, p.tpot_s) for p in before.points if p.depth is not None and p.tpot_s is not None]
    times = np.asarray([time for _, time in known])
    weights = curve.weights([x for x, _ in known], times.tolist(), len(fits[0]) - 1)
    if told is not None and len(told.mid) != len(known):
        told = None
    return tuple(
        _coefficient(name, fits[0][n], fits[1][n], None if told is None else told.combined(weights[n], times))
        for n, name in enumerate(_COEFFICIENTS[key])
    )


def _fit_of(key: str, one: Curve) -> tuple[Coefficient, ...]:
    if key == "ttft_s":
        return () if one.prefill is None else (one.prefill.constant, one.prefill.linear, one.prefill.quadratic)
    return () if one.decode is None else (one.decode.constant, one.decode.per_token)


def _coefficient(name: str, before: Coefficient, after: Coefficient, estimate: Student | None) -> CoefficientChange:
    if estimate is None:
        return CoefficientChange(name=name, before=before, after=after)
    low, high = estimate.interval(CONFIDENCE)
    change = Coefficient(value=estimate.mid, low=low, high=high)
    share = None
    if before.low > 0:
        by = before.value
        share = Coefficient(value=change.value / by, low=change.low / by, high=change.high / by)
    return CoefficientChange(name=name, before=before, after=after, change=change, share=share)


# configurations


def _configurations(
    rows: Sequence[Row], pairs: Mapping[str, RowPair], found: _Judged, doubted: Collection[tuple[str, str]]
) -> tuple[ConfigurationSides, ...]:
    grouped: dict[tuple[tuple[str, str], ...], list[Row]] = {}
    for row in rows:
        own = {a: v for a, v in row.config.items() if not (row.curve is not None and a == "prompt-tokens")}
        grouped.setdefault(tuple(own.items()), []).append(row)
    if len(grouped) < 2:
        return ()
    estimates = {
        (config, key): estimate
        for config, group in grouped.items()
        for key in OF_CONFIGURATIONS
        if (estimate := _over_prompts(group, key, pairs, found)) is not None
    }
    certain = {name: e for name, e in estimates.items() if isinstance(e, Student)}
    p_values = holm([2 * min(e.p_above(0), e.p_below(0)) for e in certain.values()])
    shown = {name: p <= (1 - CONFIDENCE) * (1 + 1e-9) for name, p in zip(certain, p_values, strict=True)}
    return tuple(
        ConfigurationSides(
            config=dict(config),
            label=axes.label(dict(config)),
            workloads=len(group),
            changes={
                key: _change(
                    estimates[config, key],
                    shown=shown.get((config, key), False),
                    doubted=any((row.test, key) in doubted for row in group),
                    reason=_why([pairs[row.test] for row in group], [found[row.test, key] for row in group]),
                )
                for key in OF_CONFIGURATIONS
                if (config, key) in estimates
            },
        )
        for config, group in grouped.items()
    )


def _over_prompts(
    group: Sequence[Row], key: str, pairs: Mapping[str, RowPair], found: _Judged
) -> Student | float | None:
    """Return the mean of the changes over the prompts, log-ratios; alone where nothing tells its error."""
    judged = [(pairs[row.test], found[row.test, key]) for row in group if found[row.test, key].mid is not None]
    told = shifts.of([pair for pair, _ in judged], [j for _, j in judged]) if judged else None
    if told is None:
        return None
    estimate = told.combined(np.full(len(judged), 1 / len(judged)))
    return float(told.mid.mean()) if estimate is None else estimate


def _why(pairs: Iterable[RowPair], judgements: Iterable[Judgement]) -> str | None:
    """Return why changes have no interval together; None where nothing but their number is to blame."""
    if any(pair.block_spread is not None for pair in pairs):
        return "one side after the other tells none over prompts: leave out --infer-against-sequential"
    return next((j.reason for j in judgements if j.reason is not None), None)


def _change(estimate: Student | float, *, shown: bool, doubted: bool, reason: str | None) -> Change:
    if isinstance(estimate, float) or doubted:
        mid = estimate if isinstance(estimate, float) else estimate.mid
        return Change(mid=math.expm1(mid), reason=reason)
    low, high = estimate.interval(CONFIDENCE)
    return Change(mid=math.expm1(estimate.mid), low=math.expm1(low), high=math.expm1(high), shown=shown)
