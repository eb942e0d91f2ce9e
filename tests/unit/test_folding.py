"""Figures that are one fact share a line, as long as they say the same; the printed p-value is the one that decided."""

import msgspec
import pytest

from pytest_infer.analysis.compare import verdicts
from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange, Verdict
from pytest_infer.metrics import METRICS, Fact, by_key
from pytest_infer.pytest_face.failures import GateFailure
from pytest_infer.report.compare import exports, terminal, words
from pytest_infer.report.html import compare as page
from pytest_infer.storage.runfile import JudgedMark, Mark
from pytest_infer.units import percent_up

UNCHANGED, REGRESSED = Verdict.UNCHANGED, Verdict.REGRESSED


def judged(key, verdict=UNCHANGED, test="t", **changes):
    fields = {"before": 1.0, "after": 1.1, "low": 0.05, "mid": 0.1, "high": 0.15, "p": 0.0004, "p_adjusted": 0.042}
    return Judgement(test=test, name=test, metric_key=key, verdict=verdict, threshold=0.02, **{**fields, **changes})


def lines(*judgements):
    return [(line.judgement.metric_key, [j.metric_key for j in line.also]) for line in words.folded(judgements)]


def test_every_fact_has_its_lead_in_the_table():
    for fact in Fact:
        assert by_key(fact.lead).fact is fact
    groups = {fact: {m.key for m in METRICS if m.fact is fact} for fact in Fact}
    assert groups[Fact.DECODE] >= {"tpot_s", "decode_s", "itl_p50_s", "decode_throughput"}
    assert groups[Fact.PREFILL] >= {"ttft_s", "prefill_s", "prefill_throughput"}


def test_one_line_a_fact():
    keys = ("ttft_s", "prefill_s", "decode_s", "total_s", "tpot_s", "itl_p50_s", "itl_p99_s", "decode_throughput")
    assert lines(*map(judged, keys)) == [
        ("ttft_s", ["prefill_s"]),
        ("tpot_s", ["decode_s", "total_s", "itl_p50_s", "decode_throughput"]),
        ("itl_p99_s", []),
    ]


def test_a_figure_that_came_to_another_verdict_keeps_its_line():
    assert lines(judged("tpot_s"), judged("itl_p50_s", REGRESSED), judged("decode_s")) == [
        ("tpot_s", ["decode_s"]),
        ("itl_p50_s", []),
    ]


def test_a_total_goes_with_the_part_that_says_the_same():
    ttft, total, tpot = judged("ttft_s", REGRESSED), judged("total_s", REGRESSED), judged("tpot_s")
    assert lines(ttft, total, tpot) == [("ttft_s", ["total_s"]), ("tpot_s", [])]
    assert lines(judged("ttft_s"), total, tpot) == [("ttft_s", []), ("total_s", []), ("tpot_s", [])]


def test_without_its_lead_the_first_figure_speaks():
    assert lines(judged("decode_s"), judged("itl_p50_s")) == [("decode_s", ["itl_p50_s"])]


def test_prompts_are_folded_apart_and_rules_never():
    assert lines(judged("tpot_s"), judged("decode_s", test="other")) == [("tpot_s", []), ("decode_s", [])]
    ruled = [judged("tpot_s", rule="tpot:2%"), judged("itl_p50_s", rule="itl_p50:2%")]
    assert lines(*ruled) == [("tpot_s", []), ("itl_p50_s", [])]


def test_the_terminal_folds_under_the_line_and_on_demand_shows_each():
    found = [judged("tpot_s"), judged("total_s"), judged("decode_throughput", mid=-0.09)]
    folded = terminal.render_judgements(found, heading=[], width=100, color=False)
    assert "\n    also total +10 %, decode tok/s −9.0 %\n" in folded
    assert "1 unchanged\n" in folded
    each = terminal.render_judgements(found, heading=[], width=100, color=False, fold=False)
    assert "also" not in each
    assert "3 unchanged\n" in each


