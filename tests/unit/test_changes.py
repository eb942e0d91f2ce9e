"""Which parts of a step carry its change: both sides in turns of a token, launch by launch, and between stored runs."""

import random
from statistics import fmean

import pytest

from pytest_infer.analysis.breakdown import carried, changes, paired
from pytest_infer.analysis.breakdown.outcome import PhaseChange, RoleChange
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.verdicts import Judgement
from pytest_infer.metrics import by_key
from pytest_infer.metrics.breakdown import DECODE, PREFILL, PhaseParts, RolePart
from pytest_infer.records import PassParts, RoleTurns, Turns
from pytest_infer.report.breakdown import words

MS = 1_000_000
STEP = {"experts": 6.0, "attention scores": 2.0, "head": 1.5, "router": 0.4, "generation loop": 0.1}
"""Milliseconds a step."""


def turns(change, launches=8, scatter=0.004, seed=1, layers=0, only=()):
    """Return turns in which each role's time changed by so many milliseconds; all of a launch scatters alike, and each
    role by itself."""
    chance = random.Random(seed)
    found = []
    whole = [chance.gauss(0, scatter / 2) for _ in range(launches)]
    for role, took in STEP.items():
        before = [took * (1 + chance.gauss(0, scatter)) for _ in range(launches)]
        noise = [took * (whole[n] + chance.gauss(0, scatter)) for n in range(launches)]
        more = change.get(role, 0.0)
        rows = []
        if role == "experts":
            for layer in range(layers):
                own = more / len(only) if layer in only else 0.0
                rows.append(tuple(round(MS * (own + n / layers + chance.gauss(0, 1e-3))) for n in noise))
        found.append(
            RoleTurns(
                role=role,
                before_ns=tuple(round(MS * b) for b in before),
                after_ns=tuple(round(MS * (b + n + more)) for b, n in zip(before, noise, strict=True)),
                layers=tuple(range(len(rows))),
                layer_change_ns=tuple(rows),
            )
        )
    return Turns(every=1, cycles=1, seconds=1.0, ratios={}, parts={DECODE: tuple(found)})


def named(change):
    return [one.role for one in change.named]


@pytest.mark.parametrize("role", ["experts", "head", "router", "generation loop"])
@pytest.mark.parametrize("launches", [4, 8])
def test_a_change_in_one_role_is_named(role, launches):
    right = 0
    for seed in range(50):
        found = changes.of_turns([turns({role: 0.5}, launches=launches, seed=seed)], DECODE)
        assert found.moved
        assert sum(one.change_s for one in found.roles) == pytest.approx(found.change_s, abs=1e-12)
        right += named(found) == [role]
    assert right >= 48


def test_unchanged_steps_name_nothing():
    found = [changes.of_turns([turns({}, seed=seed)], DECODE) for seed in range(400)]
    assert sum(bool(one.named) or one.everywhere for one in found) <= 8


@pytest.mark.parametrize("role", ["experts", "generation loop"])
def test_a_change_that_is_known_need_not_be_shown_again_beyond_doubt(role):
    # Few steps are taken apart, and scatter more than the figure whose verdict is known.
    noisy = [turns({role: 0.5}, scatter=0.04, seed=seed) for seed in range(100)]
    alone, known = ([changes.of_turns([one], DECODE, known=which) for one in noisy] for which in (False, True))
    assert sum(named(one) == [role] for one in alone) < 85
    assert sum(named(one) == [role] for one in known) >= 90
    assert [one.high_s for one in known] == [one.high_s for one in alone]


def test_a_launch_that_followed_one_that_died_is_not_lined_up_with_it():
    # The experts of a launch take so much longer in all tests; in the second test launch 5 came in the place of 2.
    more = {0: 0.1, 1: -0.1, 2: 0.3, 3: 0.2, 4: 0.0, 5: -0.5}

    def test_in(numbers, *, stored=True):
        roles = [
            RoleTurns(
                role=role,
                before_ns=(10 * MS,) * len(numbers),
                after_ns=tuple(round(MS * (10 + more[n] * (role == "experts"))) for n in numbers),
                launches=tuple(numbers) if stored else (),
            )
            for role in ("experts", "head")
        ]
        return Turns(every=1, cycles=1, seconds=1.0, ratios={}, parts={DECODE: tuple(roles)})

    alone = changes.of_turns([test_in((0, 1, 3, 4))], DECODE)
    both = changes.of_turns([test_in((0, 1, 2, 3, 4)), test_in((0, 1, 3, 4, 5))], DECODE)
    assert both == alone
    # An older run did not keep the numbers, and a test with too few in common with another tells nothing.
    assert changes.of_turns([test_in((0, 1, 3, 4), stored=False)], DECODE) == alone
    assert changes.of_turns([test_in((0, 1)), test_in((1, 2))], DECODE) is None


