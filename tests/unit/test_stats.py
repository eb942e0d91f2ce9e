"""Estimates of a change, against scipy's own tests and against simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from pytest_infer.analysis.compare import stats
from pytest_infer.analysis.compare.verdicts import holm


def test_welch_is_scipys_test_on_logs():
    rng = np.random.default_rng(1)
    a, b = np.exp(rng.normal(0, 0.03, 9)), np.exp(rng.normal(0.05, 0.06, 12))
    estimate = stats.welch(a, b)
    expected = reference.ttest_ind(np.log(b), np.log(a), equal_var=False, alternative="greater")
    assert estimate.p_above(0) == pytest.approx(expected.pvalue)
    two_sided = reference.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.99)
    assert estimate.interval(0.99) == pytest.approx((two_sided.low, two_sided.high))


def test_welch_needs_two_values_a_side():
    assert stats.welch([1.0], [1.0, 1.1]) is None


def test_samples_without_spread_are_certain():
    estimate = stats.welch([2.0, 2.0], [3.0, 3.0])
    assert estimate.interval(0.99) == pytest.approx((math.log(1.5),) * 2)
    assert (estimate.p_above(0), estimate.p_below(0)) == (0.0, 1.0)


def test_equal_samples_without_spread_did_not_change():
    estimate = stats.welch([0.1, 0.1, 0.1], [0.1, 0.1])
    assert estimate.mid == 0.0
    assert estimate.p_above(0) == estimate.p_below(0) == 1.0


@pytest.mark.parametrize("pairs", [8, 15, 30, 50])
@pytest.mark.parametrize("bound", [0.0, 0.02])
def test_signed_rank_is_scipys_exact_test(pairs, bound):
    logs = np.random.default_rng(pairs).standard_t(3, pairs) * 0.03 + 0.02
    estimate = stats.SignedRank(tuple(logs))
    above = reference.wilcoxon(logs - bound, alternative="greater", method="exact").pvalue
    below = reference.wilcoxon(logs - bound, alternative="less", method="exact").pvalue
    assert estimate.p_above(bound) == pytest.approx(above)
    assert estimate.p_below(bound) == pytest.approx(below)


def test_signed_rank_of_many_pairs_agrees_with_scipys_normal_limit():
    logs = np.random.default_rng(5).normal(0.004, 0.03, 400)
    expected = reference.wilcoxon(logs, alternative="greater", method="approx", correction=True).pvalue
    assert stats.SignedRank(tuple(logs)).p_above(0) == pytest.approx(expected, rel=1e-3)


def test_interval_and_p_value_agree():
    logs = np.random.default_rng(6).normal(0.0, 0.03, 20)
    estimate = stats.SignedRank(tuple(logs))
    low, high = estimate.interval(0.99)
    assert estimate.p_above(low - 1e-9) <= 0.005 < estimate.p_above(low + 1e-9)
    assert estimate.p_below(high + 1e-9) <= 0.005 < estimate.p_below(high - 1e-9)


def test_too_few_pairs_give_no_interval():
    assert stats.SignedRank((0.1,) * 7).interval(0.99) == (-math.inf, math.inf)
    assert stats.SignedRank(tuple(np.linspace(0.1, 0.2, 8))).interval(0.99) == pytest.approx((0.1, 0.2))


def test_one_wild_pair_hardly_moves_the_estimate():
    logs = list(np.random.default_rng(7).normal(0.0, 0.01, 29))
    calm, wild = stats.SignedRank((*logs, 0.01)), stats.SignedRank((*logs, 3.0))
    assert wild.mid == pytest.approx(calm.mid, abs=0.001)
    assert wild.interval(0.99)[1] < 0.02


def test_pairs_that_never_differ_are_certain():
    assert stats.paired([5.0] * 4, [5.0] * 4).interval(0.99) == (0.0, 0.0)


@pytest.mark.parametrize("noise", ["normal", "heavy tails"])
def test_paired_interval_covers_the_truth_as_often_as_it_says(noise):
    rng = np.random.default_rng(8)
    trials = 2000
    drawn = rng.normal(0, 1, (trials, 20)) if noise == "normal" else rng.standard_t(2, (trials, 20))
    missed = 0
    for logs in drawn * 0.05 + 0.03:
        low, high = stats.SignedRank(tuple(logs)).interval(0.99)
        missed += not low <= 0.03 <= high
    # 1 % of 2,000 is 20 ± 4.4; the exact level for 20 pairs is 0.94 %.
    assert 6 <= missed <= 34


def test_prediction_limit_holds_for_the_next_run():
    rng = np.random.default_rng(9)
    trials = 4000
    runs = np.exp(rng.normal(0, 0.02, (trials, 11)))
    alarms = sum(stats.predicted(row[:10], row[10]).p_above(0) < 0.005 for row in runs)
    assert 8 <= alarms <= 34


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
