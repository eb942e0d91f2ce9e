"""The curve of latency against throughput: a point a level, its figures with their intervals, and its knee."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_infer.analysis.compare import stats
from pytest_infer.metrics import METRICS, by_key
from pytest_infer.metrics.load import COUNTED, PREFIX
from pytest_infer.records import Arrivals, Level, LevelKind, WarningKind
from pytest_infer.storage.runs import Row
from pytest_infer.units import Unit

CONFIDENCE = 0.95
KEYS = (*(metric.key for metric in METRICS if metric.key.startswith(PREFIX)), *COUNTED)
THROUGHPUT, LATENCY = f"{PREFIX}throughput", f"{PREFIX}latency_p50_s"
FEWEST = 3
"""A knee is looked for in so many levels or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure over repetitions and its interval, which a single repetition does not have."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One level: its figures by metric key, those of each repetition behind them, and what it is marked with."""

    level: Level
    test: str
    figures: Mapping[str, Estimate]
    repetitions: Mapping[str, tuple[float, ...]]
    marks: tuple[str, ...] = ()

    @property
    def client_bound(self) -> bool:
        """Return whether the sender was the bottleneck: then it says nothing of the server."""
        return WarningKind.CLIENT_BOUND.value in self.marks

    @property
    def power(self) -> tuple[float, ...]:
        """Return throughput / median latency of each repetition (Kleinrock 1979); nothing where either is absent."""
        rates, times = (self.repetitions.get(key, ()) for key in (THROUGHPUT, LATENCY))
        if len(rates) != len(times) or min((*rates, *times), default=0.0) <= 0:
            return ()
        return tuple(rate / time for rate, time in zip(rates, times, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """The level of the greatest power: beyond it latency grows faster than throughput.

    `alike` are other levels whose power cannot be told from it. `last` and `first`: it is the highest level that was
    measured, or the lowest, so that the knee may lie beyond.
    """

    level: Level
    alike: tuple[Level, ...]
    first: bool
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCurve:
    """The levels of one kind, the lowest first; `knee` is None where there are too few to tell of."""

    test: str
    kind: LevelKind
    arrivals: Arrivals | None
    points: tuple[Point, ...]
    knee: Knee | None


def curves(rows: Iterable[Row]) -> tuple[LoadCurve, ...]:
    """Return the curves that rows are points of, in the order of their first tests; a single level is one as well."""
    found: dict[tuple[object, ...], list[Point]] = {}
    for row in rows:
        if row.under_load is not None:
            level = row.under_load.level
            found.setdefault((_without(row.test, level.name), level.kind, level.arrivals), []).append(point(row))
    return tuple(_curve(str(key[0]), points) for key, points in found.items())


def _without(test: str, level: str) -> str:
    """Return a test's id without its level: what else it is parametrized by makes another curve."""
    file, colons, own = test.partition("::")  # both a folder's name and a parameter may hold brackets
    name, bracket, given = own.removesuffix("]").partition("[")
    others = f"-{given}-".replace(f"-{level}-", "-", 1)[1:-1]
    return test if not bracket else f"{file}{colons}{name}" + (f"[{others}]" if others else "")


def _curve(test: str, points: Sequence[Point]) -> LoadCurve:
    ordered = tuple(sorted(points, key=_demand))
    level = ordered[0].level
    return LoadCurve(test=test, kind=level.kind, arrivals=level.arrivals, points=ordered, knee=knee(ordered))


def _demand(one: Point) -> float:
    """Return what levels are ordered by: a replay that takes longer asks for less."""
    value = one.level.value or 0.0
    return -value if one.level.kind is LevelKind.REPLAY else value


def point(row: Row) -> Point:
    """Return the point that a row is."""
    stored = row.under_load
    if stored is None:
        raise ValueError(f"{row.test} is no level")
    values = {key: row.metrics[key].numbers for key in KEYS if key in row.metrics}
    return Point(
        level=stored.level,
        test=row.test,
        figures={key: estimate(numbers, by_key(key).unit) for key, numbers in values.items() if numbers},
        repetitions=values,
        marks=stored.marks,
    )


def estimate(values: Sequence[float], unit: Unit) -> Estimate:
    """Return the mean over repetitions with Student's interval: of logarithms, but for shares, and values of 0."""
    if len(values) < 2:
        return Estimate(value=values[0])
    if len(set(values)) == 1:
        # A mean of equal counts is a count.
        return Estimate(value=values[0], low=values[0], high=values[0])
    if unit is Unit.PERCENT or min(values) <= 0:
        plain = stats.student(values)
        low, high = plain.interval(CONFIDENCE)
        return Estimate(value=plain.mid, low=low, high=high)
    found = stats.student(stats.logs(values))
    low, high = found.interval(CONFIDENCE)
    return Estimate(value=math.exp(found.mid), low=_exp(low), high=_exp(high))


def _exp(power: float) -> float:
    return math.exp(min(power, 700.0))


def knee(points: Sequence[Point]) -> Knee | None:
    """Return the level of the greatest power, of those whose sender kept up; None where these are fewer than three.

    Two levels are told apart if Welch's interval of the ratio of their powers leaves out 1.
    """
    powers = [(p.level, p.power) for p in points if not p.client_bound and p.level.value is not None and p.power]
    if len(powers) < FEWEST:
        return None
    best, own = max(powers, key=lambda one: statistics.fmean(map(math.log, one[1])))
    alike = []
    for level, power in powers:
        found = None if level == best else stats.welch(power, own)
        if level != best and (found is None or found.interval(CONFIDENCE)[0] <= 0):
            alike.append(level)
    return Knee(level=best, alike=tuple(alike), first=best == powers[0][0], last=best == powers[-1][0])
