"""Predicted decode rates, by hand."""

import pytest

from pytest_infer.analysis.placement import speed
from pytest_infer.analysis.placement.speed import Bandwidths
from pytest_infer.analysis.placement.strategies import Served

SERVED = Served(share=0.75, gpu_bytes=30e9, cpu_bytes=10e9)
ALL = Bandwidths(cpu=50e9, gpu=500e9, pcie=25e9)


def test_times_add_and_are_the_rate():
    found = speed.predict(SERVED, 5_000_000_000, ALL, dense_on_gpu=True)
    assert found.in_turns == pytest.approx(1 / (0.2 + 0.06 + 0.01))
    assert found.at_once == pytest.approx(1 / (0.2 + 0.01))
    assert found.streamed == pytest.approx(1 / (0.4 + 0.02 + 0.06 + 0.01))


def test_dense_weights_on_the_cpu_are_read_there():
    found = speed.predict(SERVED, 5_000_000_000, ALL, dense_on_gpu=False)
    assert found.in_turns == pytest.approx(1 / (0.2 + 0.06 + 0.1))


@pytest.mark.parametrize("bandwidths", [Bandwidths(), Bandwidths(cpu=50e9), Bandwidths(gpu=500e9)])
def test_a_bandwidth_that_is_needed_and_not_given_predicts_nothing(bandwidths):
    found = speed.predict(SERVED, 5_000_000_000, bandwidths, dense_on_gpu=True)
    assert (found.in_turns, found.at_once, found.streamed) == (None, None, None)


def test_a_bandwidth_that_nothing_needs_may_be_missing():
    on_gpu = Served(share=1, gpu_bytes=40e9, cpu_bytes=0)
    assert speed.predict(on_gpu, 0, Bandwidths(gpu=400e9), dense_on_gpu=True).in_turns == pytest.approx(10)


def test_an_unknown_size_predicts_nothing():
    assert speed.predict(SERVED, None, ALL, dense_on_gpu=True).in_turns is None
