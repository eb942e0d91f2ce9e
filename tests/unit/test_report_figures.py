"""The curves that the HTML report draws: latencies by position, distributions, samples in few points, coverage."""

import subprocess

import numpy as np
import pytest

from pytest_infer.analysis import series
from pytest_infer.analysis.experts import usage
from pytest_infer.analysis.history import trends
from pytest_infer.records import ExpertSite
from pytest_infer.storage.code import subjects
from pytest_infer.units import Unit, scale_of

MS = 1_000_000


def stamps(*gaps_ms):
    return np.cumsum([10 * MS, *(gap * MS for gap in gaps_ms)])


def test_gaps_by_position_over_rounds_of_different_lengths():
    found = series.band([stamps(1, 2, 9), stamps(3, 2)], most=100)
    assert found.position == (2, 3, 4)
    assert found.width == 1
    assert found.median == pytest.approx((0.002, 0.002, 0.009))
    assert found.low == pytest.approx((0.001, 0.002, 0.009))
    assert found.high == pytest.approx((0.003, 0.002, 0.009))


def test_more_positions_than_entries_are_put_together_and_lose_no_peak():
    found = series.band([stamps(1, 1, 1, 50, 1)], most=2)
    assert (found.width, found.position, found.last) == (3, (2, 5), 6)
    assert found.high == pytest.approx((0.001, 0.050))
    assert found.low == pytest.approx((0.001, 0.001))
    # Of 50 and 1: the missing sixth gap counts for nothing.
    assert found.median == pytest.approx((0.001, 0.0255))


def test_stretches_of_a_curve_keep_its_extremes():
    found = series.Band(
        position=(2, 4, 6), median=(3.0, 1.0, 5.0), low=(1.0, 0.5, 4.0), high=(4.0, 9.0, 6.0), width=2, last=6
    )
    first, second = found.stretches(2)
    assert (first.first, first.last, first.median, first.low, first.high) == (2, 5, 2.0, 0.5, 9.0)
    assert (second.first, second.last, second.median, second.low, second.high) == (6, 6, 5.0, 4.0, 6.0)


def test_levels_are_the_medians_between_change_points():
    values = [1.0, None, 3.0, 7.0, None, None, 9.0]
    assert trends.levels(values, [3]) == [(0, 2, 2.0), (3, 6, 8.0)]
    assert trends.levels(values, [4, 6]) == [(0, 3, 3.0), (6, 6, 9.0)]
    assert trends.levels([], []) == []


@pytest.mark.parametrize("rounds", [[], [stamps()], [np.asarray([], dtype=np.int64)]], ids=["none", "one", "no token"])
def test_without_a_second_tick_there_is_no_curve(rounds):
    assert series.band(rounds, most=10) is None
    assert series.histogram(rounds) is None


def test_a_distribution_counts_every_gap_and_leaves_the_far_ones_beyond():
    found = series.histogram([stamps(*[2] * 600, *[3] * 398, 500, 900)], bins=4)
    assert sum(found.counts) + found.beyond == 1000
    # Up to 1.5 × the 99th percentile of 3 ms.
    assert found.counts == (600, 398, 0, 0)
    assert found.edges[-1] == pytest.approx(0.0045)
    assert found.beyond == 2
    assert found.edges[0] == pytest.approx(0.002)


def test_two_sides_are_counted_between_the_same_edges():
    found = series.histogram([stamps(2, 2, 3)], bins=4, before=[stamps(4, 4), stamps(6)])
    assert found.edges == pytest.approx((0.002, 0.003, 0.004, 0.005, 0.006))
    assert (found.counts, found.before) == ((2, 1, 0, 0), (0, 0, 2, 1))
    assert found.beyond == 0
    assert series.histogram([stamps(2, 2, 3)], bins=4, before=[stamps()]).before == ()


def test_gaps_that_are_all_equal_have_a_distribution():
    found = series.histogram([stamps(5, 5, 5)])
    assert sum(found.counts) == 3
    assert found.beyond == 0


def test_peaks_keep_the_highest_of_each_stretch_at_its_moment():
    at = np.arange(6) * 1_000_000_000
    assert series.peaks(at, np.asarray([1, 9, 2, 3, 4, 8]), 2) == ([1.0, 5.0], [9.0, 8.0])
    assert series.peaks(at[:0], np.asarray([]), 2) == ([], [])
    assert series.peaks(at[:2], np.asarray([1, 2]), 5) == ([0.0, 1.0], [1.0, 2.0])


def test_a_running_total_becomes_a_rate():
    at = np.asarray([0, 1, 3, 4]) * 1_000_000_000
    assert series.rates(at, np.asarray([0.0, 2.0, 3.0, 3.0]), 10) == ([1.0, 3.0, 4.0], [2.0, 0.5, 0.0])
    # In one point: 3 in 4 seconds.
    assert series.rates(at, np.asarray([0.0, 2.0, 3.0, 3.0]), 1) == ([4.0], [0.75])
    assert series.rates(at[:1], np.asarray([1.0]), 10) == ([], [])
    assert series.rates(np.asarray([5, 5]), np.asarray([0.0, 1.0]), 10) == ([], [])


def layer(number, counts, experts=None):
    site = ExpertSite(name=f"l{number}", layer=number, experts=experts or len(counts), slots=len(counts), k=1)
    return usage.of_site(site, np.asarray(counts), sum(counts))


def test_coverage_is_the_mean_of_the_layers_with_its_ends():
    found = usage.coverage([layer(0, [1, 6, 2, 1]), layer(1, [5, 5, 5, 5])])
    assert found.part == (0, 0.25, 0.5, 0.75, 1)
    assert found.low == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    assert found.high == pytest.approx((0, 0.6, 0.8, 0.9, 1))
    assert found.mean == pytest.approx((0, 0.425, 0.65, 0.825, 1))


def test_coverage_leaves_out_slots_without_weights_and_layers_without_selections():
    found = usage.coverage([layer(0, [3, 1, 96], experts=2), layer(1, [0, 0])])
    assert found.mean == pytest.approx((0, 0.75, 1))
    assert usage.coverage([layer(0, [0, 0])]) is None


def test_the_unit_of_figures_is_that_of_their_median():
    assert scale_of([0.001, 0.002, 3.0], Unit.SECONDS) == ("ms", 1e-3)
    assert scale_of([None, 2**21], Unit.BYTES) == ("MiB", 2**20)
    assert scale_of([], Unit.BYTES) == ("B", 1.0)
    assert scale_of([5.0], Unit.PERCENT) == ("%", 1.0)


def test_messages_are_those_of_the_commits_that_git_knows(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "First <b>\n\nmore of it")
    first = git("rev-parse", "HEAD")
    git("commit", "-q", "--allow-empty", "-m", "Second")
    assert subjects([first, "a" * 40, "--all", "main"], tmp_path) == {first: "First <b>"}
    assert subjects([], tmp_path) == {}
    assert subjects(["a" * 40], tmp_path / "nowhere") == {}
