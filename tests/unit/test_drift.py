"""Drift of expert usage between two runs, worked out by hand."""

import msgspec
import pytest

from pytest_infer.analysis.compare import gate, rules
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.verdicts import Verdict
from pytest_infer.analysis.experts import drift
from pytest_infer.records import ExpertSite
from pytest_infer.storage.schema import Counts, Usage


def usage(*layers, names=None):
    """Return the usage of layers, each of (prefill counts, decode counts)."""
    sites = tuple(ExpertSite(name=(names or {}).get(n, f"layers.{n}"), layer=n) for n in range(len(layers)))
    return Usage(sites=sites, counts=Counts(*(tuple(map(tuple, phase)) for phase in zip(*layers, strict=True))))


BEFORE = usage(([6, 2], [2, 0]), ([3, 3], [2, 2]))


def test_the_distance_is_half_the_sum_of_the_differences():
    after = usage(([2, 2], [3, 3]), ([3, 3], [2, 2]))
    moved, still = drift.between(BEFORE, after)
    # Shares 8/10, 2/10 become 5/10, 5/10: half of 0.3 + 0.3.
    assert (moved.layer, moved.site) == (0, "layers.0")
    assert moved.distance == pytest.approx(0.3)
    assert [(m.expert, m.before, m.after) for m in moved.moved] == [(0, 0.8, 0.5), (1, 0.2, 0.5)]
    assert (still.layer, still.distance, still.moved) == (1, 0.0, ())


def test_the_most_moved_layer_comes_first_and_equals_by_layer():
    before = usage(*[([4, 4], [0, 0])] * 3)
    after = usage(([4, 4], [0, 0]), ([5, 3], [0, 0]), ([8, 0], [0, 0]))
    assert [layer.layer for layer in drift.between(before, after)] == [2, 1, 0]
    assert [layer.layer for layer in drift.between(before, before)] == [0, 1, 2]


def test_no_expert_in_common_is_one():
    (layer,) = drift.between(usage(([5, 0], [0, 0])), usage(([0, 7], [0, 0])))
    assert layer.distance == 1.0


def test_more_tokens_of_the_same_use_are_no_drift():
    layers = drift.between(BEFORE, usage(([12, 4], [4, 0]), ([6, 6], [4, 4])))
    assert [layer.distance for layer in layers] == [0.0, 0.0]


def test_at_most_three_experts_are_named_the_most_moved_first():
    (layer,) = drift.between(usage(([10, 10, 10, 10, 10], [0] * 5)), usage(([16, 8, 9, 11, 6], [0] * 5)))
    assert [m.expert for m in layer.moved] == [0, 4, 1]


@pytest.mark.parametrize(
    "other",
    [
        Usage(),
        usage(([6, 2], [2, 0])),
        usage(([6, 2, 0], [2, 0, 0]), ([3, 3, 0], [2, 2, 0])),
        usage(([6, 2], [2, 0]), ([3, 3], [2, 2]), names={1: "layers.1.other"}),
        Usage(sites=BEFORE.sites),
        Usage(sites=BEFORE.sites, counts=Counts(prefill=((6, 2),), decode=((2, 0),))),
        Usage(sites=BEFORE.sites, counts=Counts(prefill=((6, 2), (3, 3)), decode=((2, 0), (2,)))),
        Usage(sites=BEFORE.sites, counts=Counts(prefill=((6, 2), (3, 3)), decode=((2, 0),))),
        msgspec.structs.replace(BEFORE, check="layers.1: 9, not 10"),
    ],
)
def test_layers_that_do_not_match_have_no_drift(other):
    assert drift.between(BEFORE, other) is None
    assert drift.between(other, BEFORE) is None


def test_a_layer_that_was_never_asked():
    (layer,) = drift.between(usage(([0, 0], [0, 0])), usage(([0, 0], [0, 0])))
    assert layer.distance == 0.0


def test_a_layer_that_one_side_never_asked_says_nothing():
    once, never = ([5, 3], [0, 0]), ([0, 0], [0, 0])
    assert [layer.layer for layer in drift.between(usage(once, never), usage(once, once))] == [0]
    assert drift.between(usage(never), usage(once)) is None


