"""Times and rates of one generation, derived from its raw stamps; definitions in docs/metrics.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pytest_infer.records import TokenTrace

NS = 1_000_000_000


def prompt_tokens(trace: TokenTrace) -> int | None:
    """Return how many ids were fed; None where neither the engine nor a server counted them."""
    return trace.prompt_tokens or None


def total_tokens(trace: TokenTrace) -> int | None:
    """Return prompt and generated tokens; None where those of the prompt are unknown."""
    return trace.prompt_tokens + generated_tokens(trace) if trace.prompt_tokens else None


def generated_tokens(trace: TokenTrace) -> int:
    """Return how many ids were produced; an end-of-sequence id counts."""
    return sum(trace.tick_sizes)


def ttft_s(trace: TokenTrace) -> float | None:
    """Return the time to first token: first tick minus start, seconds."""
    return (trace.stamps_ns[0] - trace.start_ns) / NS if trace.stamps_ns else None


def prefill_s(trace: TokenTrace) -> float | None:
    """Return the time of the prompt's own forward pass and the choice of the first token, seconds.

    It equals TTFT unless the engine distinguished the two (a server's queue, a network).
    """
    if trace.prefill_end_ns is None:
        return ttft_s(trace)
    return (trace.prefill_end_ns - trace.start_ns) / NS


def decode_s(trace: TokenTrace) -> float | None:
    """Return last tick minus first tick, seconds; None where there is only one, or all came in one read."""
    stamps = trace.stamps_ns
    return (stamps[-1] - stamps[0]) / NS if stamps and stamps[-1] > stamps[0] else None


def total_s(trace: TokenTrace) -> float | None:
    """Return last tick minus start, seconds."""
    return (trace.stamps_ns[-1] - trace.start_ns) / NS if trace.stamps_ns else None


def decode_tokens(trace: TokenTrace) -> int:
    """Return the tokens that the decode time covers: all but those of the first tick (n - 1 for one token a tick)."""
    return sum(trace.tick_sizes[1:])


def inter_token_latencies_s(trace: TokenTrace) -> list[float]:
    """Return the gaps between ticks in order, seconds, none of one read; a tick of several tokens ends one gap."""
    if decode_s(trace) is None:
        return []
    return [(b - a) / NS for a, b in zip(trace.stamps_ns, trace.stamps_ns[1:], strict=False)]


def tpot_s(trace: TokenTrace) -> float | None:
    """Return the time per output token: decode time / tokens it covers, seconds."""
    decode = decode_s(trace)
    return None if decode is None else decode / decode_tokens(trace)


def _rate(tokens: int | None, seconds: float | None) -> float | None:
    return tokens / seconds if seconds and tokens else None


def overall_throughput(trace: TokenTrace) -> float | None:
    """Return (prompt + generated) / total time, tokens per second."""
    return _rate(total_tokens(trace), total_s(trace))


def prefill_throughput(trace: TokenTrace) -> float | None:
    """Return prompt tokens / prefill time, tokens per second."""
    return _rate(trace.prompt_tokens, prefill_s(trace))


def decode_throughput(trace: TokenTrace) -> float | None:
    """Return tokens after the first tick / decode time, tokens per second: 1 / TPOT."""
    return _rate(decode_tokens(trace), decode_s(trace))


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the percentile, linear between order statistics (Hyndman & Fan 1996, type 7; numpy's default)."""
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
