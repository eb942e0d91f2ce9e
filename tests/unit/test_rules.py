"""The rules of a gate, one a line."""

import pytest

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.rules import Form, Source, parse
from pytest_infer.errors import OptionError
from pytest_infer.metrics import METRICS, by_key, scope
from pytest_infer.metrics.metric import Direction
from pytest_infer.units import Unit


def one(text):
    (rule,) = parse([text])
    return rule


@pytest.mark.parametrize(
    ("text", "key", "limit"),
    [
        ("ttft:5%", "ttft_s", 0.05),
        ("ttft_s:5%", "ttft_s", 0.05),
        ("  tpot: 2.5 %  ", "tpot_s", 0.025),
        ("peak_rss:0%", "peak_rss_bytes", 0.0),
        ("decode_throughput:150%", "decode_throughput", 1.5),
    ],
)
def test_relative(text, key, limit):
    rule = one(text)
    assert (rule.form, rule.metric.key, rule.prompt) == (Form.RELATIVE, key, None)
    assert rule.limit == pytest.approx(limit)


@pytest.mark.parametrize(("text", "key"), [("output:exact", "output_sha256"), ("model: exact", "model_bytes")])
def test_exact(text, key):
    rule = one(text)
    assert (rule.form, rule.metric.key, rule.limit) == (Form.EXACT, key, 0.0)


def test_close_is_about_output():
    assert (one("output:close").form, one("output[story*]: close").prompt) == (Form.CLOSE, "story*")
    for text in ("model:close", "ttft:close", "nll:close"):
        with pytest.raises(OptionError, match="only output can be close"):
            one(text)


@pytest.mark.parametrize(
    ("text", "key", "limit", "at_least"),
    [
        ("kl<=0.001", "kl", 0.001, False),
        ("kl<=2e-6 nats", "kl", 2e-6, False),
        ("top1>=99%", "top1", 99, True),
        ("experts_changed<1%", "experts_changed", 1, False),
        ("perplexity<=12", "perplexity", 12, False),
    ],
)
def test_bounds_of_fidelity(text, key, limit, at_least):
    rule = one(text)
    assert (rule.form, rule.metric.key, rule.limit, rule.at_least) == (Form.BOUND, key, limit, at_least)
    assert rule.compares is (key != "perplexity")


@pytest.mark.parametrize("text", ["kl:5%", "kl:exact", "kl:close", "top1:1%", "first_divergence:exact"])
def test_a_distance_has_no_change(text):
    with pytest.raises(OptionError, match=r"tells how far two sides are apart, so it has no change: give a bound \("):
        one(text)


@pytest.mark.parametrize(
    ("text", "limit", "at_least"),
    [
        ("decode_throughput>=15", 15, True),
        ("decode_throughput>15", 15, True),
        ("decode_throughput >= 15 tok/s", 15, True),
        ("ttft<=0.3", 0.3, False),
        ("ttft<300ms", 0.3, False),
        ("ttft<=300us", 0.0003, False),
        ("ttft<=300µs", 0.0003, False),  # U+00B5, the micro sign of keyboards
        ("ttft<=300μs", 0.0003, False),  # U+03BC, the Greek letter
        ("ttft<=5ns", 5e-9, False),
        ("ttft<=2s", 2, False),
        ("ttft<=2e-3", 0.002, False),
        ("peak_rss<=2GiB", 2 * 2**30, False),
        ("peak_rss<=2.5MiB", 2.5 * 2**20, False),
        ("peak_rss<=3KiB", 3072, False),
        ("peak_rss<=2GB", 2e9, False),
        ("peak_rss<=2MB", 2e6, False),
        ("peak_rss<=2kB", 2e3, False),
        ("peak_rss<=4096", 4096, False),
        ("peak_rss<=4096B", 4096, False),
        ("cpu_utilization>=90%", 90, True),
        ("frequency_hz>=2GHz", 2e9, True),
        ("rss_file<=1GiB", 2**30, False),
        ("expert_imbalance<=1.5", 1.5, False),
        ("cores_used>=1.5", 1.5, True),
    ],
)
def test_bounds_and_their_units(text, limit, at_least):
    rule = one(text)
    assert (rule.form, rule.at_least) == (Form.BOUND, at_least)
    assert rule.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "limit"), [("experts:drift<0.02", 0.02), ("experts: drift <= .5", 0.5), ("experts:drift<0", 0)]
)
def test_drift(text, limit):
    rule = one(text)
    assert (rule.form, rule.metric, rule.limit) == (Form.DRIFT, None, limit)


