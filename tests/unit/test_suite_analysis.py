"""Averages over the prompts of a suite."""

import statistics

import pytest

from pytest_infer.analysis.suite import averages
from pytest_infer.metrics import Summary


def row(**values):
    return {key: Summary(value=value) for key, value in values.items()}


def test_mean_and_sample_standard_deviation():
    found = averages([row(a=1.0), row(a=2), row(a=6.0)], ["a"])["a"]
    assert found.mean == 3.0
    assert found.stdev == pytest.approx(statistics.stdev([1, 2, 6]))
    assert found.stdev == pytest.approx(7**0.5)  # by hand: (4 + 1 + 9) / 2
    assert found.prompts == 3


def test_one_prompt_has_no_spread():
    found = averages([row(a=4)], ["a"])["a"]
    assert (found.mean, found.stdev, found.prompts) == (4.0, None, 1)


def test_prompts_without_the_metric_do_not_count():
    found = averages([row(a=4), row(a=None), row(a=8)], ["a"])["a"]
    assert (found.mean, found.prompts) == (6.0, 2)


def test_a_metric_that_no_prompt_has_is_left_out():
    assert averages([row(a=None, b="text", c=1)], ["a", "b", "c"]).keys() == {"c"}
    assert averages([], ["a"]) == {}


def test_zero_counts():
    assert averages([row(a=0), row(a=2)], ["a"])["a"].mean == 1.0


def test_only_the_keys_asked_for():
    assert list(averages([row(a=1, b=2)], ["b"])) == ["b"]


def test_the_suite_may_be_read_once_only():
    found = averages(iter([row(a=1, b=10), row(a=3, b=30)]), ["a", "b"])
    assert (found["a"].mean, found["b"].mean) == (2.0, 20.0)