def test_markdown_counts_what_is_folded():
    text = exports.as_markdown([judged("tpot_s", REGRESSED), judged("total_s", REGRESSED)], [])
    assert "| TPOT (and 1 that tells the same) |" in text
    assert "🔴 1 regressed" in text


def suite_of(judgement, **changes):
    of_all = msgspec.structs.replace(judgement, test="", name="suite")
    return SuiteChange(judgement=of_all, **{"prompts": 3, "of": 3, "how": "8 launches", **changes})


@pytest.mark.parametrize("by_metric", [False, True])
def test_a_prompt_that_is_called_like_the_suite_is_not_mixed_up_with_it(by_metric):
    one = judged("tpot_s", test="suite")
    text = terminal.render_judgements(
        [one], heading=[], width=100, color=False, by_metric=by_metric, suite=[suite_of(one)]
    )
    rows = [line for line in text.splitlines() if line.startswith("  ")]
    assert ["all 3 prompts" in row for row in rows] == [True, False]
    assert (terminal.SUITE in text) is not by_metric


def test_the_headline_is_first_everywhere():
    one = judged("tpot_s", REGRESSED)
    said, suite = "decode 5.1 % slower [4.2, 6.0], all 3 prompts", [suite_of(one)]
    text = terminal.render_judgements([one], heading=["A → B"], width=100, color=False, headline=said, suite=suite)
    assert text.splitlines()[:2] == [said, "A → B"]
    marked = exports.as_markdown([one], ["A → B"], headline=said, suite=suite)
    assert marked.startswith("### decode 5.1 % slower \\[4.2, 6.0\\], all 3 prompts\n")
    assert "| 🔴 | TPOT | all 3 prompts | \\[+5.0 % +10 % +15 %\\] | p = 0.042 | regressed (threshold 2 %) |" in marked
    found = page.Compared(before="A", after="B", judgements=(one,), suite=tuple(suite), headline=said)
    assert page.section([found]).items[0].text[0] == said
    assert page.card(found, 1)["says"] == said
    assert page.section([found]).items[0].tables[0].rows[0][3].text == "all 3 prompts"


def test_the_p_value_that_decided_is_printed():
    one = judged("tpot_s", REGRESSED)
    found = page.Compared(before="A", after="B", judgements=(one,))
    shown = {
        "terminal": terminal.render_judgements([one], heading=[], width=100, color=False),
        "markdown": exports.as_markdown([one], []),
        "github": exports.github_annotations([one]),
        "html": page.section([found]).items[0].tables[0].rows[0][6].text,
        "failure": str(GateFailure([one], "A", None, "")),
    }
    assert {view: "p = 0.042" in text for view, text in shown.items()} == dict.fromkeys(shown, True)
    assert not [view for view, text in shown.items() if "0.001" in text]
    assert (exports.flat(one)["p"], exports.flat(one)["p_adjusted"]) == (0.0004, 0.042)


def test_a_mark_of_a_version_without_headlines_is_read():
    old = b'{"result": "passed", "against": "a", "rules": ["tpot:5%"], "judgements": []}'
    assert msgspec.json.decode(old, type=Mark).headline is None
    found = msgspec.json.decode(old, type=JudgedMark)
    assert verdicts.restored_suite(found.suite) == ()
    assert verdicts.restored_suite(msgspec.Raw(b'[{"judgement": 3}]')) == ()


def test_a_suite_is_restored_as_it_was_kept():
    kept = [suite_of(judged("tpot_s"), left_out={"incomparable": 1}, of=4)]
    assert verdicts.restored_suite(msgspec.Raw(msgspec.json.encode(kept))) == tuple(kept)


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 %"), (0.01, "1 %"), (0.0101, "1.1 %"), (0.03, "3 %"), (0.0999, "10 %"), (0.123, "13 %")],
)
def test_a_bound_is_rounded_up(share, shown):
    assert percent_up(share) == shown
