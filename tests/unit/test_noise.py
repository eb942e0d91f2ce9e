"""The noise floor: what it promises is found as often as it says."""

import numpy as np
import pytest

from pytest_infer.analysis.compare import noise, stats


def test_a_planted_change_of_the_detectable_size_is_found_with_the_promised_power():
    rng = np.random.default_rng(3)
    before, after = np.exp(rng.normal(0, 0.03, (2, 4000)))
    found = noise.floor(before, after)
    assert found.spread == pytest.approx(0.03 * np.sqrt(2), rel=0.05)
    change = np.log1p(found.detectable[30])
    trials = rng.normal(change, found.spread, (1000, 30))
    power = np.mean([2 * stats.SignedRank(tuple(logs)).p_above(0) <= 0.01 for logs in trials])
    # 0.95 ± 0.007, and the formula is that of the normal limit: t's tails cost some.
    assert 0.90 <= power <= 0.98


def test_wild_rounds_and_bias_are_told_apart():
    before = [1.0] * 20
    after = [1.02 * 1.001**i for i in range(-9, 10)] + [9.0]
    found = noise.floor(before, after)
    assert found.bias == pytest.approx(0.02, abs=0.002)
    assert found.spread < 0.01
    assert found.detectable[100] < found.detectable[10]