@pytest.mark.parametrize(
    "form", ["tpot[story*]:3%", "output[story*]:exact", "tpot[story*]<=1", "experts[story*]:drift<1"]
)
def test_a_pattern_restricts_every_form(form):
    rule = one(form)
    assert rule.prompt == "story*"
    assert [rule.covers(name) for name in ("story", "story-2", "Story", "a story")] == [True, True, False, False]


def test_patterns_match_as_in_a_shell():
    assert one("tpot[a?c]:1%").covers("abc")
    assert not one("tpot[a?c]:1%").covers("abbc")
    assert one("tpot:1%").covers("anything at all")
    assert not one("tpot[]:1%").covers("x")
    assert one("tpot[long prompt, with a comma # and a hash]:1%").covers("long prompt, with a comma # and a hash")


def test_lines_commas_and_comments():
    lines = [
        "# all of it",
        "ttft:5%, tpot:3%  # times",
        "",
        "  output:exact,",
        "peak_rss<=2GiB # memory, of the process",
    ]
    assert [rule.text for rule in parse(lines)] == ["ttft:5%", "tpot:3%", "output:exact", "peak_rss<=2GiB"]


@pytest.mark.parametrize("lines", [[], [""], ["# nothing", "  ", ","]])
def test_nothing_gives_the_default(lines):
    assert tuple(rule.text for rule in parse(lines)) == rules.DEFAULT
    assert tuple(rule.text for rule in parse(lines, rules.DEFAULT_PAIRED)) == rules.DEFAULT_PAIRED


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("ttft", r"cannot be read; write METRIC:5%, METRIC\[PROMPT\]:3%, METRIC>=15"),
        ("ttft:", "cannot be read"),
        ("ttft:5", "cannot be read"),
        ("ttft:-5%", "cannot be read"),
        ("ttft=5", "cannot be read"),
        ("ttft:5%%", "cannot be read"),
        ("ttft:5% tpot:3%", "cannot be read"),
        ("[story]:5%", "cannot be read"),
        ("tpot[story:5%", "cannot be read"),
        ("ttft>=1.2.3", "cannot be read"),
        (":exact", "cannot be read"),
        ("speed:5%", "unknown metric 'speed'; `pytest-infer metrics` lists all"),
        ("TTFT:5%", "unknown metric 'TTFT'"),
        ("speed>=3", "unknown metric 'speed'"),
        ("ttft<=3lightyears", "unknown unit 'lightyears'; known: ms, ns, s, us, µs, μs"),
        ("ttft<=3MiB", "unknown unit 'MiB'; known: ms"),
        ("peak_rss<=3s", "unknown unit 's'; known: B, GB, GiB"),
        ("major_faults<=3x", "unknown unit 'x'; known: none"),
        ("output:5%", "output_sha256 has no noise: write output:exact"),
        ("output>=5", "output_sha256 has no noise: write output:exact"),
        ("generated_tokens:5%", "generated_tokens has no noise: write generated_tokens:exact"),
        ("hottest_experts:5%", "hottest_experts has no noise"),
        ("rss_file:5%", "rss_file_bytes is neither better high nor low; give a bound"),
        ("ttft:drift<0.1", "drift is about experts: write experts:drift<0.02"),
        ("experts:drift<=1", "drift is a share of the selections, at most 1: write 0.02 for 2 %"),
        ("experts:drift<2", "drift is a share of the selections, at most 1: write 0.02 for 2 %"),
        ("experts:5%", "drift is about experts"),
        ("experts:exact", "drift is about experts"),
        ("experts>=5", "drift is about experts"),
    ],
)
def test_wrong_rules_say_what_to_write(text, line):
    with pytest.raises(OptionError, match=line) as raised:
        parse(["ttft:1%", text])
    assert "\n" not in str(raised.value)
    assert repr(text) in str(raised.value)


