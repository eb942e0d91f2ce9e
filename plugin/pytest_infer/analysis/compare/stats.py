"""Estimates of a change, as natural logarithms of ratios: paired rounds, two samples, a prediction from history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

from pytest_infer.analysis.compare import student as t_distribution

if TYPE_CHECKING:
    # Imported late, here and below: stored runs are compared without it, and its import takes half as long.
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

_MANY = 1e9
"""Degrees of freedom of an error that is known."""

ROBUST = 1.4826
"""Of a normal distribution, standard deviation / median absolute deviation (Rousseeuw & Croux 1993)."""

EXACT_PAIRS = 200
"""Up to so many pairs the null distribution is counted; beyond, its normal limit is as good."""


class Estimate(Protocol):
    """What is known of one change, as a log-ratio."""

    @property
    def mid(self) -> float:
        """Return the point estimate."""

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the two-sided interval; infinite where so few values cannot give that confidence."""

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value against "the change is `bound` or less"."""

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value against "the change is `bound` or more"."""


@dataclass(frozen=True, slots=True)
class Student:
    """An estimate whose error follows Student's t with `df` degrees of freedom and the standard error `se`.

    With an error of 0 there is no chance in it.
    """

    mid: float
    se: float
    df: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return mid ± t·se."""
        half = t_distribution.quantile(self.df, (1 - confidence) / 2) * self.se
        return self.mid - half, self.mid + half

    def p_above(self, bound: float) -> float:
        """Return the upper tail of t."""
        return self._tail(self.mid - bound)

    def p_below(self, bound: float) -> float:
        """Return the lower tail of t."""
        return self._tail(bound - self.mid)

    def _tail(self, distance: float) -> float:
        if self.se == 0:
            return 0.0 if distance > 0 else 1.0
        return t_distribution.tail(self.df, distance / self.se)


def weighted(parts: Sequence[tuple[float, Student]]) -> Student:
    """Return the weighted sum of independent estimates, each given with its weight.

    Its degrees of freedom are (Σ w²se²)² / Σ ((w²se²)² / df) (Satterthwaite 1946).
    """
    # Weights may be numpy's, whose numbers no encoder of JSON takes.
    mid = float(sum(weight * one.mid for weight, one in parts))
    variances = [(float(weight * one.se) ** 2, one.df) for weight, one in parts]
    whole = sum(variance for variance, _ in variances)
    if whole == 0:
        return Student(mid, 0.0, _MANY)
    return Student(mid, math.sqrt(whole), float(whole**2 / sum(variance**2 / df for variance, df in variances)))


def student(log_ratios: Sequence[float] | Array) -> Student:
    """Return the mean of at least two log-ratios with its standard error."""
    mean, variance = _moments(log_ratios)
    return Student(mean, math.sqrt(variance / len(log_ratios)), len(log_ratios) - 1)


def _moments(values: Sequence[float] | Array) -> tuple[float, float]:
    """Return the mean of at least two values, and their variance as of a sample."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1)


def logs(values: Sequence[float]) -> list[float]:
    """Return natural logarithms of values, all of them above 0."""
    return [math.log(value) for value in values]


def certain(mid: float) -> Student:
    """Return a change without noise: of figures that the same work always gives."""
    return Student(mid, 0.0, _MANY)


def within(mid: float, bound: float, confidence: float) -> Student:
    """Return an estimate whose interval of that confidence is `mid` ± `bound`: an error that was seen, not modelled."""
    return Student(mid, bound / t_distribution.quantile(_MANY, (1 - confidence) / 2), _MANY)


def welch(before: Sequence[float], after: Sequence[float]) -> Student | None:
    """Return the change of the mean of logs between two independent samples; None below two values a side.

    Welch, B. L. (1947), with Satterthwaite's degrees of freedom. All values must be above 0. Two samples without any
    spread are figures without noise.
    """
    if min(len(before), len(after)) < 2:
        return None
    (mean_before, variance_before), (mean_after, variance_after) = _moments(logs(before)), _moments(logs(after))
    mid = mean_after - mean_before
    va, vb = variance_before / len(before), variance_after / len(after)
    if va + vb < 1e-24:  # rounding of equal values' mean
        return certain(mid if abs(mid) > 1e-12 else 0.0)
    df = (va + vb) ** 2 / (va**2 / (len(before) - 1) + vb**2 / (len(after) - 1))
    return Student(mid, math.sqrt(va + vb), df)


