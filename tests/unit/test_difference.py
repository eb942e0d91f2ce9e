"""Whether texts differ in the experts they use: distances by hand, and error rates of the two nulls by simulation."""

import math

import numpy as np
import pytest

from pytest_infer.analysis.experts import difference, overlap, uniform
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.experts.overlap import PromptGroup
from pytest_infer.records import ExpertSite

SITES = tuple(ExpertSite(name=f"layers.{n}", layer=n, kind="mlp", experts=8, slots=8, k=2) for n in range(2))


def prompt(*layers):
    decode = tuple(np.array(row, dtype=np.int64) for row in layers)
    zero = tuple(0 * row for row in decode)
    return Census(sites=SITES, prefill=zero, decode=decode, prefill_tokens=0, decode_tokens=int(decode[0].sum()) // 2)


def suite(*prompts):
    return overlap.suite(prompts, Phase.DECODE)


def drawn(rng, tokens, shares=None):
    """Return a prompt of tokens that select two experts with these shares (Gumbel's top-2), or evenly."""
    if shares is None:
        return prompt(*(np.bincount(uniform.selections(rng, 8, 2, tokens).ravel(), minlength=8) for _ in SITES))
    keys = np.log(shares) + rng.gumbel(size=(2, tokens, 8))
    return prompt(*(np.bincount(np.argsort(-layer, axis=1)[:, :2].ravel(), minlength=8) for layer in keys))


def groups(a, b):
    return [PromptGroup(name="a", members=tuple(range(a))), PromptGroup(name="b", members=tuple(range(a, a + b)))]


SKEWED = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])


def test_the_distance_is_half_the_sum_of_the_differences_averaged_over_layers():
    of = suite(prompt([8, 2, 0, 0, 0, 0, 0, 0], [1] * 8), prompt([5, 5, 0, 0, 0, 0, 0, 0], [2] * 8))
    assert float(difference.distance(of, of.table[0], of.table[1])) == pytest.approx((0.3 + 0) / 2)


def test_a_layer_that_one_side_never_asked_says_nothing():
    of = suite(prompt([4, 0, 0, 0, 0, 0, 0, 0], [0] * 8), prompt([0, 4, 0, 0, 0, 0, 0, 0], [1] * 8))
    assert float(difference.distance(of, of.table[0], of.table[1])) == 1.0
    assert np.isnan(difference.distance(of, 0 * of.table[0], of.table[1]))


def test_many_prompts_that_differ_are_told_apart():
    rng = np.random.default_rng(1)
    of = suite(*(drawn(rng, 60, SKEWED) for _ in range(5)), *(drawn(rng, 60, SKEWED[::-1]) for _ in range(5)))
    (found,) = difference.between(of, groups(5, 5))
    assert (found.first, found.second, found.by, found.differs) == ("a", "b", "prompts", True)
    assert found.distance > 2 * found.null
    # 252 ways to split, of which the one seen and its mirror are as far.
    assert found.p == 2 / 252


def test_all_splits_are_tried_where_they_are_few():
    rng = np.random.default_rng(2)
    of = suite(*(drawn(rng, 60, SKEWED) for _ in range(4)), *(drawn(rng, 60, SKEWED[::-1]) for _ in range(4)))
    (found,) = difference.between(of, groups(4, 4))
    # 70 ways, of which the one seen and its mirror are as far.
    assert (found.by, found.p, found.differs) == ("prompts", 2 / 70, True)


def of_expert(number, tokens=40):
    """Return a prompt whose tokens all choose one pair of experts out of twelve, which no other number has."""
    site = ExpertSite(name="layers.0", layer=0, kind="mlp", experts=12, slots=12, k=2)
    row = np.zeros(12, dtype=np.int64)
    row[[2 * number, 2 * number + 1]] = tokens
    return Census(sites=(site,), prefill=(0 * row,), decode=(row,), prefill_tokens=0, decode_tokens=tokens)


