"""Markdown: the reference table of metrics."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_infer.metrics import Metric


def metrics_table(metrics: Iterable[Metric]) -> str:
    """Return the table of docs/metrics.md."""
    lines = ["| key | unit | better | kind | definition | source |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{m.key}` | {m.unit.value} | {m.direction.value} | {m.kind.value} | {m.definition} | {m.source} |"
        for m in metrics
    ]
    return "\n".join(lines) + "\n"
