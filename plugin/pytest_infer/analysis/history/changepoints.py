"""Change points: since which run of a history one metric has been at another level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.compare.stats import Student, certain

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.stats import Array

MIN_RUNS = 3
"""A level needs so many runs: of two that lie close by chance nobody can tell how far they scatter."""

SPIKE = 5.0
"""A run so many times the noise away from both its neighbours is set aside."""

QUIETEST = 0.001
"""The least noise assumed, as a log-ratio: a constant series has none to divide by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePoint:
    """One lasting change; `before` and `after` are in the metric's own unit."""

    index: int
    """The first run after the change, as a position in the values given."""
    before: float
    """The median of the runs since the change point before, or since the first run."""
    after: float
    """The median of the runs up to the next change point, or up to the last run."""
    change: float
    """after / before − 1."""
    p: float
    """Two-sided, as if the place of the change had been known; what the search adds is in `find`'s rates."""


def find(values: Sequence[float], *, alpha: float = 0.001, floor: float = 0.03) -> tuple[ChangePoint, ...]:
    """Return the change points of one metric, as `find_each` does of several."""
    return find_each([values], alpha=alpha, floor=floor)[0]


def find_each(
    series: Sequence[Sequence[float]], *, alpha: float = 0.001, floor: float = 0.03
) -> list[tuple[ChangePoint, ...]]:
    """Return the change points of each metric, oldest first; a series has one figure a run, oldest first.

    Candidates are those of an optimal partition (`_candidates`). They are kept as in Hunter (Fleming et al. 2023,
    doi:10.1145/3578244.3583719; now Apache Otava): neighbouring segments are compared, the weakest candidate goes, what
    is left on either side of it is compared again, until every one has p < `alpha` and medians at least `floor` apart
    (0.03 is +3 %, or the same way back).

    Simulated with independent log-normal noise of 2 %: a false alarm in 0.6 % of flat series of 30 runs, in 4 % if such
    a series is judged after every run. +10 % is first reported with the third run after the change (median), +5 % with
    the third or fourth, the sooner the longer the history. Noise that carries over from run to run breaks that: at a
    correlation of 0.5 between successive runs a sixth of flat series alarm.

    A single outlier is no change. A slow drift is reported as a staircase: a step whenever it has moved by `floor` or
    more and stands out of the noise, at no particular run. Nothing is found in fewer than six runs, nor if any value is
    not finite or not above 0: such a metric has no ratios.
    """
    usable = [_usable(values) for values in series]
    cuts = iter(_candidates([one for one in usable if not isinstance(one, str)]))
    return [() if isinstance(one, str) else _points(one, next(cuts), alpha, floor) for one in usable]


def why_not(values: Sequence[float]) -> str | None:
    """Return why nobody can tell whether one metric has stayed at its level, None where that can be told."""
    found = _usable(values)
    return found if isinstance(found, str) and not (len(values) >= 2 * MIN_RUNS and {*values} == {0.0}) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usable:
    """Logarithms of figures without spikes, their places among all figures, and the noise of one run."""

    logs: Array
    places: npt.NDArray[np.intp]
    noise: float


def _usable(values: Sequence[float]) -> _Usable | str:
    raw = np.asarray(values, dtype=np.float64)
    if len(raw) < 2 * MIN_RUNS:
        return f"too few runs, {len(raw)} of {2 * MIN_RUNS}"
    if len(bad := raw[~(np.isfinite(raw) & (raw > 0))]):
        return f"one is {bad[0]:g}, of which there are no ratios"
    logs = np.log(raw)
    noise = _noise(logs)
    places = np.flatnonzero(~_spikes(logs, noise))
    if len(places) < 2 * MIN_RUNS:
        return f"too few runs but for single outliers, {len(places)} of {2 * MIN_RUNS}"
    return _Usable(logs=logs[places], places=places, noise=noise)


def _points(of: _Usable, cuts: list[int], alpha: float, floor: float) -> tuple[ChangePoint, ...]:
    kept, places = _Segments(of.logs, cuts), of.places
    kept.remove_weak(alpha, float(np.log1p(floor)))
    found = []
    for position, cut in enumerate(kept.cuts):
        before, after = (float(np.exp(np.median(side))) for side in kept.sides(position))
        p = kept.tests[position][0]
        found.append(
            ChangePoint(index=int(places[cut]), before=before, after=after, change=after / before - 1, p=p),
        )
    return tuple(found)


def _noise(logs: Array) -> float:
    """Return the standard deviation of one run, from the median absolute difference of successive runs.

    Steps and outliers touch few differences. 0.6745 makes it a standard deviation for normal noise, √2 is there because
    a difference has the noise of two runs.
    """
    return max(QUIETEST, float(np.median(np.abs(np.diff(logs)))) / (0.6745 * float(np.sqrt(2))))


def _spikes(logs: Array, noise: float) -> npt.NDArray[np.bool_]:
    """Return which runs stand apart from both their neighbours on the same side; an end from the two next to it.

    Left in, a single one widens its segment so much that a true change of 10 % is not seen.
    """
    one = np.concatenate([logs[2:3], logs[:-1]])
    other = np.concatenate([logs[1:], logs[-3:-2]])
    up, down = np.minimum(logs - one, logs - other), np.minimum(one - logs, other - logs)
    apart: npt.NDArray[np.bool_] = np.maximum(up, down) > SPIKE * noise
    return apart


