"""Placements of experts within a budget, against values worked out by hand or by trying every subset."""

import itertools
import math
import random

import numpy as np
import pytest

from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.placement import heldout, strategies
from pytest_infer.analysis.placement.strategies import Strategy
from pytest_infer.records import ExpertSite

DECODE = ([6, 3, 1], [2, 2, 6])


def site(layer, experts=3, slots=None, **changes):
    fields = {"name": f"layers.{layer}.experts", "kind": "mlp", "k": 2, **changes}
    return ExpertSite(layer=layer, experts=experts, slots=slots or experts, **fields)


def taken(decode=DECODE, prefill=None, sites=None):
    rows = tuple(np.array(row, dtype=np.int64) for row in decode)
    before = tuple(np.array(row, dtype=np.int64) for row in prefill or [[0] * len(row) for row in decode])
    return Census(
        sites=tuple(sites or (site(n, len(row)) for n, row in enumerate(rows))),
        prefill=before,
        decode=rows,
        prefill_tokens=int(before[0].sum()) // 2,
        decode_tokens=int(rows[0].sum()) // 2,
    )


@pytest.fixture
def of():
    return strategies.experts(taken().sites, [10, 10])


@pytest.fixture
def read():
    return strategies.reads(taken(), Phase.DECODE)


def chosen(placed):
    return np.flatnonzero(placed).tolist()


@pytest.mark.parametrize(
    ("strategy", "experts", "share"),
    [
        (Strategy.FREQUENCY, [0, 1, 5], 15 / 20),  # 6, 3 and 6 selections
        (Strategy.PER_LAYER, [0, 3, 5], 14 / 20),  # 15 bytes hold one of the first; its half is left for the second
        (Strategy.FIRST_LAYERS, [0, 1, 2], 10 / 20),
        (Strategy.WHOLE_LAYERS, [3, 4, 5], 10 / 20),  # both are selected as often: the last one
    ],
)
def test_what_each_strategy_takes_and_serves(of, read, strategy, experts, share):
    placed = strategies.place(strategy, of, read, 30)
    served = strategies.serve(of, placed, read, tokens=5)
    assert chosen(placed) == experts
    assert served.share == pytest.approx(share)
    # A token reads 4 experts of 10 bytes: 20 selections of 10 bytes by 5 tokens.
    assert served.gpu_bytes == pytest.approx(40 * share)
    assert served.cpu_bytes == pytest.approx(40 * (1 - share))


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize(("budget", "held"), [(0, 0), (9, 0), (60, 6), (1000, 6)])
def test_nothing_and_everything(of, read, strategy, budget, held):
    assert strategies.place(strategy, of, read, budget).sum() == held


def test_a_random_placement_is_the_mean_over_every_subset(of, read):
    shares = [sum(read[list(three)]) / read.sum() for three in itertools.combinations(range(6), 3)]
    mean, spread = strategies.random_share(of, read, 30)
    assert mean == pytest.approx(sum(shares) / 20) == 0.5
    assert (
        spread == pytest.approx(math.sqrt(sum((s - 0.5) ** 2 for s in shares) / 20)) == pytest.approx(0.13229, abs=1e-5)
    )


def test_experts_of_unequal_size_and_the_bound():
    counts = taken(([6, 3, 1], [2, 2, 7]))
    of, read = strategies.experts(counts.sites, [10, 15]), strategies.reads(counts, Phase.DECODE)
    total = 10 * 10 + 15 * 11
    # By selections: 15 + 10 + 10 bytes, then 5 are left, in which a third of an expert selected twice would fit.
    placed = strategies.place(Strategy.FREQUENCY, of, read, 40)
    assert chosen(placed) == [0, 1, 5]
    assert strategies.serve(of, placed, read, 5).share == pytest.approx(195 / total)
    assert strategies.bound(of, read, 40) == pytest.approx(205 / total)
    # With 10 left the one selected twice is too large, and the smaller one selected once fits.
    assert chosen(strategies.place(Strategy.FREQUENCY, of, read, 45)) == [0, 1, 2, 5]


def test_no_subset_exceeds_the_bound_and_greedy_is_best_for_equal_sizes():
    draws = random.Random(1)
    for equal in (True, False):
        for _ in range(20):
            counts = taken(tuple([draws.randrange(30) for _ in range(4)] for _ in range(2)))
            sizes = [10, 10] if equal else [draws.randrange(5, 20), draws.randrange(5, 20)]
            of, read = strategies.experts(counts.sites, sizes), strategies.reads(counts, Phase.DECODE)
            budget = draws.randrange(20, 70)
            cost = of.bytes * read
            best = max(
                (cost[list(some)].sum() / cost.sum())
                for n in range(9)
                for some in itertools.combinations(range(8), n)
                if of.bytes[list(some)].sum() <= budget
            )
            greedy = strategies.serve(of, strategies.place(Strategy.FREQUENCY, of, read, budget), read, 1).share
            bound = strategies.bound(of, read, budget)
            assert greedy <= best + 1e-12
            assert best <= bound + 1e-12
            if equal:
                assert greedy == pytest.approx(best)


