"""When an expert may be called hot: intervals and tests against scipy's own, error rates and power by simulation."""

import numpy as np
import pytest
from scipy import stats

from pytest_infer.analysis.experts import naming, uniform


@pytest.mark.parametrize("tokens", [1, 10, 480])
def test_wilsons_interval_is_scipys(tokens):
    hits = np.arange(tokens + 1)
    low, high = naming.wilson(hits, tokens)
    for n in hits:
        expected = stats.binomtest(int(n), tokens).proportion_ci(0.95, method="wilson")
        assert (low[n], high[n]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_tokens_nothing_is_known():
    low, high = naming.wilson(np.zeros(3, dtype=np.int64), 0)
    assert (low.tolist(), high.tolist()) == ([0, 0, 0], [1, 1, 1])


def test_holm_by_hand():
    # Sorted: 0.01 ≤ 0.05/4, 0.015 ≤ 0.05/3, 0.03 > 0.05/2: it and all above it stay, even 0.04 < 0.05/1.
    assert naming.holm(np.array([0.04, 0.01, 0.03, 0.015])).tolist() == [False, True, False, True]
    assert naming.holm(np.array([0.05])).tolist() == [True]
    assert naming.holm(np.array([])).tolist() == []


def test_an_expert_that_stands_out_is_named():
    # 100 tokens, top 2 of 4: the fair share is 50. P(X ≥ 80) is tiny, P(X ≤ 20) too; 55 and 45 are chance.
    hot, cold = naming.named(np.array([80, 55, 45, 20]), 100)
    assert hot.tolist() == [True, False, False, False]
    assert cold.tolist() == [False, False, False, True]


def test_the_boundary_is_the_binomial_tail():
    tokens, fair = 100, 0.5
    enough = next(c for c in range(101) if stats.binom.sf(c - 1, tokens, fair) <= 0.05 / 4)
    for times, expected in ((enough, True), (enough - 1, False)):
        rest = 200 - times
        counts = np.array([times, rest // 3, rest // 3, rest - 2 * (rest // 3)])
        assert naming.named(counts, tokens)[0].tolist() == [expected, False, False, False]


@pytest.mark.parametrize("counts", [[0, 0, 0], [5]])
def test_nothing_stands_out_of_nothing(counts):
    hot, cold = naming.named(np.array(counts), 5)
    assert not hot.any()
    assert not cold.any()


@pytest.mark.parametrize(("experts", "k", "tokens"), [(8, 2, 60), (64, 8, 40)])
def test_even_routing_names_anything_at_most_one_time_in_twenty(experts, k, tokens):
    rng = np.random.default_rng(11)
    times = 400
    false_hot = false_cold = 0
    for _ in range(times):
        counts = np.bincount(uniform.selections(rng, experts, k, tokens).ravel(), minlength=experts)
        hot, cold = naming.named(counts, tokens)
        false_hot, false_cold = false_hot + hot.any(), false_cold + cold.any()
    # Three standard errors above 5 %.
    assert max(false_hot, false_cold) / times <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


def test_so_many_tokens_name_it_four_times_in_five():
    share, fair, experts = 0.4, 0.25, 8
    needed = naming.tokens_needed(share, fair, experts)
    rng = np.random.default_rng(5)
    hits = rng.binomial(needed, share, size=4000)
    passed = stats.binom.sf(hits - 1, needed, fair) <= naming.ALPHA / experts
    assert passed.mean() == pytest.approx(naming.POWER, abs=0.06)


def test_fewer_tokens_show_a_larger_difference():
    near, far = naming.tokens_needed(0.30, 0.25, 8), naming.tokens_needed(0.5, 0.25, 8)
    # Quadratic in the difference: five times as far, some 25 times fewer.
    assert near / far == pytest.approx(25, rel=0.3)


@pytest.mark.parametrize(("share", "fair"), [(0.25, 0.25), (0.2, 0.25), (0.5, 0.0), (1.2, 0.25)])
def test_what_is_not_hotter_is_never_shown_to_be(share, fair):
    assert naming.tokens_needed(share, fair, 8) is None
