"""What of a prompt is measured in turns of a token, and how much of it fits the time."""

from __future__ import annotations

import itertools
from statistics import fmean
from types import SimpleNamespace

import pytest

from pytest_infer.ab import passes, protocol
from pytest_infer.ab.passes import Cost, Parts, Windows
from pytest_infer.records import Pass


def cost(pair_s, first_s, generated=64, prompt=32):
    return Cost(pair_s=pair_s, first_s=first_s, prompt=prompt, generated=generated)


def a_round(first_s, whole_s, waited_s):
    """A whole round of three tokens that began at 5 s; its threads waited for cores for so long, or it is not known."""
    stamps_ns = tuple(round(1e9 * (5 + at)) for at in (first_s, (first_s + whole_s) / 2, whole_s))
    trace = SimpleNamespace(start_ns=5 * 10**9, stamps_ns=stamps_ns, tick_sizes=(1, 1, 1), prompt_tokens=7)
    return SimpleNamespace(trace=trace, counters=SimpleNamespace(run_queue_wait_s=SimpleNamespace(value=waited_s)))


def test_a_prompt_costs_what_both_sides_took_on_average():
    pairs = [(a_round(1, 4, 1), a_round(1, 5, 0)), (a_round(2, 8, None), a_round(2, 7, 1000))]
    assert Cost.of(pairs) == cost(12.0, 3.0, generated=3, prompt=7)
    # They would have taken 3/4, all, all (nothing is known), and half of it: more is not taken off.
    assert Cost.of(pairs, without_waits=True) == cost((3 + 5 + 8 + 3.5) / 2, (0.75 + 1 + 2 + 1) / 2, 3, 7)


@pytest.mark.parametrize(
    ("pair_s", "first_s", "short", "fit", "rounds"),
    [
        (0.5, 0.02, 8, 36, 1),  # a small model: many launches fit a minute
        (2.6, 0.2, 8, 6, 1),
        (2.6, 1.0, 4, 5, 1),  # a long prompt: passes of one token would cost more than the others
        (4.0, 0.2, 8, 4, 1),  # two rounds in each, as five are asked for, would take more than the minute
        (5.0, 0.2, 8, 3, 1),
        (100.0, 1.0, 8, 3, 1),  # no fewer, or nothing can be told
    ],
)
def test_what_fits_a_minute_whole(pair_s, first_s, short, fit, rounds):
    one = cost(pair_s, first_s)
    parts = one.parts(60, 99, 5, turns=True, windows=False)
    assert (one.short(64), parts) == (short, Parts(launches=fit, whole=fit, rounds=rounds))


@pytest.mark.parametrize(("launches", "asked", "rounds"), [(8, 5, 1), (8, 16, 2), (3, 5, 2), (1, 5, 5), (2, 99, 12)])
def test_launches_share_the_whole_rounds_that_are_asked_for_as_far_as_there_is_time(launches, asked, rounds):
    # 2 s a pair of them, 8 × 0.2 + 2 × 2 s a cycle: 12 beside a cycle take 29.6 s of the 30 that each of two has.
    one, budget_s = cost(2.0, 0.2), 60 if launches < 8 else 90
    parts = one.parts(budget_s, launches, asked, turns=True, windows=True)
    assert parts == Parts(launches=launches, whole=launches, rounds=rounds)
    assert over(one, parts, budget_s).whole


def test_an_engine_without_turns_has_three_pairs_a_launch():
    assert cost(4.0, 0.2).parts(60, 8, 5, turns=False, windows=False).launches == 5


def on_machine(step_s, read_s, generated, prompt):
    """What a prompt costs where a step takes so many seconds on each side, and each token that is read so many."""
    first_s = 2 * (step_s + read_s * (prompt - 1))
    return cost(first_s + 2 * step_s * (generated - 1), first_s, generated=generated, prompt=prompt)


def over(one, parts, budget_s=60):
    """What passes are of if whole rounds took what was planned."""
    return one.over(max(budget_s / 2, budget_s - parts.whole * parts.rounds * one.pair_s), parts.launches)


