"""Usage of layers put together: intervals of shares, names, samples that are too small, weightless slots."""

import numpy as np
import pytest
from scipy import stats

from pytest_infer.analysis.experts import usage
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.records import ExpertSite


def site(layer=0, **changes):
    shape = {"kind": "mlp", "experts": 4, "slots": 4, "k": 2, "expert_bytes": 100}
    return ExpertSite(name=f"layers.{layer}", layer=layer, **{**shape, **changes})


def of(counts, tokens, **changes):
    return usage.of_site(site(**changes), np.array(counts), tokens)


def test_figures_stand_beside_what_chance_gives():
    found = of([80, 55, 45, 20], 100)
    assert found.figures["imbalance"] == pytest.approx(1.6)
    assert found.expected["imbalance"].high < 1.6
    assert set(found.figures) == set(found.expected)
    assert (found.hot, found.cold, found.more_tokens) == ((0,), (3,), 0)
    assert (found.selections, found.weightless) == (200, 0)


def test_too_few_tokens_say_how_many_more():
    found = of([4, 2, 2, 2], 5)
    assert found.hot == ()
    assert found.more_tokens > 0
    # Four of five tokens against a fair half: with so many the same share is named.
    enough = 5 + found.more_tokens
    assert stats.binom.sf(round(0.8 * enough) - 1, enough, 0.5) <= 0.05 / 4
    even = of([5, 5, 5, 5], 10)
    assert (even.hot, even.more_tokens) == ((), None)


def test_weightless_slots_are_a_share_and_no_experts():
    found = of([10, 10, 10, 10, 40], 40, slots=5)
    assert found.weightless == 0.5
    assert found.figures["imbalance"] == 1
    assert found.figures["unused"] == 0
    experts = usage.experts([found])
    assert [e.expert for e in experts] == [0, 1, 2, 3]
    # A share of all the layer's selections: 10 of 80.
    assert experts[0].share == 0.125
    assert experts[0].ratio == 1


def test_a_layer_that_was_never_asked_has_no_figures():
    found = of([0, 0, 0, 0], 0)
    assert (found.figures, found.expected, found.hot, found.more_tokens) == ({}, {}, (), None)
    assert usage.experts([found]) == []
    assert usage.model([found]) == {}


def test_experts_come_hottest_first_with_wilsons_interval():
    layers = [of([30, 40, 20, 10], 50), of([10, 45, 25, 20], 50, layer=1)]
    experts = usage.experts(layers, gates=[[3.0, 20.0, 5.0, 1.0], [1.0, 9.0, 5.0, 4.0]])
    assert [(e.site.layer, e.expert) for e in experts][:3] == [(1, 1), (0, 1), (0, 0)]
    assert [(e.site.layer, e.expert) for e in experts][-2:] == [(0, 3), (1, 0)]
    first = experts[0]
    assert (first.times, first.share, first.ratio, first.gate) == (45, 0.45, 1.8, 0.2)
    interval = stats.binomtest(45, 50).proportion_ci(0.95, method="wilson")
    assert (first.low, first.high) == pytest.approx((interval.low / 2, interval.high / 2))
    assert first.hot
    assert experts[-1].cold


def test_an_expert_that_was_never_selected_has_no_gate_weight():
    experts = usage.experts([of([10, 10, 0, 0], 10)], gates=[[5.0, 5.0, 0.0, 0.0]])
    assert [e.gate for e in experts] == [0.5, 0.5, None, None]


def test_the_model_is_the_mean_of_its_layers():
    found = usage.model([of([80, 55, 45, 20], 100), of([50, 50, 50, 50], 100)])
    value, null = found["imbalance"]
    assert value == pytest.approx((1.6 + 1) / 2)
    assert 1 < null < 1.2


def test_a_sample_is_small_when_most_layers_have_no_hot_expert():
    clear, unclear = of([80, 55, 45, 20], 100), of([4, 2, 2, 2], 5)
    assert not usage.sample([clear, unclear]).small
    found = usage.sample([clear, unclear, unclear])
    assert found.small
    assert (found.layers, found.unnamed, found.more_tokens) == (3, 2, unclear.more_tokens)
    assert usage.sample([of([5, 5, 5, 5], 10)]).more_tokens is None


@pytest.mark.parametrize(("phase", "hottest"), [(Phase.PREFILL, 0), (Phase.DECODE, 3), (Phase.BOTH, 1)])
def test_each_phase_has_its_own_usage(phase, hottest):
    census = Census(
        sites=(site(),),
        prefill=(np.array([10, 9, 1, 0]),),
        decode=(np.array([0, 9, 1, 10]),),
        prefill_tokens=10,
        decode_tokens=10,
    )
    (found,) = usage.of_census(census, phase)
    assert int(found.counts.argmax()) == hottest
    assert found.tokens == (20 if phase is Phase.BOTH else 10)
