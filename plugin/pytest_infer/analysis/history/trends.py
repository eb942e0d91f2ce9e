"""Change points over the stored runs: which metric of which test has been at another level, and since which run."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_infer.analysis.breakdown.stored import Taken
from pytest_infer.analysis.compare import disturbance, fingerprint
from pytest_infer.analysis.history import carriers
from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import NothingStoredError, StorageError
from pytest_infer.metrics import Direction, Metric
from pytest_infer.storage import runs as stored
from pytest_infer.storage.runs import Row, Run

if TYPE_CHECKING:
    from pytest_infer.analysis.breakdown.lasting import Lasting
    from pytest_infer.analysis.history.changepoints import ChangePoint

_MAY_DIFFER = ("software", "model", fingerprint.OUTPUT)
"""Over time these are what one looks for, as much as code: only another machine or other work starts a new series."""
_TOKENS = "prompt_tokens"
"""The one metric that says whether the work was the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A lasting change of one metric of one test; `run` is the first after it and `last` the one before.

    `name` is how people call the test: several may be of one prompt. `before` and `since` count the runs on the two
    levels that were compared, and `until` is the first run on a later level that is nearer to the one before. `doubt`
    says why the change may be the machine's. `carried` says which roles carried it, where the runs on both sides took
    their steps apart.
    """

    test: str
    name: str
    metric: Metric
    point: ChangePoint
    last: Run
    run: Run
    before: int
    since: int
    until: Run | None = None
    doubt: str | None = None
    carried: Lasting | None = None

    @property
    def worse(self) -> bool | None:
        """Return whether the change is one for the worse; None where neither way is better, or it is in doubt."""
        if not self.metric.judged or self.doubt is not None:
            return None
        return (self.point.change > 0) == (self.metric.direction is Direction.LOWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The change points in the order of time, in how many figures of tests they were looked for, and why not in others.

    `why_not` is by (test, metric's key); `absent` are the metrics that no run has.
    """

    shifts: tuple[Shift, ...] = ()
    judged: int = 0
    why_not: Mapping[tuple[str, str], str] = field(default_factory=dict)
    absent: tuple[Metric, ...] = ()


def told(runs: Sequence[Run], metrics: Sequence[Metric], keyword: str | None = None, most: int | None = None) -> Told:
    """Return the change points of each metric of each test that the newest run has and whose name holds the keyword.

    `runs` are oldest first; of those that led to the newest only those of its machine and of the same prompts and
    limits count, the `most` newest. Raises NothingStoredError where no run, or no test of the newest, is left.
    """
    while runs and not runs[-1].readable:
        runs = runs[:-1]
    if not runs:
        raise NothingStoredError("none of the runs can be read")
    newest = runs[-1]
    if not newest.rows:
        why = "every test measured with `infer` failed" if newest.failed else "no test was measured"
        raise NothingStoredError(f"{newest.label}: {why}")
    if keyword is not None and not any(keyword in row.test for row in newest.rows):
        raise NothingStoredError(f"no test of {newest.label} has {keyword!r} in its name")
    runs = leading_to(newest, runs, most)
    return of_series(runs, series(runs, metrics, keyword), metrics)


def leading_to(run: Run, runs: Iterable[Run], most: int | None = None) -> list[Run]:
    """Return the runs that led to a run, oldest first, itself the last: what another branch changed is not its own.

    They are those of its branch, and before the first of these those of the branch that most runs were of by then.
    A run without a branch (a detached head) has the latter alone, and where none has a branch all led to it. With
    `most` they begin where so many are of the run's machine.
    """
    earlier = [one for one in runs if one.time < run.time and one.path != run.path and one.plain == run.plain]
    own = [one for one in earlier if run.branch is not None and one.branch == run.branch]
    before = [one for one in earlier if one.time < (own or [run])[0].time]
    trunk = Counter(one.branch for one in before if one.branch is not None).most_common(1)
    found = [*(one for one in before if one.branch == (trunk[0][0] if trunk else None)), *own]
    mine = [place for place, one in enumerate([*found, run]) if one.machine == run.machine]
    return [*found, run][mine[-most:][0] if most is not None else 0 :]


@dataclass(frozen=True, slots=True)
class Point:
    """A figure of one run; `disturbed`: most of the rounds were that it is the median of.

    `measured` tells the measurement from others of the test (`Row.measured`).
    """

    run: Run
    value: float | str
    disturbed: bool
    measured: float | str | None


Series = Mapping[tuple[str, str], Sequence[Point]]


