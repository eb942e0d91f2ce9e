"""The null of skew: values that moe.md reports, moments worked out by hand, and the two ways of drawing."""

import numpy as np
import pytest

from pytest_infer.analysis.experts import uniform


@pytest.mark.parametrize(
    ("tokens", "imbalance", "gini", "unused"), [(32, 4.6, 0.51, 92), (1024, 1.5, 0.10, 0)], ids=str
)
def test_even_routing_of_few_tokens_looks_uneven(tokens, imbalance, gini, unused):
    found = uniform.expected(256, 8, tokens)
    assert found["imbalance"].mean == pytest.approx(imbalance, abs=0.15)
    assert found["gini"].mean == pytest.approx(gini, abs=0.01)
    assert found["unused"].mean == pytest.approx(unused, abs=2)


def test_unused_experts_as_worked_out_by_hand():
    # Each token misses an expert with probability 1 − k / E.
    found = uniform.expected(64, 4, 20)["unused"]
    assert found.mean == pytest.approx(64 * (60 / 64) ** 20, rel=0.05)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize(("experts", "k"), [(256, 8), (8, 2), (4, 2), (60, 4), (16, 16), (5, 1)])
def test_a_token_selects_k_distinct_experts_all_alike(experts, k):
    drawn = uniform.selections(np.random.default_rng(3), experts, k, 4000)
    assert drawn.shape == (4000, k)
    assert all(len(set(row)) == k for row in drawn.tolist())
    assert drawn.min() >= 0
    assert drawn.max() < experts
    counts = np.bincount(drawn.ravel(), minlength=experts)
    spread = np.sqrt(4000 * k / experts * (1 - k / experts))
    assert np.abs(counts - 4000 * k / experts).max() <= 5 * spread


@pytest.mark.parametrize(("experts", "k"), [(8, 2), (64, 8)])
def test_the_normal_limit_agrees_with_the_draws(experts, k, monkeypatch):
    tokens = 40 * experts // k
    limit = uniform.counts(experts, k, tokens, draws=400)
    monkeypatch.setattr(uniform, "NORMAL_FROM", np.inf)
    drawn = uniform.counts(experts, k, tokens, draws=400)
    assert np.allclose(limit.sum(axis=1), tokens * k)
    assert np.array_equal(drawn.sum(axis=1), np.full(400, tokens * k))
    for figure in uniform.FIGURES:
        assert figure.of(limit).mean() == pytest.approx(figure.of(drawn).mean(), rel=0.05, abs=0.05), figure.key


def test_every_expert_selected_by_every_token_is_certain():
    found = uniform.expected(4, 4, 10)
    assert (found["imbalance"].low, found["imbalance"].high) == (1, 1)
    assert found["unused"].mean == 0


@pytest.mark.parametrize(("experts", "k", "tokens"), [(8, 2, 0), (8, 0, 5), (8, 9, 5)])
def test_nothing_to_select_has_no_null(experts, k, tokens):
    assert uniform.expected(experts, k, tokens) == {}


def test_a_single_expert_has_no_entropy_but_the_rest():
    found = uniform.expected(1, 1, 100)
    assert "entropy" not in found
    assert found["imbalance"].mean == 1


def test_the_null_is_the_same_every_time():
    uniform.expected.cache_clear()
    first = uniform.expected(16, 2, 50)
    uniform.expected.cache_clear()
    assert uniform.expected(16, 2, 50) == first
    assert first["gini"].holds(first["gini"].mean)
    assert not first["gini"].holds(1.0)
