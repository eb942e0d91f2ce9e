"""Predicted decode rates, by hand."""

import pytest

from pytest_infer.analysis.placement import speed
from pytest_infer.analysis.placement.speed import Bandwidths
from pytest_infer.analysis.placement.strategies import Served

SERVED = Served(share=0.75, gpu=(12e9, 18e9), cpu=(8e9, 2e9))
ALL = Bandwidths(cpu=50e9, gpu=500e9, pcie=25e9)


def test_times_add_and_are_the_rate():
    found = speed.predict(SERVED, 5_000_000_000, ALL, dense_on_gpu=True)
    assert found.in_turns == pytest.approx(1 / (0.2 + 0.06 + 0.01))
    # The CPU is the longer side of both layers, by 0.16 and 0.04 s against 0.024 and 0.036 s.
    assert found.at_once == pytest.approx(1 / (0.2 + 0.01))
    assert found.streamed == pytest.approx(1 / (0.4 + 0.02 + 0.06 + 0.01))


def test_layers_wait_for_one_another_where_each_lies_on_one_side():
    whole = Served(share=0.5, gpu=(20e9, 0), cpu=(0, 20e9))
    found = speed.predict(whole, 0, Bandwidths(cpu=50e9, gpu=50e9), dense_on_gpu=True)
    assert found.at_once == found.in_turns == pytest.approx(1 / 0.8)


@pytest.mark.parametrize(
    ("share", "gpu", "cpu"), [(0.375, (6e9, 9e9), (14e9, 11e9)), (0.9, (16.8e9, 19.2e9), (3.2e9, 0.8e9))]
)
def test_another_share_moves_a_part_of_every_layer(share, gpu, cpu):
    found = SERVED.at(share)
    assert (found.gpu, found.cpu) == (pytest.approx(gpu), pytest.approx(cpu))
    assert found.gpu_bytes == pytest.approx(share * 40e9)


@pytest.mark.parametrize(("share", "other"), [(0.0, 0.5), (1.0, 0.5), (0.0, 0.0), (1.0, 1.0)])
def test_nothing_or_everything_served_has_other_shares_too(share, other):
    found = Served(share=share, gpu=(share * 10.0,), cpu=((1 - share) * 10.0,)).at(other)
    assert (found.gpu_bytes, found.cpu_bytes) == (other * 10, (1 - other) * 10)


def test_dense_weights_on_the_cpu_are_read_there():
    found = speed.predict(SERVED, 5_000_000_000, ALL, dense_on_gpu=False)
    assert found.in_turns == pytest.approx(1 / (0.2 + 0.06 + 0.1))


@pytest.mark.parametrize("bandwidths", [Bandwidths(), Bandwidths(cpu=50e9), Bandwidths(gpu=500e9)])
def test_a_bandwidth_that_is_needed_and_not_given_predicts_nothing(bandwidths):
    found = speed.predict(SERVED, 5_000_000_000, bandwidths, dense_on_gpu=True)
    assert (found.in_turns, found.at_once, found.streamed) == (None, None, None)


def test_a_bandwidth_that_nothing_needs_may_be_missing():
    on_gpu = Served(share=1, gpu=(40e9,), cpu=(0,))
    assert speed.predict(on_gpu, 0, Bandwidths(gpu=400e9), dense_on_gpu=True).in_turns == pytest.approx(10)


def test_an_unknown_size_predicts_nothing():
    assert speed.predict(SERVED, None, ALL, dense_on_gpu=True).in_turns is None
