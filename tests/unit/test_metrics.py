"""The table of metrics, the figures derived from hand-made stamps, and a record read through the table."""

import dataclasses
import math
import random
import statistics
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pytest_infer.errors import OptionError
from pytest_infer.metrics import METRICS, Direction, Kind, by_key, experts, summarize, timing
from pytest_infer.records import PromptRecord, Quality, Reading, TextScore, TokenTrace, absent
from pytest_infer.units import Unit

DATA = Path(__file__).parents[1] / "data"
MS = 1_000_000


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def trace_of(*gaps_ms, sizes=None, prompt=10, prefill_ms=None, start=5_000_000_000):
    stamps, at = [], start
    for gap in gaps_ms:
        at += round(gap * MS)
        stamps.append(at)
    sizes = sizes or (1,) * len(stamps)
    return TokenTrace(
        prompt_tokens=prompt,
        requested_tokens=99,
        start_ns=start,
        stamps_ns=tuple(stamps),
        tick_sizes=tuple(sizes),
        token_ids=tuple(range(sum(sizes))),
        prefill_end_ns=None if prefill_ms is None else start + round(prefill_ms * MS),
    )


def with_rounds(record, **changed):
    """Return the record with counters replaced, a list of values a counter: one a round."""
    rounds = tuple(
        dataclasses.replace(r, counters=dataclasses.replace(r.counters, **{k: v[n] for k, v in changed.items()}))
        for n, r in enumerate(record.rounds)
    )
    return dataclasses.replace(record, rounds=rounds)


# the table


def test_keys_are_unique():
    assert len({m.key for m in METRICS}) == len(METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.key)
def test_every_metric_is_declared_in_full(metric):
    assert metric.key.isidentifier()
    assert metric.key == metric.key.lower()
    assert metric.label.strip()
    assert metric.definition.strip()
    assert metric.source.strip()
    assert metric.absent.strip()
    assert isinstance(metric.unit, Unit)
    assert isinstance(metric.direction, Direction)
    assert isinstance(metric.kind, Kind)
    assert "|" not in metric.definition + metric.source, "it would break the Markdown table"


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.key)
def test_the_unit_is_in_the_name(metric):
    endings = {"_s": Unit.SECONDS, "_bytes": Unit.BYTES, "_hz": Unit.HERTZ, "_percent": Unit.PERCENT}
    endings |= {"_tokens": Unit.TOKENS, "_throughput": Unit.TOKENS_PER_SECOND}
    for ending, unit in endings.items():
        if metric.key.endswith(ending):
            assert metric.unit is unit


def test_a_metric_by_its_key():
    assert by_key("ttft_s").label == "TTFT"
    with pytest.raises(OptionError, match=r"unknown metric 'ttft'; did you mean ttft_s"):
        by_key("ttft")


# timing


def test_the_guides_injected_delays():
    trace = trace_of(200, 20, 20, 120, 20)
    assert timing.generated_tokens(trace) == 5
    assert timing.ttft_s(trace) == 0.2
    assert timing.prefill_s(trace) == 0.2
    assert timing.decode_s(trace) == 0.18
    assert timing.total_s(trace) == 0.38
    assert timing.tpot_s(trace) == 0.18 / 4
    assert timing.inter_token_latencies_s(trace) == [0.02, 0.02, 0.12, 0.02]
    assert timing.overall_throughput(trace) == 15 / 0.38
    assert timing.prefill_throughput(trace) == 10 / 0.2
    assert timing.decode_throughput(trace) == 4 / 0.18
    assert timing.decode_throughput(trace) == pytest.approx(1 / timing.tpot_s(trace))


def test_one_tick_has_no_decode():
    trace = trace_of(200)
    assert timing.ttft_s(trace) == timing.total_s(trace) == 0.2
    assert timing.decode_s(trace) is None
    assert timing.tpot_s(trace) is None
    assert timing.decode_throughput(trace) is None
    assert timing.inter_token_latencies_s(trace) == []
    assert timing.overall_throughput(trace) == 11 / 0.2


def test_all_tokens_in_one_tick():
    trace = trace_of(200, sizes=(7,))
    assert timing.generated_tokens(trace) == 7
    assert timing.decode_s(trace) is None
    assert timing.tpot_s(trace) is None
    assert timing.overall_throughput(trace) == 17 / 0.2


def test_all_ticks_in_one_read_have_no_decode():
    trace = trace_of(200, 0, 0)
    assert timing.generated_tokens(trace) == 3
    assert timing.decode_s(trace) is timing.tpot_s(trace) is timing.decode_throughput(trace) is None
    assert timing.inter_token_latencies_s(trace) == []


def test_several_tokens_a_tick():
    trace = trace_of(100, 30, 60, sizes=(2, 3, 1))
    assert timing.generated_tokens(trace) == 6
    assert timing.inter_token_latencies_s(trace) == [0.03, 0.06]
    assert timing.decode_tokens(trace) == 4
    assert timing.tpot_s(trace) == 0.09 / 4
    assert timing.decode_throughput(trace) == 4 / 0.09


