"""What of a prompt is measured in turns of a token, and how much of it fits the time."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest

from pytest_infer.ab import passes
from pytest_infer.ab.passes import Cost, Windows


def cost(pair_s, first_s, generated=64, prompt=32):
    return Cost(pair_s=pair_s, first_s=first_s, prompt=prompt, generated=generated)


@pytest.mark.parametrize(
    ("pair_s", "first_s", "short", "fit"),
    [
        (0.5, 0.02, 8, 36),  # a small model: many launches fit a minute
        (2.6, 0.2, 8, 6),
        (2.6, 1.0, 4, 5),  # a long prompt: passes of one token would cost more than the others
        (100.0, 1.0, 8, 3),  # no fewer, or nothing can be told
    ],
)
def test_what_fits_a_minute_whole(pair_s, first_s, short, fit):
    one = cost(pair_s, first_s)
    assert (one.short(64), one.launches(60, turns=True, windows=False)) == (short, fit)


def test_an_engine_without_turns_has_three_pairs_a_launch():
    assert cost(4.0, 0.2).launches(60, turns=False, windows=True) == 5


def test_parts_of_a_generation_fit_more_launches():
    # smollm2 on a slow machine: 32 tokens of 58 ms on either side.
    slow = cost(3.9, 0.22, generated=32)
    assert slow.launches(60, turns=True, windows=False) == 4
    assert slow.launches(60, turns=True, windows=True) == 7
    windows = slow.windows(60, 7, 1)
    assert 9 <= windows.tokens < 16
    taken = 7 * (slow.pair_s + slow.short(windows.tokens) * slow.first_s + 2 * (slow.first_s + windows.tokens * 0.12))
    assert taken < 66


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


def test_passes_of_all_tokens_ask_for_nothing_of_their_own():
    assert Windows.over(32, 32).asked == cost(1.0, 0.1).whole().asked == ({}, {})


def test_time_enough_leaves_passes_whole():
    assert cost(0.5, 0.02).windows(60, 8, 1) == cost(0.5, 0.02).whole()


@pytest.mark.parametrize("short", [4, 8])
@pytest.mark.parametrize("reverse", [False, True])
def test_either_side_ends_and_begins_neighbouring_passes_equally_often(short, reverse):
    # Who does finds its own weights in the caches; with F T F T … equal code differed by 2 % in its first token.
    cycle = passes._cycle(short, cost(1.0, 0.1).whole(), reverse=reverse)
    begins = [begins for begins, asked in cycle if asked == {"tokens": 1}]
    again = [one for one, other in itertools.pairwise(begins) if one is not other]
    assert again.count(True) == again.count(False) == short / 4
    assert sum(begins) == len(begins) / 2 == short / 2
