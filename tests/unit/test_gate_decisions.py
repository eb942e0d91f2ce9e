"""The gate's own decisions: which run it compares with, what a bound and a drift are told, when rounds are enough."""

import dataclasses
import math
import statistics
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.compare import gate, rules
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.rules import Form, Rule
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.metrics import by_key
from pytest_infer.records import Level, LevelKind, PromptRecord
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import StoredLoad

DATA = Path(__file__).parents[1] / "data"
TEST = "bench/t.py::t[guide]"


def judged(pairs, *lines, **more):
    return gate.judge(pairs, rules.parse(lines), **more).judgements


# what it compares with


@pytest.mark.parametrize(
    ("lines", "needed"),
    [(["ttft<=1"], False), (["ttft:5%"], True), (["ttft<=1", "output:exact"], True), (["experts:drift<0.1"], True)],
)
def test_whether_a_baseline_is_needed(lines, needed):
    assert gate.needs_baseline(rules.parse(lines)) is needed


@pytest.mark.parametrize("whole", [{"failed": {"bench/t.py::t[b]": {}}}, {"unmeasured": [TEST]}, {"dirty": True}])
def test_a_run_that_is_not_whole_is_no_baseline(storage, make_block, make_row, whole):
    expected = storage.add([make_block()])
    storage.add([make_block()], **whole)
    assert gate.baseline_for([make_row()], storage.load().runs, ()).path == expected


def test_a_test_that_skipped_itself_was_not_to_be_measured(storage, make_block, make_row):
    storage.add([make_block()])
    storage.add([make_block()], unmeasured=["bench/t.py::t[b]"], skipped=["bench/t.py::t[b]"])
    expected = storage.add([make_block()], failed={"bench/t.py::t[b]": {}}, skipped=["bench/t.py::t[b]"])
    storage.add([make_block()], unmeasured=["bench/t.py::t[b]", "bench/t.py::t[c]"], skipped=["bench/t.py::t[b]"])
    storage.add([make_block()], failed={"bench/t.py::t[b]": {}, "bench/t.py::t[c]": {}}, skipped=["bench/t.py::t[b]"])
    assert gate.baseline_for([make_row()], storage.load().runs, ()).path == expected


def test_a_run_without_our_blocks_is_no_baseline(storage, make_block, make_row):
    expected = storage.add([make_block()])
    storage.add([{"name": "t[guide]", "fullname": TEST, "stats": {"median": 0.3, "data": [0.3]}}])
    assert gate.baseline_for([make_row()], storage.load().runs, ()).path == expected


def test_another_prompt_is_for_the_gate_to_report(storage, make_block, make_row):
    storage.add([make_block()])
    expected = storage.add([make_block(prompt={"content_sha256": "d" * 64})])
    assert gate.baseline_for([make_row()], storage.load().runs, ()).path == expected


def test_a_run_that_fits_in_one_test_is_the_baseline(storage, make_block, make_row):
    storage.add([make_block("a"), make_block("b")])
    expected = storage.add([make_block("a", model={"threads": 64}), make_block("b")])
    rows = [make_row("a"), make_row("b")]
    assert gate.baseline_for(rows, storage.load().runs, ()).path == expected


def test_a_run_of_part_of_the_tests_takes_no_place_of_an_earlier_one_with_twice_as_many(storage, make_block, make_row):
    storage.add([make_block("a"), make_block("b")])
    expected = storage.add([make_block("b"), make_block("a")])
    storage.add([make_block("a")])
    storage.add([make_block("another"), make_block("a"), make_block("gone")])
    rows = [*map(make_row, "abc")]
    assert gate.baseline_for(rows, storage.load().runs, ()).path == expected


def test_one_test_more_takes_no_run_of_long_ago_for_the_baseline(storage, make_block, make_row):
    storage.add([make_block("a"), make_block("b"), make_block("c")])
    expected = storage.add([make_block("a"), make_block("b")])
    assert gate.baseline_for([*map(make_row, "abc")], storage.load().runs, ()).path == expected


def test_a_plain_benchmark_makes_no_run_comparable(storage, make_block, make_row):
    expected = storage.add([make_block()])
    plain = {"name": "t_plain", "fullname": "t.py::t_plain", "stats": {"median": 0.3, "data": [0.3]}}
    storage.add([make_block(machine={"cpu": "other"}), plain])
    rows = [make_row(), Row(test="t.py::t_plain", name="t_plain", metrics={}, plain=True)]
    assert gate.baseline_for(rows, storage.load().runs, ()).path == expected


# judgements


def test_judgements_come_in_the_order_of_the_tests_and_those_that_are_missing_last(make_row):
    a, b, c, d = map(make_row, "abcd")
    pairs = [RowPair(before=b, after=b), RowPair(before=a, after=a)]
    found = judged(pairs, "ttft<=9", "output:exact", missing=[c, "file::d"], new=[d])
    assert [j.name for j in found] == ["b", "b", "a", "a", "d", "d", "c", "file::d"]