def test_random_placements_of_unequal_experts_are_drawn_the_same_each_time():
    counts = taken(([6, 3, 1], [2, 2, 7]))
    of, read = strategies.experts(counts.sites, [10, 15]), strategies.reads(counts, Phase.DECODE)
    first = strategies.random_share(of, read, 40)
    assert first == strategies.random_share(of, read, 40)
    assert 0.4 < first[0] < 0.6
    assert first[1] > 0


def test_slots_without_weights_are_neither_placed_nor_read():
    sites = (site(0, experts=2, slots=3),)
    counts = taken(([4, 2, 100],), sites=sites)
    of = strategies.experts(sites, [10])
    assert len(of.bytes) == 2
    assert strategies.reads(counts, Phase.DECODE).tolist() == [4, 2]
    assert strategies.serve(of, np.array([True, False]), strategies.reads(counts, Phase.DECODE), 53).share == 4 / 6


def test_phases_are_apart():
    counts = taken(([0, 0, 8],), prefill=([8, 0, 0],))
    of = strategies.experts(counts.sites, [10])
    first = np.array([True, False, False])
    served = {phase: strategies.serve(of, first, strategies.reads(counts, phase), 8) for phase in Phase}
    assert {phase: found.share for phase, found in served.items()} == {
        Phase.PREFILL: 1,
        Phase.DECODE: 0,
        Phase.BOTH: 0.5,
    }
    assert strategies.serve(of, first, strategies.reads(taken(([0, 0, 0],)), Phase.DECODE), 8) is None


def test_prompts_that_share_no_expert_serve_each_other_nothing():
    prompts = [taken(([8, 0],)), taken(([0, 8],))]
    pairs = heldout.halves(prompts, Phase.DECODE)
    of = strategies.experts(prompts[0].sites, [10])
    assert len(pairs) == 2
    found = heldout.score(Strategy.FREQUENCY, of, pairs, 10)
    assert (found.mean, found.low, found.high, found.scores) == (0, 0, 0, 2)
    assert heldout.random_score(of, pairs, 10).mean == 0.5


def test_prompts_alike_serve_each_other_as_they_serve_themselves():
    pairs = heldout.halves([taken()] * 4, Phase.DECODE)
    found = heldout.score(Strategy.FREQUENCY, strategies.experts(taken().sites, [10, 10]), pairs, 30)
    assert (found.mean, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    # 4 prompts are halved in 3 ways, each scored in both directions.
    assert found.scores == 6


def test_held_out_by_hand():
    # Two halves of one prompt each; a budget of one expert.
    a, b = taken(([6, 3, 1],)), taken(([2, 7, 1],))
    of = strategies.experts(a.sites, [10])
    found = heldout.score(Strategy.FREQUENCY, of, heldout.halves([a, b], Phase.DECODE), 10)
    # Planned from a: expert 0, of which b selects 2 of 10; from b: expert 1, of which a selects 3 of 10.
    assert (found.low, found.mean, found.high) == pytest.approx((0.2, 0.25, 0.3))


@pytest.mark.parametrize(("prompts", "pairs"), [(0, 0), (1, 0), (2, 2), (3, 6), (5, 20), (12, 20), (50, 20)])
def test_splits_are_halves_and_each_is_another(prompts, pairs):
    # Prompt n selects expert n only, so that a half tells which prompts are in it.
    parts = [taken((np.eye(prompts, dtype=int)[n] * 2,)) for n in range(prompts)]
    found = heldout.halves(parts, Phase.DECODE)
    assert len(found) == pairs
    for plan, test in found:
        assert (plan.read + test.read == 2).all()
        assert abs(int((plan.read > 0).sum()) - int((test.read > 0).sum())) <= 1
    assert len({tuple(plan.read.tolist()) for plan, _ in found}) == pairs
    assert [p.read.tolist() for p, _ in found] == [p.read.tolist() for p, _ in heldout.halves(parts, Phase.DECODE)]


def test_a_half_that_selected_nothing_is_left_out():
    parts = [taken(), taken(([0, 0, 0], [0, 0, 0]))]
    assert heldout.halves(parts, Phase.DECODE) == []
    assert heldout.score(Strategy.FREQUENCY, strategies.experts(taken().sites, [10, 10]), [], 10) is None
    assert heldout.random_score(strategies.experts(taken().sites, [10, 10]), [], 10) is None
