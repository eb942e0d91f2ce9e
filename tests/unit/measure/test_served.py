"""What servers tell of themselves, in texts after the documentation of each."""

from __future__ import annotations

import sys

import pytest

from pytest_infer.measure.counters.elsewhere import served
from pytest_infer.measure.counters.elsewhere.served import Served
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.records import Observed, Quality, Reading

# https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md, and what its server writes
LLAMA = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {prompt}
# HELP llamacpp:prompt_tokens_cached_total Number of prompt tokens reused from the cache
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total {cached}
# HELP llamacpp:prompt_seconds_total Prompt process time
# TYPE llamacpp:prompt_seconds_total counter
llamacpp:prompt_seconds_total 235.743
# HELP llamacpp:n_busy_slots_per_decode Average number of busy slots per llama_decode() call
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1.2
# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {running}
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred {waiting}
"""
# https://docs.vllm.ai/en/stable/usage/metrics/
VLLM = """\
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_sum{{model_name="unsloth/Llama-3.2-1B-Instruct"}} 0.0
vllm:iteration_tokens_total_bucket{{le="1.0",model_name="unsloth/Llama-3.2-1B-Instruct"}} 3.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="a \\"b\\" {{c}}"}} {running}
vllm:num_requests_running{{engine="1",model_name="a"}} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="a"}} {waiting}
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="a"}} 0.25
vllm:kv_cache_usage_perc{{engine="1",model_name="a"}} 0.125
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{engine="0",model_name="a"}} {prompt}
# HELP vllm:prefix_cache_queries_created Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{{engine="0",model_name="a"}} 1.7e+09
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="a"}} {cached}
"""
# https://docs.sglang.io/references/production_metrics.html
SGLANG = """\
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{{model_name="m"}} {prompt}
# HELP sglang:cached_tokens_total Number of cached prompt tokens.
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{{cache_source="device",model_name="m"}} {cached}
sglang:cached_tokens_total{{cache_source="host",model_name="m"}} 8.0
# HELP sglang:token_usage The token usage
# TYPE sglang:token_usage gauge
sglang:token_usage{{model_name="m",tp_rank="0"}} 0.28
# HELP sglang:num_running_reqs The number of running requests
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"}} {running}
sglang:num_running_reqs{{engine_type="unified",model_name="m",pp_rank="0",tp_rank="1"}} {running}
# HELP sglang:num_queue_reqs The number of requests in the waiting queue
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{{model_name="m"}} {waiting}
# HELP sglang:cache_hit_rate The cache hit rate
# TYPE sglang:cache_hit_rate gauge
sglang:cache_hit_rate{{model_name="m"}} 0.0075
"""
BEFORE = {"prompt": "8.128902e+06", "cached": "100", "running": "2", "waiting": "3.0"}
AFTER = {"prompt": "8128942", "cached": "132.0", "running": "0", "waiting": "0"}


def window(template: str, before: dict[str, str] = BEFORE, after: dict[str, str] = AFTER) -> dict[str, Reading]:
    texts = iter([template.format(**before), template.format(**after)])
    instrument = Served(lambda: next(texts))
    return instrument.readings(instrument.read(), instrument.read())


@pytest.mark.parametrize(
    ("template", "name", "running", "usage"),
    [
        (LLAMA, "llamacpp:prompt_tokens_cached_total", 2, None),
        (VLLM, "vllm:prefix_cache_hits_total", 3, 25),
        (SGLANG, "sglang:cached_tokens_total", 2, 28),
    ],
    ids=["llama-server", "vllm", "sglang"],
)
def test_what_each_server_tells(template, name, running, usage) -> None:
    found = window(template)
    assert set(found) == set(served.FIGURES)
    assert (found["server_cached_tokens"].value, found["server_cached_tokens"].source) == (32, name)
    assert found["server_prompt_tokens"].value == 40
    assert (found["server_running"].value, found["server_waiting"].value) == (running, 3)
    assert found["server_running"].quality is Quality.SAMPLED
    assert found["server_kv_usage"].value == (None if usage is None else pytest.approx(usage))
    assert all(reading.reason for reading in found.values() if reading.value is None)


def test_older_names_are_known_too() -> None:
    text = "vllm:gpu_prefix_cache_hits_total {cached}\nvllm:gpu_cache_usage_perc 0.5\n"
    found = window(text)
    assert found["server_cached_tokens"].source == "vllm:gpu_prefix_cache_hits_total"
    assert found["server_kv_usage"].value == 50
    assert found["server_prompt_tokens"].reason == "the server does not tell it"


def test_a_server_that_started_over_has_no_growth() -> None:
    found = window(LLAMA, AFTER, BEFORE)
    assert found["server_cached_tokens"].reason == "the server started over within the round"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "<html><body>404 Not Found</body></html>",
        '{"error": {"code": 501, "message": "This server does not support metrics endpoint."}}',
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_hits_total{",
        'vllm:prefix_cache_hits_total{engine="0" 5',
        'vllm:prefix_cache_hits_total{engine="0"} five',
        "vllm:prefix_cache_hits_total NaN",
        "vllm:prefix_cache_hits_total +Inf",
        "llamacpp:prompt_tokens_total \x00\xff",
        "unknown_total 5\nvllm:prefix_cache_hits_totals 5",
    ],
)
def test_damaged_texts_are_a_reason(text) -> None:
    sample = served.parsed(text)
    assert isinstance(sample, Unavailable), sample
    assert "\n" not in sample.reason
    instrument = Served(lambda: text)
    found = instrument.readings(instrument.read(), instrument.read())
    assert all(reading.value is None and reading.reason for reading in found.values())


def test_damage_elsewhere_costs_nothing() -> None:
    assert served.parsed('other{ 5\nvllm:num_requests_running{engine="0"} 1\nmore} {') == {
        "vllm:num_requests_running": 1
    }


def test_a_server_that_cannot_be_asked_is_a_reason() -> None:
    def refused() -> str:
        raise ConnectionRefusedError(111, "Connection refused")

    assert Served(refused).read() == Unavailable("the server's metrics: ConnectionRefusedError: Connection refused")
    assert Served(lambda: None).read() == Unavailable("the server tells no metrics")
    # One that goes within the round.
    instrument = Served(lambda: None)
    found = instrument.readings({"vllm:num_requests_running": 1}, instrument.read())
    assert found["server_running"].reason == "the server tells no metrics"


def test_without_the_extra_the_reason_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.parser", None)
    sample = served.parsed(LLAMA.format(**BEFORE))
    assert sample == Unavailable("prometheus-client is not installed: pip install 'pytest-infer[server]'")


def test_they_are_read_around_a_window_farthest_from_it() -> None:
    order = []
    texts = iter([SGLANG.format(**BEFORE), SGLANG.format(**AFTER)])

    def text() -> str:
        order.append("asked")
        return next(texts)

    system = SystemCounters(observed=Observed(absent="another machine"), text=text)
    before = system.begin()
    assert order == ["asked"]
    counters = system.end(before)
    assert counters.server_cached_tokens.value == 32
    assert counters.cpu_s.reason == "another machine"
    assert type(system._instruments[-1]) is Served
    system.close()
    own = SystemCounters()
    assert own.end(own.begin()).server_running.reason == "the model runs in this process"
    own.close()
