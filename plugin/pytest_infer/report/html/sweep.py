"""A sweep: what it recommends, which configurations no other beats, and how each compares with the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infer.metrics import Metric, by_key
from pytest_infer.report.html import curve, sides
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Item, Section, Table, anchor, head, points, short
from pytest_infer.report.html.stored import StoredRun
from pytest_infer.report.sweep import terminal as sweep
from pytest_infer.units import Unit, column, scale_of

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.ratios import Ratio
    from pytest_infer.analysis.sweep.recommend import ConfigurationSummary, Recommendation

_TITLE = "Recommendation"


def section(stored: StoredRun) -> Section:
    """Return the sweep of a run, with its curves over lengths, or why there is none."""
    from pytest_infer.analysis.sweep import (  # noqa: PLC0415 - numpy and scipy are loaded where they are needed
        recommend,
    )
    from pytest_infer.analysis.sweep import sides as both  # noqa: PLC0415

    rows = [test.row for test in stored.tests]
    found, compared = recommend.recommend(rows), both.of(rows)
    items = [] if found is None else _items(found)
    items += [] if compared is None else sides.items(compared)
    items += curve.items(rows) if compared is None or not compared.curves else []
    if items:
        return Section(key="sweep", title="Sweep", items=tuple(items))
    swept = any(test.row.config for test in stored.tests)
    why = (
        "fewer than two configurations were measured" if swept else "no option was swept (`--infer-sweep threads=1,2`)"
    )
    return Section(key="sweep", title="Sweep", absent=why)


def _items(found: Recommendation) -> list[Item]:
    text = [*(sweep.sentence(found, goal) for goal in found.goals), *sweep.traded(found)]
    if (line := sweep.advised(found)) is not None:
        text.append(line)
    text += [line for line in (sweep.drift(found), sweep.pooled(found)) if line is not None]
    if found.left_out:
        names = ", ".join(found.left_out)
        text.append(f"not compared, no measured prompt in common with {found.configurations[0].label}: {names}")
    charts = []
    # Where nothing was decoded, up is not better.
    if found.goals and _metrics(found)[0].unit is Unit.TOKENS_PER_SECOND:
        if all(len(c.figures) > 1 for c in found.configurations):
            charts.append(_pareto(found))
        if any(c.distance is not None and c.distance.kl for c in found.configurations):
            charts.append(_fidelity(found))
    return [
        Item(title=_TITLE, text=tuple(text), charts=tuple(charts), tables=(_table(found),)),
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


def _figure(configuration: ConfigurationSummary, metric: Metric) -> float | None:
    figure = configuration.figures.get(metric.key)
    return None if figure is None else figure.value


def _table(found: Recommendation) -> Table:
    metrics, configurations = _metrics(found), found.configurations
    columns = [column([_figure(c, metric) for c in configurations], metric.unit) for metric in metrics]
    heads = [
        ColumnHead(text="configuration", number=False, define=anchor("configuration")),
        ColumnHead(text="best in", number=False, define=anchor("pareto")),
    ]
    distances = sweep.fidelity(found)
    for metric, (unit, _) in zip(metrics, columns, strict=True):
        heads += [head(metric, unit), ColumnHead(text="× first", define=anchor("interval"))]
    heads += [] if distances is None else [head(by_key("kl")), head(by_key("top1"))]
    rows = []
    for number, one in enumerate(configurations):
        best = [by_key(goal.metric).label for goal in found.goals if goal.best == number]
        said = best or (["Pareto set"] if one.pareto else [])
        cells = [Cell(text=one.label), Cell(text=", ".join(said), look="pill improved" if best else "pill unchanged")]
        for metric, (_, figures) in zip(metrics, columns, strict=True):
            ratio = one.figures[metric.key].ratio if metric.key in one.figures else None
            cells += [Cell(text=figures[number]), Cell(text="" if ratio is None or not number else _ratio(ratio))]
        cells += [] if distances is None else [Cell(text=text) for text in distances[number]]
        rows.append(tuple(cells))
    caption = f"Geometric means over the prompts; × first with {100 * found.confidence:g} % intervals"
    return Table(caption=caption, heads=tuple(heads), rows=tuple(rows))


def _pareto(found: Recommendation) -> Chart:
    metrics = {metric.unit: metric for metric in _metrics(found)}
    ttft = next(metric for metric in _metrics(found) if metric.unit is not Unit.TOKENS_PER_SECOND)
    decode = metrics[Unit.TOKENS_PER_SECOND]
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
        define=(
            ("Pareto set", anchor("pareto")),
            (decode.label, anchor(decode.key)),
            (ttft.label, anchor(ttft.key)),
            *([("drift", anchor("drift"))] if found.loads > 1 else []),
        ),
    )


def _fidelity(found: Recommendation) -> Chart:
    """Return speed over fidelity; what rounding alone tells from the first stands where rounding ends."""
    decode, kl = _metrics(found)[0], by_key("kl")
    known = [(c, c.distance) for c in found.configurations if c.distance is not None]
    ys = [_figure(c, decode) for c, _ in known]
    unit, scale = scale_of(ys, decode.unit)
    return Chart(
        key="fidelity",
        title="Speed by fidelity",
        says="Up and to the left is better; filled points are the Pareto set. Rounding alone stands at its bound.",
        data={
            "kind": "scatter",
            "x": {"name": kl.label, "unit": kl.unit.value, "log": True},
            "y": {"name": decode.label, "unit": unit},
            "points": [
                {
                    "name": c.label,
                    "x": points([max(distance.kl, distance.rounding)], 1)[0],
                    "y": points([y], scale)[0],
                    "z": None,
                    "zunit": "",
                    "front": c.pareto,
                }
                for (c, distance), y in zip(known, ys, strict=True)
            ],
        },
        table=_table(found),
        define=(("Pareto set", anchor("pareto")), (decode.label, anchor(decode.key)), (kl.label, anchor("kl"))),
    )
