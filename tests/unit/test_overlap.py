"""How far hot sets serve other texts, counted by hand on tiny layers."""

import numpy as np
import pytest

from pytest_infer.analysis.experts import overlap
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.experts.overlap import PromptGroup
from pytest_infer.errors import StorageError
from pytest_infer.records import ExpertSite


def site(layer=0, experts=4, slots=None):
    return ExpertSite(name=f"layers.{layer}", layer=layer, kind="mlp", experts=experts, slots=slots or experts, k=1)


def prompt(*layers, sites=None, prefill=None):
    decode = tuple(np.array(row) for row in layers)
    return Census(
        sites=sites or tuple(site(n, len(row)) for n, row in enumerate(layers)),
        prefill=tuple(np.array(row) for row in prefill) if prefill else tuple(0 * row for row in decode),
        decode=decode,
        prefill_tokens=0,
        decode_tokens=int(decode[0].sum()),
    )


def suite(*prompts, phase=Phase.DECODE):
    return overlap.suite(prompts, phase)


A = prompt([8, 1, 1, 0], [0, 0, 5, 5])
B = prompt([5, 5, 0, 0], [0, 0, 0, 10])
C = prompt([0, 0, 0, 10], [10, 0, 0, 0])


def test_prompts_lie_side_by_side():
    found = suite(A, B)
    assert found.table.tolist() == [[8, 1, 1, 0, 0, 0, 5, 5], [5, 5, 0, 0, 0, 0, 0, 10]]
    assert found.bounds == (0, 4, 8)
    assert found.tokens == (10, 10)
    assert [part.tolist() for part in found.layers(found.table[0])] == [[8, 1, 1, 0], [0, 0, 5, 5]]


def test_weightless_slots_are_left_out():
    both = prompt([1, 2, 9], sites=(site(0, experts=2, slots=3),))
    assert suite(both).table.tolist() == [[1, 2]]


def test_the_hot_quarter_is_the_same_part_of_every_layer():
    found = suite(A)
    hot = overlap.hot_by_budget(found, found.table[0])
    # One of four each; of the equal experts 2 and 3 the lower.
    assert np.flatnonzero(hot).tolist() == [0, 6]
    assert np.flatnonzero(overlap.hot_by_budget(found, found.table[0], 0.5)).tolist() == [0, 1, 6, 7]


def test_one_prompts_hot_set_serves_another():
    found = overlap.overlap(suite(A, B, C), [PromptGroup(name=n, members=(i,)) for i, n in enumerate("abc")])
    assert found.names == ("a", "b", "c")
    # a's hot set {E0 of L0, E2 of L1} serves 5 + 0 of b's 20; b's {E0, E3} serves 8 + 5 of a's 20.
    assert found.matrix == ((None, 0.25, 0.0), (0.65, None, 0.0), (0.0, 0.0, None))
    assert found.itself == (0.65, 0.75, 1.0)
    # b and c together: L0 [5,5,0,10] and L1 [10,0,0,10], so {E3, E0}, which serve nothing of a; nor do the others.
    assert found.rest == (0.0, 0.0, 0.0)
    assert found.even == 0.25
    assert [found.by_others(number) for number in range(3)] == [(0.0, 0.325, 0.65), (0.0, 0.125, 0.25), (0.0, 0.0, 0.0)]
    alone = overlap.overlap(suite(A), [PromptGroup(name="a", members=(0,))])
    assert alone.by_others(0) is None


def test_within_a_group_each_prompt_is_served_by_the_others():
    found = overlap.overlap(
        suite(A, B, C), [PromptGroup(name="ab", members=(0, 1)), PromptGroup(name="c", members=(2,))]
    )
    # b serves a 13 of 20, a serves b 5 of 20.
    assert found.matrix[0][0] == pytest.approx((13 + 5) / 40)
    assert found.matrix[1][1] is None
    assert found.rest[1] == 0.0


def test_prompts_of_both_groups_do_not_plan_for_themselves():
    groups = [
        PromptGroup(name="a, b", members=(0, 1)),
        PromptGroup(name="b", members=(1,)),
        PromptGroup(name="all", members=(0, 1, 2)),
    ]
    found = overlap.overlap(suite(A, B, C), groups)
    # Without b, a alone plans: 5 of b's 20.
    assert found.matrix[0][1] == 0.25
    # All of b is in "a, b": nobody is left to plan.
    assert found.matrix[1][0] is None
    assert found.rest[2] is None


def test_a_prompt_without_selections_plans_and_is_served_nothing():
    empty = prompt([0, 0, 0, 0], [0, 0, 0, 0])
    found = overlap.overlap(suite(A, empty), [PromptGroup(name="a", members=(0,)), PromptGroup(name="e", members=(1,))])
    assert found.matrix == ((None, None), (None, None))


def test_phases_are_apart():
    both = prompt([0, 0, 0, 4], prefill=[[3, 0, 0, 0]])
    assert suite(both, phase=Phase.PREFILL).table.tolist() == [[3, 0, 0, 0]]
    assert suite(both, phase=Phase.BOTH).table.tolist() == [[3, 0, 0, 4]]


def test_different_models_are_refused():
    with pytest.raises(StorageError, match="different models"):
        suite(A, prompt([1, 2, 3, 4]))