def test_a_bound_is_held_once_and_against_the_prompts_it_names(make_row):
    a, b = make_row("a", ttft_s=0.1), make_row("b", ttft_s=0.1)
    (found,) = judged([RowPair(before=a, after=a), RowPair(before=b, after=b)], "ttft[b]<=0.2")
    assert (found.name, found.verdict) == ("b", Verdict.UNCHANGED)


def test_a_bound_that_names_nothing_is_about_prompts_or_about_levels(make_row):
    level = StoredLoad(level=Level(kind=LevelKind.RATE, value=4.0))
    tests = [make_row("a"), dataclasses.replace(make_row("rate=4", level_misses=1.0), under_load=level)]
    found = judged([], "ttft<=9", "level_misses<=5%", "ttft[rate=4]<=9", new=tests)
    told = {(j.rule, j.name): j.verdict for j in found}
    assert told == {
        ("ttft<=9", "a"): Verdict.UNCHANGED,
        ("level_misses<=5%", "rate=4"): Verdict.UNCHANGED,
        ("ttft[rate=4]<=9", "rate=4"): Verdict.UNCHANGED,
    }
    # One that nothing can keep passes nothing.
    (found,) = judged([], "level_misses<=5%", new=tests[:1])
    assert found.verdict is Verdict.INCOMPARABLE


def test_missing_and_new_tests_say_what_they_are(make_row):
    new, missing, other = judged([], "output:exact", missing=[make_row("a"), "file::b"], new=[make_row("c")])
    reason = "the baseline has this test and this run did not measure it: restore it, or set a new baseline"
    assert missing == Judgement(test="bench/t.py::t[a]", name="a", verdict=Verdict.MISSING, reason=reason)
    assert other == Judgement(test="file::b", name="file::b", verdict=Verdict.MISSING, reason=reason)
    assert new == Judgement(test="bench/t.py::t[c]", name="c", verdict=Verdict.NEW, reason="no earlier figure")


def test_confidence_is_that_of_the_intervals(make_row):
    rounds = [0.1, 0.101, 0.102, 0.103, 0.104, 0.105, 0.106, 0.107]
    after = [
        value * factor for value, factor in zip(rounds, (1, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07), strict=True)
    ]
    pair = RowPair(before=make_row(ttft_s=rounds), after=make_row(ttft_s=after), paired=True)
    (wide,), (narrow,) = (judged([pair], "ttft:5%", confidence=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    (wide,), (narrow,) = (judged([pair], "ttft<=0.112", confidence=level) for level in (0.99, 0.5))
    assert (wide.verdict, narrow.verdict) == (Verdict.INCONCLUSIVE, Verdict.UNCHANGED)


# bounds


@pytest.mark.parametrize(
    ("rule", "figures", "verdict", "reason"),
    [
        ("ttft<=0.2", 0.1, Verdict.UNCHANGED, None),
        ("ttft<=0.2", 0.3, Verdict.REGRESSED, "must be <= 0.2"),
        ("ttft<0.2", 0.3, Verdict.REGRESSED, "must be < 0.2"),
        ("ttft>=0.2", 0.1, Verdict.REGRESSED, "must be >= 0.2"),
        ("ttft>0.2", 0.1, Verdict.REGRESSED, "must be > 0.2"),
        ("ttft>=0.2", [0.1, 0.3, 0.2], Verdict.INCONCLUSIVE, "the interval holds the bound >= 0.2: more rounds"),
        ("ttft<0.2", [0.1, 0.3, 0.2], Verdict.INCONCLUSIVE, "the interval holds the bound < 0.2: more rounds"),
    ],
)
def test_what_a_bound_is_told(make_row, rule, figures, verdict, reason):
    (found,) = judged([], rule, new=[make_row(ttft_s=figures)])
    value = statistics.median(figures) if isinstance(figures, list) else figures
    assert found == Judgement(
        test=TEST,
        name="guide",
        metric_key="ttft_s",
        unit="s",
        rule=rule,
        before=0.2,
        after=value,
        verdict=verdict,
        reason=reason,
    )


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("swap<=0", Verdict.INCONCLUSIVE),
        ("swap<0", Verdict.REGRESSED),
        ("swap<=5", Verdict.UNCHANGED),
        ("swap<5", Verdict.INCONCLUSIVE),
        ("swap>=0", Verdict.UNCHANGED),
        ("swap>0", Verdict.INCONCLUSIVE),
        ("swap>=5", Verdict.INCONCLUSIVE),
        ("swap>5", Verdict.REGRESSED),
    ],
)
def test_a_bound_at_an_end_of_the_interval(make_row, rule, verdict):
    """Rounds that read 0 have no logarithm: their interval is from the least to the largest."""
    (found,) = judged([], rule, new=[make_row(swap_bytes=[0, 5])])
    assert found.verdict is verdict


