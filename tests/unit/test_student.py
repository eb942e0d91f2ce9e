"""Student's t beside scipy's, which was written by others."""

import math

import numpy as np
import pytest
from scipy import special

from pytest_infer.analysis.compare import stats, student

FREEDOMS = [1, 1.3, 2, 3.7, 4, 8, 29.5, 30, 200, 4321.5, 999_999, 1_000_001, 1e9]


@pytest.mark.parametrize("df", FREEDOMS)
@pytest.mark.parametrize("t", [0.0, 0.001, 0.3, 1.0, 2.576, 4.4, 6.5, 40.0, 1e12])
def test_tails(df, t):
    expected = float(special.stdtr(df, -t))
    assert student.tail(df, t) == pytest.approx(expected, rel=1e-9 if expected > 1e-12 else 1e-3, abs=1e-300)
    assert student.tail(df, -t) == pytest.approx(1 - expected, rel=1e-9)


@pytest.mark.parametrize("df", FREEDOMS)
@pytest.mark.parametrize("p", [0.45, 0.25, 0.05, 0.005, 0.0005, 5e-7])
def test_quantiles(df, p):
    # Older versions of scipy have quantiles that are good to some 5e-9.
    assert student.quantile(df, p) == pytest.approx(-float(special.stdtrit(df, p)), rel=1e-8)
    assert student.tail(df, student.quantile(df, p)) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("t", "expected"), [(math.inf, 0.0), (-math.inf, 1.0)])
@pytest.mark.parametrize("df", [3, 1e9])
def test_the_ends(df, t, expected):
    assert student.tail(df, t) == expected


def test_estimates_of_arrays_are_numbers_that_json_takes():
    weights, logs = np.array([0.25, 0.75]), np.array([0.01, 0.02, 0.04])
    found = stats.weighted([(weight, stats.student(logs * scale)) for scale, weight in enumerate(weights, 1)])
    numbers = [found.mid, found.se, found.df, *found.interval(0.99), found.p_above(0.0), found.p_below(0.0)]
    assert [type(number) for number in numbers] == [float] * 7