def experts(*layers):
    sites = [{"name": f"layers.{n}", "layer": n, "experts": 2} for n in range(len(layers))]
    return {"sites": sites, "counts": {"prefill": [a for a, _ in layers], "decode": [b for _, b in layers]}}


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        ("<0.4", Verdict.UNCHANGED),
        ("<0.3", Verdict.REGRESSED),
        ("<=0.3", Verdict.UNCHANGED),
        ("<0.1", Verdict.REGRESSED),
    ],
)
def test_the_rule_names_the_layers_that_moved(make_row, limit, verdict):
    before = make_row(experts=experts(([3, 5], [0, 0]), ([4, 4], [0, 0])))
    after = make_row(experts=experts(([30, 50], [0, 0]), ([40, 10], [0, 0])))
    (found,) = gate.judge([RowPair(before=before, after=after)], rules.parse([f"experts:drift{limit}"])).judgements
    assert found.verdict is verdict
    assert found.after == pytest.approx(0.3)
    assert found.reason == (None if verdict is Verdict.UNCHANGED else "moved in layer 1: 0.300")


@pytest.mark.parametrize("other", [{"content_sha256": "b" * 64}, {"limits": {"max_new_tokens": 16}}])
def test_another_text_or_other_limits_tell_no_drift(make_row, other):
    asked = {"name": "story", "content_sha256": "a" * 64, "limits": {"max_new_tokens": 64}}
    before = make_row(prompt=asked, experts=experts(([3, 5], [0, 0])))
    after = make_row(prompt=asked | other, experts=experts(([5, 3], [0, 0])))
    rule = rules.parse(["experts:drift<0.1"])
    (found,) = gate.judge([RowPair(before=before, after=after)], rule).judgements
    assert found.verdict is Verdict.INCOMPARABLE
    assert found.reason.startswith("differ: ")
    accepted = gate.judge([RowPair(before=before, after=after)], rule, allowed=["workload"])
    assert [j.verdict for j in accepted.judgements] == [Verdict.REGRESSED]


def test_of_two_runs_an_edited_prompt_tells_no_drift(storage, make_block):
    edited = {"content_sha256": "f" * 64}
    for counts, said in (([3, 5], {}), ([5, 3], edited)):
        names = ("story", said), ("guide", {})
        storage.add([make_block(name, prompt=asked, experts=experts((counts, [0, 0]))) for name, asked in names])
    before, after = storage.load().runs
    assert [*drift.of_runs(before, after)] == ["guide"]
    assert [*drift.of_runs(before, after, allowed=["prompt"])] == ["story", "guide"]


def test_many_moved_layers_are_counted(make_row):
    before = make_row(experts=experts(*[([5, 5], [0, 0])] * 5))
    after = make_row(experts=experts(*[([10, 0], [0, 0])] * 5))
    (found,) = gate.judge([RowPair(before=before, after=after)], rules.parse(["experts:drift<0.02"])).judgements
    assert found.reason == "moved in layer 0: 0.500, layer 1: 0.500, layer 2: 0.500 and 2 more"


def test_experts_that_one_side_did_not_record_are_incomparable(make_row):
    pair = RowPair(before=make_row(), after=make_row(experts={"absent": "the model is dense"}))
    (found,) = gate.judge([pair], rules.parse(["experts:drift<0.02"])).judgements
    assert (found.verdict, found.reason) == (Verdict.INCOMPARABLE, "expert usage was not recorded on both sides")
    wrong = make_row(experts={**experts(([3, 5], [0, 0])), "check": "layers.0: 8, not 10"})
    (left_out,) = gate.judge([RowPair(before=wrong, after=make_row())], rules.parse(["experts:drift<0.02"])).judgements
    assert (left_out.verdict, left_out.reason) == (
        Verdict.INCOMPARABLE,
        "selections do not add up: layers.0: 8, not 10",
    )
    same = make_row()
    (equal,) = gate.judge([RowPair(before=same, after=same)], rules.parse(["experts:drift<0"])).judgements
    assert equal.verdict is Verdict.UNCHANGED