def spent(one, parts, read_s=None):
    """What whole rounds and a cycle of passes take, seconds; by default tokens are read as fast as the prompt is."""
    again, windows = one.first_s / one.prompt if read_s is None else 2 * read_s, over(one, parts)
    a_pass = one.first_s + again * sum(windows.skips) / 2 + (windows.tokens - 1) * one.token_s
    cycle = one.short(windows.tokens) * one.first_s + 2 * a_pass
    return parts.whole * parts.rounds * one.pair_s + parts.launches * cycle


@pytest.mark.parametrize(
    ("pair_s", "first_s", "generated", "launches", "whole", "tokens"),
    [
        (1.0, 0.1, 32, 8, 8, 32),  # time enough
        (3.9, 0.22, 32, 8, 5, 16),  # 58 ms a token and side
        (12.0, 0.22, 128, 8, 3, 11),
        (5.5, 0.3, 48, 8, 3, 16),  # whole rounds take a third of the time at most
        (7.0, 0.3, 64, 8, 3, 13),
    ],
)
def test_parts_of_a_generation_fit_all_launches(pair_s, first_s, generated, launches, whole, tokens):
    one = cost(pair_s, first_s, generated=generated)
    parts = one.parts(60, 8, 5, turns=True, windows=True)
    assert (parts.launches, parts.whole, over(one, parts).tokens) == (launches, whole, tokens)
    assert parts.rounds == 1
    assert spent(one, parts) <= 70
    # Where memory holds fewer launches, each has the more.
    fewer = one.parts(60, 4, 5, turns=True, windows=True)
    assert fewer.launches == 4
    assert over(one, fewer).tokens >= over(one, parts).tokens


@pytest.mark.parametrize(("step_s", "generated", "prompt"), [(0.06, 256, 5), (0.06, 256, 32), (0.03, 512, 3)])
@pytest.mark.parametrize("read_s", [0.0, 0.0025])
def test_a_long_generation_behind_a_short_prompt_costs_what_was_planned(step_s, read_s, generated, prompt):
    one = on_machine(step_s, read_s, generated, prompt)
    parts = one.parts(60, 8, 5, turns=True, windows=True)
    assert parts.launches >= 5
    passes_s = spent(one, parts, read_s) - 3 * one.pair_s
    assert 15 < passes_s <= 33


def test_launches_without_time_for_whole_rounds_still_have_half_of_it_for_passes():
    # 60 ms a token and side: whole rounds of the fewest launches alone take a minute and a half.
    one = cost(31.0, 0.24, generated=256)
    parts = one.parts(60, 8, 5, turns=True, windows=True)
    assert parts.whole == 3
    assert parts.launches > 3
    assert spent(one, parts) - 3 * one.pair_s < 33
    assert one.parts(60, 8, 5, turns=True, windows=False).launches == 3


def test_beside_a_long_prefill_all_tokens_are_measured():
    # 10 s of prefill a side, 60 ms a token: what a pass costs hardly depends on its tokens.
    one = cost(23.7, 20.0, generated=32, prompt=2000)
    parts = one.parts(60, 8, 5, turns=True, windows=True)
    assert parts == Parts(launches=3, whole=3, rounds=1)
    assert over(one, parts).whole


@pytest.mark.parametrize(
    "one",
    [
        cost(3.9, 0.22, generated=32),
        cost(12.0, 0.22, generated=128),
        cost(31.0, 0.24, generated=256),
        cost(61.4, 0.12, generated=512, prompt=5),
        cost(61.0, 5.0, generated=256, prompt=64),  # planned in three launches
        cost(2.6, 1.0),
        cost(20.0, 1.0, generated=1),
    ],
)
@pytest.mark.parametrize("rounds", [1, 5, 10])
def test_what_was_planned_stays_when_the_launches_are_there(one, rounds):
    for asked in range(1, 12):
        parts = one.parts(60, asked, rounds, turns=True, windows=True)
        assert one.parts(60, parts.launches, rounds, turns=True, windows=True) == parts


