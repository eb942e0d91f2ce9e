"""Load tests: latency against throughput with intervals and the knee, and every level's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_infer.metrics import Metric, by_key
from pytest_infer.metrics.load import COUNTED, PREFIX
from pytest_infer.report import load
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Item, Note, Section, Table, anchor, head, points
from pytest_infer.report.html.stored import StoredRun
from pytest_infer.units import Unit, scale_of, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_infer.analysis.load.curve import Estimate, LoadCurve, Point

_DRAWN = (("latency", ("latency_p50_s", "latency_p99_s")), ("TTFT", ("ttft_p50_s", "ttft_p99_s")))
_THROUGHPUT = by_key(f"{PREFIX}throughput")
_NO_TAILS = (
    "The generator keeps no stamps between the first token and the last: there are no inter-token latencies under "
    "load, and TPOT is each request's own mean."
)


def section(stored: StoredRun) -> Section | None:
    """Return the levels of a run; None where it has none."""
    if not stored.levels:
        return None
    from pytest_infer.analysis.load import curve  # noqa: PLC0415 - numpy is loaded where it is needed

    found = curve.curves(test.row for test in stored.levels)
    items = [_item(one, number) for number, one in enumerate(found, 1)]
    items.append(Item(title="Levels", text=(_NO_TAILS,), tables=(_table(found),), notes=tuple(_notes(stored))))
    return Section(key="load", title="Load", items=tuple(items))


def _notes(stored: StoredRun) -> list[Note]:
    return [
        Note(mark="!", look="caution", text=warning.text, about=test.title)
        for test in stored.levels
        for warning in test.warnings
    ]


def _item(curve: LoadCurve, number: int) -> Item:
    spaced = "" if curve.arrivals is None else f", {curve.arrivals.value}"
    drawn = [point for point in curve.points if _THROUGHPUT.key in point.figures]
    charts = [_chart(curve, drawn, number, name, keys) for name, keys in _DRAWN] if len(drawn) > 1 else []
    return Item(
        title=f"By {curve.kind.value}{spaced}: {curve.test}",
        text=tuple(load.lines(curve)),
        charts=tuple(charts),
        beside=True,
    )


def _chart(curve: LoadCurve, drawn: Sequence[Point], number: int, name: str, keys: Sequence[str]) -> Chart:
    metrics = [by_key(PREFIX + key) for key in keys]
    unit, scale = scale_of([_value(point, metric) for metric in metrics for point in drawn], Unit.SECONDS)
    at = [_value(point, _THROUGHPUT) for point in drawn]
    series: list[dict[str, Any]] = []
    for metric in metrics:
        found = [point.figures.get(metric.key) for point in drawn]
        series.append(
            {
                "name": metric.label,
                "at": points(at, 1, 4),
                "values": points([None if one is None else one.value for one in found], scale),
                "low": points([_low(one) for one in found], scale),
                "high": points([None if one is None else one.high for one in found], scale),
                "look": "strong",
            }
        )
    knee = curve.knee and next((p for p in drawn if p.level == curve.knee.level), None)
    mark = {} if not knee else {"mark": {"at": points([_value(knee, _THROUGHPUT)], 1)[0], "name": "knee"}}
    names = ", ".join(point.level.name for point in drawn)
    return Chart(
        key=f"load-{number}-{name.lower()}",
        title=f"{name} by throughput, {unit}",
        says=f"Mean over repetitions with 95 % intervals, in the order of the levels: {names}.",
        data={
            "kind": "lines",
            "x": {"name": "throughput", "unit": _THROUGHPUT.unit.value},
            "y": {"name": name, "unit": unit},
            "series": series,
            **mark,
        },
        table=_figures(drawn, [_THROUGHPUT, *metrics], f"{name} by throughput"),
        define=tuple((metric.label, anchor(metric.key)) for metric in (_THROUGHPUT, *metrics)),
    )


def _value(point: Point, metric: Metric) -> float | None:
    found = point.figures.get(metric.key)
    return None if found is None else found.value


def _low(found: Estimate | None) -> float | None:
    return None if found is None or found.low is None else max(0.0, found.low)


def _table(curves: Sequence[LoadCurve]) -> Table:
    keys = [*(key for key, _ in load.COLUMNS), "goodput", "in_flight", "dispatch_p99_s", "cached_percent"]
    metrics = [*(by_key(PREFIX + key) for key in keys), *map(by_key, COUNTED)]
    return _figures(
        [point for curve in curves for point in curve.points], metrics, "Every level, ± half a 95 % interval"
    )


def _figures(found: Sequence[Point], metrics: Sequence[Metric], caption: str) -> Table:
    shown = [metric for metric in metrics if any(metric.key in point.figures for point in found)]
    title = load.titles(found)
    rows = [
        (
            Cell(text=title[point.test], note="; ".join(point.marks) or None),
            *(Cell(text=_text(point.figures.get(metric.key), metric), sort=_value(point, metric)) for metric in shown),
        )
        for point in found
    ]
    heads = (ColumnHead(text="level", number=False), *(head(metric, "") for metric in shown))
    return Table(caption=caption, heads=heads, rows=tuple(rows))


def _text(found: Estimate | None, metric: Metric) -> str:
    return f"{show(None if found is None else found.value, metric.unit)} {load.interval(found)}".rstrip()
