"""The trend of each metric over the stored runs, with the runs since which it has been at another level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import StorageError
from pytest_infer.metrics import Metric, by_key
from pytest_infer.report.breakdown import lasting, words
from pytest_infer.report.compare.words import PRIMARY, p_value, share
from pytest_infer.report.html.parts import (
    Cell,
    Chart,
    ColumnHead,
    Item,
    Section,
    Table,
    anchor,
    head,
    points,
    short,
    unique,
)
from pytest_infer.storage.code import subjects
from pytest_infer.storage.runs import Run
from pytest_infer.units import NONE, Unit, scale_of, show

if TYPE_CHECKING:
    from pytest_infer.analysis.history.trends import Series, Shift

MOST_RUNS = 200
METRICS = tuple(by_key(key) for key in PRIMARY if by_key(key).unit is not Unit.TEXT)


def section(runs: Sequence[Run]) -> Section:
    """Return the history up to the newest of the runs, which are oldest first."""
    title = "History"
    if runs[-1].plain:
        why = "this run is pytest-benchmark's own: there is no trend up to it"
        return Section(key="history", title=title, absent=why)
    shown = [run for run in runs if not run.plain][-MOST_RUNS:]
    if len(shown) < 2:
        why = "the storage holds no other run: a trend needs two, and change points six"
        return Section(key="history", title=title, absent=why)
    from pytest_infer.analysis.history import (  # noqa: PLC0415 - numpy and scipy are loaded where they are needed
        trends,
    )

    try:
        series = trends.series(shown, METRICS)
        shifts = trends.of_series(shown, series, METRICS)
    except StorageError as error:
        return Section(key="history", title=title, absent=str(error))
    messages = subjects({run.commit for run in shown if run.commit})
    items = _changes(shifts, messages)
    titles = axes.titles(shown[-1].rows)
    names = dict(zip(titles, unique([*titles.values()]), strict=True))
    charts = [_trend(metric, names, series, shown, shifts, messages) for metric in METRICS]
    items.append(Item(title="Trends", charts=tuple(chart for chart in charts if chart is not None)))
    items.append(Item(title="Runs", tables=(_runs(shown, messages),), folded=True))
    return Section(key="history", title=title, items=tuple(items))


def _changes(shifts: Sequence[Shift], messages: Mapping[str, str]) -> list[Item]:
    """Return the change points, those of one metric since one run together, and behind them each on its own."""
    if not shifts:
        return [Item(title="Change points", text=("No change points: every metric has stayed at its level.",))]
    together: dict[tuple[Any, str], list[Shift]] = {}
    for shift in shifts:
        together.setdefault((shift.run.path, shift.metric.key), []).append(shift)
    single = all(len(found) == 1 for found in together.values())
    items = [
        Item(
            title="Change points",
            tables=(_table_of_changes("Lasting changes, oldest first", together.values(), messages),),
        )
    ]
    if not single:
        every = _table_of_changes("Lasting changes, a row a test", [[shift] for shift in shifts], messages)
        items.append(Item(title="Each test's change points", tables=(every,), folded=True))
    return items


def _table_of_changes(caption: str, groups: Collection[Sequence[Shift]], messages: Mapping[str, str]) -> Table:
    rows, single = [], all(len(found) == 1 for found in groups)
    apart = any(shift.carried for found in groups for shift in found)
    last = None
    for found in groups:
        shift, changes = found[0], sorted(one.point.change for one in found)
        unit = shift.metric.unit
        look = "" if shift.worse is None else "worse" if all(one.worse for one in found) else "better"
        look = look if len({one.worse for one in found}) == 1 else ""
        ends = dict.fromkeys(share(change) for change in (changes[0], changes[-1]))
        levels = f"{show(shift.point.before, unit)} → {show(shift.point.after, unit)}"
        rows.append(
            (
                Cell(text=shift.run.label, look="same" if shift.run == last else ""),
                Cell(text="" if shift.run == last else messages.get(shift.run.commit or "", NONE), look="message"),
                Cell(text=shift.metric.label, link=anchor(shift.metric.key)),
                Cell(text=shift.name if len(found) == 1 else f"{len(found)} tests"),
                *([Cell(text=levels)] if single else []),
                Cell(text=" to ".join(ends), look=look, note=next((one.doubt for one in found if one.doubt), None)),
                Cell(text=p_value(max(one.point.p for one in found))),
                *([Cell(text=_carried(found))] if apart else []),
            )
        )
        last = shift.run
    heads = (
        ColumnHead(text="since", number=False, define=anchor("change-point")),
        ColumnHead(text="commit message", number=False),
        ColumnHead(text="figure", number=False),
        ColumnHead(text="prompt", number=False),
        *([ColumnHead(text="before → after")] if single else []),
        ColumnHead(text="change", unit="%"),
        ColumnHead(text="p", define=anchor("p")),
        *([ColumnHead(text="carried by", number=False, define=anchor("self-time"))] if apart else []),
    )
    return Table(caption=caption, quiet=True, heads=heads, rows=tuple(rows))


def _carried(found: Sequence[Shift]) -> str:
    """Return who carried a change: in words for one test, the roles of all of them for several."""
    known = [shift.carried for shift in found if shift.carried is not None]
    if not known:
        return ""
    if len(found) == 1:
        return lasting.in_words(known[0])
    roles = Counter(one.role for of in known for one in of.roles)
    return ", ".join(f"{role} ({times} of {len(found)})" for role, times in roles.most_common()) or words.NOBODY


def _trend(
    metric: Metric,
    names: Mapping[str, str],
    series: Series,
    runs: Sequence[Run],
    shifts: Sequence[Shift],
    messages: Mapping[str, str],
) -> Chart | None:
    """Return the chart of a metric: one test at a time, chosen for all metrics together."""
    from pytest_infer.analysis.history import trends  # noqa: PLC0415 - as above

    tests = [test for test in names if len(series.get((test, metric.key), ())) > 1]
    if not tests:
        return None
    place = {run.path: number for number, run in enumerate(runs)}
    columns: dict[str, list[float | None]] = {}
    for test in tests:
        columns[test] = [None] * len(runs)
        for point in series[test, metric.key]:
            columns[test][place[point.run.path]] = None if isinstance(point.value, str) else float(point.value)
    choices = []
    for test in tests:
        unit, scale = scale_of(columns[test], metric.unit)
        mine = [s for s in shifts if s.metric.key == metric.key and s.test == test]
        levels = trends.levels(columns[test], [place[s.run.path] for s in mine]) if mine else []
        choices.append(
            {
                "name": names[test],
                "unit": unit,
                "values": points(columns[test], scale, 5),
                "levels": [
                    {"from": start, "to": end, "value": points([level], scale, 5)[0]} for start, end, level in levels
                ],
                "changes": [{"at": place[s.run.path], "name": share(s.point.change), "worse": s.worse} for s in mine],
            }
        )
    found = sum(len(choice["changes"]) for choice in choices)
    better = metric.direction.value.capitalize()
    said = "no change points" if not found else f"{found} change point{'s' if found > 1 else ''} over all tests"
    return Chart(
        key=f"trend-{metric.key}",
        title=metric.label,
        says=f"Median of each of {len(runs)} runs, oldest first; {said}. {better} is better.",
        data={"kind": "trend", "runs": [_run(run, messages) for run in runs], "choices": choices},
        table=_table(metric, tests, names, columns, runs),
        define=((metric.label, anchor(metric.key)), ("change points", anchor("change-point"))),
        group="history",
    )


def _run(run: Run, messages: Mapping[str, str]) -> dict[str, str]:
    return {
        "name": run.number or run.path.stem[:12],
        "says": " · ".join(
            part for part in (run.label, f"{run.time:%Y-%m-%d %H:%M}", messages.get(run.commit or "")) if part
        ),
    }


def _table(
    metric: Metric,
    tests: Sequence[str],
    names: Mapping[str, str],
    columns: Mapping[str, Sequence[float | None]],
    runs: Sequence[Run],
) -> Table:
    unit, scale = scale_of([value for test in tests for value in columns[test]], metric.unit)
    rows = tuple(
        (Cell(text=run.label), *(Cell(text=short(columns[test][number], scale)) for test in tests))
        for number, run in enumerate(runs)
    )
    heads = (
        ColumnHead(text="run", number=False),
        *(ColumnHead(text=names[test], unit=head(metric, unit).unit) for test in tests),
    )
    return Table(caption=f"{metric.label}, a row a run", heads=heads, rows=rows)


def _runs(runs: Sequence[Run], messages: Mapping[str, str]) -> Table:
    rows = tuple(
        (
            Cell(text=run.number or run.path.name),
            Cell(text=f"{run.time:%Y-%m-%d %H:%M}"),
            Cell(text=f"{(run.commit or NONE)[:8]}{'+' if run.dirty else ''}"),
            Cell(text=messages.get(run.commit or "", NONE)),
            Cell(text=run.branch or NONE),
            Cell(text=str(run.tests)),
            Cell(text=run.model or NONE),
            Cell(text=run.gate.result if run.gate is not None else NONE),
        )
        for run in reversed(runs)
    )
    texts = ("run", "time (UTC)", "commit", "message", "branch", "tests", "model", "gate")
    heads = tuple(ColumnHead(text=text, number=text == "tests") for text in texts)
    return Table(caption="The runs, newest first; + marks uncommitted changes", heads=heads, rows=rows)
