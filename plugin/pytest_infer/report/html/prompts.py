"""A part for each prompt: phases, inter-token latency, the profile round's timeline, every round, every figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_infer.metrics import METRICS, by_key
from pytest_infer.metrics.summary import why_not
from pytest_infer.report.html import charts as drawings
from pytest_infer.report.html.anchors import of_metric
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Item, Section, Table, anchor, head, short
from pytest_infer.report.html.stored import StoredRun, Test
from pytest_infer.storage.schema import StoredLimits, StoredOutput
from pytest_infer.units import NONE, Unit, column, scale_of, show

_ROUNDS = ("ttft_s", "decode_s", "total_s", "tpot_s", "itl_p99_s", "peak_rss_bytes", "cpu_utilization", "energy_j")


def section(stored: StoredRun, earlier: StoredRun | None = None, names: tuple[str, str] = ("", "")) -> Section:
    """Return all prompts of a run, latencies over those of an earlier one; `names` are what both are called."""
    if not stored.tests:
        return Section(key="prompts", title="Prompts", absent=stored.nothing)
    arrays, why = stored.sidecar
    other = None if earlier is None else drawings.Other(names=names, arrays=earlier.sidecar[0])
    items = tuple(_item(test, arrays, why, other) for test in stored.tests)
    return Section(key="prompts", title="Prompts", items=items, extra={"about": [_about(t) for t in stored.tests]})


def _item(test: Test, arrays: Mapping[str, Any], why: str | None, other: drawings.Other | None) -> Item:
    charts, missing = [], []
    for made in (drawings.over_tokens(test, arrays, why, other), drawings.distribution(test, arrays, why, other)):
        charts += [made] if isinstance(made, Chart) else []
        missing += [] if isinstance(made, Chart) else [made]
    for made in drawings.memory(test, arrays, why):
        charts += [made] if isinstance(made, Chart) else []
        missing += [] if isinstance(made, Chart) else [made]
    return Item(
        title=test.title,
        key=test.key,
        text=tuple(dict.fromkeys(missing)),
        charts=tuple(charts),
        tables=(*_rounds(test), *_figures(test)),
    )


def _about(test: Test) -> dict[str, Any]:
    """Return what stands above a prompt's charts: its phases as a bar, its limits, output, and doubts."""
    prompt, output = test.block.prompt, test.block.output or StoredOutput()
    limits = prompt.limits or StoredLimits()
    facts = {
        "limit": f"{NONE if limits.max_new_tokens is None else limits.max_new_tokens} new tokens",
        "stop strings": " · ".join(map(repr, limits.stop or ())),
        "group": prompt.group,
        "tags": ", ".join(test.row.tags),
        "ended by": output.stopped_by,
        "prompt's SHA-256": (prompt.content_sha256 or "")[:12],
        "test": test.row.test,
    }
    return {
        "facts": {name: value for name, value in facts.items() if value},
        "phases": _phases(test),
        "output": output.text,
        "equal": output.equal,
        "varied": output.varied,
        "unit": "token" if output.by is None else "character",
        "first_difference": output.first_difference,
        "warnings": [warning.text for warning in test.warnings],
    }


def _phases(test: Test) -> list[dict[str, Any]]:
    """Return the phases in permille of their sum, with their times."""
    known = [(key, value) for key in ("tokenize_s", "prefill_s", "decode_s") if (value := test.value(key))]
    total, start, found = sum(value for _, value in known), 0.0, []
    for key, value in known:
        part = 1000 * value / total
        metric = by_key(key)
        found.append(
            {
                "key": key.removesuffix("_s"),
                "label": metric.label,
                "define": anchor(key),
                "start": round(start, 2),
                "part": round(part, 2),
                "time": show(value, Unit.SECONDS),
            }
        )
        start += part
    return found


def _rounds(test: Test) -> list[Table]:
    """Return the table of rounds; nothing where there was one only."""
    counts = [len(test.row.metrics[key].rounds) for key in _ROUNDS if key in test.row.metrics]
    if not counts or max(counts) < 2:
        return []
    disturbed = test.block.rounds.disturbed if test.block.rounds is not None else {}
    heads: list[ColumnHead] = [ColumnHead(text="round")]
    columns = []
    for key in _ROUNDS:
        found = test.row.metrics.get(key)
        if found is None or len(found.rounds) != max(counts):
            continue
        unit, figures = column(found.rounds, by_key(key).unit)
        heads.append(head(by_key(key), unit))
        columns.append(figures)
    rows = [
        (
            Cell(text=str(number + 1)),
            *(Cell(text=figures[number]) for figures in columns),
            Cell(text="; ".join(disturbed.get(str(number), ()))),
        )
        for number in range(max(counts))
    ]
    heads.append(ColumnHead(text="disturbed by", number=False))
    return [Table(caption="Every timed round", heads=tuple(heads), rows=tuple(rows))]


def _figures(test: Test) -> list[Table]:
    """Return every figure of the table of metrics, with its spread and quality, and why the others are absent.

    Those of a load test have no place at a prompt.
    """
    there, absent = [], []
    for metric in METRICS:
        if why_not(metric, under_load=False) is not None:
            continue
        name = Cell(text=metric.label, link=anchor(metric.key), key=f"{test.key}-{of_metric(metric)}")
        found = (test.block.metrics or {}).get(metric.key)
        if found is None:
            why = test.absent(metric.key) or "this run's version of pytest-infer did not measure it"
            absent.append((name, Cell(text=why)))
            continue
        spread = NONE
        if len(found.rounds) > 1:
            _, scale = scale_of([float(found.value)] if not isinstance(found.value, str) else [], metric.unit)
            spread = NONE if found.stdev is None else short(found.stdev, scale)
        quality = "" if found.quality == "exact" else found.quality
        there.append(
            (
                name,
                Cell(text=_shown(found.value, metric.unit), sort=_number(found.value)),
                Cell(text=spread, sort=found.stdev),
                Cell(text=quality),
                Cell(text=found.source or metric.source),
            )
        )
    heads = (
        ColumnHead(text="figure", number=False),
        ColumnHead(text="median"),
        ColumnHead(text="± sd", define=anchor("sd")),
        ColumnHead(text="quality", define=anchor("quality"), number=False),
        ColumnHead(text="source", number=False),
    )
    reasons = (ColumnHead(text="figure", number=False), ColumnHead(text="why there is none", number=False))
    return [
        Table(caption="All figures", heads=heads, rows=tuple(there)),
        *([Table(caption="Absent", heads=reasons, rows=tuple(absent))] if absent else []),
    ]


def _number(value: float | str) -> float | None:
    return None if isinstance(value, str) else value


def _shown(value: float | str, unit: Unit) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else show(value, unit)
