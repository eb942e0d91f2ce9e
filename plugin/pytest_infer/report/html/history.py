"""The trend of each metric over the stored runs, with the runs since which it has been at another level."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import StorageError
from pytest_infer.metrics import Metric, by_key
from pytest_infer.report.breakdown import lasting
from pytest_infer.report.compare.words import PRIMARY, p_value, share
from pytest_infer.report.history import events as in_words
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
from pytest_infer.storage.code import commit_address, subjects
from pytest_infer.storage.runs import Run
from pytest_infer.units import NONE, Unit, plural, scale_of, show

if TYPE_CHECKING:
    from pytest_infer.analysis.history.events import Event
    from pytest_infer.analysis.history.trends import Series, Shift, Told

MOST_RUNS = 200
METRICS = tuple(by_key(key) for key in PRIMARY if by_key(key).unit is not Unit.TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the runs up to one tell together, or why they tell nothing; `compared` are those of the series."""

    runs: Sequence[Run] = ()
    compared: Sequence[Run] = ()
    series: Series = field(default_factory=dict)
    told: Told | None = None
    events: Sequence[Event] = ()
    messages: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None


def known(run: Run, runs: Sequence[Run]) -> Known:
    """Return what the runs that led to one tell, of those of its storage, which are oldest first."""
    if run.plain:
        return Known(absent="this run is pytest-benchmark's own: there is no trend up to it")
    from pytest_infer.analysis.history import (  # noqa: PLC0415 - numpy and scipy are loaded where they are needed
        events,
        trends,
    )

    shown = trends.leading_to(run, runs, MOST_RUNS)
    messages = subjects({one.commit for one in shown if one.commit})
    if len(shown) < 2:
        others = sum(one.time < run.time and not one.plain for one in runs)
        of = f" of this machine that led to it, and {plural(others, 'other')}" if others else ""
        why = f"the storage holds no earlier run{of}: a trend needs two, and change points six"
        return Known(messages=messages, absent=why)
    try:
        series = trends.series(shown, METRICS)
        told = trends.of_series(shown, series, METRICS)
        compared = trends.with_figures(shown, series)
    except StorageError as error:
        return Known(messages=messages, absent=str(error))
    return Known(
        runs=shown,
        compared=compared,
        series=series,
        told=told,
        events=events.events(told.shifts, series, compared),
        messages=messages,
    )


def section(found: Known, repository: str | None = None) -> Section:
    """Return the history: its events, the trend of each metric, the runs; commits lead into the repository."""
    title = "History"
    if found.absent is not None or found.told is None:
        return Section(key="history", title=title, absent=found.absent)
    shown, messages = found.runs, found.messages
    items = _changes(found, found.told, repository)
    titles = axes.titles(shown[-1].rows)
    names = dict(zip(titles, unique([*titles.values()]), strict=True))
    charts = [_trend(metric, names, found.series, found.compared, found.told, messages) for metric in METRICS]
    items.append(Item(title="Trends", charts=tuple(chart for chart in charts if chart is not None)))
    items.append(Item(title="Runs", tables=(_runs(shown, messages, repository),), folded=True))
    return Section(key="history", title=title, items=tuple(items))


def _changes(found: Known, told: Told, repository: str | None) -> list[Item]:
    """Return the events, and behind them each figure's change points."""
    others = in_words.unjudged(told.why_not.values())
    if not found.events:
        return [Item(title="Change points", text=_sentences((in_words.unchanged(told), *others)))]
    each = _table_of_changes("Lasting changes, a row a figure of a test", told.shifts, found.messages, repository)
    return [
        Item(title="Change points", text=_sentences(others), tables=(_table_of_events(found, repository),)),
        Item(title="Each figure's change points", tables=(each,), folded=True),
    ]