def _candidates(series: Sequence[_Usable]) -> list[list[int]]:
    """Return where the partition of least squares cuts each, at a price of 2·log(n) noise variances a cut.

    That is Schwarz's criterion with two parameters a cut, its place and its level (Yao 1988); without the division by
    the noise a price would mean something else for every metric. Least squares will do: outliers are gone by now.
    """
    scaled = [(one.logs - np.median(one.logs)) / one.noise for one in series]
    prices = [2 * float(np.log(len(one.logs))) for one in series]
    found: list[list[int]] = []
    for start in range(0, len(series), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found += _partitions(scaled[part], prices[part])
    return found


_AT_ONCE = 64
"""So many series stay in a core's cache while they are partitioned."""


def _partitions(series: Sequence[Array], prices: Sequence[float]) -> list[list[int]]:
    """Return where segments of each begin, but for the first: the least squares about their means + a price a segment.

    Optimal partitioning (Jackson et al. 2005), exact, O(n²), in n calls of numpy for all series: 2 ms for each of
    many series of a thousand runs. Of equal sums the earliest start wins. What comes after the end of a shorter series
    does not change it.
    """
    lengths = [len(values) for values in series]
    count = max(lengths, default=0)
    values = np.zeros((len(series), count))
    for row, one in zip(values, series, strict=True):
        row[: len(one)] = one
    start = np.zeros((len(series), 1))
    sums, squares = (np.hstack([start, np.cumsum(values**power, axis=1)]) for power in (1, 2))
    price = np.asarray(prices)[:, np.newaxis]
    best = np.full((len(series), count + 1), np.inf)  # of the first n values
    best[:, 0] = 0.0
    last = np.zeros((len(series), count + 1), dtype=int)  # where the last segment of that partition begins
    every = np.arange(len(series))
    for end in range(MIN_RUNS, count + 1):
        size = end - MIN_RUNS + 1
        spread = sums[:, end, np.newaxis] - sums[:, :size]
        spread *= spread
        spread /= end - np.arange(size)
        np.subtract(squares[:, end, np.newaxis] - squares[:, :size], spread, out=spread)
        np.maximum(spread, 0.0, out=spread)
        spread += best[:, :size]
        spread += price
        last[:, end] = spread.argmin(axis=1)
        best[:, end] = spread[every, last[:, end]]
    return [_cuts(row.tolist(), length) for row, length in zip(last, lengths, strict=True)]


def _cuts(last: Sequence[int], end: int) -> list[int]:
    cuts: list[int] = []
    while (end := last[end]) > 0:
        cuts.append(end)
    return cuts[::-1]


def _compare(before: Array, after: Array) -> Student:
    """Return the change of the mean of logs, the noise taken to be the same on both sides unless it looks larger.

    Student's t with the pooled variance as in Hunter, not Welch's: three new runs say next to nothing of their own
    spread, so Welch needs five of them for +5 % at 2 % noise, and yet alarms more often, where three happen to lie
    close. But a side whose own variance is above the pooled one is charged with its own: with the pooled one, three
    runs on a suddenly noisy machine are a change three times as often.
    """
    mid = float(after.mean() - before.mean())
    sizes = len(before), len(after)
    variances = before.var(ddof=1), after.var(ddof=1)
    freedom = sum(sizes) - 2
    pooled = sum((size - 1) * variance for size, variance in zip(sizes, variances, strict=True)) / freedom
    squared = sum(max(pooled, variance) / size for size, variance in zip(sizes, variances, strict=True))
    if squared < 1e-24:  # rounding of equal values' mean
        return certain(mid if abs(mid) > 1e-12 else 0.0)
    return Student(mid, float(np.sqrt(squared)), freedom)


class _Segments:
    """A series with its cuts, and for each cut the p-value and the distance of its neighbours' medians."""

    def __init__(self, logs: Array, cuts: list[int]) -> None:
        self._logs = logs
        self.cuts = cuts
        self.tests = [self._test(position) for position in range(len(cuts))]

    def sides(self, position: int) -> tuple[Array, Array]:
        """Return the segments before and after a cut."""
        start, cut, end = [0, *self.cuts, len(self._logs)][position : position + 3]
        return self._logs[start:cut], self._logs[cut:end]

    def remove_weak(self, alpha: float, distance: float) -> None:
        """Remove the cut of the largest p, or if all are below `alpha` the smallest, until all hold."""
        while self.cuts:
            weakest = max(range(len(self.cuts)), key=lambda position: self.tests[position][0])
            if self.tests[weakest][0] < alpha:
                weakest = min(range(len(self.cuts)), key=lambda position: self.tests[position][1])
                if self.tests[weakest][1] >= distance:
                    return
            del self.cuts[weakest], self.tests[weakest]
            for neighbour in range(max(0, weakest - 1), min(weakest + 1, len(self.cuts))):
                self.tests[neighbour] = self._test(neighbour)

    def _test(self, position: int) -> tuple[float, float]:
        before, after = self.sides(position)
        estimate = _compare(before, after)
        p = min(1.0, 2 * min(estimate.p_above(0), estimate.p_below(0)))
        return p, float(abs(np.median(after) - np.median(before)))