@pytest.mark.parametrize("launches", [1, 2, 3])
def test_few_launches_have_windows_too(launches):
    one = cost(31.0, 0.24, generated=256)
    parts = one.parts(60, launches, 5, turns=True, windows=True)
    assert parts.launches == launches
    assert 9 < over(one, parts).tokens < 256


@pytest.mark.parametrize(("room_s", "tokens"), [(31.0, 32), (28.2, 32), (27.0, 31), (1.0, 9)])
def test_passes_that_take_hardly_more_than_the_time_are_whole(room_s, tokens):
    # Eight launches: 31 s for all tokens.
    assert cost(1.05, 0.22, generated=32).over(room_s, 8).tokens == tokens


def test_what_handing_over_costs_is_planned_for():
    one = cost(3.9, 0.22, generated=32)
    fits = one.over(40, 8)
    for pace in (1.0, 1.1, 1.25):
        slower = one.at_pace(pace * one._pass_s(fits.tokens), fits.tokens)
        windows = slower.over(40, 8)
        assert windows.tokens <= fits.tokens
        assert 8 * slower._cycle_s(windows.tokens) <= 40
    # A pass that was disturbed, or that seems to cost less, says nothing of the others.
    assert one.at_pace(1e9, fits.tokens).pair_s == pytest.approx(1.3 * 3.9)
    assert one.at_pace(0.0, fits.tokens) == one


@pytest.mark.parametrize(
    ("generated", "tokens", "skips"),
    [
        (64, 64, (0, 0)),  # time enough
        (1, 1, (0, 0)),
        (32, 20, (0, 12)),
        (32, 16, (0, 16)),
        (32, 9, (4, 19)),
        (512, 9, (124, 379)),
    ],
)
def test_windows_weigh_early_and_late_tokens_as_a_whole_generation_does(generated, tokens, skips):
    windows = Windows.over(generated, tokens)
    assert windows.skips == skips
    assert 0 <= skips[0] <= skips[1] <= generated - tokens
    # Their mean lies in the middle of the text, as that of all tokens does.
    assert fmean(skip + (tokens - 1) / 2 for skip in skips) == (generated - 1) / 2


def test_either_side_begins_one_window_and_the_other_one_in_the_next_cycle():
    windows = Windows.over(32, 9)
    cycles = [passes._cycle(4, windows, reverse=reverse)[4:] for reverse in (False, True)]
    assert cycles[0] == [(True, {"tokens": 9, "skip": 4}), (False, {"tokens": 9, "skip": 19})]
    assert cycles[1] == [(False, {"tokens": 9, "skip": 4}), (True, {"tokens": 9, "skip": 19})]


class Recorded:
    """A launch that notes what it is asked for: who begins a pass, and which."""

    serial = 7

    def __init__(self, waited_ns=0):
        self.asked, self.first_tokens, self.passes, self.strayed = [], [], [], 0
        self.waited_ns = waited_ns

    def take_turns(self, asked):
        stamps = tuple(range(1, 2 + (asked.tokens or 9)))
        ticks, waited_ns = (1,) * len(stamps), (self.waited_ns,) * len(stamps)
        one = Pass(start_ns=0, stamps_ns=stamps, tick_sizes=ticks, token_ids=ticks, waited_ns=waited_ns)
        self.asked.append((asked.begins, asked.tokens, asked.skip))
        return (protocol.TookTurns(taken=one, wall_ns=1),) * 2

    def keep(self, took, *, tokens=None, skip=None):
        (self.first_tokens if tokens == 1 else self.passes).append(tuple(half.taken for half in took))


def test_who_begins_a_window_differs_from_launch_to_launch():
    launches = [Recorded(), Recorded(), Recorded()]
    windows = Windows.over(32, 9)
    enough = iter([False, True])
    # So slow that passes are of nine tokens.
    plan = cost(3.9e9, 0.22e9, generated=32)
    found = passes.measure(
        launches, plan, windows=True, threads=1, rounds=1, budget_s=1e9, enough=lambda turns: next(enough)
    )
    assert (found.cycles, found.tokens, found.launches) == (2, 9, (7, 7, 7))
    begun = [[begins for begins, _, skip in one.asked[-12:] if skip == windows.skips[0]] for one in launches]
    assert begun == [[True, False], [False, True], [True, False]]


