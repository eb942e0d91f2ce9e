"""Curves over the length of the prompt: TTFT with its fit, and TPOT by the depth of the context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics import Metric, by_key
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Item, Table, anchor, head, points, short
from pytest_infer.report.sweep import curve as sentences
from pytest_infer.storage.runs import Row
from pytest_infer.units import count, scale_of

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.curve import Curve

_DRAWN = 60
"""Points of a fitted line."""


def items(rows: Iterable[Row]) -> list[Item]:
    """Return an item for each curve that rows are points of."""
    from pytest_infer.analysis.sweep import curve  # noqa: PLC0415 - numpy and scipy are loaded where they are needed

    return [_item(found, number) for number, found in enumerate(curve.curves(rows), 1)]


def _item(curve: Curve, number: int) -> Item:
    title = " ".join(part for part in (curve.prompt, label(curve.config)) if part)
    charts = [_ttft(curve, number)]
    depths = [(p.depth, p.tpot_s) for p in curve.points if p.depth is not None and p.tpot_s is not None]
    if len(depths) > 1:
        charts.append(_tpot(curve, number, [d for d, _ in depths], [t for _, t in depths]))
    return Item(
        title=f"By prompt length: {title}",
        text=(*sentences.prefill(curve), *sentences.decode(curve)),
        charts=tuple(charts),
    )


def _ttft(curve: Curve, number: int) -> Chart:
    fit = curve.prefill
    lengths = [float(point.tokens) for point in curve.points]

    def fitted(n: float) -> float:
        return 0.0 if fit is None else fit.constant.value + fit.linear.value * n + fit.quadratic.value * n * n

    times = [point.ttft_s for point in curve.points]
    return _chart(f"curve-{number}-ttft", by_key("ttft_s"), "prompt length", lengths, times, fitted if fit else None)


def _tpot(curve: Curve, number: int, depths: Sequence[float], times: Sequence[float]) -> Chart:
    fit = curve.decode

    def fitted(depth: float) -> float:
        return 0.0 if fit is None else fit.constant.value + fit.per_token.value * depth

    return _chart(f"curve-{number}-tpot", by_key("tpot_s"), "context depth", depths, times, fitted if fit else None)


def _chart(
    key: str,
    metric: Metric,
    over: str,
    xs: Sequence[float],
    ys: Sequence[float],
    fitted: Callable[[float], float] | None,
) -> Chart:
    unit, scale = scale_of(ys, metric.unit)
    series: list[dict[str, Any]] = [
        {"name": "measured", "at": [*xs], "values": points(ys, scale), "look": "points" if fitted else "strong"}
    ]
    if fitted is not None:
        series.append(fit("fit", fitted, xs, scale))
    rows = tuple(
        (
            Cell(text=count(x)),
            Cell(text=short(y, scale)),
            *([Cell(text=short(fitted(x), scale))] if fitted is not None else []),
        )
        for x, y in zip(xs, ys, strict=True)
    )
    heads = (
        ColumnHead(text=over, unit="tokens"),
        head(metric, unit),
        *([ColumnHead(text="fit", unit=unit)] if fitted else []),
    )
    return Chart(
        key=key,
        title=f"{metric.label} by {over}, {unit}",
        says=f"{len(xs)} lengths from {count(xs[0])} to {count(xs[-1])} tokens, median of the rounds.",
        data={
            "kind": "lines",
            "x": {"name": over, "unit": "tokens"},
            "y": {"name": metric.label, "unit": unit},
            "series": series,
        },
        table=Table(caption=f"{metric.label} by {over}", heads=heads, rows=rows),
        define=((metric.label, anchor(metric.key)),),
    )


def fit(name: str, fitted: Callable[[float], float], over: Sequence[float], scale: float) -> dict[str, Any]:
    """Return a fitted line over the lengths that were measured."""
    at = [over[0] + (over[-1] - over[0]) * step / _DRAWN for step in range(_DRAWN + 1)]
    return {"name": name, "at": points(at, 1, 6), "values": points([*map(fitted, at)], scale), "look": "strong"}
