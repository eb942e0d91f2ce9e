"""Lasting changes as events: what moved together since one run is one, told in words and first on the report."""

import itertools

import pytest

from pytest_infer.analysis.breakdown.lasting import CarryingRole, Lasting
from pytest_infer.analysis.history import events, trends
from pytest_infer.analysis.history.changepoints import ChangePoint
from pytest_infer.metrics import by_key
from pytest_infer.report.history import events as words

EXPERTS = Lasting(
    phase="decode",
    before_s=0.010,
    after_s=0.0156,
    roles=(CarryingRole(role="experts", before_s=0.005, after_s=0.0104),),
)


@pytest.fixture
def runs(storage):
    for _ in range(20):
        storage.add([])
    return storage.load().runs


def shift(runs, key, test, at, change, **more):
    point = ChangePoint(index=at, before=1.0, after=1.0 + change, change=change, p=1e-6)
    where = {"last": runs[at - 1], "run": runs[at], "before": at, "since": len(runs) - at}
    return trends.Shift(test=test, name=test, metric=by_key(key), point=point, **where, **more)


def found(runs, shifts, tests="ab"):
    keys = dict.fromkeys(one.metric.key for one in shifts)
    return events.events(shifts, dict.fromkeys(itertools.product(tests, keys), ()), runs)


def test_figures_that_moved_since_one_run_are_one_event(runs):
    keys = {"tpot_s": 0.33, "decode_throughput": -0.25, "itl_p99_s": 0.4, "total_s": 0.3}
    (one,) = found(runs, [shift(runs, key, test, 12, change) for key, change in keys.items() for test in "ab"])
    assert (one.run, one.before, one.since, one.worse) == (runs[12], 12, 8, True)
    assert words.changes(one) == ["decode 33 % slower in all 2 prompts"]
    assert words.certainty(one) == "p < 0.001 for each figure, over 12 runs before it, 8 since"


def test_noise_that_places_a_change_elsewhere_makes_no_second_event(runs):
    shifts = [shift(runs, "tpot_s", test, at, 0.1) for test, at in (("a", 10), ("b", 10), ("c", 11))]
    shifts += [shift(runs, "decode_throughput", "a", 9, -0.09), shift(runs, "itl_p99_s", "b", 12, 0.2)]
    (one,) = found(runs, shifts, "abc")
    assert one.run == runs[10]
    assert words.changes(one) == ["decode 10 % slower in all 3 prompts"]


def test_what_was_undone_is_an_event_of_its_own_that_says_how_long_it_lasted(runs):
    undone = {"until": runs[14]}
    shifts = [shift(runs, "tpot_s", "a", 8, 0.1, **undone), shift(runs, "tpot_s", "b", 8, 0.1)]
    # What noise hides of an end is no second event: the median step speaks for its rate and its tail.
    shifts += [shift(runs, "itl_p99_s", "a", 8, 0.1), shift(runs, "decode_throughput", "a", 8, -0.1)]
    over, lasts = found(runs, shifts)
    assert (over.until, over.runs, words.changes(over)) == (runs[14], 6, ["decode 10 % slower in a"])
    assert (lasts.until, lasts.runs, words.changes(lasts)) == (None, 12, ["decode 10 % slower in b"])


@pytest.mark.parametrize(
    "other",
    [("ttft_s", "a", 11, 0.1), ("tpot_s", "b", 11, -0.1), ("tpot_s", "a", 11, 0.1), ("tpot_s", "b", 13, 0.1)],
    ids=["another fact", "the other way", "the same figure again", "too far away"],
)
def test_what_may_be_another_change_stays_another_event(runs, other):
    assert len(found(runs, [shift(runs, "tpot_s", "a", 10, 0.1), shift(runs, *other)])) == 2


def test_what_joined_others_goes_no_further_with_them(runs):
    """Decode of a was slower at run 10 and no longer at 13: at 14 it would have been undone before it began."""
    shifts = [shift(runs, "tpot_s", "a", 10, 0.1, until=runs[13])]
    shifts += [shift(runs, "tpot_s", test, 12, 0.1) for test in "bc"]
    shifts += [shift(runs, "tpot_s", test, 14, 0.1) for test in "def"]
    told = [(one.run, one.until, words.changes(one)) for one in found(runs, shifts, "abcdef")]
    assert told == [
        (runs[12], runs[13], ["decode 10 % slower in a"]),
        (runs[12], None, ["decode 10 % slower in 5 of 6 prompts"]),
    ]


def test_what_moved_most_comes_first_and_worse_before_better(runs):
    shifts = [shift(runs, "ttft_s", "a", 10, -0.5), *(shift(runs, "tpot_s", test, 10, 0.2) for test in "ab")]
    shifts += [shift(runs, "peak_rss_bytes", "b", 10, 0.05)]
    (one,) = found(runs, shifts)
    assert words.changes(one) == [
        "decode 20 % slower in all 2 prompts",
        "peak RSS 5.0 % higher in b",
        "prefill 50 % faster in a",
    ]


def test_what_carried_it_is_the_mean_of_the_tests_that_tell(runs):
    double = Lasting(
        phase="decode",
        before_s=0.010,
        after_s=0.0212,
        roles=(CarryingRole(role="experts", before_s=0.005, after_s=0.0158),),
    )
    nobody = Lasting(phase="decode", before_s=0.010, after_s=0.0156)
    shifts = [
        shift(runs, "tpot_s", t, 10, 0.5, carried=c) for t, c in zip("abc", (EXPERTS, double, nobody), strict=True)
    ]
    (one,) = found(runs, shifts, "abc")
    assert words.reasons(one) == ["experts +8.10 ms of +8.40 a step (mean of 2 prompts)"]


def test_an_event_that_may_be_the_machines_says_so_and_is_neither_worse_nor_better(runs):
    (one,) = found(runs, [shift(runs, "tpot_s", "a", 10, 0.5, doubt="most rounds were disturbed")], "a")
    assert one.worse is None
    assert words.changes(one) == ["decode 50 % slower"]
    assert words.certainty(one).endswith("; but most rounds were disturbed")
