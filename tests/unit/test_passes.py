"""What of a prompt is measured in turns of a token, and how much of it fits the time."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest

from pytest_infer.ab import passes
from pytest_infer.ab.passes import Cost, Parts, Windows


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
    parts = one.parts(60, 99, 5, turns=True, windows=False)
    assert (one.short(64), parts) == (short, Parts(launches=fit, whole=fit, windows=Windows(tokens=64)))


def test_an_engine_without_turns_has_three_pairs_a_launch():
    assert cost(4.0, 0.2).parts(60, 8, 5, turns=False, windows=False).launches == 5


def spent(one, parts):
    """What whole rounds and a cycle of passes take, seconds."""
    behind = 1 + sum(parts.windows.skips) / 2 / one.prompt
    a_pass = behind * one.first_s + (parts.windows.tokens - 1) * one.token_s
    cycle = one.short(parts.windows.tokens) * one.first_s + 2 * a_pass
    return parts.whole * one.pair_s + parts.launches * cycle


@pytest.mark.parametrize(
    ("pair_s", "first_s", "generated", "launches", "whole", "tokens"),
    [
        (1.0, 0.1, 32, 8, 8, 32),  # time enough
        (3.9, 0.22, 32, 8, 5, 16),  # 58 ms a token and side
        (12.0, 0.22, 128, 8, 3, 9),
    ],
)
def test_parts_of_a_generation_fit_all_launches(pair_s, first_s, generated, launches, whole, tokens):
    one = cost(pair_s, first_s, generated=generated)
    parts = one.parts(60, 8, 5, turns=True, windows=True)
    assert (parts.launches, parts.whole, parts.windows.tokens) == (launches, whole, tokens)
    assert spent(one, parts) <= 66
    # Where memory holds fewer launches, each has the more.
    fewer = one.parts(60, 4, 5, turns=True, windows=True)
    assert fewer.launches == 4
    assert fewer.windows.tokens >= parts.windows.tokens


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
    parts = cost(23.7, 20.0, generated=32, prompt=2000).parts(60, 8, 5, turns=True, windows=True)
    assert parts == Parts(launches=3, whole=3, windows=Windows(tokens=32))


def test_what_was_planned_stays_when_the_launches_are_there():
    one = cost(3.9, 0.22, generated=32)
    for asked in range(1, 12):
        parts = one.parts(60, asked, 5, turns=True, windows=True)
        assert one.parts(60, parts.launches, 5, turns=True, windows=True) == parts


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