def test_prefill_told_apart_from_the_first_token():
    trace = trace_of(200, 20, prefill_ms=150)
    assert timing.ttft_s(trace) == 0.2
    assert timing.prefill_s(trace) == 0.15
    assert timing.prefill_throughput(trace) == 10 / 0.15
    assert timing.decode_s(trace) == 0.02


def test_ticks_at_the_same_moment_give_no_rate():
    trace = trace_of(0, 0)
    assert timing.total_s(trace) == 0
    assert timing.tpot_s(trace) is None
    assert timing.overall_throughput(trace) is None
    assert timing.prefill_throughput(trace) is None
    assert timing.decode_throughput(trace) is None


def test_nanoseconds_far_from_zero_stay_exact():
    trace = trace_of(0.000001, 0.000001, start=2**62)
    assert timing.ttft_s(trace) == 1e-9
    assert timing.total_s(trace) == 2e-9


@pytest.mark.parametrize("percent", [1, 50, 90, 95, 99])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 59, 255])
def test_percentiles_are_numpys(percent, size):
    draw = random.Random(size)
    values = [draw.expovariate(50) for _ in range(size)]
    assert timing.percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_no_values_have_no_percentile():
    assert timing.percentile([], 99) is None


# a record read through the table


def test_every_metric_has_a_value_or_a_reason(record):
    for key, summary in summarize(record).items():
        assert (summary.value is None) == bool(summary.reason), key


def test_median_mean_and_spread_over_the_rounds(record):
    ttft = summarize(record)["ttft_s"]
    assert ttft.rounds == (0.2, 0.201, 0.202, 0.203)
    assert ttft.value == pytest.approx(0.2015)
    assert ttft.mean == pytest.approx(0.2015)
    # Sample standard deviation of 0, 1, 2, 3 ms, by hand: sqrt(5 / 3) ms.
    assert ttft.stdev == pytest.approx(math.sqrt(5 / 3) / 1000)
    assert (ttft.quality, ttft.source, ttft.reason) == (Quality.EXACT, None, None)


def test_equal_counts_of_an_even_number_of_rounds_stay_whole(record):
    for key in ("prompt_tokens", "generated_tokens", "rss_bytes"):
        value = summarize(record)[key].value
        assert type(value) is int, key


def test_a_figure_of_the_whole_prompt_has_no_spread(record):
    summary = summarize(record)["kv_cache_bytes"]
    assert (summary.value, summary.mean, summary.stdev) == (2**20, 2**20, None)


def test_absent_keeps_its_reason(record):
    summary = summarize(record)["frequency_hz"]
    assert (summary.value, summary.mean, summary.stdev, summary.rounds) == (None, None, None, ())
    assert summary.reason == "the hypervisor shows a constant"


def test_absent_in_one_round_is_absent(record):
    assert summarize(record)["steal_s"].value is None
    assert summarize(record)["steal_s"].reason == "the file shrank"


def test_sampled_stays_sampled_with_its_source(record):
    peak = summarize(record)["peak_rss_bytes"]
    assert (peak.quality, peak.source) == (Quality.SAMPLED, "sampler every 5 ms")


def test_sampled_in_one_round_is_sampled(record):
    exact = Reading(value=1, source="/proc/self/status VmHWM")
    sampled = Reading(value=3, source="sampler", quality=Quality.SAMPLED)
    peak = summarize(with_rounds(record, peak_rss_bytes=[exact, exact, sampled, exact]))["peak_rss_bytes"]
    assert peak.quality is Quality.SAMPLED
    assert peak.value == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_no_figure_is_ever_nan_or_infinite(record, wrong):
    good = Reading(value=1.0, source="x")
    summary = summarize(with_rounds(record, cpu_s=[good, good, Reading(value=wrong, source="x"), good]))["cpu_s"]
    assert summary.value is None
    assert summary.reason == "not a finite number"


def test_a_perplexity_beyond_all_numbers_is_absent(record):
    def of(nll):
        text = TextScore(name="a.txt", sha256="0" * 64, tokens=9, nll=nll, window=8, stride=4)
        profile = dataclasses.replace(record.profile, text=text)
        return summarize(dataclasses.replace(record, profile=profile))["perplexity"]

    assert of(2.0).value == math.exp(2)
    assert of(710.0).value is None
    assert "710 nats" in of(710.0).reason


def test_zero_is_a_value(record):
    zero = Reading(value=0, source="/proc/self/io read_bytes")
    summary = summarize(with_rounds(record, read_bytes=[zero] * 4))["read_bytes"]
    assert (summary.value, summary.reason) == (0, None)


def test_one_round_has_no_spread(record):
    one = dataclasses.replace(record, rounds=record.rounds[:1])
    assert summarize(one)["ttft_s"].value == 0.2
    assert summarize(one)["ttft_s"].stdev is None


def test_one_tick_says_why_there_is_no_decode(record):
    rounds = tuple(dataclasses.replace(r, trace=trace_of(200)) for r in record.rounds)
    found = summarize(dataclasses.replace(record, rounds=rounds))
    for key in ("decode_s", "tpot_s", "itl_p50_s", "itl_p99_s", "itl_max_s", "decode_throughput"):
        assert found[key].value is None
        assert "no second tick" in found[key].reason


