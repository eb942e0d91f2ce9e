"""Rules that hold a figure itself against a bound: of one side, or a distance of both."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from pytest_infer.analysis.compare import fingerprint, stats
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.rules import Rule
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.analysis.experts import drift
from pytest_infer.metrics import Metric, fidelity
from pytest_infer.metrics.scope import Scope
from pytest_infer.records import Quality
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Values


def held(row: Row, rule: Rule, confidence: float, unscored: str | None) -> Judgement:
    """Hold a figure's own interval (t, of the mean of its rounds' logs) against a bound.

    `unscored` says why a distance to the other side is not known.
    """
    if rule.metric is None:
        raise ValueError("a bound is about a metric")
    values = row.metrics.get(rule.metric.key)
    draft = Judgement(
        test=row.test,
        name=row.title,
        metric_key=rule.metric.key,
        unit=rule.metric.unit.value,
        rule=rule.text,
        before=rule.limit,
        verdict=Verdict.INCOMPARABLE,
    )
    if values is None or isinstance(values.value, str):
        why = None
        if rule.metric.scope is Scope.DISTANCE:
            why = unscored if row.fidelity is None else fidelity.reading(rule.metric.key, row.fidelity).reason
        return replace(draft, reason=why or "not measured")
    (low, high), unclear = _span(row, rule.metric, values, confidence)
    # In one direction for both kinds of bound: below 0 is within it.
    worst, best = (rule.limit - low, rule.limit - high) if rule.at_least else (high - rule.limit, low - rule.limit)
    sign = (">" if rule.at_least else "<") + ("=" if rule.inclusive else "")
    if worst < 0 or (worst == 0 and rule.inclusive):
        verdict, reason = Verdict.UNCHANGED, None
    elif best > 0 or (best == 0 and not rule.inclusive):
        verdict, reason = Verdict.REGRESSED, f"must be {sign} {rule.limit:g}"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, unclear.format(f"{sign} {rule.limit:g}")
    return replace(draft, after=values.value, verdict=verdict, reason=reason)


def _span(row: Row, metric: Metric, values: Values, confidence: float) -> tuple[tuple[float, float], str]:
    """Return the least and the most that a figure can be, and what to say where a bound lies between them."""
    at_least = values.quality is Quality.BOUND
    if metric.scope is Scope.DISTANCE and row.fidelity is not None:
        known = fidelity.span(metric.key, row.fidelity) or (min(values.numbers), max(values.numbers))
        if at_least:
            return known, "a lower bound, too near to {}: --infer-against tells it exactly"
        return known, "nothing differs as far as both read the same text, which does not tell {}"
    low, high = _interval(values.numbers, confidence)
    if at_least:
        return (low, math.inf), "a lower bound does not tell {}"
    return (low, high), "the interval holds the bound {}: more rounds"


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the interval of the mean of a figure's rounds; a figure of one round or without spread is itself."""
    if len(values) < 2 or min(values) <= 0 or len(set(values)) == 1:
        return min(values), max(values)
    low, high = stats.student(stats.logs(values)).interval(confidence)
    return math.exp(low), math.exp(high)


def drifted(pair: RowPair, rule: Rule, allowed: Collection[str]) -> Judgement:
    """Hold the drift of each layer's expert usage against a bound; another text selects other experts."""
    sides = (pair.before.experts, pair.after.experts)
    layers = drift.between(*sides)
    wrong = next((usage.check for usage in sides if not usage.adds_up), None)
    draft = Judgement(
        test=pair.after.test,
        name=pair.after.title,
        rule=rule.text,
        threshold=rule.limit,
        verdict=Verdict.INCOMPARABLE,
        reason="expert usage was not recorded on both sides" if wrong is None else f"selections do not add up: {wrong}",
    )
    if layers is None:
        return draft
    if (differ := fingerprint.other_work(pair.before, pair.after, allowed)) is not None:
        return replace(draft, reason=differ)
    worst = layers[0]
    over = [layer for layer in layers if not _allows(rule, layer.distance)]
    if not over:
        return replace(draft, verdict=Verdict.UNCHANGED, reason=None, after=worst.distance)
    named = ", ".join(f"layer {layer.layer}: {layer.distance:.3f}" for layer in over[:3])
    more = f" and {len(over) - 3} more" if len(over) > 3 else ""
    return replace(draft, verdict=Verdict.REGRESSED, after=worst.distance, reason=f"moved in {named}{more}")


def _allows(rule: Rule, distance: float) -> bool:
    # "Less than nothing" can only mean nothing; shares of counts are not exact in binary.
    return distance < rule.limit or ((rule.inclusive or rule.limit == 0) and math.isclose(distance, rule.limit))
