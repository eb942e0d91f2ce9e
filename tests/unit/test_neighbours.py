"""Ratios of neighbouring turns by hand, and which turns count where something else takes the cores."""

import math

import numpy as np
import pytest
from made_passes import one

from pytest_infer.analysis.compare import launches, neighbours
from pytest_infer.analysis.compare.launches import means
from pytest_infer.records import Turns


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


WAITS = 0.2
"""Of a turn that something else disturbs, this share is spent waiting."""


def launch(rng, *, change=0.0, noise=0.03, cycles=2, tokens=9, disturbed=0.5, self_waits=0.0, told=True, apart=0.003):
    """Passes of a launch beside something that takes cores half of the time, and lets go only after many turns.

    What comes first in a pair of turns takes 4 % less. `self_waits` is the share of ours own turns that wait for each
    other, whatever else runs.
    """
    offset, passes = rng.normal(0, apart), []
    for number in range(2 * cycles):
        ours_begins = (number + number // 2) % 2 == 0
        on = rng.random() < disturbed
        halves = ([], [])
        for turn in range(tokens):
            on = on if rng.random() < 0.8 else rng.random() < disturbed
            for ours in (False, True):
                first = (turn % 2 == 0) == (ours == ours_begins)
                step = math.exp(rng.normal(0, noise) - 0.04 * first + ours * (change + offset))
                waits = on or (ours and rng.random() < self_waits)
                step *= rng.uniform(1.3, 4) if waits else 1
                halves[ours].append((1e6 * step, WAITS * 1e6 * step if waits else 1e3))
        passes.append(
            tuple(
                one(
                    *(step for step, _ in half[1:]),
                    first=half[0][0],
                    waited=[wait for _, wait in half] if told else (),
                    begins=ours == ours_begins,
                )
                for ours, half in enumerate(halves)
            )
        )
    return passes


def beside(seed, **how):
    rng = np.random.default_rng(seed)
    return [launch(rng, **how) for _ in range(8)]


def spread(observed):
    return float(np.std(means([told for told in observed if told]), ddof=1))


@pytest.mark.parametrize("change", [0.0, 0.02])
def test_turns_that_waited_for_no_core_tell_a_step_more_exactly(change):
    changes, narrower = [], []
    for seed in range(40):
        passes = beside(seed, change=change)
        found, share = neighbours.calm_steps(passes, 1)
        assert 0.2 < share < 0.7
        changes.append(np.mean(means([told for told in found if told])))
        narrower.append(spread(found) / spread(neighbours.steps(passes, 1)))
    assert np.mean(changes) == pytest.approx(change, abs=0.003)
    assert np.median(narrower) < 0.3


def test_calm_turns_by_hand():
    # This checkout begins the first pass, and so comes second in its second turn. Of turns that waited, none counts.
    first = (
        one(100, 100, 300, 100, waited=(0, 0, 0, 60, 0)),
        one(110, 100, 100, 102, waited=(0, 0, 0, 0, 0), begins=True),
    )
    second = (
        one(100, 100, 100, 100, waited=(0, 0, 0, 0, 0), begins=True),
        one(100, 110, 900, 110, waited=(0, 0, 0, 90, 0)),
    )
    found, share = neighbours.calm_steps([[first, second]] * 3, 1)
    # Coming second, this checkout took 10, 10 and 10 % more; coming first 0, 2 and 0 %.
    assert found == ((pytest.approx(math.log(1.1) / 2),),) * 3
    assert share == 6 / 8


def test_a_launch_without_a_calm_turn_says_nothing():
    passes = beside(3, disturbed=0.3)
    passes[2] = launch(np.random.default_rng(1), disturbed=1.0)
    ratios, shares = launches.ratios([((), of_launch) for of_launch in passes], 1)
    assert [bool(told) for told in ratios["step"]] == [True, True, False, *[True] * 5]
    assert set(shares) == {"step"}
    turns = Turns(every=1, cycles=2, seconds=1.0, ratios=ratios, calm=shares)
    assert launches.calm_numbers(turns) == (0, 1, 3, 4, 5, 6, 7)
    assert len(launches.told("itl_p50_s", turns, None)) == 7


@pytest.mark.parametrize(
    "how",
    [
        {"told": False},  # no kernel counts
        {"disturbed": 0.0},
        {"disturbed": 1.0},  # no turn is left
        {"disturbed": 0.0, "self_waits": 0.3, "change": 0.05},  # what waits is the code
        {"disturbed": 0.3, "self_waits": 0.5},
    ],
    ids=str,
)
def test_all_turns_count_where_calm_ones_do_not_tell_more(how):
    assert neighbours.calm_steps(beside(3, **how), 1) is None


def test_waits_that_cost_nothing_leave_all_turns_in():
    # Of two threads one may be ready and not run, and the step is none the slower.
    rng = np.random.default_rng(7)
    passes = []
    for _ in range(8):
        both = np.exp(rng.normal(0, 0.03, (2, 2, 33))) * 1e6
        waits = rng.random((2, 2, 33)) < 0.2
        passes.append(
            [
                tuple(
                    one(*both[number, ours][1:], waited=2e5 * waits[number, ours], begins=ours == number)
                    for ours in (0, 1)
                )
                for number in (0, 1)
            ]
        )
    assert neighbours.calm_steps(passes, 1) is None


def test_first_tokens_of_calm_passes():
    rng = np.random.default_rng(4)
    passes = [launch(rng, cycles=8, tokens=1, change=0.05) for _ in range(8)]
    found, share = neighbours.calm_first_tokens(passes)
    assert 0.2 < share < 0.8
    assert np.mean(means(found)) == pytest.approx(0.05, abs=0.01)
    assert spread(found) < 0.5 * spread(neighbours.first_tokens(passes))


def test_unchanged_code_beside_a_neighbour_is_accused_as_rarely_as_is_said():
    # A 99 % interval of a launch's own spread; an unchanged step lies outside of one in a hundred.
    trials, outside = 300, 0
    for seed in range(trials):
        found, shares = launches.ratios([((), passes) for passes in beside(1000 + seed, cycles=1)], 1)
        turns = Turns(every=1, cycles=1, seconds=1.0, ratios=found, calm=shares)
        low, high = launches.estimate(launches.told("tpot_s", turns, None)).interval(0.99)
        outside += low > 0 or high < 0
    assert outside <= 9


def test_a_change_in_turns_that_wait_alone_is_told_by_all():
    # Ours waits for itself in 8 % of its turns, too few to say that one side waits more: medians see nothing of it.
    rng = np.random.default_rng(2)
    passes = [launch(rng, disturbed=0.0, self_waits=0.08, noise=0.01, cycles=8, tokens=33) for _ in range(8)]
    found, _ = launches.ratios([((), one_launch) for one_launch in passes], 1)
    assert abs(np.mean(means(found["step"]))) < 0.01
    assert np.mean(means(found["steps"])) > 0.05