def test_without_a_profile_round_its_figures_say_so(record):
    found = summarize(dataclasses.replace(record, profile=None, profile_absent="left out"))
    for key in ("kv_cache_bytes", "memory_growth_bytes", "pss_bytes", "expert_selections", "hottest_experts"):
        assert (found[key].value, found[key].reason) == (None, "left out"), key


def test_derived_counters(record):
    found = summarize(record)
    assert found["cores_used"].rounds == (0.5, 0.75, 1.0, 1.25)
    assert found["cpu_utilization"].rounds == (25.0, 37.5, 50.0, 62.5)
    assert found["memory_percent"].value == 25.0
    assert found["model_bytes"].value == 101 * 2**20
    assert found["rest_bytes"].value == (400 - 101 - 1) * 2**20


def test_the_file_backed_part_of_a_peak_names_the_process_that_it_is_of(record):
    sizes = [Reading(value=2**20, source="/proc/4711/status RssFile + RssShmem")] * 4
    found = summarize(with_rounds(record, rss_file_bytes=sizes))["peak_file_bytes"]
    assert found.source == "/proc/4711/status RssFile"


def test_nothing_is_derived_from_what_is_absent(record):
    missing = [absent("no such file")] * 4
    found = summarize(with_rounds(record, cpu_s=missing, memory_limit_bytes=missing, peak_rss_bytes=missing))
    for key in ("cores_used", "cpu_utilization", "memory_percent", "rest_bytes"):
        assert (found[key].value, found[key].reason) == (None, "no such file"), key


def test_no_limit_means_no_percentage(record):
    zero = [Reading(value=0, source="x")] * 4
    percent = summarize(with_rounds(record, memory_limit_bytes=zero))["memory_percent"]
    assert percent.value is None
    assert percent.reason


def test_weights_on_an_accelerator_are_not_subtracted_from_this_process(record):
    model = dataclasses.replace(record.model, device="cuda:0")
    rest = summarize(dataclasses.replace(record, model=model))["rest_bytes"]
    assert rest.value is None
    assert "cuda:0" in rest.reason


# experts


def test_expert_figures(record):
    usage = record.profile.experts
    assert experts.counts(usage) == [[10, 5, 4, 1], [5, 5, 5, 5]]
    # 2 sites × (6 + 4) tokens × top-2
    assert experts.selections(usage) == 40
    assert experts.imbalance(usage) == (10 / 5 + 1) / 2
    assert [(experts.label(s), s.selections, s.share) for s in experts.hottest(usage, 3)] == [
        ("L0E0", 10, 0.5),
        ("L0E1", 5, 0.25),
        ("L1E0", 5, 0.25),
    ]


def test_experts_never_selected_are_not_hot(record):
    usage = dataclasses.replace(
        record.profile.experts, prefill=((0, 0, 0, 0), (1, 0, 0, 0)), decode=((0, 0, 0, 0), (0, 0, 0, 0))
    )
    assert [experts.label(s) for s in experts.hottest(usage, 3)] == ["L1E0"]
    assert experts.imbalance(usage) == 4


def test_a_slot_without_weights_is_no_hot_expert(record):
    sites = tuple(dataclasses.replace(site, experts=3) for site in record.profile.experts.sites)
    skipping = dataclasses.replace(record.profile.experts, sites=sites, prefill=((1, 1, 1, 9), (1, 0, 0, 0)))
    found = experts.hottest(skipping, 8)
    assert "L0E3" not in [experts.label(s) for s in found]
    # Its share of the selections is still none of theirs.
    assert found[0].share == found[0].selections / sum(experts.counts(skipping)[found[0].site.layer])


def test_no_selections_have_no_imbalance(record):
    zero = ((0,) * 4,) * 2
    usage = dataclasses.replace(record.profile.experts, prefill=zero, decode=zero)
    assert experts.imbalance(usage) is None
    assert experts.hottest(usage, 3) == []


def test_the_summary_agrees_with_the_standard_library(record):
    for key, summary in summarize(record).items():
        if len(summary.rounds) > 1:
            assert summary.value == statistics.median(summary.rounds), key
            assert summary.mean == pytest.approx(sum(summary.rounds) / len(summary.rounds)), key


@pytest.mark.parametrize(
    ("key", "counter"), [("rest_bytes", "peak_rss_bytes"), ("memory_percent", "rss_bytes"), ("cores_used", "cpu_s")]
)
def test_what_is_derived_from_a_sample_is_no_exact_figure(record, key, counter):
    sampled = Reading(value=300 * 2**20, source="sampler every 5 ms", quality=Quality.SAMPLED)
    assert summarize(with_rounds(record, **{counter: [sampled] * 4}))[key].quality is Quality.SAMPLED


def test_what_is_derived_from_exact_counts_is_exact(record):
    exact = [Reading(value=300 * 2**20, source="x")] * 4
    found = summarize(with_rounds(record, peak_rss_bytes=exact, rss_bytes=exact, cpu_s=exact))
    assert {found[key].quality for key in ("rest_bytes", "memory_percent", "cores_used")} == {Quality.EXACT}
