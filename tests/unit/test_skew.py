"""Figures of skew, worked out by hand and by the standard library."""

import math
import statistics

import numpy as np
import pytest

from pytest_infer.analysis.experts import skew

COUNTS = np.array([4, 0, 2, 10])
EVEN = np.full(8, 3)
ALONE = np.array([0, 0, 9, 0, 0])


def test_shares_sum_to_one():
    assert skew.shares(COUNTS).tolist() == [0.25, 0.0, 0.125, 0.625]


def test_imbalance_is_the_busiest_over_the_mean():
    # 10 of 16, four experts: 10 / 4.
    assert skew.imbalance(COUNTS) == pytest.approx(2.5)
    assert skew.imbalance(EVEN) == pytest.approx(1)
    assert skew.imbalance(ALONE) == pytest.approx(5)


def test_cv_is_the_deviation_over_the_mean():
    assert skew.cv(COUNTS) == pytest.approx(statistics.pstdev([4, 0, 2, 10]) / 4)
    assert skew.cv(EVEN) == pytest.approx(0)


def test_gini_is_the_mean_difference_over_twice_the_mean():
    values = COUNTS.tolist()
    by_definition = sum(abs(a - b) for a in values for b in values) / (2 * 4 * 4 * statistics.fmean(values))
    assert skew.gini(COUNTS) == pytest.approx(by_definition)
    assert skew.gini(EVEN) == pytest.approx(0)
    assert skew.gini(ALONE) == pytest.approx(4 / 5)


def test_entropy_and_the_number_of_experts_that_have_it():
    nats = -sum(p * math.log(p) for p in (0.25, 0.125, 0.625))
    assert skew.entropy(COUNTS) == pytest.approx(nats / math.log(4))
    assert skew.effective(COUNTS) == pytest.approx(math.exp(nats))
    assert skew.entropy(EVEN) == pytest.approx(1)
    assert skew.effective(EVEN) == pytest.approx(8)
    assert skew.entropy(ALONE) == 0
    assert skew.effective(ALONE) == pytest.approx(1)


def test_unused():
    assert skew.unused(COUNTS) == 1
    assert skew.unused(ALONE) == 4
    assert skew.unused(EVEN) == 0


def test_coverage_and_need_read_one_curve_both_ways():
    # Shares in order: 0.625, 0.25, 0.125, 0.
    assert skew.curve(COUNTS).tolist() == pytest.approx([0.625, 0.875, 1.0, 1.0])
    assert skew.coverage(COUNTS) == 0.625  # a quarter of four is one
    assert skew.coverage(COUNTS, 2) == 0.875
    assert [int(skew.need(COUNTS, part)) for part in (0.5, 0.625, 0.63, 0.875, 0.9, 1.0)] == [1, 1, 2, 2, 3, 3]


def test_need_is_not_misled_by_binary_fractions():
    # 0.1 seven times, then 0.3: 0.3 + 5 · 0.1 must reach 0.8.
    assert skew.need(np.array([1, 1, 1, 3, 1, 1, 1, 1]), 0.8) == 6


@pytest.mark.parametrize(
    ("experts", "part", "most"),
    [(4, 0.25, 1), (8, 0.25, 2), (6, 0.25, 2), (2, 0.25, 1), (1, 0.25, 1), (256, 0.25, 64), (8, 1.0, 8), (8, 0.0, 1)],
)
def test_a_budget_is_at_least_one_expert(experts, part, most):
    assert skew.budget(experts, part) == most


@pytest.mark.parametrize("figure", skew.FIGURES, ids=lambda f: f.key)
def test_nothing_selected_has_no_figure(figure):
    assert math.isnan(figure.of(np.zeros(4, dtype=np.int64)))


@pytest.mark.parametrize("figure", skew.FIGURES, ids=lambda f: f.key)
def test_a_stack_of_layers_gives_a_figure_each(figure):
    stack = np.stack([np.array([4, 0, 2, 10, 0, 0, 0, 0]), EVEN])
    assert figure.of(stack).shape == (2,)
    assert figure.of(stack).tolist() == pytest.approx([float(figure.of(row)) for row in stack])


def test_a_planted_distribution_gives_its_own_figures_back():
    """A router that sends one half to expert 0, a quarter to 1 and an eighth each to 2 and 3, of eight."""
    planted = np.array([0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0])
    counts = (planted * 4096).astype(int)
    assert skew.shares(counts).tolist() == planted.tolist()
    # 1.75 bits of 3.
    assert skew.entropy(counts) == pytest.approx(1.75 / 3)
    assert skew.effective(counts) == pytest.approx(2**1.75)
    assert skew.imbalance(counts) == 4
    assert skew.coverage(counts) == 0.75
    assert skew.need(counts) == 3
    assert skew.unused(counts) == 4