@pytest.fixture
def slow(monkeypatch):
    """Runs passes of half a second until the budget is spent, in launches that are disturbed or not; returns what turns
    said, and how many passes each launch had.

    A cycle has four passes of one token and two of nine in each launch: 3 s. Before them, a pass tells how many ticks a
    turn should have.
    """
    clock = [0.0]
    monkeypatch.setattr(passes.time, "monotonic", lambda: clock[0])

    class Slow(Recorded):
        def take_turns(self, asked):
            clock[0] += 0.5
            return super().take_turns(asked)

    def measure(budget_s, waited, *, windows=True):
        launches = [Slow(waited_ns) for waited_ns in waited]
        found = passes.measure(
            launches, cost(390.0, 22.0, generated=32), windows=windows, threads=1, rounds=1, budget_s=budget_s,
            enough=lambda turns: False,
        )  # fmt: skip
        return found, [len(one.passes) for one in launches]

    return measure


@pytest.mark.parametrize(
    ("budget_s", "cycles", "each"),
    [
        (1, 1, [2, 2, 2]),  # three launches at least once
        (10.9, 1, [2, 2, 2]),
        (11.1, 1, [4, 2, 2]),  # time for more than half of what one more takes
        (14.1, 1, [4, 4, 2]),
        (17.1, 2, [4, 4, 4]),
    ],
)
def test_of_the_last_cycle_as_many_launches_as_fit(slow, budget_s, cycles, each):
    found, ran = slow(budget_s, [0, 0, 0])
    assert found.cycles == cycles
    assert ran == each
    assert [len(told) for told in found.ratios["step"]] == [count // 2 for count in each]
    assert found.seconds <= max(9.5, budget_s + 1.5)


@pytest.mark.parametrize(
    ("budget_s", "each"), [(1, [2, 2, 2, 0, 0]), (8.6, [2, 2, 2, 0, 0]), (8.7, [2, 2, 2, 2, 0]), (11.4, [2] * 5)]
)
def test_launches_that_begin_their_first_passes_far_too_late_have_none(slow, budget_s, each):
    found, ran = slow(budget_s, [0] * 5)
    assert ran == each
    assert found.cycles == 1
    # A launch that had none keeps its place and says nothing.
    assert [len(told) for told in found.ratios["step"]] == [count // 2 for count in each]
    assert [len(told) for told in found.ratios["first"]] == each
    # Passes that cannot be shorter are run in all.
    assert slow(budget_s, [0] * 5, windows=False)[1] == [2] * 5


def test_what_is_left_of_the_time_goes_to_the_launches_that_were_disturbed(slow):
    assert slow(14.1, [0, 9, 0, 9])[1] == [2, 4, 2, 2]
    assert slow(17.1, [0, 9, 0, 9])[1] == [2, 4, 2, 4]
    # After four passes they still have no undisturbed turn.
    assert slow(29.1, [0, 9, 0, 9])[1] == [4, 6, 4, 6]


def test_passes_of_all_tokens_ask_for_nothing_of_their_own():
    assert Windows.over(32, 32).asked == Windows(tokens=32).asked == ({}, {})


@pytest.mark.parametrize("short", [4, 8])
@pytest.mark.parametrize("reverse", [False, True])
def test_either_side_ends_and_begins_neighbouring_passes_equally_often(short, reverse):
    # Who does finds its own weights in the caches; with F T F T … equal code differed by 2 % in its first token.
    cycle = passes._cycle(short, Windows(tokens=32), reverse=reverse)
    begins = [begins for begins, asked in cycle if asked == {"tokens": 1}]
    again = [one for one, other in itertools.pairwise(begins) if one is not other]
    assert again.count(True) == again.count(False) == short / 4
    assert sum(begins) == len(begins) / 2 == short / 2
