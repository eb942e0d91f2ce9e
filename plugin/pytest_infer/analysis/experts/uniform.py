"""The null of every figure of skew: what perfectly even routing of as many tokens shows by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.experts.skew import FIGURES

SEED = 20260
MOST_DRAWS = 100
NORMAL_FROM = 32
"""From so many selections an expert on average, counts follow their normal limit closely enough."""

_SELECTIONS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A figure under uniform routing: its mean, and the range that holds 95 % of the draws."""

    mean: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether chance alone explains the value."""
        return self.low <= value <= self.high


def counts(experts: int, k: int, tokens: int, draws: int = MOST_DRAWS, seed: int = SEED) -> npt.NDArray[np.float64]:
    """Return counts of uniform routing, shape (draws, experts): each token selects k distinct experts.

    An expert's count is a sum of hypergeometric draws: over one token its variance is q(1 − q), its covariance with
    another's −q(1 − q) / (E − 1), q = k / E (Johnson, Kotz & Balakrishnan 1997, section 39). Where counts are large
    they are drawn from the normal distribution of those moments instead.
    """
    rng = np.random.default_rng(seed)
    q = k / experts
    if tokens * q >= NORMAL_FROM and experts > 1:
        z = rng.standard_normal((draws, experts))
        spread = np.sqrt(tokens * q * (1 - q) * experts / (experts - 1))
        return np.asarray(np.maximum(0.0, tokens * q + spread * (z - z.mean(axis=1, keepdims=True))))
    return np.stack(
        [np.bincount(selections(rng, experts, k, tokens).ravel(), minlength=experts) for _ in range(draws)]
    ).astype(np.float64)


def selections(rng: np.random.Generator, experts: int, k: int, tokens: int) -> npt.NDArray[np.int64]:
    """Return k distinct experts a token, every set equally likely; shape (tokens, k)."""
    if k * k >= experts:
        return np.asarray(np.argsort(rng.random((tokens, experts)), axis=1)[:, :k], dtype=np.int64)
    # Rows that hold an expert twice are drawn again: what is left is uniform over sets.
    chosen = rng.integers(experts, size=(tokens, k))
    again = np.arange(tokens)
    while len(again):
        rows = np.sort(chosen[again], axis=1)
        again = again[(rows[:, 1:] == rows[:, :-1]).any(axis=1)]
        chosen[again] = rng.integers(experts, size=(len(again), k))
    return chosen


@lru_cache(maxsize=256)
def expected(experts: int, k: int, tokens: int) -> Mapping[str, Expected]:
    """Return every figure of skew under uniform routing of so many tokens; {} where there is nothing to select."""
    if tokens < 1 or not 1 <= k <= experts:
        return {}
    # Fewer draws where one is large: it varies less, too.
    drawn = counts(experts, k, tokens, draws=int(np.clip(_SELECTIONS // (tokens * k), 8, MOST_DRAWS)))
    found = {}
    for figure in FIGURES:
        values = figure.of(drawn)
        if np.isfinite(values).all():
            low, high = np.quantile(values, [0.025, 0.975])
            found[figure.key] = Expected(mean=float(values.mean()), low=float(low), high=float(high))
    return found
