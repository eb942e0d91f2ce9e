"""Fidelity of records: forced and free, batch and single, with and without router choices, worked out by hand."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import scored

from pytest_infer.analysis.fidelity import closeness, measured, tokens
from pytest_infer.analysis.fidelity.measured import Told
from pytest_infer.analysis.fidelity.routing import Routed
from pytest_infer.metrics import summarize
from pytest_infer.records import Fidelity, Quality
from pytest_infer.storage import block
from pytest_infer.storage.runs import row_of

LN2 = math.log(2)
HALF = np.log([[[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 4, 1 / 4, 1 / 2]]])
OTHER = np.log([[[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 8, 5 / 8]]])
SECOND = LN2 / 4
THIRD = LN2 / 4 + math.log(4 / 5) / 2


def values(record):
    return {key: summary.value for key, summary in summarize(record).items()}


def test_the_metrics_of_a_forced_side_by_hand():
    found = scored.record(OTHER, reference=HALF)
    metrics = values(found)
    assert metrics["kl"] == pytest.approx((SECOND + THIRD) / 3, abs=1e-6)
    assert metrics["kl_p99"] == pytest.approx(THIRD + 0.98 * (SECOND - THIRD), abs=1e-6)
    assert metrics["top1"] == pytest.approx(200 / 3, abs=1e-6)
    assert metrics["logprob_rms"] == pytest.approx(math.sqrt((LN2**2 + math.log(5 / 4) ** 2) / 3), abs=1e-6)
    assert metrics["first_divergence"] == 1
    assert metrics["nll"] == pytest.approx(-math.log(1 / 2 * 1 / 4 * 5 / 8) / 3, abs=1e-6)
    entropies = [1.5 * LN2, 1.5 * LN2, 5 / 8 * math.log(8 / 5) + 2 * LN2 / 4 + 3 * LN2 / 8]
    assert metrics["entropy"] == pytest.approx(sum(entropies) / 3, abs=1e-6)
    assert metrics["margin"] == pytest.approx(LN2, abs=1e-6)
    split = found.fidelity.split
    assert (split.position, split.reference.id, split.candidate.id) == (1, 1, 0)
    assert (split.reference.text, split.candidate.text) == (" a", "the")
    assert (split.reference.p, split.candidate.p, split.margin) == pytest.approx((1 / 2, 1 / 2, LN2), abs=1e-6)


def test_a_batch_counts_every_sequence():
    one = scored.record(OTHER, reference=HALF).fidelity
    both = scored.record(np.repeat(OTHER, 2, axis=0), reference=np.repeat(HALF, 2, axis=0)).fidelity
    assert (both.positions, both.of) == (6, 6)
    for key in ("kl_mean", "top1", "logprob_rms"):
        assert getattr(both, key) == pytest.approx(getattr(one, key), abs=1e-6)


def test_free_sides_count_up_to_where_they_part():
    reference, candidate = scored.record(HALF), scored.record(OTHER)
    sides = [Told(scores=record.profile.scores, pieces=record.pieces) for record in (reference, candidate)]
    found = measured.between(*sides, "0001")
    # Greedily, OTHER goes on with token 0 at its second position: what follows is of another text.
    assert (found.positions, found.of) == (2, 3)
    assert found.kl_mean == pytest.approx(SECOND / 2, abs=1e-6)
    assert found.split.position == 1
    assert found.experts_absent is not None


def test_what_a_run_with_both_sides_knows_exactly_replaces_the_bound():
    logits = scored.logits()
    moved = scored.around(logits, 0.3)
    p, q = (np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))[0] for x in (logits, moved))
    exact = (p * np.log(p / q)).sum(axis=1)
    bound = scored.record(moved, reference=logits).fidelity
    known = scored.record(moved, reference=logits, kl=exact).fidelity
    assert known.exact
    assert known.kl_mean == pytest.approx(exact.mean(), abs=1e-9)
    assert not bound.exact
    assert 0.5 * known.kl_mean < bound.kl_mean <= known.kl_mean + 1e-7
    summary = summarize(scored.record(moved, reference=logits))
    assert summary["kl"].quality is Quality.BOUND
    assert summary["top1"].quality is Quality.EXACT


def test_the_same_logits_are_no_distance():
    found = scored.record(HALF, reference=HALF)
    assert (found.fidelity.kl_mean, found.fidelity.top1, found.fidelity.logprob_rms) == (0, 100, 0)
    assert values(found)["first_divergence"] == 3


def test_positions_that_are_not_finite_are_left_out():
    broken = OTHER.copy()
    broken[0, 1] = np.nan
    found = scored.record(broken, reference=HALF, free=(0, 1, 2))
    assert found.fidelity.positions == 2
    assert found.fidelity.kl_mean == pytest.approx(THIRD / 2, abs=1e-6)
    nothing = scored.record(np.full_like(OTHER, np.nan), reference=HALF, free=(0, 1, 2))
    assert nothing.fidelity is None


def broken(logits, at=1):
    """Return logits that are NaN from that position on, and the tokens that a greedy side makes of them."""
    moved = np.array(logits)
    moved[0, at:] = np.nan
    return moved, (*scored.greedy(logits)[:at], *np.zeros(len(logits[0]) - at, dtype=int))


@pytest.mark.parametrize("here", [True, False])
def test_sides_part_where_logits_are_not_finite(here):
    moved, generated = broken(HALF)
    sides = [scored.scores(HALF, scored.greedy(HALF)), scored.scores(moved, generated)]
    pieces = dict(enumerate(scored.WORDS))
    ours, theirs = (Told(scores=one, pieces=pieces) for one in (sides if here else sides[::-1]))
    found = measured.between(ours, theirs, "0001")
    assert (found.positions, found.split.position, found.kl_mean) == (1, 1, 0)
    known, unknown = (found.split.reference, found.split.candidate)[:: 1 if here else -1]
    assert (known.p, unknown.p) == (pytest.approx(1 / 2), None)
    assert found.split.margin == (pytest.approx(LN2) if here else None)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Fidelity) == found
    words = ["' a' 0.50", "'the' —"][:: 1 if here else -1]
    said = f"differs from token 2 ({' → '.join(words)}): KL 0, top-1 100 % over 1 of 3 tokens: arithmetic"
    assert closeness.told(found, 1e-9, same=False) == said
    token = tokens.of(ours, theirs)[1]
    assert (token.agree, token.kl, token.reference.p is None) == (False, None, not here)


@pytest.mark.parametrize("here", [True, False])
def test_the_same_tokens_part_nowhere_where_logits_are_not_finite(here):
    moved, _ = broken(HALF)
    sides = [scored.scores(one, scored.greedy(HALF)) for one in (HALF, moved)]
    found = measured.between(*(Told(scores=one, pieces={}) for one in (sides if here else sides[::-1])), "0001")
    assert (found.positions, found.length, found.split) == (1, 3, None)


def test_what_follows_freely_parts_where_logits_are_not_finite():
    moved, generated = broken(HALF)
    found = scored.record(moved, reference=HALF, free=generated)
    assert (found.fidelity.split.position, found.fidelity.split.candidate.p) == (1, None)
    assert values(found)["first_divergence"] == 1
    # What is stored leaves out what is not known.
    assert row_of("t", "t", block.build(found)).fidelity == found.fidelity


def test_a_model_that_rules_out_all_tokens_but_one_has_a_margin():
    sure = np.array([[[0.0, -np.inf, -np.inf]]])
    found = scored.record(OTHER[:, 2:], reference=sure).fidelity
    assert found.split.margin == pytest.approx(700)


def test_a_token_that_is_ruled_out_is_as_far_as_can_be_told():
    without = OTHER.copy()
    without[0, 2, 2] = -np.inf
    found = scored.record(without, reference=HALF, free=(0, 0, 0)).fidelity
    assert found.positions == 3
    assert 100 < found.kl_mean < 700
    assert found.split.candidate.id == 0


@pytest.mark.parametrize("what", ["chosen", "top", "rest"])
def test_no_file_makes_a_probability_larger_than_one(what):
    record = scored.record(scored.around(scored.logits(), 0.1), reference=scored.logits())
    held = getattr(record.profile.scores, what)
    broken = replace(record.profile.scores, **{what: np.full(len(held) // 4, 1e30, dtype="<f4").tobytes()})
    found = measured.of_record(replace(record, profile=replace(record.profile, scores=broken)))
    assert 0 <= found.kl_mean < 700
    assert math.isfinite(found.logprob_rms)


def test_scores_without_any_token_are_no_scores():
    record = scored.record(HALF, reference=HALF)
    empty = replace(record.profile.scores, width=0, top=b"", top_ids=b"")
    assert measured.of_record(replace(record, profile=replace(record.profile, scores=empty))) is None
    told = Told(scores=empty, pieces={})
    assert tokens.of(told, told) == ()


def test_without_a_reference_the_reason_says_how_to_get_one():
    summary = summarize(scored.record(HALF))
    assert summary["kl"].value is None
    assert "--infer-replay" in summary["kl"].reason
    assert summary["nll"].value == pytest.approx(LN2, abs=1e-6)


def test_router_choices_by_hand():
    record = scored.record(OTHER, reference=HALF)
    usage = record.profile.experts
    many = (usage.prefill_tokens + usage.decode_tokens, usage.sites[0].k)
    chosen = np.tile(np.arange(many[1]), (many[0], 1)).astype("<u1")
    other = chosen.copy()
    other[0, 0] = 5
    gates = np.full(many, 0.5, dtype="<f4")
    after = gates.copy()
    after[0] = 0.75
    sites = len(usage.sites)
    ours = replace(usage, trace=(chosen.tobytes(),) * sites, trace_weights=(gates.tobytes(),) * sites)
    first = (other.tobytes(), *(chosen.tobytes(),) * (sites - 1))
    theirs = replace(ours, trace=first, trace_weights=(after.tobytes(), *(gates.tobytes(),) * (sites - 1)))
    record = replace(
        record, profile=replace(record.profile, experts=theirs), reference=replace(record.reference, experts=ours)
    )
    found = measured.of_record(record)
    assert found.experts_changed == pytest.approx(100 / (many[0] * sites))
    # Expert 5 took the place of expert 0: a weight of 0.75 that was 0.
    assert found.gate_shift == pytest.approx(0.75)
    # A reference that went on for longer: what came then nobody of this side saw.
    more, later = np.vstack([chosen, chosen[:2]]), np.vstack([gates, gates[:2]])
    longer = replace(
        ours,
        decode_tokens=usage.decode_tokens + 2,
        trace=(more.tobytes(),) * sites,
        trace_weights=(later.tobytes(),) * sites,
    )
    again = measured.of_record(replace(record, reference=replace(record.reference, experts=longer)))
    assert (again.experts_changed, again.gate_shift) == (found.experts_changed, found.gate_shift)
    dense = measured.of_record(replace(record, profile=replace(record.profile, experts=None)))
    assert dense.experts_changed is None
    assert dense.experts_absent


def test_router_choices_after_sides_part_are_of_other_texts():
    # A prompt of 2 tokens and 3 generated ones, of which the last is never fed back: the sides part at the second.
    ours = np.array([[0, 1], [2, 3], [0, 2], [0, 3]])
    theirs, gates = ours.copy(), np.full(ours.shape, 0.5)
    theirs[3] = 4, 5
    after = gates.copy()
    after[3] = 0.9
    sides = [
        Told(
            scores=scored.scores(one, scored.greedy(one)), routed=Routed(chosen=[chosen], weights=[weights]), pieces={}
        )
        for one, chosen, weights in ((HALF, ours, gates), (OTHER, theirs, after))
    ]
    found = measured.between(*sides, "0001")
    assert (found.length, found.experts_changed, found.gate_shift) == (2, 0, 0)


def test_tokens_tell_both_sides():
    reference, candidate = scored.record(HALF), scored.record(OTHER, reference=HALF)
    sides = [Told(scores=record.profile.scores, pieces=record.pieces) for record in (reference, candidate)]
    found = tokens.of(*sides)
    assert [token.reference.text for token in found] == ["the", " a", " cat"]
    assert [token.candidate_p for token in found] == pytest.approx([1 / 2, 1 / 4, 5 / 8], abs=1e-6)
    assert [token.shift for token in found] == pytest.approx([0, -LN2, math.log(5 / 4)], abs=1e-6)
    assert [token.agree for token in found] == [True, False, True]
    assert [picked.id for picked in found[1].top_candidate] == [0, 1, 2]
    assert [token.kl for token in found] == pytest.approx([0, SECOND, THIRD], abs=1e-6)
