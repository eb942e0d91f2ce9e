"""What disturbed rounds keep a comparison from telling."""

from __future__ import annotations

from pytest_infer.metrics import Metric
from pytest_infer.records import Quality
from pytest_infer.storage.runs import Row

MOST = 0.5
"""A side of which more than this share of the rounds was disturbed tells of the machine as much as of the code."""

APART = 0.5
"""Sides whose rounds alternate share what disturbs them; this far apart in their shares, they did not."""


def mostly(row: Row) -> bool:
    """Return whether most rounds of a test were disturbed."""
    return _share(row) > MOST


def doubt(metric: Metric, before: Row, after: Row, *, side_by_side: bool) -> str | None:
    """Return why a change of a metric cannot be told from what disturbed the rounds, or None where it can.

    `side_by_side`: the rounds of both sides alternated in one run.
    """
    if not _moved(metric, before, after):
        return None
    if side_by_side:
        if abs(_share(before) - _share(after)) < APART:
            return None
        told = f"{_count(before)} rounds of the other side and {_count(after)} of this one were disturbed"
        return f"{told}: something slowed one side only; end what else runs, and measure again"
    sides = [(row, which) for row, which in ((before, "the earlier run"), (after, "this run")) if mostly(row)]
    if not sides:
        return None
    counts = " and ".join(
        f"{_count(row)} {'' if number else 'rounds '}of {which}" for number, (row, which) in enumerate(sides)
    )
    return f"{counts} were disturbed: measure again when nothing else runs, or use --infer-against"


def _moved(metric: Metric, before: Row, after: Row) -> bool:
    """Return whether a disturbance moves a metric; one that is counted here may be sampled on another system."""
    values = [row.metrics[metric.key] for row in (before, after) if metric.key in row.metrics]
    return metric.moved_by_load or any(found.quality == Quality.SAMPLED.value for found in values)


def _share(row: Row) -> float:
    return len(row.disturbed) / row.timed if row.timed else 0.0


def _count(row: Row) -> str:
    return f"{len(row.disturbed)} of {row.timed}"
