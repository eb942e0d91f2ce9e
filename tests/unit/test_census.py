"""The census of expert selections: from a stored block, and merged over prompts."""

import numpy as np
import pytest

from pytest_infer.analysis.experts import census
from pytest_infer.analysis.experts.census import Phase
from pytest_infer.errors import StorageError
from pytest_infer.storage import schema


def site(layer=0, **changes):
    return {
        "name": f"layers.{layer}",
        "layer": layer,
        "kind": "Experts",
        "experts": 3,
        "slots": 3,
        "k": 2,
        "expert_bytes": 100,
        **changes,
    }


def block(prefill, decode, sites=None, **more):
    return {
        "check": "passed",
        "tokens": {"prefill": sum(prefill[0]) // 2, "decode": sum(decode[0]) // 2},
        "sites": sites or [site(n) for n in range(len(prefill))],
        "counts": {"prefill": prefill, "decode": decode},
        **more,
    }


@pytest.fixture
def taken(make_row):
    """Return a function that gives the census of a block of expert usage."""
    return lambda experts: census.of(make_row(experts=experts).experts)


def test_a_block_becomes_arrays_with_their_sites_and_tokens(taken):
    found = taken(block([[4, 1, 1], [2, 2, 2]], [[0, 1, 1], [2, 0, 0]]))
    assert [(s.name, s.layer, s.experts, s.slots, s.k, s.expert_bytes) for s in found.sites] == [
        ("layers.0", 0, 3, 3, 2, 100),
        ("layers.1", 1, 3, 3, 2, 100),
    ]
    assert (found.prefill_tokens, found.decode_tokens) == (3, 1)
    assert [row.tolist() for row in census.counts(found, Phase.PREFILL)] == [[4, 1, 1], [2, 2, 2]]
    assert [row.tolist() for row in census.counts(found, Phase.DECODE)] == [[0, 1, 1], [2, 0, 0]]
    assert [row.tolist() for row in census.counts(found, Phase.BOTH)] == [[4, 2, 2], [4, 2, 2]]
    assert all(row.dtype == np.int64 for row in census.counts(found, Phase.BOTH))
    assert [census.tokens(found, phase) for phase in Phase] == [3, 1, 4]


def test_weightless_slots_and_shared_experts_are_kept_apart(taken):
    sites = [site(slots=4, shared=1, shared_bytes=300)]
    (found,) = taken(block([[1, 1, 1, 3]], [[0, 0, 0, 2]], sites)).sites
    assert (found.experts, found.slots, found.shared, found.shared_bytes) == (3, 4, 1, 300)
    (plain,) = taken(block([[4, 1, 1]], [[0, 1, 1]])).sites
    assert (plain.shared, plain.shared_bytes) == (None, None)


@pytest.mark.parametrize("experts", [{}, {"absent": "the model is dense"}])
def test_usage_that_was_not_recorded_has_no_census(taken, experts):
    assert taken(experts) is None


def test_why_there_is_none_is_read(make_row):
    assert make_row(experts={"absent": "the model is dense"}).experts.absent == "the model is dense"


def test_the_optional_parts_of_the_block_are_read(make_row):
    usage = make_row(
        experts=block(
            [[4, 1, 1]],
            [[0, 1, 1]],
            weights={"prefill": [[2.5, 0.25, 0.5]], "decode": [[0, 0.5, 0.5]]},
            dropped={"prefill": [2], "decode": [0]},
            trace=True,
        )
    ).experts
    assert usage.weights == schema.Weights(prefill=((2.5, 0.25, 0.5),), decode=((0.0, 0.5, 0.5),))
    assert usage.dropped == schema.Dropped(prefill=(2,), decode=(0,))
    assert (usage.trace, usage.check) == (True, "passed")


def test_merging_adds_counts_and_tokens(taken):
    one = taken(block([[4, 1, 1]], [[0, 1, 1]]))
    two = taken(block([[0, 5, 5]], [[2, 0, 0]]))
    both = census.merged([one, two, two])
    assert both.sites == one.sites
    assert [row.tolist() for row in both.prefill] == [[4, 11, 11]]
    assert [row.tolist() for row in both.decode] == [[4, 1, 1]]
    assert (both.prefill_tokens, both.decode_tokens) == (13, 3)
    assert [row.tolist() for row in one.prefill] == [[4, 1, 1]]
    assert [row.tolist() for row in census.merged([one]).prefill] == [[4, 1, 1]]


def test_merging_different_models_is_refused_with_the_difference(taken):
    one = taken(block([[4, 1, 1]], [[0, 1, 1]]))
    wider = taken(block([[4, 1, 1, 0]], [[0, 1, 1, 0]], [site(experts=4, slots=4)]))
    deeper = taken(block([[4, 1, 1]] * 2, [[0, 1, 1]] * 2))
    with pytest.raises(StorageError, match=r"layers\.0 \(top 2 of 3\) and layers\.0 \(top 2 of 4\)"):
        census.merged([one, wider])
    idle = taken(block([[4, 1, 1]], [[0, 1, 1]], [site(experts=2)]))
    with pytest.raises(StorageError, match=r"layers\.0 \(top 2 of 3\) and layers\.0 \(top 2 of 3, 2 with weights\)"):
        census.merged([one, idle])
    with pytest.raises(StorageError, match="1 and 2 MoE layers"):
        census.merged([one, deeper])
    with pytest.raises(StorageError, match="no expert usage"):
        census.merged([])


def test_one_model_in_two_dtypes_is_merged_without_sizes(taken):
    parts = [taken(block([[4, 1, 1]], [[0, 1, 1]], [site(expert_bytes=size)])) for size in (100, 50)]
    both = census.merged(parts)
    assert [row.tolist() for row in both.prefill] == [[8, 2, 2]]
    assert [(s.name, s.expert_bytes) for s in both.sites] == [("layers.0", None)]


@pytest.mark.parametrize(
    ("experts", "said"),
    [
        (block([[4, 1, 1]], [[0, 1, 1]], [site(0), site(1)]), "2 sites, but counts of 1 and 1"),
        (block([[4, 1, 1]], [[0, 2]], [site(0)]), "layers.0 has 3 slots, but counts of 3 and 2"),
        (block([[4, 2]], [[0, 2]], [site(0)]), "layers.0 has 3 slots, but counts of 2 and 2"),
        (block([[4, 1, 1]], [[0, 1, 1]], [site(0, k=0)]), "layers.0 selects 0 of 3"),
        (block([[4, 1, 1]], [[0, 1, 1]], [site(0, experts=0)]), "3 slots, 0 with weights"),
        (block([[4, 1, 1]], [[0, 1, 1]], tokens=None), "not of how many tokens"),
    ],
)
def test_a_block_that_contradicts_itself_is_refused(taken, experts, said):
    with pytest.raises(StorageError, match=said):
        taken(experts)
