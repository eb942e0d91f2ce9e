"""A record read through the table: per metric the rounds' values, their median, mean and spread."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from pytest_infer.metrics.load import COUNTED, NO_LEVEL, PREFIX
from pytest_infer.metrics.metric import Metric
from pytest_infer.metrics.read import MetricValue
from pytest_infer.metrics.table import METRICS
from pytest_infer.records import PromptRecord, Quality, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One metric of one prompt: `value` is the median of `rounds`, or None with the `reason`.

    `stdev` is the sample standard deviation; None for a single value or text.
    `source` is given where it differs from the table's.
    """

    value: int | float | str | None
    mean: float | None = None
    stdev: float | None = None
    rounds: tuple[int | float, ...] = ()
    quality: Quality = Quality.EXACT
    source: str | None = None
    reason: str | None = None


def _reading(metric: Metric, value: MetricValue) -> Reading:
    if isinstance(value, Reading):
        return value
    if isinstance(value, str):
        raise TypeError(f"{metric.key}: text is not a reading")
    return Reading(value=value, source=metric.source, reason=metric.absent if value is None else None)


def _summary(metric: Metric, found: list[MetricValue]) -> Summary:
    if len(found) == 1 and isinstance(found[0], str):
        return Summary(value=found[0])
    readings = [_reading(metric, value) for value in found]
    values = [r.value for r in readings if r.value is not None and math.isfinite(r.value)]
    if not values or len(values) < len(readings):
        reason = next((r.reason for r in readings if r.value is None), "not a finite number")
        return Summary(value=None, reason=reason or metric.absent)
    # The least exact one: rounds may be read in different ways.
    least_exact = next((r for r in readings if r.quality is not Quality.EXACT), readings[0])
    return Summary(
        # Equal counts stay whole numbers, which a median of an even number of them would not.
        value=values[0] if len(set(values)) == 1 else statistics.median(values),
        mean=statistics.fmean(values),
        stdev=statistics.stdev(values) if len(values) > 1 else None,
        rounds=tuple(values),
        quality=least_exact.quality,
        source=None if least_exact.source == metric.source else least_exact.source,
    )


def summarize(record: PromptRecord) -> dict[str, Summary]:
    """Return every metric of the table for the record, keyed by metric key, absent ones with their reason."""
    return {metric.key: _of(metric, record) for metric in METRICS}


def why_not(metric: Metric, *, under_load: bool) -> str | None:
    """Return why a metric is none of what was measured, a prompt or a level of load; None where it is one."""
    of_a_level = metric.key.startswith(PREFIX)
    if of_a_level == under_load or (under_load and metric.key in COUNTED):
        return None
    return NO_LEVEL if of_a_level else "not measured under load"


def _of(metric: Metric, record: PromptRecord) -> Summary:
    why = why_not(metric, under_load=record.under_load is not None)
    return _summary(metric, metric.read(record)) if why is None else Summary(value=None, reason=why)