def test_three_prompts_a_side_with_nothing_in_common_are_told_apart():
    of = suite(*(of_expert(n // 3) for n in range(6)))
    (found,) = difference.between(of, groups(3, 3))
    # Of 20 ways to deal them two are as far, whatever the prompts are: 10 % at best.
    assert (found.by, found.differs) == ("tokens", True)


@pytest.mark.parametrize(("prompts", "by"), [(1, "tokens"), (5, "tokens"), (6, "prompts"), (8, "prompts")])
def test_six_groups_with_nothing_in_common_are_all_told_apart(prompts, by):
    """Fifteen pairs: the clearest must reach 5 % / 15, which 199 draws do not, nor 252 ways to deal ten prompts."""
    of = suite(*(of_expert(n // prompts) for n in range(6 * prompts)))
    found = difference.between(of, in_groups(6, prompts))
    assert [(d.by, d.differs) for d in found] == [(by, True)] * 15


def in_groups(many, prompts):
    return [PromptGroup(name=str(n), members=tuple(range(n * prompts, (n + 1) * prompts))) for n in range(many)]


def test_each_group_is_compared_with_all_others_where_pairs_are_too_much_work(monkeypatch):
    monkeypatch.setattr(difference, "MOST_DRAWN", 1)
    of = suite(*(of_expert(n // 3) for n in range(18)))
    found = difference.between(of, in_groups(6, 3))
    assert sorted((d.first, d.second) for d in found) == [(str(n), "all others") for n in range(6)]
    assert {(d.by, d.differs) for d in found} == {("prompts", True)}
    rng = np.random.default_rng(7)
    times = 60
    suites = (suite(*(drawn(rng, 30, SKEWED) for _ in range(18))) for _ in range(times))
    wrong = sum(any(d.differs for d in difference.between(of, in_groups(6, 3))) for of in suites)
    # Three standard errors above 5 % of suites with one group or more that is told apart.
    assert wrong / times <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


@pytest.mark.parametrize("members", [1, 2, 8])
@pytest.mark.parametrize("many", [6, 7, 8, 20])
def test_the_work_of_all_comparisons_is_bounded(monkeypatch, many, members):
    """Of 48 layers of 128 experts; ways to deal prompts cost a quarter of what draws of tokens do."""
    spent = []

    def null(of, first, second, draws):
        spent.append((draws or math.comb(len(first) + len(second), len(first))) * of.bounds[-1])
        return np.zeros(1)

    for name in ("_drawn", "_dealt"):
        monkeypatch.setattr(difference, name, null)
    bounds = tuple(range(0, 48 * 128 + 1, 128))
    table = np.ones((many * members, bounds[-1]), dtype=np.int64)
    of = overlap.Suite(sites=(), table=table, bounds=bounds, tokens=(96,) * len(table))
    difference.between(of, in_groups(many, members))
    assert sum(spent) <= 4 * difference.MOST_DRAWN


@pytest.mark.parametrize("members", [1, 8], ids=["tokens", "prompts"])
def test_draws_in_parts_give_a_distance_each(members, monkeypatch):
    rng = np.random.default_rng(8)
    of = suite(*(drawn(rng, 60, SKEWED) for _ in range(2 * members)))
    (whole,) = difference.between(of, groups(members, members))
    monkeypatch.setattr(difference, "_CELLS", 16 * 20)
    (found,) = difference.between(of, groups(members, members))
    assert (found.by, found.distance, found.differs) == (whole.by, whole.distance, whole.differs)
    assert found.null == pytest.approx(whole.null, rel=0.2)


def test_few_prompts_are_judged_by_their_tokens():
    rng = np.random.default_rng(3)
    of = suite(drawn(rng, 200, SKEWED), drawn(rng, 200, SKEWED[::-1]))
    (found,) = difference.between(of, groups(1, 1))
    assert (found.by, found.differs) == ("tokens", True)
    assert found.p == pytest.approx(1 / 200)


@pytest.mark.parametrize(("a", "b", "tokens"), [(1, 1, 60), (4, 4, 30)], ids=["tokens", "prompts"])
def test_samples_of_one_use_differ_at_most_one_time_in_twenty(a, b, tokens):
    rng = np.random.default_rng(7)
    times = 120
    wrong = sum(
        difference.between(suite(*(drawn(rng, tokens, SKEWED) for _ in range(a + b))), groups(a, b))[0].differs
        for _ in range(times)
    )
    # Three standard errors above 5 %.
    assert wrong / times <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / times)


def test_the_null_of_tokens_is_as_wide_as_samples_of_one_use_are_apart():
    """Each token takes as many experts: shares of a total that varies scatter less, here by 7 %."""
    rng = np.random.default_rng(5)
    found = [difference.between(suite(*(drawn(rng, 60) for _ in range(2))), groups(1, 1))[0] for _ in range(300)]
    assert sum(x.null for x in found) / sum(x.distance for x in found) == pytest.approx(1, abs=0.035)


def test_the_null_of_samples_of_one_use_is_their_distance():
    rng = np.random.default_rng(9)
    of = suite(drawn(rng, 500), drawn(rng, 500))
    (found,) = difference.between(of, groups(1, 1))
    assert found.distance == pytest.approx(found.null, rel=0.5)
    assert found.null > 0


def test_prompts_of_both_groups_are_left_out():
    rng = np.random.default_rng(4)
    of = suite(drawn(rng, 50), drawn(rng, 50), drawn(rng, 50))
    shared = [PromptGroup(name="a", members=(0, 1)), PromptGroup(name="b", members=(1, 2))]
    alone = [PromptGroup(name="a", members=(0,)), PromptGroup(name="b", members=(2,))]
    assert difference.between(of, shared) == difference.between(of, alone)


def test_what_cannot_be_compared_is_left_out():
    rng = np.random.default_rng(4)
    of = suite(drawn(rng, 50), prompt([0] * 8, [0] * 8))
    assert difference.between(of, groups(1, 1)) == ()
    assert difference.between(of, [PromptGroup(name="a", members=(0,)), PromptGroup(name="all", members=(0, 1))]) == ()
    assert difference.between(of, [PromptGroup(name="a", members=(0,))]) == ()


def test_the_clearest_difference_comes_first():
    rng = np.random.default_rng(6)
    of = suite(drawn(rng, 300, SKEWED), drawn(rng, 300, SKEWED), drawn(rng, 300, SKEWED[::-1]))
    names = [PromptGroup(name=n, members=(i,)) for i, n in enumerate("xyz")]
    found = difference.between(of, names)
    assert {(d.first, d.second) for d in found[:2]} == {("x", "z"), ("y", "z")}
    assert (found[2].first, found[2].second, found[2].differs) == ("x", "y", False)
