"""Arrays beside a run file in few points: latencies by position and as a distribution, the timeline of a profile."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Stamps = npt.NDArray[np.int64]
"""The ticks of one round, nanoseconds since its start."""

Array = npt.NDArray[Any]

_NS = 1e9
BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Gaps by position, seconds: the median, least and most of all rounds that reach it.

    `position[i]` is the number of the tick that ends the first gap of entry i, counted from 1; `width` gaps that follow
    each other are one entry, and `last` is the number of the last tick of all.
    """

    position: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    width: int
    last: int

    def stretches(self, most: int) -> list[Stretch]:
        """Return the band in at most so many stretches of equal length."""
        step = -(-len(self.position) // most)
        return [self._stretch(n, min(n + step, len(self.position))) for n in range(0, len(self.position), step)]

    def between(self, first: int, last: int) -> float | None:
        """Return the median of what begins at the ticks from `first` to `last`, None where there is nothing."""
        found = [median for at, median in zip(self.position, self.median, strict=True) if first <= at <= last]
        return statistics.median(found) if found else None

    def _stretch(self, start: int, end: int) -> Stretch:
        return Stretch(
            first=self.position[start],
            last=min(self.position[end - 1] + self.width - 1, self.last),
            median=statistics.median(self.median[start:end]),
            low=min(self.low[start:end]),
            high=max(self.high[start:end]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Gaps, seconds, of the ticks from `first` to `last`: the median of a band's medians, its least and its most."""

    first: int
    last: int
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many gaps of all rounds lie between `edges[i]` and `edges[i + 1]` seconds; `beyond` are longer than all.

    `before` are the counts of another side's rounds between the same edges; empty where there is none.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    beyond: int
    before: tuple[int, ...] = ()


def gaps(rounds: Sequence[Stamps]) -> list[npt.NDArray[np.float64]]:
    """Return the gaps between ticks of each round, seconds; rounds of fewer than two ticks have none."""
    return [np.diff(stamps) / _NS for stamps in rounds]


def band(rounds: Sequence[Stamps], most: int) -> Band | None:
    """Return the gaps by position in at most `most` entries; None where no round has two ticks."""
    found = gaps(rounds)
    longest = max((len(one) for one in found), default=0)
    if not longest:
        return None
    width = -(-longest // most)
    table = np.full((len(found), -(-longest // width) * width), np.nan)
    for row, one in zip(table, found, strict=True):
        row[: len(one)] = one
    entries = table.reshape(len(found), -1, width).transpose(1, 0, 2).reshape(table.shape[1] // width, -1)
    return Band(
        position=tuple(range(2, longest + 2, width)),
        median=tuple(np.nanmedian(entries, axis=1).tolist()),
        low=tuple(np.nanmin(entries, axis=1).tolist()),
        high=tuple(np.nanmax(entries, axis=1).tolist()),
        width=width,
        last=longest + 1,
    )


def histogram(rounds: Sequence[Stamps], bins: int = BINS, before: Sequence[Stamps] = ()) -> Histogram | None:
    """Return the distribution of all rounds' gaps, up to 1.5 times the 99th percentile; None where there are none.

    `before` are rounds of another side, counted between the same edges, which then hold both.
    """
    every, other = (np.concatenate([np.empty(0), *gaps(side)]) for side in (rounds, before))
    if not len(every):
        return None
    sides = [side for side in (every, other) if len(side)]
    low = min(float(side.min()) for side in sides)
    top = max(min(float(side.max()), 1.5 * float(np.percentile(side, 99))) for side in sides)
    edges = np.linspace(low, top if top > low else low * 1.01 + 1e-9, bins + 1)
    counts, _ = np.histogram(every, edges)
    return Histogram(
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        beyond=int(len(every) - int(counts.sum())),
        before=tuple(np.histogram(other, edges)[0].tolist()) if len(other) else (),
    )


def _starts(samples: int, most: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, samples, min(samples, most), endpoint=False).astype(np.int64))


def peaks(at_ns: Array, values: Array, most: int) -> tuple[list[float], list[float]]:
    """Return at most `most` points (seconds, value): of each stretch of samples the highest, at its own moment."""
    if not len(values):
        return [], []
    starts = _starts(len(values), most)
    ends = [*starts[1:].tolist(), len(values)]
    highest = [start + int(np.argmax(values[start:end])) for start, end in zip(starts.tolist(), ends, strict=True)]
    return (at_ns[highest] / _NS).tolist(), values[highest].astype(np.float64).tolist()


def rates(at_ns: Array, totals: Array, most: int) -> tuple[list[float], list[float]]:
    """Return at most `most` points (seconds, increase per second since the point before) of a running total."""
    if len(totals) < 2:
        return [], []
    picked = np.append(_starts(len(totals) - 1, most), len(totals) - 1)
    at = at_ns[picked] / _NS
    passed = np.diff(at)
    kept = passed > 0
    return at[1:][kept].tolist(), (np.diff(totals[picked])[kept] / passed[kept]).tolist()
