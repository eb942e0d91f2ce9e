"""Turns of a token between two sides, which are threads here: their order, their own time, and every way to end."""

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from types import SimpleNamespace

import pytest

from pytest_infer.ab import child, protocol
from pytest_infer.ab.baton import ENVIRONMENT, Baton, TokenTurns, Waits
from pytest_infer.measure.clock import TurnClock
from pytest_infer.records import TokenTrace

PATIENCE_S = 120
"""How long one waits for what comes soon, unless the machine is busy."""


@pytest.fixture
def batons():
    ends = [os.pipe(), os.pipe()]
    made = Baton(ends[0][0], ends[1][1]), Baton(ends[1][0], ends[0][1])
    yield made
    for read, write in ends:
        for end in (read, write):
            try:
                os.close(end)
            except OSError:
                continue


class Waited:
    """Notes when a turn began and ended."""

    def __init__(self):
        self.told = []

    def begin(self):
        self.told.append("begin")

    def end(self):
        self.told.append("end")


def play(batons, ticks, *, number=1, begins=0, work=lambda side, tick: None, waits=None, now=perf_counter_ns, **given):
    """Let both sides tick; return the order of ticks and each side's clock."""
    order, clocks = [], [None, None]
    waits = waits or (Waited(), Waited())

    def side(own):
        baton = batons[own]
        baton.begin(number)
        turns = TokenTurns(baton=baton, begins=own == begins, waits=waits[own], **given)
        clock = clocks[own] = TurnClock(turns, now)
        turns.await_first()
        clock.start()
        for tick in range(ticks[own]):
            work(own, tick)
            order.append(f"{'AB'[own]}{tick}")
            clock.tick([tick])
        baton.end()

    threads = [threading.Thread(target=side, args=(own,), daemon=True) for own in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"stuck after {order}"
    return " ".join(order), clocks


def test_neighbours_make_quads(batons):
    order, _ = play(batons, (5, 5))
    assert order == "A0 B0 B1 A1 A2 B2 B3 A3 A4 B4"


def test_the_other_side_may_begin(batons):
    order, _ = play(batons, (3, 3), begins=1)
    assert order == "B0 A0 A1 B1 B2 A2"


def test_several_ticks_a_turn(batons):
    order, _ = play(batons, (7, 7), every=3)
    assert order == "A0 B0 B1 B2 B3 A1 A2 A3 A4 A5 A6 B4 B5 B6"


@pytest.mark.parametrize(("ticks", "rest"), [((2, 6), "B2 B3 B4 B5"), ((6, 2), "A2 A3 A4 A5"), ((1, 4), "B1 B2 B3")])
def test_who_ends_first_lets_the_other_go_on(batons, ticks, rest):
    order, _ = play(batons, ticks)
    assert order.endswith(rest)


def test_a_byte_left_over_is_no_turn_of_the_next_pass(batons):
    play(batons, (1, 6), number=1)
    order, _ = play(batons, (3, 3), number=2)
    assert order == "A0 B0 B1 A1 A2 B2"


def test_a_side_that_is_gone_is_through(batons):
    ours, theirs = batons
    theirs.close()
    ours.begin(1)
    ours.give()
    ours.take()
    assert ours.alone


def test_a_side_whose_engine_cannot_even_be_looked_at_is_through(batons):
    class Engine:
        def synchronize(self):
            """Wait for nothing."""

        def logits_module(self):
            raise RuntimeError("none today")

    ours, theirs = batons
    side = child.Child(None, None)
    side._baton = ours
    like = TokenTrace(
        prompt_tokens=1,
        requested_tokens=1,
        token_ids=(1,),
        tick_sizes=(1,),
        start_ns=0,
        stamps_ns=(1,),
        stopped_by=None,
    )
    runner = SimpleNamespace(
        engine=Engine(), in_turns=lambda turns, _tokens, _follow, seen, _: seen.clock(turns).__enter__()
    )
    asked = protocol.TakeTurns(number=1, begins=True, every=1, cores=(), observe=True)
    told = side._passed(SimpleNamespace(runner=runner), asked, None, child._Text(like=like))
    assert told.absent == "taking steps apart failed: RuntimeError: none today"
    theirs.begin(1)
    theirs.take()
    assert theirs.alone


def test_stamps_are_in_the_sides_own_time(batons):
    delays, now = (4, 20), [0]

    def work(side, _tick):
        now[0] += delays[side]

    # One clock for both: whoever has the turn is alone to let it go on.
    _, clocks = play(batons, (9, 9), work=work, now=lambda: now[0])
    for clock, delay in zip(clocks, delays, strict=True):
        trace = clock.trace(prompt_tokens=1, requested_tokens=9, stopped_by=None)
        # The other side's work is in none of ours.
        assert [b - a for a, b in pairwise((trace.start_ns, *trace.stamps_ns))] == [delay] * 9


def test_both_sides_of_a_quad_run_on_the_same_core(batons):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    seen = {}

    def work(side, tick):
        seen[side, tick] = os.sched_getaffinity(0)

    play(batons, (9, 9), work=work, cores=cores[:2])
    for tick in range(9):
        assert seen[0, tick] == seen[1, tick]
        assert len(seen[0, tick]) == 1
    # Two quads are four ticks: both cores had one of them.
    assert seen[0, 1] == seen[0, 2] != seen[0, 3] == seen[0, 4]


def test_a_process_takes_its_baton_once(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setenv(ENVIRONMENT, f"{read},{write}")
    baton = Baton.inherited()
    assert ENVIRONMENT not in os.environ
    assert Baton.inherited() is None
    assert not os.get_inheritable(read)
    baton.close()


def until(true):
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def _sleeper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def _state(process):
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="its state is read from /proc")
def test_who_has_the_turn_stops_the_partner_and_lets_it_go_on():
    (read_a, write_b), (read_b, write_a) = os.pipe(), os.pipe()
    baton, other = Baton(read_a, write_a), Baton(read_b, write_b)
    partner = _sleeper()
    try:
        baton.begin(1, partner.pid)
        other.begin(1)
        other.give()
        baton.take()
        until(lambda: _state(partner) == "T")
        baton.give()
        until(lambda: _state(partner) != "T")
        other.take()
        other.give()
        baton.take()
        until(lambda: _state(partner) == "T")
        # Through with the pass, by whatever way: the partner must be able to end it as well.
        baton.end()
        until(lambda: _state(partner) != "T")
        other.take()
        assert other.alone
    finally:
        partner.kill()
        partner.wait()
        baton.close()
        other.close()


def test_a_partner_that_is_gone_is_no_error():
    (read_a, write_b), (read_b, write_a) = os.pipe(), os.pipe()
    baton, other = Baton(read_a, write_a), Baton(read_b, write_b)
    partner = _sleeper()
    partner.kill()
    partner.wait()
    baton.begin(1, partner.pid)
    other.begin(1)
    other.give()
    baton.take()
    assert not baton.alone
    baton.end()
    other.take()
    assert other.alone
    baton.close()
    other.close()


def test_the_other_side_goes_on_when_the_accelerator_is_idle(batons):
    waited = []
    order, _ = play(batons, (5, 5), idle=lambda: waited.append(1))
    assert order == "A0 B0 B1 A1 A2 B2 B3 A3 A4 B4"
    # Where a side hands over, and only there: A0, B1, A2, B3, and A4.
    assert len(waited) == 5


def test_waits_of_each_turn_are_told_until_one_is_not_known(monkeypatch):
    known = iter([0.5, None, 0.25])
    waits = Waits()
    waits.close()
    told = SimpleNamespace(
        read=lambda: None, readings=lambda *_: {"run_queue_wait_s": SimpleNamespace(value=next(known))}
    )
    monkeypatch.setattr(waits, "_queue", told)
    for _ in range(3):
        waits.begin()
        waits.end()
    # The third would be taken for the second's.
    assert waits.turns_ns == [500_000_000]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts waits")
def test_a_turn_beside_other_work_on_its_core_waited():
    waits, cores = Waits(), os.sched_getaffinity(0)
    waits.end()
    if not waits.turns_ns:
        waits.close()
        pytest.skip("this kernel does not count waits")
    core = {min(cores)}
    busy = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {core})\nwhile True: pass"])
    try:
        until(lambda: os.sched_getaffinity(busy.pid) == core)
        os.sched_setaffinity(0, core)
        waits.begin()
        until_ns = time.thread_time_ns() + 200_000_000
        while time.thread_time_ns() < until_ns:
            pass
        waits.end()
    finally:
        os.sched_setaffinity(0, cores)
        busy.kill()
        busy.wait()
        waits.close()
    assert waits.turns_ns[-1] > 1_000_000


def test_a_side_is_asked_for_its_waits_when_a_turn_begins_and_ends(batons):
    waits = Waited(), Waited()
    play(batons, (4, 4), waits=waits)
    # The last turn begins when the pass is over, and never ends.
    assert [one.told for one in waits] == [["begin", "end"] * 4 + ["begin"]] * 2
