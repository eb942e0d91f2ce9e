"""Change points over the stored runs: which metric of which test has been at another level, and since which run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.analysis.history import changepoints
from pytest_infer.analysis.history.changepoints import ChangePoint
from pytest_infer.analysis.sweep import axes
from pytest_infer.metrics import Direction, Metric
from pytest_infer.storage.runs import Row, Run, rows

_MAY_DIFFER = ("software", "model", fingerprint.OUTPUT)
"""Over time these are what one looks for, as much as code: only another machine or other work starts a new series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A lasting change of one metric of one test; `run` is the first after it and `last` the one before.

    `name` is how people call the test: several may be of one prompt.
    """

    test: str
    name: str
    metric: Metric
    point: ChangePoint
    last: Run
    run: Run

    @property
    def worse(self) -> bool | None:
        """Return whether the change is one for the worse; None where neither way is better."""
        if self.metric.direction is Direction.NEUTRAL:
            return None
        return (self.point.change > 0) == (self.metric.direction is Direction.LOWER)


def shifts(runs: Sequence[Run], metrics: Sequence[Metric], keyword: str | None = None) -> tuple[Shift, ...]:
    """Return the change points of each metric of each test that the newest run has, in the order of time.

    `runs` are oldest first; only those of the newest run's machine and of the same prompts and limits count.
    """
    return of_series(runs, series(runs, metrics, keyword), metrics)


def of_series(
    runs: Sequence[Run], found: Mapping[tuple[str, str], Sequence[tuple[Run, float | str]]], metrics: Sequence[Metric]
) -> tuple[Shift, ...]:
    """Return the change points of what `series` found in the same runs."""
    names = axes.titles(runs[-1].rows if runs else ())
    shifted = [
        shift
        for test, name in names.items()
        for metric in metrics
        for shift in _of(found.get((test, metric.key), []), test, name, metric)
    ]
    return tuple(sorted(shifted, key=lambda shift: shift.run.time))


def levels(values: Sequence[float | None], starts: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return the stretches of values that begin at 0 and at each of `starts`: first, last, and the median of the known.

    A stretch without a known value is left out.
    """
    found = []
    for start, end in pairwise([0, *starts, len(values)]):
        known = [value for value in values[start:end] if value is not None]
        if known:
            found.append((start, end - 1, statistics.median(known)))
    return found


def series(
    runs: Sequence[Run], metrics: Sequence[Metric], keyword: str | None = None
) -> dict[tuple[str, str], list[tuple[Run, float | str]]]:
    """Return the figures of each test of the newest run by (test, metric's key), oldest first, with their runs.

    Only runs of the newest one's machine and of the same prompts and limits count.
    """
    if not runs:
        return {}
    newest = {row.test: row for row in runs[-1].rows if keyword is None or keyword in row.test}
    found: dict[tuple[str, str], list[tuple[Run, float | str]]] = {}
    for run in runs:
        # Not `run.rows`, which would be kept: a thousand runs do not fit into memory.
        for row in rows(run.path):
            if row.test in newest and _same(row, newest[row.test]):
                for metric in metrics:
                    if metric.key in row.metrics:
                        found.setdefault((row.test, metric.key), []).append((run, row.metrics[metric.key].value))
    return found


def _same(row: Row, newest: Row) -> bool:
    return not fingerprint.differences(row, newest, _MAY_DIFFER)


def _of(series: Sequence[tuple[Run, float | str]], test: str, name: str, metric: Metric) -> Iterator[Shift]:
    values = [float(value) for _, value in series if not isinstance(value, str)]
    if len(values) < len(series):
        return
    for point in changepoints.find(values):
        last, run = series[point.index - 1][0], series[point.index][0]
        yield Shift(test=test, name=name, metric=metric, point=point, last=last, run=run)
