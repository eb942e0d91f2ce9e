"""Figures of a trace of selections, counted by hand."""

import numpy as np
import pytest

from pytest_infer.analysis.experts import traces, uniform
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.records import ExpertSite


def test_reuse_counts_what_two_tokens_share():
    # {0,1}, {1,2}, {1,2}, {3,0}: 1, 2 and 0 shared of 2 each.
    found = traces.reuse(np.array([[0, 1], [1, 2], [2, 1], [3, 0]], dtype=np.uint8), 4)
    assert found.measured == pytest.approx((1 + 2 + 0) / 3 / 2)
    # q = 2/4, 3/4, 2/4, 1/4.
    assert found.chance == pytest.approx((0.25 + 0.5625 + 0.25 + 0.0625) / 2)


def test_reuse_of_independent_tokens_is_chance():
    trace = uniform.selections(np.random.default_rng(1), 16, 4, 4000)
    found = traces.reuse(trace, 16)
    assert found.chance == pytest.approx(4 / 16, abs=0.002)
    assert found.measured == pytest.approx(found.chance, abs=0.01)


def test_a_cycle_never_reuses_and_a_constant_always():
    cycle = np.array([[n % 4] for n in range(12)])
    assert traces.reuse(cycle, 4).measured == 0
    assert traces.reuse(np.zeros((5, 1), dtype=np.uint8), 4).measured == 1
    assert traces.reuse(cycle[:1], 4) is None


def test_a_selection_that_reached_no_expert_is_none():
    # 4 slots: the number 4 stands for a selection that reached none.
    trace = np.array([[0, 4], [4, 0], [4, 4]], dtype=np.uint8)
    assert traces.chosen(trace, 4).sum(axis=1).tolist() == [1, 1, 0]
    assert traces.reuse(trace, 4).measured == pytest.approx((1 + 0) / 2 / 2)


def test_the_phases_of_a_trace():
    trace = np.arange(10).reshape(5, 2)
    assert traces.of_phase(trace, 3, Phase.PREFILL).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert traces.of_phase(trace, 3, Phase.DECODE).tolist() == [[6, 7], [8, 9]]
    assert traces.of_phase(trace, 3, Phase.BOTH).tolist() == trace.tolist()


def test_experts_chosen_together():
    # Experts 0 and 1 always together, 2 and 3 too: P(0,1) = 1/2, P(0) P(1) = 1/4; uniform pairs have 2/3 of that.
    trace = np.array([[0, 1], [2, 3]] * 10, dtype=np.uint8)
    found = traces.together(trace, 4)
    assert [(p.first, p.second, p.times) for p in found] == [(0, 1, 10), (2, 3, 10)]
    assert found[0].lift == pytest.approx(2 / (4 * 1 / (2 * 3)))
    assert traces.together(trace, 4, least=11) == []
    assert traces.together(trace[:, :1], 4) == []


def test_the_lift_of_uniform_choice_is_one():
    trace = uniform.selections(np.random.default_rng(2), 8, 2, 20_000)
    lifts = [pair.lift for pair in traces.together(trace, 8, most=28)]
    assert len(lifts) == 28
    assert lifts == pytest.approx([1.0] * 28, abs=0.15)


def test_distinct_experts_of_a_batch():
    assert traces.distinct_uniform(256, 8, 1) == pytest.approx(8)
    # Drawn: distinct experts of 32 tokens.
    drawn = uniform.counts(256, 8, 32)
    assert traces.distinct_uniform(256, 8, 32) == pytest.approx((drawn > 0).sum(axis=1).mean(), rel=0.02)
    # Of two tokens, each of which surely takes expert 0 and one of two others.
    hits, tokens = np.array([10, 5, 5, 0]), 10
    assert traces.distinct_expected(hits, tokens, 1) == pytest.approx(2)
    assert traces.distinct_expected(hits, tokens, 2) == pytest.approx(1 + 0.75 + 0.75)


def census(*sites, decode=((8, 4, 4, 0),)):
    return Census(
        sites=sites,
        prefill=tuple(np.zeros(len(row), dtype=np.int64) for row in decode),
        decode=tuple(np.array(row) for row in decode),
        prefill_tokens=0,
        decode_tokens=8,
    )


def site(**changes):
    shape = {"name": "a", "layer": 0, "kind": "mlp", "experts": 4, "slots": 4, "k": 2, "expert_bytes": 100}
    return ExpertSite(**{**shape, **changes})


def test_bytes_of_a_step():
    found = traces.step_bytes(census(site(shared=1, shared_bytes=30)), Phase.DECODE, 2)
    # 1 + 3/4 + 3/4 experts, and the shared one; evenly 4 (1 − (1/2)²) = 3.
    assert (found.batch, found.measured, found.uniform) == (2, pytest.approx(280), pytest.approx(330))


def test_weightless_slots_read_nothing():
    found = traces.step_bytes(census(site(experts=2)), Phase.DECODE, 1)
    assert found.measured == pytest.approx(150)
    assert found.uniform == pytest.approx(150)


def test_a_site_that_computes_every_expert_reads_all_of_them():
    found = traces.step_bytes(census(site(kind="mlp-all")), Phase.DECODE, 1)
    assert (found.measured, found.uniform) == (400, 400)


def test_unknown_sizes_and_no_tokens_have_no_bytes():
    assert traces.step_bytes(census(site(expert_bytes=None)), Phase.DECODE, 1) is None
    assert traces.step_bytes(census(site()), Phase.PREFILL, 1) is None