def test_every_metric_can_be_gated_by_its_short_name():
    assert len({rules.short_name(m) for m in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert rules.metric_named(metric.key) is rules.metric_named(rules.short_name(metric)) is metric
        exact = metric.unit is Unit.TEXT or metric.direction is Direction.EXACT
        text = f"{rules.short_name(metric)}{':exact' if exact else '>=1'}"
        assert one(text).metric is metric


def test_no_two_times_are_the_same():
    with pytest.raises(OptionError, match=r"no two times are the same: write ttft:5%"):
        rules.parse(["ttft:exact"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("steal:5%", "steal_s is not of this process alone: .*; gate tpot:5% instead, or give a bound .steal<="),
        ("steal:exact", "steal_s is not of this process alone"),
        ("other_cpu:5%", "gate cpu:5% instead"),
        ("pressure_io:5%", "gate read:5% instead"),
        ("read_ops:1%", "read_ops is not of this process alone"),
        ("frequency_hz:5%", "frequency_hz is not of this process alone"),
        ("energy_j:5%", "energy_j is not of this process alone"),
        ("mbu:5%", "mbu is held against the machine's probe, .*; gate tpot:5% instead, or give a bound .mbu>="),
        ("mfu[story]:5%", "mfu is held against the machine's probe, .*; gate prefill:5% instead"),
        ("decode_ceiling:5%", "gate step:5% instead"),
    ],
)
def test_a_change_of_what_is_not_the_codes_is_no_rule(text, line):
    with pytest.raises(OptionError, match=line) as raised:
        parse([text])
    assert "\n" not in str(raised.value)


def test_what_is_not_the_codes_can_have_a_bound():
    for text in ("mbu>=0.5", "mfu>=0.2", "steal<=100ms", "thermal_throttles<1"):
        assert one(text).form is rules.Form.BOUND


def test_what_to_gate_instead_can_be_gated():
    for key, (found, instead) in scope.OTHERS.items():
        assert by_key(key).scope is found is not scope.Scope.PROCESS
        assert one(f"{rules.short_name(by_key(instead))}:5%").metric.judged
    assert {metric.key for metric in METRICS} >= scope.COUNTS_MOVED_BY_LOAD


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        ("story", True), ("story-threads=2-prompt-tokens=512", True), ("story-*=512", True), ("*threads=2*", True),
        ("*", True), ("story-*=1", False), ("tale-*", False), ("threads=2", False),
    ],
)  # fmt: skip
def test_a_pattern_selects_configurations_too(pattern, covers):
    config = {"threads": "2", "prompt-tokens": "512"}
    assert one(f"tpot[{pattern}]:2%").covers("story", config) is covers


def test_a_prompt_that_is_not_swept_goes_by_its_name_alone():
    assert not one("tpot[story-*]:2%").covers("story")
    assert one("tpot[story-*]:2%").covers("story-two")


INI = ["tpot:3%", "output:exact", "experts:drift<0.02", "level_misses<=5%", "peak_rss:2%", "level_ttft_p50[rate=2]:5%"]


@pytest.mark.parametrize(
    ("under_load", "left"),
    [
        ([False], ["tpot:3%", "output:exact", "experts:drift<0.02", "peak_rss:2%", "level_ttft_p50[rate=2]:5%"]),
        ([True], ["level_misses<=5%", "peak_rss:2%", "level_ttft_p50[rate=2]:5%"]),
        ([True, False], INI),
        ([], INI),
    ],
)
def test_rules_of_the_ini_file_may_be_about_what_other_runs_measure(under_load, left):
    assert [rule.text for rule in rules.of_kinds(parse(INI, source=Source.INI), under_load)] == left
    assert [rule.text for rule in rules.of_kinds(parse(INI), under_load)] == INI


def test_of_rules_that_are_all_about_what_other_runs_measure_each_stays():
    asked = parse(["level_misses<=5%", "level_ttft_p50:5%"], source=Source.INI)
    assert rules.of_kinds(asked, [False]) == asked
