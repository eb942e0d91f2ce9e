"""The table of metrics, for people and as the reference in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from pytest_infer.metrics import Metric
from pytest_infer.report import text


def render(metrics: Iterable[Metric], *, width: int, color: bool) -> str:
    """Return a row a metric: key, unit, which way is better, definition."""
    console = text.console(width, color=color)
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "unit", "better", "definition"):
        table.add_column(heading, overflow="fold")
    for metric in metrics:
        table.add_row(metric.key, metric.unit.value, metric.direction.value, metric.definition)
    console.print(table)
    return text.collected(console)


def as_markdown(metrics: Iterable[Metric]) -> str:
    """Return the table of docs/metrics.md."""
    lines = ["| key | unit | better | kind | of | definition | source |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| `{m.key}` | {m.unit.value} | {m.direction.value} | {m.kind.value} | {m.scope.value} | {m.definition} "
        f"| {m.source} |"
        for m in metrics
    ]
    return "\n".join(lines) + "\n"