def of_series(runs: Sequence[Run], found: Series, metrics: Sequence[Metric]) -> Told:
    """Return the change points of what `series` found in the same runs; metrics are numbers."""
    # Imported late: it needs numpy, whose threads would keep the files from being read on all cores.
    from pytest_infer.analysis.history import changepoints  # noqa: PLC0415

    names = axes.titles(runs[-1].rows if runs else ())
    asked = [
        (test, metric, points) for test in names for metric in metrics if (points := found.get((test, metric.key)))
    ]
    values = [[float(point.value) for point in points] for _, _, points in asked]
    shifted = changepoints.find_each(values)
    reasons = [changepoints.why_not(one) for one in values]
    taken = Taken()
    shifts = [
        shift
        for (test, metric, points), changes in zip(asked, shifted, strict=True)
        for shift in _of(points, changes, test, names[test], metric, taken)
    ]
    return Told(
        shifts=tuple(sorted(shifts, key=lambda shift: shift.run.time)),
        judged=reasons.count(None),
        why_not={(test, metric.key): why for (test, metric, _), why in zip(asked, reasons, strict=True) if why},
        absent=tuple(metric for metric in metrics if metric not in {of for _, of, _ in asked}),
    )


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


def series(runs: Sequence[Run], metrics: Sequence[Metric], keyword: str | None = None) -> Series:
    """Return the figures of each test of the newest run by (test, metric's key), oldest first, with their runs.

    Only runs of the newest one's machine and of the same prompts and limits count, and a measurement that a run took
    from an interrupted one only there.
    """
    if not runs:
        return {}
    newest = {row.test: row for row in runs[-1].rows if keyword is None or keyword in row.test}
    wanted = frozenset((_TOKENS, *stored.TELLS_APART, *(metric.key for metric in metrics)))

    def read(run: Run) -> _Figures:
        return run.known_damage or _figures(run, newest, metrics, wanted)

    found: dict[tuple[str, str], list[Point]] = {}
    for run, told in zip(runs, stored.of_each(runs, read), strict=True):
        if isinstance(told, str):
            run.leave_out(told)
            continue
        for test, key, value, disturbed, measured, resumed in told:
            points = found.setdefault((test, key), [])
            if resumed and measured is not None:
                points[:] = [point for point in points if point.measured != measured]
            points.append(Point(run, value, disturbed, measured))
    return found


def with_figures(runs: Sequence[Run], found: Series) -> list[Run]:
    """Return those of the runs that have a figure in one of the series."""
    own = {point.run.path for points in found.values() for point in points}
    return [run for run in runs if run.path in own]


_Figures = list[tuple[str, str, float | str, bool, float | str | None, bool]] | str
"""Of one run: test, metric, value, whether most of the rounds were disturbed, what tells the measurement from others,
and whether an interrupted run made it; or why the run is left out."""


def _figures(run: Run, newest: Mapping[str, Row], metrics: Sequence[Metric], wanted: frozenset[str]) -> _Figures:
    try:
        rows = stored.rows(run.path, wanted)
    except StorageError as error:
        return str(error)
    found = []
    for row in rows:
        if row.test in newest and _same(row, newest[row.test]):
            mostly = disturbance.mostly(row)
            for metric in metrics:
                if metric.key in row.metrics:
                    value = row.metrics[metric.key].value
                    disturbed = mostly and metric.moved_by_load
                    found.append((row.test, metric.key, value, disturbed, row.measured, row.resumed))
    return found


def _same(row: Row, newest: Row) -> bool:
    alike = row.machine == newest.machine and row.model == newest.model and row.prompt == newest.prompt
    if alike and row.metrics.get(_TOKENS) == newest.metrics.get(_TOKENS):
        return True  # most are, and this is told in a twentieth of the time
    return not fingerprint.differences(row, newest, _MAY_DIFFER)


def _of(
    points: Sequence[Point], found: Sequence[ChangePoint], test: str, name: str, metric: Metric, taken: Taken
) -> Iterator[Shift]:
    edges = [0, *(point.index for point in found), len(points)]
    for number, point in enumerate(found):
        sides = points[edges[number] : point.index], points[point.index : edges[number + 2]]
        last, run = points[point.index - 1].run, points[point.index].run
        before, after = ([one.run.path for one in side] for side in sides)
        middle = math.sqrt(point.before * point.after)
        undone = [later for later in found[number + 1 :] if (later.after < middle) == (point.after > middle)]
        yield Shift(
            test=test,
            name=name,
            metric=metric,
            point=point,
            last=last,
            run=run,
            before=len(before),
            since=len(after),
            until=points[undone[0].index].run if undone else None,
            doubt=_doubt(sides),
            carried=carriers.carried(taken, test, metric, point.change, (before, after)),
        )


def _doubt(sides: Sequence[Sequence[Point]]) -> str | None:
    """Return why a change between two levels cannot be told from what disturbed most runs of one of them."""
    counts = [sum(point.disturbed for point in side) for side in sides]
    told = [
        f"{count} of {len(side)} runs {which}"
        for count, side, which in zip(counts, sides, ("before", "since"), strict=True)
        if count > disturbance.MOST * len(side)
    ]
    return f"most rounds of {' and '.join(told)} were disturbed" if told else None
