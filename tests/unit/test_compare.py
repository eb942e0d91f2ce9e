"""Verdicts over hand-made rounds: what counts as a change, and when nothing can be said."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
from msgspec import structs

from pytest_infer.analysis.compare import comparison, gate, rules, stats, suite, two_runs
from pytest_infer.analysis.compare import earlier as earlier_runs
from pytest_infer.analysis.compare.comparison import RowPair, Wanted
from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict, outcome
from pytest_infer.metrics import METRICS, by_key
from pytest_infer.records import Turns
from pytest_infer.storage.schema import StoredReference

KEYS = {m.key: m for m in METRICS}
CALM = [0.1, 0.1001, 0.0999, 0.1002, 0.0998, 0.1, 0.1001, 0.0999, 0.1, 0.1]


def times(rounds, factor):
    return [value * factor for value in rounds]


def wanted(key, threshold=0.05, rule=None):
    return lambda _row: [Wanted(metric=KEYS[key], threshold=threshold, rule=rule)]


@pytest.fixture
def judge(make_row):
    """Return a function that judges one figure, given its rounds before and after, and earlier medians."""

    def run(before, after, *, key="tpot_s", threshold=0.05, history=(), allowed=(), paired=False, changes=None, **pair):
        a, b = make_row(**{key: before}), make_row(**{key: after}, **(changes or {}))
        earlier = tuple(make_row(**{key: value}) for value in history)
        made = RowPair(before=a, after=b, history=earlier, paired=paired, **pair)
        (judgement,) = comparison.judge([made], wanted(key, threshold), allowed=allowed)
        return judgement

    return run


STEADY = (0.1, 0.1004, 0.0996, 0.1002, 0.0998, 0.1001)


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.2, Verdict.REGRESSED),
        (1.06, Verdict.REGRESSED),
        (1.0, Verdict.UNCHANGED),
        (1.02, Verdict.UNCHANGED),
        (0.98, Verdict.UNCHANGED),
        (0.8, Verdict.IMPROVED),
        (1.05, Verdict.INCONCLUSIVE),
    ],
)
def test_a_change_against_stored_runs_with_enough_history(judge, factor, verdict):
    judgement = judge(CALM, times(CALM, factor), history=STEADY)
    assert judgement.verdict is verdict
    assert judgement.mid == pytest.approx(factor - 1)
    assert judgement.low < judgement.mid < judgement.high
    assert (judgement.reason is None) == (verdict is not Verdict.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.2, Verdict.IMPROVED), (0.8, Verdict.REGRESSED), (1.01, Verdict.UNCHANGED)]
)
def test_more_of_a_rate_is_better(judge, factor, verdict):
    rates, steady = times(CALM, 100), times(STEADY, 100)
    judgement = judge(rates, times(rates, factor), key="decode_throughput", history=steady)
    assert judgement.verdict is verdict
    assert judgement.mid == pytest.approx(factor - 1)


def test_the_threshold_of_a_rate_is_a_share_of_it(judge):
    # 5 % less of a good thing is 0.95 of it, not 1/1.05 = 0.952.
    rates = [10.0 + n * 1e-4 for n in range(10)]
    for share, regressed in ((0.949, True), (0.951, False)):
        found = judge(rates, times(rates, share), key="decode_throughput", history=[10.0] * 6, threshold=0.05)
        assert (found.verdict is Verdict.REGRESSED) is regressed


@pytest.mark.parametrize("factor", [1.249, 1.252, 1.27, 0.79])
def test_a_time_and_its_rate_come_to_the_same(make_row, factor):
    times = [0.1, 0.1008, 0.0993, 0.1003, 0.0997], [factor * one for one in (0.1002, 0.0994, 0.1007, 0.0999, 0.1001)]
    found = []
    for key, threshold, sides in (
        ("tpot_s", 0.25, times),
        ("decode_throughput", 0.2, [[1 / one for one in side] for side in times]),
    ):
        before, after = (make_row(**{key: side}) for side in sides)
        pair = RowPair(before=before, after=after, block_spread={key: 1e-4})
        (j,) = comparison.judge([pair], wanted(key, threshold))
        (change,) = suite.changes([pair, other(pair)], [j, structs.replace(j, test="other")])
        found.append((j.verdict, pytest.approx(j.p), change.judgement.verdict, pytest.approx(change.judgement.p)))
    assert found[0] == found[1]


def other(pair):
    """Return the same pair as of another test."""
    return dataclasses.replace(pair, after=dataclasses.replace(pair.after, test="other"))


@pytest.mark.parametrize("factor", [1.0, 1.02, 1.06, 1.1])
def test_too_few_runs_never_say_that_nothing_changed(judge, factor):
    judgement = judge(CALM, times(CALM, factor), history=STEADY[:4])
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "4 comparable runs, and 5 tell the spread" in judgement.reason


def test_too_few_runs_can_still_show_a_large_change(judge):
    assert judge(CALM, times(CALM, 1.5), history=STEADY[:1]).verdict is Verdict.REGRESSED
    assert judge(CALM, times(CALM, 0.5)).verdict is Verdict.IMPROVED


MOVED = (1.18, 1.04, 0.9, 1.01, 0.98, 0.75, 0.76, 1.02, 0.9)
"""By how much TTFT of nine prompts moved between two runs of equal code a minute apart on a shared machine."""


@pytest.mark.parametrize(
    ("factors", "called"),
    [
        (MOVED, []),
        ((2.0, *MOVED[1:]), [2.0]),
        ((1.5, 1.0, 1.01, 0.99, 1.02, 0.98), [1.5]),
        ((1.5,) * 6, [1.5] * 6),
        ((0.75, 1.0, 1.0, 1.0), [0.75]),
    ],
    ids=["nothing", "one by more", "one of calm ones", "all alike", "few"],
)
def test_without_a_history_the_tests_of_two_runs_tell_how_far_changes_lie_apart(make_row, factors, called):
    pairs = [
        RowPair(before=make_row(ttft_s=CALM), after=make_row(ttft_s=times(CALM, factor)), history=())
        for factor in factors
    ]
    found = comparison.judge(pairs, lambda _row: [Wanted(metric=by_key("ttft_s"), threshold=0.05)])
    told = [factor for factor, one in zip(factors, found, strict=True) if one.verdict is not Verdict.INCONCLUSIVE]
    assert told == called


def test_a_spread_from_run_to_run_hides_what_rounds_alone_would_call_a_change(judge):
    wild = (0.1, 0.11, 0.09, 0.12, 0.1, 0.105)
    judgement = judge(CALM, times(CALM, 1.1), history=wild)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "runs differ by" in judgement.reason
    assert "use --infer-against" in judgement.reason
    assert judge(CALM, times(CALM, 1.1), history=STEADY).verdict is Verdict.REGRESSED


def test_the_interval_holds_those_of_all_evidence(judge):
    rounds = times(CALM, 1.01)
    judgement = judge(CALM, rounds, history=STEADY)
    middle = sorted(rounds)[4:6]
    within = stats.welch(CALM, rounds).interval(0.99)
    between = stats.predicted(STEADY, sum(middle) / 2).interval(0.99)
    assert judgement.low == pytest.approx(math.expm1(min(within[0], between[0])))
    assert judgement.high == pytest.approx(math.expm1(max(within[1], between[1])))
    assert between[1] > within[1]


def test_an_outlying_baseline_is_not_all_that_counts(judge):
    # The baseline was a lucky run: the new one is 10 % slower than it, and like all others.
    assert judge(times(CALM, 0.9), CALM, history=[*STEADY, 0.09]).verdict is Verdict.INCONCLUSIVE


def test_a_single_round_a_side(judge):
    assert judge(0.1, 0.2).verdict is Verdict.INCONCLUSIVE
    assert judge(0.1, 0.2).low is None
    assert judge(0.1, 0.2, history=STEADY).verdict is Verdict.REGRESSED
    assert judge(0.1, 0.1005, history=STEADY).verdict is Verdict.UNCHANGED


def test_history_without_any_spread(judge):
    assert judge(0.1, 0.1000001, history=[0.1] * 5).verdict is Verdict.UNCHANGED
    assert judge(0.1, 0.2, history=[0.1] * 5).verdict is Verdict.REGRESSED


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.2, Verdict.REGRESSED),
        (0.8, Verdict.IMPROVED),
        (1.0, Verdict.UNCHANGED),
        (1.05, Verdict.INCONCLUSIVE),
    ],
)
def test_paired_rounds_need_no_history(judge, factor, verdict):
    before = [0.1 * 1.1**n for n in range(10)]  # a drift of 10 % a round, which both sides share
    after = [value * factor * wobble for value, wobble in zip(before, times(CALM, 10), strict=True)]
    judgement = judge(before, after, paired=True)
    assert judgement.verdict is verdict
    assert judgement.mid == pytest.approx(factor - 1, abs=0.002)
    assert judge(before, after).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("key", ["load_s", "uss_bytes", "tpot_s"])
def test_one_figure_a_side_of_one_run_has_no_interval_and_earlier_runs_do_not_give_it_one(make_row, key):
    prompts = [
        RowPair(before=make_row(name, **{key: [1.0]}), after=make_row(name, **{key: [1.5]}), paired=True, turns=turns)
        for name in ("story", "chat")
        for turns in [Turns(every=1, cycles=1, seconds=1.0, ratios={}, rounds=1) if key == "load_s" else None]
    ]
    found = comparison.judge(prompts, wanted(key, rule=f"{key}:5%"))
    told = [(j.verdict, j.reason, j.mid) for j in [*found, suite.changes(prompts, found)[0].judgement]]
    assert told == [(Verdict.INCONCLUSIVE, "a single figure a side: there is no interval", None)] * 3


def test_too_few_pairs_are_inconclusive_with_an_open_interval(judge):
    judgement = judge([0.1, 0.11, 0.12], [0.2, 0.22, 0.241], paired=True)
    assert (judgement.verdict, judgement.low, judgement.high) == (Verdict.INCONCLUSIVE, None, None)
    assert "--infer-max-rounds" in judgement.reason


def test_blocks_of_one_side_that_differ_as_much_hide_a_change(judge):
    calm = judge(CALM, times(CALM, 1.1), block_spread={"tpot_s": 0.01})
    wild = judge(CALM, times(CALM, 1.1), block_spread={"tpot_s": 0.11})
    unknown = judge(CALM, times(CALM, 1.1), block_spread={})
    assert calm.verdict is Verdict.REGRESSED
    assert (wild.verdict, unknown.verdict) == (Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE)
    assert "blocks of one side differ too much" in wild.reason
    assert judge(CALM, CALM, block_spread={"tpot_s": 0.01}).verdict is Verdict.UNCHANGED


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (1000, 1000, Verdict.UNCHANGED),
        (1000, 1049, Verdict.UNCHANGED),
        (1000, 1051, Verdict.REGRESSED),
        (1000, 949, Verdict.IMPROVED),
    ],
)
def test_figures_that_the_same_work_always_gives_need_no_rounds(judge, before, after, verdict):
    assert judge(before, after, key="kv_cache_bytes").verdict is verdict


@pytest.mark.parametrize("threshold", [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.25, 0.5, 0.9, 1.0, 7.0])
@pytest.mark.parametrize("before", [1, 3, 49, 1000, 123_456_789])
def test_a_change_that_is_exactly_the_threshold_is_within_it(make_row, threshold, before):
    for key, sign in (("kv_cache_bytes", 1), ("step_bytes", 1), ("decode_throughput", -1)):
        if sign * threshold <= -1:
            continue
        told = []
        for factor in (1 + sign * threshold, (1 + sign * threshold) * (1 + sign * 1e-7)):
            values = ([before] * 5, [before * factor] * 5)
            pair = RowPair(before=make_row(**{key: values[0]}), after=make_row(**{key: values[1]}), paired=True)
            (found,) = comparison.judge([pair], wanted(key, threshold))
            told.append(found.verdict)
        assert told == [Verdict.UNCHANGED, Verdict.REGRESSED]


def test_zeros_on_both_sides_are_no_change_however_many_rounds(judge):
    assert judge([0, 0, 0], [0, 0, 0], key="swap_bytes").verdict is Verdict.UNCHANGED
    assert judge([0, 0, 0], [0, 0, 0, 0, 0], key="swap_bytes").verdict is Verdict.UNCHANGED
    assert judge(0, [0, 0], key="swap_bytes").verdict is Verdict.UNCHANGED


@pytest.mark.parametrize(("before", "after"), [([0, 0, 0], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([0, 1, 2], [0, 1, 2])])
def test_a_zero_has_no_ratio(judge, before, after):
    judgement = judge(before, after, key="major_faults", history=[1] * 6)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "there is no ratio" in judgement.reason
    assert judgement.mid is None


def test_equal_figures_without_spread(judge):
    judgement = judge([7, 7], [7, 7, 7], key="minor_faults")
    assert (judgement.verdict, judgement.low, judgement.high) == (Verdict.UNCHANGED, 0.0, 0.0)


def test_what_is_neither_better_nor_worse_has_no_verdict(judge):
    judgement = judge([2.0, 2.0], [3.0, 3.0], key="cores_used")
    assert (judgement.verdict, judgement.mid) == (None, 0.5)
    assert judge([0, 0], [3.0, 3.0], key="write_calls").verdict is None


@pytest.mark.parametrize("key", ["steal_s", "other_cpu_s", "pressure_cpu_s", "read_ops", "mbu", "mfu", "energy_j"])
def test_what_is_not_the_codes_has_no_verdict(judge, key):
    for after in (times(CALM, 3), times(CALM, 0.3), CALM):
        judgement = judge(CALM, after, key=key, history=STEADY)
        assert judgement.verdict is None
        assert judgement.mid == pytest.approx(after[0] / CALM[0] - 1)
        assert judge(CALM, after, key=key, paired=True).verdict is None
    assert judge([0, 0], [3.0, 3.0], key=key).verdict is None
    assert judge([7, 7], [7, 7], key=key).verdict is None
    assert judge(None, CALM, key=key).verdict is judge(CALM, None, key=key).verdict is None


def test_other_output_makes_times_incomparable_until_it_is_accepted(judge):
    changes = {"output_sha256": "c" * 64}
    judgement = judge(CALM, CALM, history=STEADY, changes=changes)
    assert judgement.verdict is Verdict.INCOMPARABLE
    assert judgement.reason == "differ: output bbbbbbbb → cccccccc"
    assert judge(CALM, CALM, history=STEADY, changes=changes, allowed=["output"]).verdict is Verdict.UNCHANGED


def test_another_machine_matters_to_stored_runs_and_not_to_pairs(judge):
    changes = {"machine": {"cpu": "other"}}
    assert judge(CALM, CALM, history=STEADY, changes=changes).verdict is Verdict.INCOMPARABLE
    assert judge(CALM, CALM, history=STEADY, changes=changes, allowed=["cpu"]).verdict is Verdict.UNCHANGED
    assert judge(CALM, CALM, paired=True, changes=changes).verdict is Verdict.UNCHANGED
    other_prompt = {"prompt": {"content_sha256": "c" * 64}}
    assert judge(CALM, CALM, paired=True, changes=other_prompt).verdict is Verdict.INCOMPARABLE


def test_exact_figures(judge):
    same = judge("b" * 64, "b" * 64, key="output_sha256")
    other = judge("b" * 64, "c" * 64, key="output_sha256")
    assert (same.verdict, other.verdict) == (Verdict.UNCHANGED, Verdict.INCOMPARABLE)
    assert other.reason == "differs, and must not"
    assert judge([5, 5], [6, 6], key="generated_tokens").verdict is Verdict.INCOMPARABLE
    assert judge("L0E0", "L0E1", key="hottest_experts").verdict is None


def test_a_figure_that_one_side_lacks(make_row):
    with_it, without = make_row(tpot_s=CALM), make_row(tpot_s=None)

    def verdict(before, after):
        return comparison.judge([RowPair(before=before, after=after)], wanted("tpot_s"))[0].verdict

    assert verdict(with_it, without) is Verdict.MISSING
    assert verdict(without, with_it) is Verdict.NEW
    # A prompt of one token has no TPOT, whatever the commit: no gate may wait for it.
    assert verdict(without, without) is None


def rules_judge(pairs, *lines, **more):
    return gate.judge(pairs, rules.parse(lines), **more)


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("output_sha256", "b" * 64, "c" * 64),
        ("generated_tokens", [5, 5], [6, 6]),
        ("hottest_experts", "L0E0", "L0E1"),
        ("expert_imbalance", 1.5, 1.25),
        ("model_bytes", 1000, 999),
        ("kv_cache_bytes", 1000, 1001),
        ("swap_bytes", [0, 0], [1, 1]),
    ],
)
def test_an_exact_rule_fails_at_any_difference(make_row, key, before, after):
    same = rules_judge([RowPair(before=make_row(**{key: before}), after=make_row(**{key: before}))], f"{key}:exact")
    assert same.exit is Exit.PASSED
    other = rules_judge([RowPair(before=make_row(**{key: before}), after=make_row(**{key: after}))], f"{key}:exact")
    assert [j.verdict for j in other.judgements] == [Verdict.REGRESSED]
    assert other.exit is Exit.REGRESSED


@pytest.mark.parametrize(
    ("free", "verdict"), [(5, Verdict.UNCHANGED), (4, Verdict.REGRESSED), (None, Verdict.INCOMPARABLE)]
)
@pytest.mark.parametrize(("key", "prompt"), [("generated_tokens", 0), ("total_tokens", 7)])
def test_tokens_that_a_side_generates_itself_are_counted_where_its_rounds_followed_others(
    make_row, key, prompt, free, verdict
):
    before = make_row(**{key: [prompt + 5] * 2})
    after = dataclasses.replace(before, reference=StoredReference(name="main", tokens=5, timed=True, free=free))
    (j,) = rules_judge([RowPair(before=before, after=after)], f"{key}:exact").judgements
    assert j.verdict is verdict
    assert j.after == prompt + (free or 5)
    # Nothing is asked of it where no rule is about it.
    (told,) = comparison.judge([RowPair(before=before, after=after)], wanted(key))
    assert told.verdict is (None if free is None else Verdict.UNCHANGED if free == 5 else Verdict.INCOMPARABLE)


def test_an_accepted_output_passes_the_exact_rule_for_information(make_row):
    rounds = {"ttft_s": CALM}
    before = make_row(**rounds)
    after = make_row(**rounds, output_sha256="c" * 64, generated_tokens=[6, 6, 6, 6])
    history = tuple(make_row(ttft_s=value) for value in STEADY)
    pairs = [RowPair(before=before, after=after, history=history)]
    lines = ("output:exact", "generated_tokens:exact", "ttft:5%")
    refused = rules_judge(pairs, *lines)
    assert refused.exit is Exit.REGRESSED
    accepted = rules_judge(pairs, *lines, allowed=["output"])
    assert [j.verdict for j in accepted.judgements] == [None, None, Verdict.UNCHANGED]
    assert accepted.exit is Exit.PASSED
    # Accepting another machine accepts no other output.
    assert rules_judge(pairs, *lines, allowed=["machine"]).exit is Exit.REGRESSED


def test_missing_and_new_tests(make_row):
    a, b = make_row("a"), make_row("b")
    gated = rules_judge([RowPair(before=a, after=a)], "output:exact", missing=[b], new=[make_row("c")])
    assert {j.name: j.verdict for j in gated.judgements} == {
        "a": Verdict.UNCHANGED,
        "b": Verdict.MISSING,
        "c": Verdict.NEW,
    }
    assert gated.exit is Exit.REGRESSED
    assert rules_judge([RowPair(before=a, after=a)], "output:exact", new=[b]).exit is Exit.PASSED
    assert rules_judge([], "output:exact", new=[b]).exit is Exit.NOTHING


def test_match(make_row):
    a, b, c = make_row("a"), make_row("b"), make_row("c")
    both, gone, new = comparison.match([a, b], [b, c])
    assert ([(x.name, y.name) for x, y in both], [r.name for r in gone], [r.name for r in new]) == (
        [("b", "b")],
        ["a"],
        ["c"],
    )


@pytest.mark.parametrize(
    ("rule", "figures", "verdict"),
    [
        ("ttft<=0.2", [0.1, 0.11, 0.1], Verdict.UNCHANGED),
        ("ttft<=0.2", [0.3, 0.31, 0.3], Verdict.REGRESSED),
        ("ttft<=0.2", [0.1, 0.3, 0.2], Verdict.INCONCLUSIVE),
        ("ttft<=0.2", 0.2, Verdict.UNCHANGED),
        ("ttft<=0.2", 0.21, Verdict.REGRESSED),
        ("ttft>=0.2", [0.3, 0.31, 0.3], Verdict.UNCHANGED),
        ("ttft>=0.2", [0.1, 0.11, 0.1], Verdict.REGRESSED),
        ("ttft<0.2", 0.2, Verdict.REGRESSED),
        ("ttft>=0.2", 0.2, Verdict.UNCHANGED),
        ("ttft>0.2", 0.2, Verdict.REGRESSED),
        ("ttft<=0.2", None, Verdict.INCOMPARABLE),
    ],
)
def test_bounds(make_row, rule, figures, verdict):
    (judgement,) = rules_judge([], rule, new=[make_row(ttft_s=figures)]).judgements
    assert judgement.verdict is verdict


def test_holm_counts_all_rows_that_are_judged_together(make_row):
    # A change that is significant alone and not among 200 rows.
    rng = np.random.default_rng(11)
    before = list(np.exp(rng.normal(0, 0.02, 12)) * 0.1)
    after = [value * math.exp(0.06 + noise) for value, noise in zip(before, rng.normal(0, 0.045, 12), strict=True)]
    changed = RowPair(before=make_row(tpot_s=before), after=make_row(tpot_s=after), paired=True)
    quiet = [
        RowPair(
            before=make_row(f"p{n}", tpot_s=before),
            after=make_row(
                f"p{n}", tpot_s=[v * math.exp(x) for v, x in zip(before, rng.normal(0, 0.02, 12), strict=True)]
            ),
            paired=True,
        )
        for n in range(199)
    ]
    (alone,) = comparison.judge([changed], wanted("tpot_s", 0.02))
    among = comparison.judge([changed, *quiet], wanted("tpot_s", 0.02))[0]
    assert alone.verdict is Verdict.REGRESSED
    assert among.p == alone.p == alone.p_adjusted
    assert among.p_adjusted == pytest.approx(min(1, 200 * alone.p))
    assert among.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("key", ["tpot_s", "decode_throughput"])
def test_no_verdict_says_more_than_its_interval(make_row, seed, key):
    """Whatever is drawn: unchanged only below the threshold, a change only beyond it and with 0 outside."""
    rng = np.random.default_rng([seed, len(key)])
    pairs = []
    for number in range(12):
        rounds = int(rng.integers(1, 15))
        spread, run_spread, change = rng.choice([0.001, 0.02, 0.1]), rng.choice([0.0, 0.02]), rng.normal(0, 0.06)
        before = np.exp(rng.normal(0, spread, rounds))
        after = np.exp(rng.normal(change, spread, rounds))
        earlier = np.exp(rng.normal(0, run_spread + spread / np.sqrt(rounds), int(rng.integers(0, 9))))
        pairs.append(
            RowPair(
                before=make_row(f"p{number}", only=(), **{key: list(before)}),
                after=make_row(f"p{number}", only=(), **{key: list(after)}),
                paired=bool(rng.integers(0, 2)),
                history=tuple(make_row(only=(), **{key: float(value)}) for value in earlier),
            )
        )
    threshold = float(rng.choice([0.01, 0.05]))
    sign = 1 if key == "tpot_s" else -1
    for pair, found in zip(pairs, comparison.judge(pairs, wanted(key, threshold)), strict=True):
        low = -math.inf if found.low is None else found.low
        high = math.inf if found.high is None else found.high
        worst = high if sign > 0 else -low
        if found.verdict is Verdict.UNCHANGED:
            assert worst < threshold
            assert pair.paired or len(pair.history) >= earlier_runs.ENOUGH_HISTORY
        elif found.verdict is Verdict.REGRESSED:
            assert found.mid * sign > threshold
            assert (low > 0) if sign > 0 else (high < 0)
            assert found.p <= found.p_adjusted <= 0.01 + 1e-9
        elif found.verdict is Verdict.IMPROVED:
            assert found.mid * sign < 0
            assert (high < 0) if sign > 0 else (low > 0)
        else:
            assert found.verdict is Verdict.INCONCLUSIVE
            assert found.reason


def test_random_draws_reach_every_verdict(make_row):
    """Else the test above could pass without having seen one."""
    rng = np.random.default_rng(0)
    seen = set()
    for change in (-0.3, 0.0, 0.05, 0.3):
        before, after = (list(np.exp(rng.normal(c, 0.01, 10))) for c in (0, change))
        pair = RowPair(before=make_row(tpot_s=before), after=make_row(tpot_s=after), paired=True)
        seen.add(comparison.judge([pair], wanted("tpot_s"))[0].verdict)
    assert seen == {Verdict.IMPROVED, Verdict.UNCHANGED, Verdict.INCONCLUSIVE, Verdict.REGRESSED}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], Exit.NOTHING),
        ([None], Exit.NOTHING),
        (["new"], Exit.NOTHING),
        (["incomparable"], Exit.NOTHING),
        (["incomparable", "new"], Exit.NOTHING),
        (["unchanged"], Exit.PASSED),
        (["improved", "new", None], Exit.PASSED),
        (["unchanged", "inconclusive"], Exit.INCONCLUSIVE),
        (["unchanged", "incomparable"], Exit.INCONCLUSIVE),
        (["inconclusive"], Exit.INCONCLUSIVE),
        (["regressed", "inconclusive"], Exit.REGRESSED),
        (["missing"], Exit.REGRESSED),
        (["missing", "unchanged"], Exit.REGRESSED),
    ],
)
def test_how_a_gate_ends(verdicts, expected):
    found = [Judgement(test="t", name="t", verdict=None if v is None else Verdict(v)) for v in verdicts]
    assert outcome(found) is expected


# What a run is compared with.


def test_history_holds_the_newest_comparable_runs_that_did_not_fail(storage, make_block, make_row):
    for value in range(1, 14):
        storage.add([make_block(tpot_s=[value / 1000] * 4)])
    storage.add([make_block(tpot_s=[0.1] * 4, machine={"cpu": "other"})])
    storage.add([make_block(tpot_s=[0.101] * 4)], gate={"result": "regressed"})
    storage.add([make_block("another", tpot_s=[0.102] * 4)])
    storage.add([make_block(tpot_s=[0.014] * 4)], gate={"result": "inconclusive"})
    storage.add([], failed={"bench/t.py::t[guide]": {}})
    found = earlier_runs.comparable_history(make_row(), storage.load().runs)
    test = "bench/t.py::t[guide]"
    assert {row.test for row in found} == {test}
    assert [row.metrics["tpot_s"].value for row in found] == [value / 1000 for value in range(5, 15)]


def test_copies_of_a_run_count_once_in_its_history(storage, make_block, make_row):
    for value in range(1, 4):
        path = storage.add([make_block(tpot_s=[value / 1000] * 4)])
    shutil.copytree(path.parent, storage.folder / "backup")
    found = earlier_runs.comparable_history(make_row(), storage.load().runs)
    assert [row.metrics["tpot_s"].value for row in found] == [value / 1000 for value in range(1, 4)]


def test_what_was_taken_from_an_interrupted_run_counts_once(storage, make_block, make_row):
    def add(total, *, resumed=False):
        block = make_block(total_s=[total] * 4)
        block["rounds"]["resumed"] = resumed
        storage.add([block])

    add(2.1)
    add(2.2)
    for total in (2.2, 2.2, 2.3):
        add(total, resumed=True)
    # The same figure is no copy where nobody took it.
    add(2.1)
    runs = storage.load().runs
    found = earlier_runs.comparable_history(make_row(), runs)
    told = [(row.run.name[:4], row.metrics["total_s"].value) for row in found]
    assert told == [("0001", 2.1), ("0004", 2.2), ("0005", 2.3), ("0006", 2.1)]
    after = dataclasses.replace(make_row(total_s=2.1), resumed=True)
    found = earlier_runs.comparable_history(make_row(), runs, after=after)
    assert [row.metrics["total_s"].value for row in found] == [2.2, 2.3]


def test_a_run_is_not_held_against_the_one_that_its_tests_were_taken_from(storage, make_block, make_row):
    storage.add([make_block(total_s=2.1)])
    storage.add([make_block(total_s=2.2)], unmeasured=["bench/t.py::t[b]"])
    rows = [dataclasses.replace(make_row(total_s=2.2), resumed=True)]
    assert two_runs.since(storage.load(), rows).before.number == "0001"
    storage.add([make_block(total_s=2.3)], unmeasured=["bench/t.py::t[b]"])
    (_, *cut) = storage.load().runs
    assert two_runs.since(dataclasses.replace(storage.load(), runs=tuple(cut)), rows).before.number == "0003"
    assert two_runs.since(dataclasses.replace(storage.load(), runs=tuple(cut[:1])), rows) is None


def test_the_baseline_is_the_newest_that_fits(storage, make_block, make_row):
    storage.add([make_block()], commit="1" * 40)
    expected = storage.add([make_block(output_sha256="c" * 64)], commit="2" * 40)
    storage.add([make_block()], dirty=True)
    storage.add([make_block()], gate={"result": "regressed"})
    storage.add([make_block()], unmeasured=["bench/t.py::t[b]"])
    storage.add([make_block(model={"threads": 64})])
    storage.add([make_block("another")])
    storage.add([])
    runs = storage.load().runs
    assert gate.baseline_for([make_row()], runs, ()).path == expected
    assert gate.baseline_for([make_row()], runs, ["threads"]).number == "0006"
    assert gate.baseline_for([make_row("unknown")], runs, ()) is None
