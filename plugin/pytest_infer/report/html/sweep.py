"""A sweep: what it recommends, which configurations no other beats, and how each compares with the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis import axes
from pytest_infer.metrics import Metric, by_key
from pytest_infer.report.html.parts import Cell, Chart, Head, Item, Section, Table, anchor, head, points, short
from pytest_infer.report.html.stored import Stored, Test
from pytest_infer.units import Unit, column, scale_of, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.recommend import Configuration, Ratio, Recommendation

_TITLE = "Recommendation"
_CURVES = {"prompt_tokens": ("ttft_s", "prompt length"), "context_depth": ("decode_throughput", "context depth")}


def section(stored: Stored) -> Section:
    """Return the sweep of a run, with its curves over lengths, or why there is none."""
    from pytest_infer.analysis import recommend  # noqa: PLC0415 - numpy and scipy are loaded where they are needed

    curves = tuple(chart for axis in _CURVES if (chart := _curve(stored.tests, axis)) is not None)
    found = recommend.recommend(test.row for test in stored.tests)
    items = [] if found is None else _items(found)
    if curves:
        items.append(Item(title="Over lengths", charts=curves))
    if items:
        return Section(key="sweep", title="Sweep", items=tuple(items))
    swept = any(test.row.config for test in stored.tests)
    why = (
        "fewer than two configurations were measured" if swept else "no option was swept (`--infer-sweep threads=1,2`)"
    )
    return Section(key="sweep", title="Sweep", absent=why)


def _items(found: Recommendation) -> list[Item]:
    first, text = found.configurations[0], []
    for goal in found.goals:
        best, metric = found.configurations[goal.best], by_key(goal.metric)
        figure = best.figures[goal.metric]
        against = "" if best is first or figure.ratio is None else f", {_ratio(figure.ratio)} × that of {first.label}"
        ties = ", ".join(found.configurations[number].label for number in goal.ties)
        same = f"; not to be told from it: {ties}" if ties else ""
        unit, (value,) = column([figure.value], metric.unit)
        text.append(f"Best {metric.label}: {best.label} with {value} {unit}{against}{same}.")
    if found.options:
        text.append(f"The options of the best for decode: {found.options}")
    if found.left_out:
        text.append(f"Left out, for they share no measured prompt with the first: {', '.join(found.left_out)}.")
    charts = (_pareto(found),) if all(len(c.figures) > 1 for c in found.configurations) else ()
    return [
        Item(title=_TITLE, text=tuple(text), charts=charts, tables=(_table(found),)),
    ]


def recommended(section: Section) -> tuple[str, ...]:
    """Return the lines of the recommendation, for the overview to begin with."""
    return next((item.text for item in section.items if item.title == _TITLE), ())


def _ratio(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _metrics(found: Recommendation) -> list[Metric]:
    return [by_key(goal.metric) for goal in found.goals]


def _figure(configuration: Configuration, metric: Metric) -> float | None:
    figure = configuration.figures.get(metric.key)
    return None if figure is None else figure.value


def _table(found: Recommendation) -> Table:
    metrics, configurations = _metrics(found), found.configurations
    columns = [column([_figure(c, metric) for c in configurations], metric.unit) for metric in metrics]
    heads = [
        Head(text="configuration", number=False, define=anchor("configuration")),
        Head(text="best in", number=False, define=anchor("pareto")),
    ]
    for metric, (unit, _) in zip(metrics, columns, strict=True):
        heads += [head(metric, unit), Head(text="× first", define=anchor("interval"))]
    rows = []
    for number, one in enumerate(configurations):
        best = [by_key(goal.metric).label for goal in found.goals if goal.best == number]
        said = best or (["Pareto set"] if one.pareto else [])
        cells = [Cell(text=one.label), Cell(text=", ".join(said), look="pill improved" if best else "pill unchanged")]
        for metric, (_, figures) in zip(metrics, columns, strict=True):
            ratio = one.figures[metric.key].ratio if metric.key in one.figures else None
            cells += [Cell(text=figures[number]), Cell(text="" if ratio is None or not number else _ratio(ratio))]
        rows.append(tuple(cells))
    caption = f"Geometric means over the prompts; × first with {100 * found.confidence:g} % intervals"
    return Table(caption=caption, heads=tuple(heads), rows=tuple(rows))


def _pareto(found: Recommendation) -> Chart:
    metrics = {metric.unit: metric for metric in _metrics(found)}
    ttft = next(metric for metric in _metrics(found) if metric.unit is not Unit.TOKENS_PER_SECOND)
    decode = metrics.get(Unit.TOKENS_PER_SECOND, _metrics(found)[0])
    xs, ys = ([_figure(c, metric) for c in found.configurations] for metric in (ttft, decode))
    (x_unit, x_scale), (y_unit, y_scale) = scale_of(xs, ttft.unit), scale_of(ys, decode.unit)
    peak = metrics.get(Unit.BYTES)
    held = [None if peak is None else _figure(c, peak) for c in found.configurations]
    z_unit, z_scale = scale_of(held, Unit.BYTES)
    known = [value for value in held if value]
    sizes = (
        f" Larger points use more memory ({short(min(known), z_scale)}–{short(max(known), z_scale)} {z_unit})."
        if known
        else ""
    )
    return Chart(
        key="pareto",
        title="What no other configuration beats",
        says=f"Up and to the left is better; filled points are the Pareto set.{sizes}",
        data={
            "kind": "scatter",
            "x": {"name": ttft.label, "unit": x_unit},
            "y": {"name": decode.label, "unit": y_unit},
            "points": [
                {
                    "name": c.label,
                    "x": points([x], x_scale)[0],
                    "y": points([y], y_scale)[0],
                    "z": points([z], z_scale)[0],
                    "zunit": z_unit,
                    "front": c.pareto,
                }
                for c, x, y, z in zip(found.configurations, xs, ys, held, strict=True)
            ],
        },
        table=_table(found),
        define=(("Pareto set", anchor("pareto")), (decode.label, anchor(decode.key)), (ttft.label, anchor(ttft.key))),
    )


def _curve(tests: Sequence[Test], axis: str) -> Chart | None:
    """Return a figure over a length, from the tests that stand on such a curve."""
    key, name = _CURVES[axis]
    metric = by_key(key)
    on: list[tuple[Any, Test]] = sorted(
        (
            (test.part("curve", "value"), test)
            for test in tests
            if test.part("curve", "axis") == axis and key in test.row.metrics
        ),
        key=lambda pair: float(pair[0]),
    )
    if len(on) < 2:
        return None
    groups: dict[str, list[tuple[float, Test]]] = {}
    for value, test in on:
        label = axes.label(axes.choices(test.row.config))
        groups.setdefault(label or metric.label, []).append((float(value), test))
    unit, scale = scale_of([test.value(key) for _, test in on], metric.unit)
    series = [
        {
            "name": label,
            "at": [value for value, _ in found],
            "values": points([test.value(key) for _, test in found], scale),
            "look": "strong",
        }
        for label, found in groups.items()
    ]
    rows = tuple(
        (Cell(text=significant(float(value))), Cell(text=short(test.value(key), scale)), Cell(text=test.title))
        for value, test in on
    )
    return Chart(
        key=f"curve-{axis}",
        title=f"{metric.label} over {name}",
        says=f"{len(on)} lengths from {on[0][0]} to {on[-1][0]} tokens, median of the rounds.",
        data={
            "kind": "lines",
            "x": {"name": name, "unit": "tokens"},
            "y": {"name": metric.label, "unit": unit},
            "series": series,
        },
        table=Table(
            caption=f"{metric.label} over {name}",
            heads=(Head(text=name, unit="tokens"), head(metric, unit), Head(text="test", number=False)),
            rows=rows,
        ),
        define=((metric.label, anchor(key)),),
    )