@pytest.mark.parametrize("value", [0.1, 0.05, 0.11, 0.2])
@pytest.mark.parametrize("sign", ["<=", ">="])
def test_rounds_without_spread_are_their_value_to_the_last_bit(make_row, value, sign):
    (found,) = judged([], f"ttft{sign}{value}", new=[make_row(ttft_s=[value] * 3)])
    assert found.verdict is Verdict.UNCHANGED


@pytest.mark.parametrize(("confidence", "quantile"), [(0.99, 9.924843), (0.9, 2.919986)])
def test_the_interval_of_a_bound_is_students_of_the_logs(make_row, confidence, quantile):
    """Three rounds: two degrees of freedom, whose quantiles are those of any table."""
    figures = [0.1, 0.11, 0.105]
    logs = [math.log(value) for value in figures]
    half = quantile * statistics.stdev(logs) / math.sqrt(3)
    low, high = (math.exp(statistics.mean(logs) + side * half) for side in (-1, 1))
    for rule, verdict in (
        (f"ttft<={high * 1.0001}", Verdict.UNCHANGED),
        (f"ttft<={high * 0.9999}", Verdict.INCONCLUSIVE),
        (f"ttft>={low * 0.9999}", Verdict.UNCHANGED),
        (f"ttft>={low * 1.0001}", Verdict.INCONCLUSIVE),
    ):
        (found,) = judged([], rule, new=[make_row(ttft_s=figures)], confidence=confidence)
        assert found.verdict is verdict


def test_two_rounds_have_an_interval(make_row):
    (found,) = judged([], "ttft<=0.12", new=[make_row(ttft_s=[0.1, 0.11])])
    assert found.verdict is Verdict.INCONCLUSIVE


def test_a_bound_on_text_or_on_what_was_not_measured(make_row):
    for key, row in (("ttft_s", make_row(ttft_s=None)), ("hottest_experts", make_row(hottest_experts="L0E0"))):
        rule = Rule(text="x", form=Form.BOUND, metric=by_key(key), limit=1.0)
        (found,) = gate.judge([], [rule], new=[row]).judgements
        assert (found.verdict, found.reason, found.after) == (Verdict.INCOMPARABLE, "not measured", None)


def test_a_bound_on_nothing_is_a_mistake_of_ours(make_row):
    with pytest.raises(ValueError, match="a bound is about a metric"):
        gate.judge([], [Rule(text="x", form=Form.BOUND, metric=None)], new=[make_row()])


# drift


def experts(*layers):
    sites = [{"name": f"layers.{n}", "layer": n, "experts": 2} for n in range(len(layers))]
    return {"sites": sites, "counts": {"prefill": layers, "decode": [[0, 0]] * len(layers)}}


@pytest.mark.parametrize(
    ("limit", "moved", "verdict", "reason"),
    [
        (0.4, 1, Verdict.UNCHANGED, None),
        (0.2, 1, Verdict.REGRESSED, "moved in layer 0: 0.300"),
        (0.2, 3, Verdict.REGRESSED, "moved in layer 0: 0.300, layer 1: 0.300, layer 2: 0.300"),
        (0.2, 4, Verdict.REGRESSED, "moved in layer 0: 0.300, layer 1: 0.300, layer 2: 0.300 and 1 more"),
    ],
)
def test_what_drift_is_told(make_row, limit, moved, verdict, reason):
    before = make_row(experts=experts(*[[5, 5]] * 5))
    after = make_row(experts=experts(*[[8, 2]] * moved, *[[5, 5]] * (5 - moved)))
    (found,) = judged([RowPair(before=before, after=after)], f"experts:drift<{limit}")
    assert found.after == pytest.approx(0.3)
    assert msgspec.structs.replace(found, after=None) == Judgement(
        test=TEST, name="guide", rule=f"experts:drift<{limit}", threshold=limit, verdict=verdict, reason=reason
    )


def test_drift_that_one_side_lacks(make_row):
    pair = RowPair(before=make_row(), after=make_row(experts={"absent": "the model is dense"}))
    (found,) = judged([pair], "experts:drift<0.02")
    assert found == Judgement(
        test=TEST,
        name="guide",
        rule="experts:drift<0.02",
        threshold=0.02,
        verdict=Verdict.INCOMPARABLE,
        reason="expert usage was not recorded on both sides",
    )


@pytest.mark.parametrize(("prompt", "judgements"), [("guide", 1), ("other", 0)])
def test_drift_of_the_prompts_it_names(make_row, prompt, judgements):
    row = make_row(experts=experts([5, 5]))
    assert len(judged([RowPair(before=row, after=row)], f"experts[{prompt}]:drift<0.02")) == judgements