def predicted(history: Sequence[float], new: float) -> Student | None:
    """Return how far a new run's figure lies from those of earlier runs; None below two of them.

    The t prediction interval of one future observation: s·√(1 + 1/K) with K − 1 degrees of freedom (Hahn & Meeker
    1991, section 4.6). All values must be above 0.
    """
    if len(history) < 2:
        return None
    mean, variance = _moments(logs(history))
    return Student(math.log(new) - mean, math.sqrt(variance * (1 + 1 / len(history))), len(history) - 1)


@dataclass(frozen=True)
class SignedRank:
    """The change within pairs of rounds: Hodges–Lehmann estimate and interval of the Wilcoxon signed-rank test.

    `log_ratios` has one value a pair. If nothing changed, either order of a pair is equally likely, so they are
    symmetric around 0 whatever the noise looks like: that is all the test asks for (Hollander, Wolfe & Chicken 2014,
    sections 3.1 to 3.3). An outlier counts as one large rank, not by its size.
    """

    log_ratios: tuple[float, ...]

    @cached_property
    def _averages(self) -> Array:
        """Return the sorted Walsh averages: of each pair of values, and of each with itself."""
        import numpy as np  # noqa: PLC0415

        x = np.asarray(self.log_ratios, dtype=np.float64)
        rows, columns = np.triu_indices(len(x))
        return np.sort((x[rows] + x[columns]) / 2)

    @property
    def mid(self) -> float:
        """Return the median of the Walsh averages."""
        middle = len(self._averages) // 2
        return float(self._averages[middle] + self._averages[~middle]) / 2

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the order statistics of the Walsh averages that hold at least that confidence."""
        cut = _quantile(len(self.log_ratios), (1 - confidence) / 2)
        if cut == 0:
            return -math.inf, math.inf
        return float(self._averages[cut - 1]), float(self._averages[-cut])

    def p_above(self, bound: float) -> float:
        """Return P(W ≥ observed) where W counts the Walsh averages above `bound`; one equal to it counts half."""
        averages = self._averages
        above = float((averages > bound).sum()) + float((averages == bound).sum()) / 2
        return _upper_tail(len(self.log_ratios), above)

    def p_below(self, bound: float) -> float:
        """Return the same for the other side."""
        return SignedRank(tuple(-x for x in self.log_ratios)).p_above(-bound)


def paired(before: Sequence[float], after: Sequence[float]) -> SignedRank | Student:
    """Return the change within pairs: `before[i]` and `after[i]` were measured next to each other; all above 0."""
    ratios = tuple(b - a for a, b in zip(logs(before), logs(after), strict=True))
    if len(ratios) > 1 and len(set(ratios)) == 1 and len(set(before)) == 1:
        return certain(ratios[0])
    return SignedRank(ratios)


@lru_cache(maxsize=64)
def _null(pairs: int) -> Array:
    """Return P(W = w) for w = 0 … n(n + 1)/2: each rank is added or not with probability one half."""
    import numpy as np  # noqa: PLC0415

    probabilities = np.ones(1)
    for rank in range(1, pairs + 1):
        kept = np.concatenate([probabilities, np.zeros(rank)])
        kept[rank:] += probabilities
        probabilities = kept / 2
    return probabilities


def _normal(pairs: int) -> tuple[float, float]:
    """Return mean and standard deviation of W."""
    return pairs * (pairs + 1) / 4, math.sqrt(pairs * (pairs + 1) * (2 * pairs + 1) / 24)


def _upper_tail(pairs: int, observed: float) -> float:
    if pairs > EXACT_PAIRS:
        mean, deviation = _normal(pairs)
        return NormalDist().cdf((mean + 0.5 - observed) / deviation)
    return float(min(1.0, _null(pairs)[math.floor(observed) :].sum()))


def _quantile(pairs: int, tail: float) -> int:
    """Return the largest c with P(W < c) ≤ tail: so many Walsh averages may be cut from each end."""
    if pairs > EXACT_PAIRS:
        mean, deviation = _normal(pairs)
        return max(0, math.floor(mean + deviation * NormalDist().inv_cdf(tail)))
    # A hair of tolerance: 1 − 0.99 is not 0.01 in binary.
    return int(_null(pairs).cumsum().searchsorted(tail * (1 + 1e-9), side="right"))