def test_two_roles_share_a_change_and_one_that_became_faster_is_told_too():
    found = changes.of_turns([turns({"experts": 0.6, "head": 0.3})], DECODE)
    assert set(named(found)) == {"experts", "head"}
    found = changes.of_turns([turns({"experts": 0.6, "head": -0.2})], DECODE)
    assert named(found) == ["experts", "head"]
    assert words.carriers(found).startswith("experts +")
    assert "head −" in words.carriers(found)


@pytest.mark.parametrize(
    ("mid", "slower", "names"),
    [
        (0.05, True, ["experts"]),  # what the steps did
        (0.09, True, ["experts"]),  # they may have, as far as they tell
        (0.5, True, []),  # a few steps, or late ones, changed: the same role need not be it
        (0.05, False, []),
        (-0.05, False, []),
        (None, True, ["experts"]),
    ],
)
def test_steps_that_did_not_change_as_the_figure_did_say_nothing_of_it(mid, slower, names):
    figure = Judgement(test="t", name="first", metric_key="tpot_s", mid=mid)
    more = 0.05 * sum(STEP.values())
    found = carried.in_turns([turns({"experts": more})], DECODE, figure, slower=slower)
    assert (found is None) is (not names)
    assert found is None or named(found) == names


def test_what_changes_everywhere_is_no_roles():
    alike = {role: 0.05 * took for role, took in STEP.items()}
    found = [changes.of_turns([turns(alike, seed=seed)], DECODE) for seed in range(50)]
    assert not any(one.named for one in found)
    assert sum(one.everywhere for one in found) >= 45
    told = next(one for one in found if one.everywhere)
    assert words.carriers(told) == words.ALIKE


@pytest.mark.parametrize(
    ("only", "said"),
    [
        (range(12, 24), "layers 12-23"),
        ([3], "layer 3"),
        ([0, 1, 2, 20, 21, 22], "layers 0-2, 20-22"),
        (range(24), ""),
        (range(0, 24, 3), ""),
    ],
)
def test_the_layers_of_a_change(only, said):
    found = changes.of_turns([turns({"experts": 0.6}, layers=24, only=list(only))], DECODE)
    (one,) = found.named
    assert one.layers == said
    assert words.carriers(found).endswith(f"all of it ({said})" if said else "all of it")


def test_several_tests_tell_more_than_one():
    few = [turns({"router": 0.03}, launches=4, scatter=0.01, seed=seed) for seed in range(8)]
    alone = [changes.of_turns([one], DECODE) for one in few]
    together = changes.of_turns(few, DECODE)
    assert together.change_s == pytest.approx(fmean(one.change_s for one in alone))
    width = fmean(one.high_s - one.low_s for one in alone)
    assert together.high_s - together.low_s < width


def test_one_launch_or_a_test_that_was_not_taken_apart_tells_nothing():
    assert changes.of_turns([turns({}, launches=1)], DECODE) is None
    assert changes.of_turns([turns({}), Turns(every=1, cycles=1, seconds=1.0, ratios={})], DECODE) is None
    assert changes.of_turns([turns({})], PREFILL) is None
    assert changes.of_turns([], DECODE) is None


def parts(more=None, error=0.01, scale=1.0):
    more = more or {}
    found = [
        RolePart(role=role, seconds=1e-3 * scale * (took + more.get(role, 0.0)), error_s=1e-3 * error)
        for role, took in STEP.items()
    ]
    return PhaseParts(observed=32, bare=32, step_s=1e-3 * sum(STEP.values()), cost_s=0.0, parts=tuple(found))


def test_between_stored_runs_a_role_is_named_and_a_slower_machine_is_not():
    found = changes.of_stored(DECODE, parts(), parts({"head": 0.5}), 0.01)
    assert named(found) == ["head"]
    # All of it by 3 %, which a machine does from run to run.
    found = changes.of_stored(DECODE, parts(), parts(scale=1.03), 0.02)
    assert (found.moved, named(found)) == (False, [])
    found = changes.of_stored(DECODE, parts(), parts(scale=1.1), 0.005)
    assert (named(found), found.everywhere) == ([], True)
    assert changes.of_stored(DECODE, parts(), parts(error=0.0), 0.0) is not None
    unknown = PhaseParts(observed=1, bare=0, step_s=1.0, cost_s=0.0, parts=(RolePart(role="head", seconds=1.0),))
    assert changes.of_stored(DECODE, unknown, parts(), 0.01) is None


@pytest.mark.parametrize(("experts", "names"), [(0.5, ["experts"]), (0.9, ["experts"]), (60.0, [])])
def test_steps_that_changed_by_far_more_than_the_figure_were_disturbed(experts, names):
    """Of stored runs: rounds that took 5 % more are not explained by steps that took seven times as long."""
    figure = Judgement(test="t", name="first", metric_key="tpot_s", low=0.045, mid=0.05, high=0.055)
    both = {DECODE: parts()}, {DECODE: parts({"experts": experts})}
    pair = RowPair(before=None, after=None, taken_apart=lambda: both)
    found = carried.of(by_key("tpot_s"), [pair], figure, slower=True)
    assert (found is None) is (not names)
    assert found is None or named(found) == names


