"""A sweep or a curve of two sides: both sides' points and fits, what changed at each length and configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.sweep.from_length import BEYOND
from pytest_infer.metrics import by_key
from pytest_infer.report.compare.words import p_value
from pytest_infer.report.html.compare import drawn, reach
from pytest_infer.report.html.curve import fit
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Interval, Item, Table, anchor, head, points, short
from pytest_infer.report.sweep import sides as words
from pytest_infer.units import count, scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_infer.analysis.sweep.sides import Change, CurveSides, FigureSides, SweptSides

_TINTS = (("c2", 12), ("c1", 7))
"""The other side's colour and size of points, and this checkout's: of two points at one place both are seen."""


def items(found: SweptSides) -> list[Item]:
    """Return an item for each curve, and one for the configurations."""
    made = [_curve(one, found.before, number) for number, one in enumerate(found.curves, 1)]
    if found.configurations:
        made.append(_configurations(found))
    if found.left_out:
        made.append(Item(title="Not compared", text=tuple(words.left_out(found))))
    return made


def _curve(one: CurveSides, before: str, number: int) -> Item:
    charts = [chart for figure in one.figures if (chart := _chart(one, figure, before, number)) is not None]
    fitted = any(figure.coefficients for figure in one.figures)
    return Item(
        title=f"By prompt length, {before} and {words.AFTER}: {words.title(one)}",
        text=(*words.sentences(one), *((words.deviations(one),) if fitted else ())),
        charts=tuple(charts),
        tables=(*(_lengths(one, figure) for figure in one.figures), *((_coefficients(one),) if fitted else ())),
    )


def _chart(one: CurveSides, figure: FigureSides, before: str, number: int) -> Chart | None:
    key = figure.metric_key
    metric = by_key(key)
    at = words.places(one.after, key)
    times = [words.times(side, key) for side in (one.before, one.after)]
    if len(at) < 2 or any(len(values) != len(at) for values in times):
        return None
    over = "prompt length" if key == "ttft_s" else "context depth"
    unit, scale = scale_of([*times[0], *times[1]], metric.unit)
    series: list[dict[str, Any]] = []
    sides = zip((one.before, one.after), times, (before, words.AFTER), _TINTS, strict=True)
    for side, values, name, (tint, size) in sides:
        series += [
            {"name": name, "at": at, "values": points(values, scale), "look": "points", "tint": tint, "size": size}
        ]
        if (fitted := words.fitted(side, key)) is not None:
            series.append({**fit(name, fitted, at, scale), "tint": tint})
    return Chart(
        key=f"sides-{number}-{key}",
        title=f"{metric.label} by {over} on both sides, {unit}",
        says=f"{len(at)} lengths from {count(at[0])} to {count(at[-1])} tokens; points are on the level of both sides' "
        "rounds and apart by the change.",
        data={
            "kind": "lines",
            "x": {"name": over, "unit": "tokens"},
            "y": {"name": metric.label, "unit": unit},
            "series": series,
        },
        table=_times(one, figure, times, over, unit, scale),
        define=((metric.label, anchor(key)), ("interval", anchor("interval"))),
    )


def _times(
    one: CurveSides, figure: FigureSides, times: Sequence[Sequence[float]], over: str, unit: str, scale: float
) -> Table:
    """Return what is drawn as a table."""
    at = words.places(one.after, figure.metric_key)
    rows = tuple(
        (Cell(text=count(x)), Cell(text=short(before, scale)), Cell(text=short(after, scale)))
        for x, before, after in zip(at, *times, strict=True)
    )
    heads = (
        ColumnHead(text=over, unit="tokens"),
        ColumnHead(text="before", unit=unit),
        ColumnHead(text="after", unit=unit),
    )
    return Table(caption=f"{by_key(figure.metric_key).label} by {over} on both sides", heads=heads, rows=rows)


def _lengths(one: CurveSides, figure: FigureSides) -> Table:
    """Return the change at each length."""
    metric = by_key(figure.metric_key)
    widest = reach((j.low, j.mid, j.high) for j in figure.judgements)
    claimed = {n: claim.worse for claim in figure.finding.claims for n in claim.numbers}
    looks = {True: "regressed", False: "improved", None: "unchanged"}
    rows = []
    for number, j in enumerate(figure.judgements):
        shown = drawn((j.low, j.mid, j.high), widest, BEYOND, looks[claimed.get(number)])
        rows.append(
            (
                Cell(text=count(one.after.points[number].tokens)),
                Cell(text=words.change(j.mid, j.low, j.high), note=j.reason if j.low is None else None),
                Cell(text="", drawn=shown),
                Cell(text=p_value(j.p)),
            )
        )
    heads = (
        ColumnHead(text="prompt length", unit="tokens"),
        ColumnHead(text="change", define=anchor("interval")),
        ColumnHead(text="drawn", unit=f"± {100 * widest:.3g} %", define=anchor("interval"), number=False),
        ColumnHead(text="p", define=anchor("p")),
    )
    return Table(
        caption=f"Change of {metric.label} by prompt length, with 99 % intervals", heads=heads, rows=tuple(rows)
    )


def _coefficients(one: CurveSides) -> Table:
    heads = (
        ColumnHead(text="fit", number=False),
        ColumnHead(text="part", number=False),
        ColumnHead(text="before", define=anchor("interval")),
        ColumnHead(text="after", define=anchor("interval")),
        ColumnHead(text="change", define=anchor("interval")),
    )
    rows = tuple(
        (
            Cell(text=by_key(figure.metric_key).label, link=anchor(figure.metric_key), look="" if not n else "same"),
            Cell(text=coefficient.name),
            Cell(text=words.each(coefficient.before), sort=coefficient.before.value),
            Cell(text=words.each(coefficient.after), sort=coefficient.after.value),
            Cell(text=words.coefficient_change(coefficient)),
        )
        for figure in one.figures
        for n, coefficient in enumerate(figure.coefficients)
    )
    caption = "Coefficients of the fits with 95 % intervals; their changes, of the lengths' own changes, with 99 %"
    return Table(caption=caption, heads=heads, rows=rows)


def _configurations(found: SweptSides) -> Item:
    heads = [ColumnHead(text="configuration", number=False, define=anchor("configuration"))]
    rows = [[Cell(text=one.label)] for one in found.configurations]
    for key in words.measured(found.configurations):
        changes = [one.changes.get(key) for one in found.configurations]
        widest = reach((it.low, it.mid, it.high) for it in changes if it is not None)
        heads.append(head(by_key(key), ""))
        for row, it in zip(rows, changes, strict=True):
            row.append(Cell(text=words.cell(it)))
        if any(it is not None and it.low is not None for it in changes):
            scale = f"± {100 * widest:.3g} %"
            heads.append(ColumnHead(text="drawn", unit=scale, number=False, define=anchor("interval")))
            for row, it in zip(rows, changes, strict=True):
                row.append(Cell(text="", drawn=_drawn(it, widest)))
    return Item(
        title=f"By configuration, {words.AFTER} against {found.before}",
        text=tuple(words.of_configurations(found.configurations)),
        tables=(
            Table(
                caption="Geometric means of the changes over the prompts, with 99 % intervals",
                heads=tuple(heads),
                rows=tuple(map(tuple, rows)),
            ),
        ),
    )


def _drawn(it: Change | None, widest: float) -> Interval | None:
    if it is None:
        return None
    look = "unchanged" if not it.shown else "regressed" if it.mid > 0 else "improved"
    return drawn((it.low, it.mid, it.high), widest, BEYOND, look)
