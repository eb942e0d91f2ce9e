"""A profile round's timeline in few points: peaks are kept, and what counts up becomes a rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NS = 1e9


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
