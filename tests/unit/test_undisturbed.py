"""Turns of a token beside something else that takes cores: which of them count, and what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_passes import one

from pytest_infer.analysis.compare import launches, neighbours, undisturbed
from pytest_infer.analysis.compare.launches import means
from pytest_infer.records import Turns

WAITS = 0.2
"""Of a turn that something else disturbs, this share is spent waiting."""


def launch(
    rng, *, change=0.0, noise=0.03, cycles=2, tokens=9, disturbed=0.5, self_waits=0.0, told=True, apart=0.003, scale=1
):
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
                step *= scale * (rng.uniform(1.3, 4) if waits else 1)
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


def of_turns(took, waited):
    """Two passes of a launch, of which either side begins one, by what each turn took and waited: pass, side, turn."""
    return [
        tuple(one(*took[number, ours][1:], waited=waited[number, ours], begins=ours == number) for ours in (0, 1))
        for number in (0, 1)
    ]


def beside(seed, **how):
    rng = np.random.default_rng(seed)
    return [launch(rng, **how) for _ in range(8)]


def told_alone(passes):
    """What undisturbed turns alone tell of."""
    return set(launches.ratios([((), of_launch) for of_launch in passes], 1)[1])


def spread(observed):
    return float(np.std(means([told for told in observed if told]), ddof=1))


@pytest.mark.parametrize("change", [0.0, 0.02])
def test_turns_that_waited_for_no_core_tell_a_step_more_exactly(change):
    changes, narrower = [], []
    for seed in range(40):
        passes = beside(seed, change=change)
        found, share, _ = undisturbed.steps(passes, 1)
        assert 0.2 < share < 0.7
        changes.append(np.mean(means([told for told in found if told])))
        narrower.append(spread(found) / spread(neighbours.steps(passes, 1)))
    assert np.mean(changes) == pytest.approx(change, abs=0.003)
    assert np.median(narrower) < 0.3


def test_undisturbed_turns_by_hand():
    # This checkout begins the first pass, and so comes second in its second turn. Of turns that waited, none counts.
    first = (
        one(100, 100, 300, 100, waited=(0, 0, 0, 60, 0)),
        one(110, 100, 100, 102, waited=(0, 0, 0, 0, 0), begins=True),
    )
    second = (
        one(100, 100, 100, 100, waited=(0, 0, 0, 0, 0), begins=True),
        one(100, 110, 900, 110, waited=(0, 0, 0, 270, 0)),
    )
    found, share, _ = undisturbed.steps([[first, second]] * 3, 1)
    # Coming second, this checkout took 10 % more in both passes, coming first 0 to 2 % and 0 %: half of that is what
    # coming first is worth, which the middle of each pass's other three turns is freed of.
    worth = ((math.log(1.02) / 2 - math.log(1.1)) / 2 - math.log(1.1) / 2) / 2
    assert found == ((pytest.approx(math.log(1.1) + worth),),) * 3
    assert share == 6 / 8


def test_a_launch_without_an_undisturbed_turn_says_nothing():
    passes = beside(3, disturbed=0.3)
    passes[2] = launch(np.random.default_rng(1), disturbed=1.0)
    ratios, shares = launches.ratios([((), of_launch) for of_launch in passes], 1)
    assert [bool(told) for told in ratios["step"]] == [True, True, False, *[True] * 5]
    assert set(shares) == {"step"}
    turns = Turns(every=1, cycles=2, seconds=1.0, ratios=ratios, undisturbed=shares)
    found = launches.told("itl_p50_s", turns, None)
    assert 2 not in found.numbers
    assert len(found.values) == len(found.numbers) >= 5


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
def test_all_turns_count_where_the_undisturbed_do_not_tell_more(how):
    assert undisturbed.steps(beside(3, **how), 1) is None


def test_waits_that_cost_nothing_leave_all_turns_in():
    # Of two threads one may be ready and not run, and the step is none the slower.
    rng = np.random.default_rng(7)
    passes = []
    for _ in range(8):
        both = np.exp(rng.normal(0, 0.03, (2, 2, 33))) * 1e6
        waits = rng.random((2, 2, 33)) < 0.2
        passes.append(of_turns(both, 2e5 * waits))
    assert told_alone(passes) == set()


def test_bursts_that_hardly_show_among_all_turns_are_left_out():
    # Of ten passes one or two are disturbed, in most of their turns: a few of all, but the launches lie far apart.
    narrower = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        passes = []
        for _ in range(8):
            took = np.exp(rng.normal(0, 0.03, (2, 2, 25))) * 1e6
            waits = (rng.random((2, 1, 1)) < 0.15) & (rng.random((2, 2, 25)) < 0.6)
            took[waits] *= rng.uniform(1.3, 2, int(waits.sum()))
            passes.append(of_turns(took, 0.3 * took * waits))
        found, shares = launches.ratios([((), of_launch) for of_launch in passes], 1)
        narrower.append(spread(found["step"]) / spread(neighbours.steps(passes, 1)) if shares else 1.0)
    assert np.mean(narrower) < 0.6


def test_first_tokens_of_undisturbed_passes():
    rng = np.random.default_rng(4)
    passes = [launch(rng, cycles=8, tokens=1, change=0.05) for _ in range(8)]
    found, share, _ = undisturbed.first_tokens(passes)
    assert 0.2 < share < 0.8
    assert np.mean(means(found)) == pytest.approx(0.05, abs=0.01)
    assert spread(found) < 0.5 * spread(neighbours.first_tokens(passes))


@pytest.mark.parametrize("change", [0.0, 0.3])
def test_a_change_that_grows_with_the_text_counts_as_in_the_time_per_token(change):
    # Of two places of the text the second takes twice as long a step, waits twice as often, and alone has changed.
    grown, outside = [], 0
    truth = math.log((1 + 2 * math.exp(change)) / 3)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        passes = []
        for _ in range(8):
            early = launch(rng, cycles=1, disturbed=0.3)[0]
            late = launch(rng, cycles=1, disturbed=0.6, change=change, scale=2)[1]
            passes.append([early, late])
        told = undisturbed.steps(passes, 1)
        if told is None:
            continue
        found = launches.estimate(means([one for one in told.observations if one]))
        grown.append(found.mid)
        low, high = found.interval(0.99)
        outside += not low <= truth <= high
    assert len(grown) > 50
    assert np.mean(grown) == pytest.approx(truth, abs=0.01)
    assert outside <= 5


@pytest.mark.parametrize(("undisturbed_by", "waiting_by"), [(1.0, 1.1), (0.95, 1.03)])
def test_turns_that_changed_otherwise_where_they_wait_are_not_left_out(undisturbed_by, waiting_by):
    # Threads of either side wait for each other in six turns of ten, and this checkout's longer: its code is why.
    left_out = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        passes = []
        for _ in range(8):
            waits = rng.random((2, 2, 33)) < 0.6
            took = np.exp(rng.normal(0, 0.03, (2, 2, 33))) * 1e6 * np.where(waits, 1.5, 1)
            took[:, 1] *= np.where(waits[:, 1], waiting_by, undisturbed_by)
            passes.append(of_turns(took, 3e5 * waits))
        left_out += undisturbed.steps(passes, 1) is not None
    assert left_out <= 1


@pytest.mark.parametrize("often", [(0.3, 0.95), (0.1, 0.9)])
def test_a_part_of_the_text_that_few_launches_tell_is_not_taken_for_known(often):
    outside, told_of = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        passes = [
            [launch(rng, cycles=1, apart=0.01, disturbed=share)[place] for place, share in enumerate(often)]
            for _ in range(8)
        ]
        told = undisturbed.steps(passes, 1)
        if told is not None:
            low, high = launches.estimate(means([one for one in told.observations if one])).interval(0.99)
            outside += low > 0 or high < 0
            told_of += 1
    assert outside <= max(1, 0.04 * told_of)


def test_what_coming_first_is_worth_must_be_known():
    # Both sides wait where this checkout comes second, which takes it 9 % longer.
    rng = np.random.default_rng(5)
    passes = []
    for _ in range(8):
        cycle = []
        for number in (0, 1):
            halves = ([], [])
            for turn in range(9):
                ours_first = (turn % 2 == 0) == (number == 1)
                for ours in (0, 1):
                    step = 1e6 * math.exp(rng.normal(0, 0.01) + (0.09 if ours and not ours_first else 0))
                    halves[ours].append((step * (1 if ours_first else rng.uniform(1.3, 4)), 0 if ours_first else 9e5))
            cycle.append(
                tuple(
                    one(*(s for s, _ in half[1:]), first=half[0][0], waited=[w for _, w in half], begins=ours == number)
                    for ours, half in enumerate(halves)
                )
            )
        passes.append(cycle)
    assert undisturbed.steps(passes, 1) is None
    assert undisturbed.first_tokens(passes) is None


def waiting(rng, ours, theirs, turns=16, share=0.3, noise=0.03):
    """Passes of eight launches; in each one, so many turns of either side are disturbed, the first ones."""
    passes = []
    for launch_ours, launch_theirs in zip(ours, theirs, strict=True):
        took = np.exp(rng.normal(0, noise, (2, 2, turns + 1))) * 1e6
        waits = np.zeros(took.shape, dtype=bool)
        for number in (0, 1):
            waits[number, 0, 1 : 1 + launch_theirs[number]] = waits[number, 1, 1 : 1 + launch_ours[number]] = True
        took[waits] *= rng.uniform(1.3, 4, int(waits.sum()))
        passes.append(of_turns(took, share * took * waits))
    return passes


def test_a_short_wait_does_not_disturb():
    # Of half of the turns; another quarter waits for long.
    rng = np.random.default_rng(6)
    passes = []
    for _ in range(8):
        took = np.exp(rng.normal(0, 0.02, (2, 2, 33))) * 1e6
        kind = rng.choice(3, (2, 1, 33), p=[0.25, 0.5, 0.25]).repeat(2, axis=1)
        took[kind == 2] *= rng.uniform(1.3, 4, int((kind == 2).sum()))
        passes.append(of_turns(took, took * np.select([kind == 1, kind == 2], [0.08, 0.5])))
    assert undisturbed.steps(passes, 1).share == pytest.approx(0.75, abs=0.07)


def test_a_pass_of_few_undisturbed_turns_does_not_pull_its_launch_away():
    # Of the second pass two turns of three were held up, and nothing counted that.
    rng = np.random.default_rng(8)
    passes = waiting(rng, [(6, 13)] * 8, [(6, 13)] * 8, noise=0.003)
    for number, (_, (base, ours)) in enumerate(passes):
        if number < 3:
            passes[number][1] = (base, held_up(ours, 2, by_ns=600_000))
    found = undisturbed.steps(passes, 1).observations
    assert [len(told) for told in found] == [1] * 8
    assert np.max(np.abs(means(found))) < 0.01


def held_up(one_pass, last, by_ns):
    """A pass whose last turns took so much longer, each."""
    stamps = np.asarray(one_pass.stamps_ns)
    stamps[-last:] += by_ns * np.arange(1, last + 1)
    return replace(one_pass, stamps_ns=tuple(map(int, stamps)))


@pytest.mark.parametrize("often", [0.002, 0.01, 0.05])
def test_a_few_turns_that_waited_for_nothing_change_nothing(often):
    rng = np.random.default_rng(11)
    counted = 0
    for _ in range(60):
        passes = []
        for _ in range(8):
            both, waits = np.exp(rng.normal(0, 0.03, (2, 2, 33))) * 1e6, rng.random((2, 2, 33)) < often
            passes.append(of_turns(both, 2e5 * waits))
        counted += bool(told_alone(passes))
    assert counted == 0


@pytest.mark.parametrize("often", [0.05, 0.4])
def test_turns_that_waited_for_nothing_accuse_no_more_often(often):
    rng = np.random.default_rng(11)
    outside, trials = 0, 200
    for _ in range(trials):
        passes = []
        for _ in range(8):
            both, waits = np.exp(rng.normal(0, 0.03, (2, 2, 33))) * 1e6, rng.random((2, 2, 33)) < often
            passes.append(of_turns(both, 2e5 * waits))
        found, _ = launches.ratios([((), of_launch) for of_launch in passes], 1)
        low, high = launches.estimate(means([told for told in found["step"] if told])).interval(0.99)
        outside += low > 0 or high < 0
    assert outside <= 0.03 * trials


def test_a_launch_without_an_undisturbed_first_token_still_tells_a_step():
    passes = [launch(np.random.default_rng(seed), cycles=8) for seed in range(8)]
    first = [launch(np.random.default_rng(50 + seed), tokens=1, cycles=4) for seed in range(8)]
    first[5] = launch(np.random.default_rng(9), tokens=1, cycles=4, disturbed=1.0)
    ratios, shares = launches.ratios(list(zip(first, passes, strict=True)), 1)
    assert set(shares) == {"first", "step"}
    turns = Turns(every=1, cycles=8, seconds=1.0, ratios=ratios, undisturbed=shares)
    numbers = {key: launches.told(key, turns, 0.1).numbers for key in ("ttft_s", "itl_p50_s", "total_s")}
    assert 5 not in numbers["ttft_s"]
    assert 5 in numbers["itl_p50_s"]
    assert set(numbers["total_s"]) == set(numbers["ttft_s"]) & set(numbers["itl_p50_s"])


def test_waits_tell_nothing_where_threads_have_no_core_each():
    passes = [((), of_launch) for of_launch in beside(3)]
    assert launches.ratios(passes, 1)[1]
    assert launches.ratios(passes, 1, waits_tell=False)[1] == {}


def test_unchanged_code_beside_a_neighbour_is_accused_as_rarely_as_is_said():
    # A 99 % interval of a launch's own spread; an unchanged step lies outside of one in a hundred.
    trials, outside = 300, 0
    for seed in range(trials):
        found, shares = launches.ratios([((), passes) for passes in beside(1000 + seed, cycles=1)], 1)
        turns = Turns(every=1, cycles=1, seconds=1.0, ratios=found, undisturbed=shares)
        low, high = launches.estimate(launches.told("tpot_s", turns, None).values).interval(0.99)
        outside += low > 0 or high < 0
    assert outside <= 9


def test_a_change_of_few_steps_is_told_by_the_sums_of_undisturbed_turns():
    # Every eighth step takes 40 % more, beside something that takes cores in 40 % of the turns.
    changes = []
    for seed in range(40):
        passes = beside(seed, disturbed=0.4, noise=0.01, cycles=1, tokens=33)
        for of_launch in passes:
            of_launch[:] = [(base, slower(ours, every=8, by=0.4)) for base, ours in of_launch]
        found, _ = launches.ratios([((), of_launch) for of_launch in passes], 1)
        if "steps" in found:
            changes.append(np.mean(means([told for told in found["steps"] if told])))
    assert len(changes) >= 30
    assert np.mean(changes) == pytest.approx(math.log(1 + 0.4 / 8), abs=0.01)


def in_parts(rng, disturbed, late):
    """Passes of two parts of the text, each disturbed so often; every fourth step of the second takes more."""
    passes = []
    for number, often in enumerate(disturbed):
        took = np.exp(rng.normal(0, 0.01, (2, 33))) * 1e6
        waits = np.repeat(rng.random(11) < often, 3)
        took[:, waits] *= rng.uniform(2, 6, (2, int(waits.sum())))
        base, ours = (
            one(*took[side][1:], first=took[side][0], waited=0.3 * took[side] * waits, begins=side == number)
            for side in (0, 1)
        )
        passes.append((base, slower(ours, every=4, by=late) if number else ours))
    return passes


def test_a_part_that_is_disturbed_more_weighs_no_more_in_the_sums():
    changes = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        told = undisturbed.sums([in_parts(rng, (0.6, 0.1), 0.4) for _ in range(8)], 1)
        changes.append(np.mean(means([one for one in told if one])))
    assert np.mean(changes) == pytest.approx(math.log(1.05), abs=0.003)


@pytest.mark.parametrize(("waits_tell", "counts"), [(False, True), (True, False)])
def test_sums_of_all_turns_beside_undisturbed_ones_must_be_told_with_more_confidence(monkeypatch, waits_tell, counts):
    # 4.7 standard errors of eight launches: chance goes as far in one of 450.
    passes = [((), of_launch) for of_launch in beside(3)]
    steps = means(launches.ratios(passes, 1, waits_tell=waits_tell)[0]["step"])
    apart = 0.05 + 0.05 * math.sqrt(7) / 4.7 * np.resize([1.0, -1.0], 8)
    monkeypatch.setattr(neighbours, "sums", lambda *_: tuple((one,) for one in steps + apart))
    monkeypatch.setattr(undisturbed, "sums", lambda *_: tuple((one,) for one in steps))
    assert ("steps" in launches.ratios(passes, 1, waits_tell=waits_tell)[0]) is counts


def test_the_total_is_told_where_other_launches_tell_the_sums_of_steps():
    # First tokens are undisturbed in the first half of the launches, steps of both parts of the text in the second.
    first, whole = [], []
    for number in range(8):
        rng = np.random.default_rng(number)
        early = number < 4
        first.append(launch(rng, tokens=1, cycles=8, disturbed=0.3 if early else 1.0))
        parts = in_parts(rng, (1.0, 0.3) if early and number % 2 else (0.3, 1.0) if early else (0.3, 0.3), 0.4)
        whole.append(parts)
    ratios, shares = launches.ratios(list(zip(first, whole, strict=True)), 1)
    assert "steps" in ratios
    turns = Turns(every=1, cycles=1, seconds=1.0, ratios=ratios, undisturbed=shares)
    assert len(launches.told("total_s", turns, 0.5).numbers) >= 3


@pytest.mark.parametrize("cycles", [2, 4])
def test_first_tokens_that_make_themselves_wait_are_not_left_out(cycles):
    # Of ours every twelfth, which takes a seventh more on average.
    passed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        passes = [launch(rng, cycles=cycles, tokens=1, disturbed=0.0, self_waits=0.08) for _ in range(8)]
        found, _ = launches.ratios([(of_launch, ()) for of_launch in passes], 1)
        passed += launches.estimate(means([one for one in found["first"] if one])).interval(0.99)[1] < 0.05
    assert passed <= 15


def slower(one_pass, every, by):
    """A pass of which every so manieth step took longer, by that share."""
    gaps = np.diff(np.asarray(one_pass.stamps_ns, dtype=np.float64))
    gaps[::every] *= 1 + by
    return replace(one_pass, stamps_ns=tuple(map(int, one_pass.stamps_ns[0] + np.cumsum([0, *gaps]))))


def test_a_change_in_turns_that_wait_alone_is_told_by_all():
    # Ours waits for itself in 8 % of its turns, too few to say that one side waits more: medians see nothing of it.
    rng = np.random.default_rng(2)
    passes = [launch(rng, disturbed=0.0, self_waits=0.08, noise=0.01, cycles=8, tokens=33) for _ in range(8)]
    found, _ = launches.ratios([((), one_launch) for one_launch in passes], 1)
    assert abs(np.mean(means(found["step"]))) < 0.01
    assert np.mean(means(found["steps"])) > 0.05
