"""Ratios of neighbouring turns by hand."""

import math

import numpy as np
import pytest
from made_passes import one

from pytest_infer.analysis.compare import neighbours


def test_neighbours_by_hand():
    # Of chunks 1, 3 and 5 the first side came first, of 2, 4 and 6 the other; the seventh is left over.
    before, after = one(10, 20, 30, 10, 10, 20, 99), one(11, 22, 60, 12, 12, 20, 1)
    expected = (math.log(1.2) + math.log(1.1)) / 2
    assert neighbours.step_ratio(before, after) == pytest.approx(expected, abs=1e-12)


def test_who_comes_first_finds_nothing_of_the_others_in_the_caches():
    # Who comes second takes 9 % more: as large as the change is small, and in every ratio.
    steps = [100, 109] * 8
    assert neighbours.step_ratio(one(*steps), one(*[round(1.02 * s) for s in steps[1:] + steps[:1]])) == pytest.approx(
        math.log(1.02), abs=0.005
    )


def test_a_burst_of_other_work_moves_a_pass_hardly():
    rng = np.random.default_rng(3)
    before, after = rng.normal(1e6, 1e4, (2, 32))
    calm = neighbours.step_ratio(one(*before), one(*after))
    after[5:10] *= 3
    assert abs(neighbours.step_ratio(one(*before), one(*after)) - calm) < 0.01


def test_chunks_of_several_ticks():
    before, after = one(1, 2, 3, 4, 5), one(2, 2, 3, 4, 5)
    assert neighbours.step_ratio(before, after, every=2) == pytest.approx(math.log(4 / 3) / 2, abs=1e-12)


@pytest.mark.parametrize(("before", "after"), [((), ()), ((5,), (5,)), ((5, 5), (5,))])
def test_too_few_chunks(before, after):
    assert neighbours.step_ratio(one(*before), one(*after)) is None


def test_the_first_token_by_hand():
    assert neighbours.first_token_ratio(one(first=10), one(first=12)) == pytest.approx(math.log(1.2), abs=1e-12)


def test_neighbouring_passes_are_one_observation():
    assert neighbours.observations([1.0, 2.0, 4.0, 0.0, 7.0]) == [1.5, 2.0]


@pytest.mark.parametrize("every", [1, 3])
def test_no_step_at_the_end_of_a_text_is_left_out_of_the_sums(every):
    before, after = one(*[100] * 11), one(*[100] * 10, 200)
    assert neighbours.steps_ratio(before, after, every) == pytest.approx(math.log(12 / 11))


def test_steps_that_take_no_time_tell_nothing():
    still, moving = one(0, 0, 0, 0), one(1, 1, 1, 1)
    assert neighbours.steps_ratio(still, moving) is neighbours.steps_ratio(moving, still) is None
