"""Which cores the two sides of a pair run on."""

import os
import sys

import pytest

from pytest_infer.ab.settling import CoreSchedule, most_threads, pin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cores are chosen on Linux only")


def test_both_pairs_of_a_block_share_cores_and_the_next_block_has_others(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    assert [CoreSchedule(1).of(pair) for pair in range(6)] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert [CoreSchedule(3).of(pair) for pair in (0, 2, 4)] == [(0, 1, 2), (0, 1, 3), (0, 2, 3)]


@pytest.mark.parametrize("threads", [4, 5, None])
def test_where_all_cores_are_used_none_are_chosen(monkeypatch, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    assert CoreSchedule(threads).of(0) == ()


def test_every_thread_is_moved_and_moved_back():
    before = os.sched_getaffinity(0)
    try:
        pin((min(before),))
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        pin(tuple(before))
    pin(())
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("sides", "most"),
    [((1, 1), 1), ((2, 1), 2), ((1, 4), 4), ((None, 1), None), ((1, None), None), ((None, None), None)],
)
def test_sides_with_other_threads_get_the_cores_that_the_larger_one_needs(monkeypatch, sides, most):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    assert most_threads(*sides) == most
    cores = CoreSchedule(most_threads(*sides)).of(0)
    assert not cores or len(cores) >= max(sides)