@pytest.mark.parametrize(
    ("rule", "counts", "verdict"),
    [
        ("<0.5", [10, 0], Verdict.REGRESSED),
        ("<=0.5", [10, 0], Verdict.UNCHANGED),
        ("<=0.3", [2, 8], Verdict.UNCHANGED),
        ("<=0.2", [8, 2], Verdict.REGRESSED),
        ("<0", [5, 5], Verdict.UNCHANGED),
        ("<0", [6, 4], Verdict.REGRESSED),
    ],
)
def test_drift_at_its_limit(make_row, rule, counts, verdict):
    pair = RowPair(before=make_row(experts=experts([5, 5])), after=make_row(experts=experts(counts)))
    assert [j.verdict for j in judged([pair], f"experts:drift{rule}")] == [verdict]


# when rounds are enough

WIDE = [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
"""Log-ratios of eight pairs: at 99 % their interval is from the least to the largest (1/256 beyond either)."""


@pytest.fixture
def sides():
    """Return a function that makes rounds of both sides whose TTFT differ by these log-ratios; others are the same."""
    record = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    template = record.rounds[0]

    def one(ttft_s):
        start = template.trace.start_ns
        first = start + round(ttft_s * 1e9)
        stamps = tuple(first + n * 20_000_000 for n in range(len(template.trace.stamps_ns)))
        return dataclasses.replace(template, trace=dataclasses.replace(template.trace, stamps_ns=stamps))

    def both(logs):
        return [one(0.5)] * len(logs), [one(0.5 * math.exp(log)) for log in logs]

    return both


def enough(sides, *lines, name="guide"):
    return gate.settled(rules.parse(lines), name, *sides)


@pytest.mark.parametrize(
    ("widest", "settled"),
    [(0.0480, True), (0.0495, False)],
    ids=["log1p(0.05) is 0.0488", "and 0.0495 is more"],
)
@pytest.mark.parametrize("shift", [0.0, 0.5, -0.5])
def test_rounds_are_enough_when_the_interval_is_narrower_than_the_threshold(sides, widest, settled, shift):
    logs = [shift + widest * n / 7 for n in range(8)]
    assert enough(sides(logs), "ttft:5%") is settled


def test_seven_pairs_have_no_interval(sides):
    assert enough(sides([0.0] * 6 + [0.001]), "ttft:5%") is False
    assert enough(sides([0.0] * 7 + [0.001]), "ttft:5%") is True


def test_nothing_is_narrower_than_no_threshold(sides):
    assert enough(sides([0.0] * 8), "ttft:0%") is False


@pytest.mark.parametrize(
    "rule",
    ["output:exact", "ttft<=0.01", "experts:drift<0.1", "peak_rss:5%", "ttft[other]:5%", "load:5%", "tokenize:5%"],
)
def test_rules_that_rounds_do_not_tell_are_passed_over(sides, rule):
    assert enough(sides(WIDE), rule) is True
    assert enough(sides(WIDE), rule, "ttft:5%") is False
    assert enough(sides(WIDE), "ttft:5%", rule) is False


@pytest.mark.parametrize("key", ["total_prefill_throughput", "total_decode_throughput"])
def test_a_rate_of_a_batch_is_settled_when_that_of_a_sequence_is(sides, key):
    logs = [4 * log for log in WIDE]
    before, after = sides(logs)
    if key == "total_decode_throughput":

        def slower(one, log):
            first, *steps = one.trace.stamps_ns
            stamps = (first, *(first + round((at - first) * math.exp(log)) for at in steps))
            return dataclasses.replace(one, trace=dataclasses.replace(one.trace, stamps_ns=stamps))

        after = [slower(one, log) for one, log in zip(before, logs, strict=True)]
    assert enough((before, after), f"{key}:5%") is False
    assert enough((before, after), f"{key}:30%") is True
    assert enough(sides([0.0] * 8), f"{key}:5%") is True


def test_every_rule_must_be_settled(sides):
    assert enough(sides(WIDE), "ttft:10%", "tpot:5%") is True
    assert enough(sides(WIDE), "ttft:10%", "prefill:5%") is False
    assert enough(sides(WIDE), "prefill:5%", "ttft:10%") is False


def test_rounds_that_one_side_lacks_or_that_read_nothing(sides):
    before, after = sides(WIDE)
    assert enough((before, after[:-1]), "ttft:5%") is True
    assert enough(([], []), "ttft:5%") is True
    # Neither a round whose first tick came at once nor one without ticks has a ratio.
    trace = before[0].trace
    for stamps in ((trace.start_ns,) * 5, ()):
        more = [dataclasses.replace(before[0], trace=dataclasses.replace(trace, stamps_ns=stamps))]
        assert enough((before + more, after + more), "ttft:10%") is True
        assert enough((before + more, after + more), "ttft:5%") is False
