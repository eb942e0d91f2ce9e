"""A prompt's card: what the table leaves out, under the names of what it is about."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from pytest_infer.metrics import by_key
from pytest_infer.metrics.result import Result
from pytest_infer.report.show.table import packed, spread
from pytest_infer.report.text import printable
from pytest_infer.units import show

_LINES = {
    "tokens": ("prompt_tokens", "generated_tokens", "total_tokens"),
    "timing": ("ttft_s", "prefill_s", "decode_s", "total_s"),
    "latency": ("tpot_s", "itl_p50_s", "itl_p90_s", "itl_p95_s", "itl_p99_s", "itl_max_s"),
    "throughput": ("overall_throughput", "prefill_throughput", "decode_throughput"),
    "memory": ("peak_rss_bytes", "memory_percent", "rss_bytes", "memory_growth_bytes", "device_peak_bytes"),
    "CPU": ("cpu_utilization", "cores_used", "cpu_s", "frequency_hz"),
    "disk": ("read_bytes", "write_bytes"),
    "server": (
        "server_prompt_tokens",
        "server_cached_tokens",
        "server_running",
        "server_waiting",
        "server_kv_usage",
        "client_cores",
    ),
    "experts": ("hottest_experts", "expert_imbalance", "expert_coverage_percent"),
}
"""The figures of each line, by the word that it begins with."""
_INDENT = max(map(len, _LINES)) + 4


def write(console: Console, result: Result, title: str) -> None:
    """Write a prompt's card: a line a subject, then what it generated."""
    console.print(Text(printable(title), style="bold"))
    room = max(1, console.width - _INDENT)
    for word, keys in _LINES.items():
        for number, line in enumerate(packed(_figures(result, keys), room)):
            console.print(Text(f"  {'' if number else word}".ljust(_INDENT) + line))
    for number, part in enumerate(Text(printable(result.output), style="dim").wrap(console, room)):
        console.print(Text(f"  {'' if number else 'output'}".ljust(_INDENT)).append_text(part))


def _figures(result: Result, keys: tuple[str, ...]) -> Iterator[str]:
    """Yield each figure with how much the rounds scatter; absent ones are left out."""
    for key in keys:
        figure, metric = result.figures[key], by_key(key)
        if figure.value is None:
            continue
        scatter = spread(figure) if figure.rounds and metric.moved_by_load else ""
        yield printable(f"{metric.label} {show(figure.value, metric.unit)}{' ' if scatter else ''}{scatter}")
