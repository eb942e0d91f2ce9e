"""How far launches lie apart in tests that need not scatter alike: each test's own variance, helped by the others'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special

from pytest_infer.analysis.compare.launches import ByLaunch, Spread, own_spread, spread


def moderated(by_test: Sequence[ByLaunch]) -> list[Spread | None]:
    """Return the variance of each test's launch means, between its own and the pooled one of all tests.

    Tests need not scatter alike: the first token of a short prompt scatters far more than that of a long one. A test's
    own few launches and the others count by how alike the tests' variances are (empirical Bayes, Smyth 2004, section
    6.2): the posterior variance (d0 s0² + d s²) / (d0 + d) with d0 + d degrees of freedom, but no more than the pooled
    one has (see `spread`). It never falls below the test's own: a neighbour that comes and goes makes some tests of a
    run scatter several times as much as others, and what the calm ones say of these would accuse equal code more often
    (tests/unit/test_error_rates.py). Of fewer than three tests the larger of the two counts.
    """
    pooled = spread(by_test)
    own = [own_spread(one.values) for one in by_test]
    known = [one for one in own if one is not None]
    if pooled is None or len(known) < 2:
        return [one or pooled for one in own]
    if len(known) < 3 or not all(one.variance for one in known):
        return [one if one is not None and one.variance > pooled.variance else pooled for one in own]
    prior = _prior(known)
    if prior is None:
        return [_not_below(one, pooled) for one in own]
    return [pooled if one is None else _not_below(one, _posterior(one, prior, pooled)) for one in own]


def _not_below(own: Spread | None, others: Spread) -> Spread:
    return others if own is None or own.variance <= others.variance else replace(others, variance=own.variance)


def _posterior(own: Spread, prior: Spread, pooled: Spread) -> Spread:
    df = own.df + prior.df
    variance = (prior.df * prior.variance + own.df * own.variance) / df
    return Spread(variance=variance, df=min(df, max(pooled.df, own.df)))


def _prior(known: Sequence[Spread]) -> Spread | None:
    """Return s0² and d0 from the spread of the logarithms of the variances; None where they differ as by chance."""
    half = np.asarray([one.df for one in known]) / 2
    logs = np.log([one.variance for one in known]) - special.digamma(half) + np.log(half)
    excess = float(np.var(logs, ddof=1) - special.polygamma(1, half).mean())
    if excess <= 0:
        return None
    prior = _trigamma_inverse(excess)
    mean = float(logs.mean() + special.digamma(prior) - math.log(prior))
    return Spread(variance=math.exp(mean), df=2 * prior)


def _trigamma_inverse(value: float) -> float:
    """Return x with trigamma(x) = value, by Newton's method on 1 / trigamma, which converges from 0.5 + 1 / value."""
    x = 0.5 + 1 / value
    for _ in range(50):
        now = float(special.polygamma(1, x))
        step = now * (1 - now / value) / float(special.polygamma(2, x))
        x += step
        if abs(step) < 1e-8 * x:
            break
    return x
