"""Going back to the first test of a load: when, with what, and what is let go."""

import gc
import weakref

import pytest

from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure.heap import Heap
from pytest_infer.measure.rounds import Measured, RoundPlan
from pytest_infer.pytest_face.sweep import remeasure
from pytest_infer.pytest_face.sweep.remeasure import Measurement, Remeasure
from pytest_infer.records import Round, TokenTrace

MS = 1_000_000


def round_of(ttft_ms, gap_ms):
    stamps = tuple((ttft_ms + gap_ms * number) * MS for number in range(3))
    trace = TokenTrace(
        prompt_tokens=4, requested_tokens=3, start_ns=0, stamps_ns=stamps, tick_sizes=(1, 1, 1), token_ids=(1, 2, 3)
    )
    return Round(trace=trace, counters=None)


class Engine:
    """Something to hold on to."""


class Runner:
    def __init__(self, engine):
        self.engine = engine


ONE = (round_of(10, 5),)
PLAN = RoundPlan(warmup=1, rounds=2, profile=True, experts=True)


def visit(test="first", rounds=ONE, plan=PLAN, threads=1):
    options = EngineOptions(model="m", threads=threads)
    return Measurement(test=test, name="chat", runner=Runner(Engine()), options=options, plan=plan, rounds=rounds)


@pytest.fixture
def said():
    return []


@pytest.fixture
def ran(monkeypatch):
    """What was measured again; it takes twice as long."""
    found = []

    def measure(runner, plan, watch):
        found.append((runner, plan))
        watch("round", 0, 2, None)
        return Measured(warmup=plan.warmup, rounds=(round_of(20, 10),) * 2, profile=None)

    monkeypatch.setattr(remeasure, "measure", measure)
    return found


@pytest.fixture
def going(said):
    made = Remeasure(said.append, said.append, Heap())
    made.last = {"last"}
    return made


def test_the_first_is_measured_again_after_the_last_as_it_was_measured(going, ran, said):
    first = visit(threads=3)
    adapted = []
    for one in (first, visit("second"), visit("last")):
        going.measured(one)
        drift = going.after(one.test, adapted.append)
        assert (drift is None) == (one.test != "last")
    assert drift.test == "first"
    assert drift.apart_s > 0
    assert drift.ratios == pytest.approx({"ttft_s": 2.0, "decode_throughput": 0.5})
    assert adapted == [first.options]
    ((runner, plan),) = ran
    assert runner is first.runner
    assert (plan.warmup, plan.rounds, plan.profile) == (1, 2, False)
    assert said == ["drift: chat again · round 1/2"]


def test_a_first_round_without_a_warm_up_is_left_out(going, ran):
    plan = RoundPlan(warmup=0, rounds=2, profile=False, experts=False)
    going.measured(visit(rounds=(round_of(1000, 500), round_of(10, 5)), plan=plan))
    assert going.after("last", lambda _: None).ratios == pytest.approx({"ttft_s": 2.0, "decode_throughput": 0.5})
    going.measured(visit(rounds=ONE, plan=plan))
    assert going.after("last", lambda _: None).ratios == {}


def test_a_load_of_one_test_and_a_run_without_loads_go_nowhere(going, ran):
    going.measured(visit("last"))
    assert going.after("last", lambda _: None) is None
    going.forget()
    going.last = ()
    going.measured(visit())
    assert going.after("last", lambda _: None) is None
    assert ran == []


def test_after_a_resumed_test_there_is_no_going_back(going, ran, said):
    going.measured(visit())
    going.resumed()
    going.resumed()
    going.measured(visit("second"))
    assert going.after("last", lambda _: None) is None
    assert ran == []
    assert [line[:40] for line in said] == ["! part of this sweep was measured by an e"[:40]]


@pytest.mark.parametrize("last", [(), {"last"}])
def test_the_engine_is_let_go(going, ran, last):
    going.last = last
    one = visit()
    engine = weakref.ref(one.runner.engine)
    going.measured(one)
    del one
    if last:
        going.forget()
    gc.collect()
    assert engine() is None


def test_it_lets_go_after_a_failure_and_names_the_test(going, monkeypatch, said):
    def torn(*_):
        raise ConnectionResetError("gone")

    monkeypatch.setattr(remeasure, "measure", torn)
    going.measured(visit())
    assert going.after("last", lambda _: None) is None
    assert said == ["! drift was not measured: first failed when it was measured again: gone"]
    assert going.after("last", lambda _: None) is None


def test_an_interrupt_goes_through(going, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(remeasure, "measure", stop)
    going.measured(visit())
    with pytest.raises(KeyboardInterrupt):
        going.after("last", lambda _: None)
