"""How unevenly experts are used: each figure of a layer's counts, with its formula and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CountsLike = npt.NDArray[Any]
"""Counts of E experts along the last axis; what stands before it (layers, replicates) is kept."""

HOT_SHARE = 0.25
"""The part of a layer's experts that `coverage` speaks of: a common budget of offloading engines."""
MUCH = 0.8
"""The part of a layer's selections that `need` speaks of."""


def shares(counts: CountsLike) -> Array:
    """Return p = c / Σc along the last axis; NaN where nothing was selected."""
    total = np.asarray(counts, dtype=np.float64).sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(counts / total, dtype=np.float64)


def imbalance(counts: CountsLike) -> Array:
    """Return E·max p, the busiest expert's load over the mean load; between 1 and E / k."""
    return np.asarray(counts.shape[-1] * shares(counts).max(axis=-1))


def cv(counts: CountsLike) -> Array:
    """Return the standard deviation of the counts over their mean; 0 is even."""
    p = shares(counts)
    return np.asarray(p.std(axis=-1) * p.shape[-1])


def gini(counts: CountsLike) -> Array:
    """Return 2 Σ i·p₍ᵢ₎ / E − (E + 1) / E with p ascending and i from 1; 0 is even, (E − 1) / E one expert alone."""
    p = np.sort(shares(counts), axis=-1)
    experts = p.shape[-1]
    return np.asarray(2 * (p @ np.arange(1, experts + 1)) / experts - (experts + 1) / experts)


def _entropy_nats(counts: CountsLike) -> Array:
    p = shares(counts)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(-(p * logs).sum(axis=-1))


def entropy(counts: CountsLike) -> Array:
    """Return −Σ p ln p / ln E; 1 is even, 0 one expert alone; NaN for a single expert."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(_entropy_nats(counts) / np.log(counts.shape[-1]))


def effective(counts: CountsLike) -> Array:
    """Return exp(−Σ p ln p): so many equally used experts have the same entropy."""
    return np.asarray(np.exp(_entropy_nats(counts)))


def unused(counts: CountsLike) -> Array:
    """Return how many experts were never selected; NaN where nothing was selected at all."""
    never = (counts == 0).sum(axis=-1).astype(np.float64)
    return np.where(np.asarray(counts).sum(axis=-1) > 0, never, np.nan)


def curve(counts: CountsLike) -> Array:
    """Return the coverage curve: entry m − 1 is the share of selections that the m most used experts serve."""
    return np.asarray(np.cumsum(-np.sort(-shares(counts), axis=-1), axis=-1))


def budget(experts: int, part: float = HOT_SHARE) -> int:
    """Return how many experts that part of a layer is: at least one, halves rounded up."""
    return max(1, min(experts, int(np.floor(part * experts + 0.5))))


def coverage(counts: CountsLike, most: int | None = None) -> Array:
    """Return the share of selections that the `most` most used experts serve; by default a quarter of the experts."""
    m = budget(counts.shape[-1]) if most is None else most
    return np.asarray(curve(counts)[..., m - 1])


def need(counts: CountsLike, part: float = MUCH) -> Array:
    """Return the smallest number of experts that serves that part of the selections, by default 80 %."""
    served = curve(counts)
    # A hair of tolerance: 0.5 + 0.3 is not 0.8 in binary.
    short = (served < part - 1e-9).sum(axis=-1) + 1.0
    return np.where(np.isnan(served[..., -1]), np.nan, short)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewMetric:
    """One figure of skew: how it is called, what it is, where the formula comes from, and how it is worked out."""

    key: str
    label: str
    definition: str
    source: str
    of: Callable[[CountsLike], Array]


FIGURES = (
    SkewMetric(
        key="imbalance",
        label="imbalance",
        definition="E · max p: the busiest expert's load / the mean load",
        source="load imbalance factor, Pearce et al. 2012",
        of=imbalance,
    ),
    SkewMetric(
        key="cv",
        label="cv",
        definition="standard deviation of the counts / their mean",
        source="coefficient of variation, Pearson 1896; as MoE loss: Shazeer et al. 2017",
        of=cv,
    ),
    SkewMetric(
        key="gini",
        label="Gini",
        definition="2 Σ i·p₍ᵢ₎ / E − (E + 1) / E, p ascending",
        source="Gini 1912, in the form of Sen 1973",
        of=gini,
    ),
    SkewMetric(
        key="entropy", label="entropy", definition="−Σ p ln p / ln E", source="Shannon 1948; Pielou 1966", of=entropy
    ),
    SkewMetric(
        key="effective",
        label="effective",
        definition="exp(−Σ p ln p): so many equally used experts",
        source="Hill number of order 1, Hill 1973",
        of=effective,
    ),
    SkewMetric(
        key="unused", label="unused", definition="experts that were never selected", source="a count", of=unused
    ),
    SkewMetric(
        key="coverage",
        label="top ¼ serves",
        definition="share of selections that the most used quarter of the experts serves",
        source="Lorenz 1905, read from the top",
        of=coverage,
    ),
    SkewMetric(
        key="need",
        label="80 % need",
        definition="the smallest number of experts that serves 80 % of the selections",
        source="Lorenz 1905, read from the top",
        of=need,
    ),
)
"""Every figure of skew, in the order of the tables."""