def _sentences(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{line[0].upper()}{line[1:]}." for line in lines)


def _table_of_events(found: Known, repository: str | None) -> Table:
    apart = any(event.carried for event in found.events)
    rows = []
    for event in found.events:
        look = "" if event.worse is None else "worse" if event.worse else "better"
        rows.append(
            (
                Cell(text=event.run.label, url=commit_address(repository, event.run.commit)),
                Cell(text=found.messages.get(event.run.commit or "", NONE), look="message"),
                Cell(text="; ".join(in_words.changes(event)), look=look, note=event.doubt),
                *([Cell(text="; ".join(in_words.reasons(event)))] if apart else []),
                Cell(text=p_value(event.p)),
                Cell(text=_lasted(event), sort=event.runs),
            )
        )
    heads = (
        ColumnHead(text="since", number=False, define=anchor("change-point")),
        ColumnHead(text="commit message", number=False),
        ColumnHead(text="what changed", number=False),
        *([ColumnHead(text="carried by", number=False, define=anchor("self-time"))] if apart else []),
        ColumnHead(text="p", define=anchor("p")),
        ColumnHead(text="lasted", unit="runs"),
    )
    return Table(caption="Lasting changes, oldest first", quiet=True, heads=heads, rows=tuple(rows))


def _lasted(event: Event) -> str:
    return f"{event.runs}, {'and still does' if event.until is None else f'until {event.until.label}'}"


def _table_of_changes(
    caption: str, shifts: Sequence[Shift], messages: Mapping[str, str], repository: str | None
) -> Table:
    rows = []
    apart = any(shift.carried for shift in shifts)
    last = None
    for shift in shifts:
        unit = shift.metric.unit
        look = "" if shift.worse is None else "worse" if shift.worse else "better"
        levels = f"{show(shift.point.before, unit)} → {show(shift.point.after, unit)}"
        again = "same" if shift.run == last else ""
        rows.append(
            (
                Cell(text=shift.run.label, look=again, url=commit_address(repository, shift.run.commit)),
                Cell(text="" if again else messages.get(shift.run.commit or "", NONE), look="message"),
                Cell(text=shift.metric.label, link=anchor(shift.metric.key)),
                Cell(text=shift.name),
                Cell(text=levels, sort=shift.point.after),
                Cell(text=share(shift.point.change), look=look, note=shift.doubt, sort=shift.point.change),
                Cell(text=p_value(shift.point.p), sort=shift.point.p),
                *([Cell(text="" if shift.carried is None else lasting.in_words(shift.carried))] if apart else []),
            )
        )
        last = shift.run
    heads = (
        ColumnHead(text="since", number=False, define=anchor("change-point")),
        ColumnHead(text="commit message", number=False),
        ColumnHead(text="figure", number=False),
        ColumnHead(text="prompt", number=False),
        ColumnHead(text="before → after"),
        ColumnHead(text="change", unit="%"),
        ColumnHead(text="p", define=anchor("p")),
        *([ColumnHead(text="carried by", number=False, define=anchor("self-time"))] if apart else []),
    )
    return Table(caption=caption, quiet=True, heads=heads, rows=tuple(rows))


def _trend(
    metric: Metric,
    names: Mapping[str, str],
    series: Series,
    runs: Sequence[Run],
    told: Told,
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
        mine = [s for s in told.shifts if s.metric.key == metric.key and s.test == test]
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
    reasons = [why for test in tests if (why := told.why_not.get((test, metric.key))) is not None]
    changed = "no change points" if not found else f"{found} change point{'s' if found > 1 else ''} over all tests"
    said = "; ".join([*([changed] if len(reasons) < len(tests) else []), *in_words.unjudged(reasons)])
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


def _runs(runs: Sequence[Run], messages: Mapping[str, str], repository: str | None) -> Table:
    rows = tuple(
        (
            Cell(text=run.number or run.path.name),
            Cell(text=f"{run.time:%Y-%m-%d %H:%M}"),
            Cell(
                text=f"{(run.commit or NONE)[:8]}{'+' if run.dirty else ''}",
                url=commit_address(repository, run.commit),
            ),
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
