"""Changes of several tests together: sums of them with weights, and the error of such a sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.stats import Student, student, weighted
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.stats import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifts:
    """The changes of one figure in several tests, as log-ratios, with what tells how certain a sum of them is.

    `launches`, launch by test, where all were measured in the same launches: a launch shifts its tests alike, so each
    launch is one observation of a sum. Elsewhere the tests are independent, with the standard errors `se` and their
    degrees of freedom `df`.
    """

    mid: Array
    launches: Array | None = None
    se: Array | None = None
    df: Array | None = None

    def combined(self, weights: Array, scale: Array | None = None) -> Student | None:
        """Return the sum of `weights` times the changes; of scale·(exp(change) − 1) where there is a scale.

        None where nothing tells its error.
        """
        if self.launches is not None:
            return student(_scaled(self.launches, scale) @ weights)
        middle = float(weights @ _scaled(self.mid, scale))
        if self.se is None or self.df is None:
            return None
        slopes = weights if scale is None else weights * scale * np.exp(self.mid)
        errors = [(slope, Student(0.0, se, df)) for slope, se, df in zip(slopes, self.se, self.df, strict=True)]
        return replace(weighted(errors), mid=middle)


def _scaled(changes: Array, scale: Array | None) -> Array:
    return changes if scale is None else np.asarray(scale * np.expm1(changes))


def of(pairs: Sequence[RowPair], judgements: Sequence[Judgement]) -> Shifts | None:
    """Return the changes of one figure that judgements hold, of pairs in the same order; None where one is unknown."""
    known = [math.log1p(j.mid) for j in judgements if j.mid is not None]
    if len(known) < len(judgements):
        return None
    mid = np.asarray(known)
    launches = _launches(pairs, judgements[0].metric_key or "")
    if launches is not None:
        # Of the launches that all tests share: a sum is of the same ones throughout.
        return Shifts(mid=np.asarray(launches.mean(axis=0)), launches=launches)
    if any(pair.by_launch(judgements[0].metric_key or "") is not None for pair in pairs):
        # They share launches, too few of them calm in all: how far their errors are the same ones is not known.
        return Shifts(mid=mid)
    errors = [_error(pair, judgement) for pair, judgement in zip(pairs, judgements, strict=True)]
    told = [error for error in errors if error is not None]
    if len(told) < len(errors):
        return Shifts(mid=mid)
    return Shifts(mid=mid, se=np.asarray([se for se, _ in told]), df=np.asarray([df for _, df in told]))


def _launches(pairs: Sequence[RowPair], key: str) -> Array | None:
    """Return each test's change in each launch, those of the launches that were calm in all of them."""
    found = [one for pair in pairs if (one := pair.by_launch(key)) is not None]
    if not found or len(found) < len(pairs):
        return None
    shared = sorted(set.intersection(*(set(one.numbers) for one in found)))
    if len(shared) < 2:
        return None
    return np.asarray([one.values[[one.numbers.index(number) for number in shared]] for one in found]).T


def _error(pair: RowPair, judgement: Judgement) -> tuple[float, float] | None:
    """Return the standard error of a change, and its degrees of freedom, from its interval."""
    low, high, rounds = judgement.low, judgement.high, judgement.rounds
    if low is None or high is None or low <= -1 or pair.block_spread is not None:
        return None
    df = max(1, (rounds[0] if rounds else 2) - 1)
    half = (math.log1p(high) - math.log1p(low)) / 2
    return half / float(special.stdtrit(df, 0.5 + CONFIDENCE / 2)), df