def half(steps, more=0, loop=5):
    """Return a side's steps: experts of two layers that take 10 and 20, and what is around; `more` in layer 1."""
    return PassParts(
        parts=(("experts", 0), ("experts", 1), ("generation loop", None)),
        self_ns=((10,) * steps, (20 + more,) * steps, (loop,) * steps),
    )


def test_passes_come_to_what_each_role_took_on_either_side():
    observed = paired.Observed(
        short=[(half(1), half(1, more=4))] * 4, long=[(half(9), half(9, more=2)), (half(9), half(9, more=2))]
    )
    found = paired.roles({1: observed, 4: observed}, every=1)
    (experts, loop) = found[DECODE]
    assert experts == RoleTurns(
        role="experts",
        before_ns=(30, 30),
        after_ns=(32, 32),
        layers=(0, 1),
        layer_change_ns=((0, 0), (2, 2)),
        launches=(1, 4),
    )
    assert (loop.role, loop.before_ns, loop.layers) == ("generation loop", (5, 5), ())
    assert found[PREFILL][0].after_ns == (34, 34)


def test_a_part_of_one_side_only_took_nothing_on_the_other():
    other = PassParts(parts=(("dense MLP", 0),), self_ns=((7,) * 5,))
    found = paired.roles({0: paired.Observed(long=[(half(5), other)])}, every=2)
    by_role = {one.role: one for one in found[DECODE]}
    assert (by_role["dense MLP"].before_ns, by_role["dense MLP"].after_ns) == ((0,), (7,))
    assert by_role["experts"].after_ns == (0,)


def test_one_block_that_was_disturbed_is_none_of_the_typical_ones():
    slow = PassParts(parts=half(9).parts, self_ns=((10,) * 9, (20, 20, 20, 9000, 20, 20, 20, 20, 20), (5,) * 9))
    found = paired.roles({0: paired.Observed(long=[(half(9), slow)])}, every=1)
    assert found[DECODE][0].after_ns == (30,)


def test_a_prompt_of_one_token_has_no_decode():
    found = paired.roles({0: paired.Observed(short=[(half(1), half(1))])}, every=1)
    assert set(found) == {PREFILL}


@pytest.mark.parametrize(
    "damage",
    [
        {"after_ns": (1, 2)},
        {"before_ns": ()},
        {"after_ns": (10**400,) * 8},
        {"before_ns": (0,) * 8, "after_ns": (0,) * 8},
        {"layers": (0, 1)},
        {"layers": (0,), "layer_change_ns": ((1,),)},
        {"layer_change_ns": ((1,) * 8,)},
        {"launches": (1, 2)},
        {"launches": (0, 1, 2, 3, 4, 5, 6, 6)},
    ],
)
def test_times_that_no_run_stores_tell_nothing(damage):
    whole = {"role": "experts", "before_ns": (5,) * 8, "after_ns": (6,) * 8}
    found = Turns(every=1, cycles=1, seconds=1.0, ratios={}, parts={DECODE: (RoleTurns(**whole | damage),)})
    assert changes.of_turns([found], DECODE) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts": 5.4, "rest": 0.2}, "experts +5.40 ms of +5.60"),
        ({"experts": 6.99, "rest": -1.1}, "experts +6.99 ms, the rest −1.10 ms"),
        ({"experts": 4.0, "head": 3.0, "rest": -1.0}, "experts +4.00 ms, head +3.00 ms, the rest −1.00 ms"),
        (
            {"experts": -2.0, "head": -1.0, "router": -1.0, "rest": 0.5},
            "experts −2.00 ms, head −1.00 ms and 1 more, the rest +500 µs",
        ),
        ({"experts": 0.9, "head": 0.8, "rest": 0.3}, "experts +900 µs of +2.00 ms, head +800 µs"),
        ({"experts": 4.999, "rest": 0.001}, "experts +5.00 ms, all of it"),
        ({"experts": 4.98, "rest": 0.02}, "experts +4.98 ms of +5.00"),
        ({"experts": 6.0, "head": -1.0, "rest": 0.9}, "experts +6.00 ms, head −1.00 ms, the rest +900 µs"),
        ({"experts": 3.0, "head": 2.0, "rest": 0.001}, "experts +3.00 ms, head +2.00 ms, all of it"),
        ({"experts": 5.28, "rest": -0.01}, "experts +5.28 ms, all of it"),
        ({"experts": 5.1, "rest": -0.1}, "experts +5.10 ms, all of it"),
        ({"experts": 3.1, "head": 2.0, "rest": -0.1}, "experts +3.10 ms, head +2.00 ms, all of it"),
    ],
)
def test_a_part_is_told_of_the_whole_only_where_none_is_larger(changes, said):
    roles = tuple(
        RoleChange(role=name, before_s=0.01, after_s=0.01 + ms / 1000, low_s=0, high_s=0, named=name != "rest")
        for name, ms in changes.items()
    )
    whole = sum(changes.values()) / 1000
    assert (
        words.carriers(PhaseChange(phase="decode", before_s=0.1, after_s=0.1 + whole, low_s=0, high_s=1, roles=roles))
        == said
    )
