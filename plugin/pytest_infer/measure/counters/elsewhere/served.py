"""What a server tells of itself: its metrics as Prometheus text, read before and after a window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from pytest_infer import untrusted
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable
from pytest_infer.records import Quality, Reading, absent

MISSING = "prometheus-client is not installed: pip install 'pytest-infer[server]'"

COUNTS: Mapping[str, tuple[str, ...]] = {
    "server_cached_tokens": (
        "llamacpp:prompt_tokens_cached_total",
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
        "sglang:cached_tokens_total",
    ),
    "server_prompt_tokens": (
        "llamacpp:prompt_tokens_total",
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries_total",
        "sglang:prompt_tokens_total",
    ),
}
"""Counters of llama-server, vLLM and SGLang as they document them, older names last; the growth in a window counts.

llama-server counts the tokens that it computed, the others those that they looked up, the cached ones among them.
"""
BEFORE: Mapping[str, tuple[str, ...]] = {
    "server_running": ("llamacpp:requests_processing", "vllm:num_requests_running", "sglang:num_running_reqs"),
    "server_waiting": ("llamacpp:requests_deferred", "vllm:num_requests_waiting", "sglang:num_queue_reqs"),
}
"""States that count as they are right before a window, when a request of ours does not run: those of other clients."""
AFTER: Mapping[str, tuple[str, ...]] = {
    "server_kv_usage": (
        "llamacpp:kv_cache_usage_ratio",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "sglang:token_usage",
    ),
}
"""States that count as they are right after a window, as shares of one."""

FIGURES = (*COUNTS, *BEFORE, *AFTER)
_NAMES = frozenset(name for kind in (COUNTS, BEFORE, AFTER) for names in kind.values() for name in names)
_SHARES = frozenset(name for names in AFTER.values() for name in names)
_RANKS = ("tp_rank", "pp_rank", "moe_ep_rank")
"""Labels of processes that share one model: each tells what the first one does."""


class Served:
    """A server's own account of itself; `text` returns it, or raises whatever asking for it raises."""

    def __init__(self, text: Callable[[], str | None]) -> None:
        self._text = text

    def read(self) -> Sample | Unavailable:
        """Return the values that are known here, by the server's own names."""
        try:
            told = self._text()
        except Exception as error:  # noqa: BLE001 - of whatever client asks the server
            return Unavailable(f"the server's metrics: {untrusted.failure(error)}")
        if told is None:
            return Unavailable("the server tells no metrics")
        return parsed(told)

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the growth of counters, and states before and after, each with the server's own name as its source."""
        if isinstance(before, Unavailable):
            return dict.fromkeys(FIGURES, absent(before.reason, "/metrics"))
        if isinstance(after, Unavailable):
            return dict.fromkeys(FIGURES, absent(after.reason, "/metrics"))
        found = {figure: _grown(names, before, after) for figure, names in COUNTS.items()}
        found |= {figure: _state(names, before) for figure, names in BEFORE.items()}
        return found | {figure: _state(names, after) for figure, names in AFTER.items()}

    def close(self) -> None:
        """Nothing is held open."""


def parsed(text: str) -> Sample | Unavailable:
    """Return the values of known names in Prometheus' text format, over all labels: sums, or the largest of shares."""
    try:
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - an extra
    except ImportError:
        return Unavailable(MISSING)
    sample: Sample = {}
    try:
        # A server has thousands of lines, mostly of histograms: the parser is given those that are known here.
        for family in text_string_to_metric_families("\n".join(_known(text)) + "\n"):
            for one in family.samples:
                if one.name in _NAMES and math.isfinite(one.value) and _first(one.labels):
                    old = sample.get(one.name, 0.0)
                    sample[one.name] = max(old, one.value) if one.name in _SHARES else old + one.value
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Unavailable(f"the server's metrics are not in the expected form: {untrusted.reason(error)[:100]}")
    return sample or Unavailable("the server's metrics have none of the names that are known here")


def _known(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.partition("{")[0].partition(" ")[0] in _NAMES:
            yield line


def _first(labels: Mapping[str, str]) -> bool:
    return all(labels.get(name, "0") == "0" for name in _RANKS)


def _grown(names: tuple[str, ...], before: Sample, after: Sample) -> Reading:
    for name in names:
        if name in before and name in after:
            grown = after[name] - before[name]
            if grown < 0:
                return absent("the server started over within the round", name)
            return Reading(value=_whole(grown), source=name)
    return absent("the server does not tell it", names[0])


def _state(names: tuple[str, ...], sample: Sample) -> Reading:
    for name in names:
        if name in sample:
            share = name in _SHARES
            value = 100 * sample[name] if share else _whole(sample[name])
            return Reading(value=value, source=name, quality=Quality.SAMPLED)
    return absent("the server does not tell it", names[0])


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value
