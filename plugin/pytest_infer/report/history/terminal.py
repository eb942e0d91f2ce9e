"""Stored runs on a terminal: the list of them, and since which one a figure has been at another level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.report import text
from pytest_infer.report.breakdown import lasting
from pytest_infer.report.compare.words import p_value, share
from pytest_infer.report.history import events
from pytest_infer.report.text import printable
from pytest_infer.storage.runs import Run
from pytest_infer.units import NONE, show

if TYPE_CHECKING:
    from pytest_infer.analysis.history.trends import Shift, Told

_HEADINGS = ("run", "time (UTC)", "commit", "branch", "tests", "model", "machine", "gate", "baseline")
_GIVE_WAY = ("machine", "model", "branch", "baseline")
_GATE = _HEADINGS.index("gate")
_LEAST = 6
_STYLES = {"passed": "green", "regressed": "red", NONE: ""}


def render_history(runs: Sequence[Run], names: Mapping[Path, Sequence[str]], *, width: int, color: bool) -> str:
    """Return runs as a table, oldest first; `names` are the baselines that each file has.

    Where it is too wide, machine, model and branch are cut before anything that tells runs apart.
    """
    rows = [[printable(cell) for cell in _cells(run, names.get(run.path, ()))] for run in runs]
    widths = [max(map(cell_len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    for heading in _GIVE_WAY:
        column = _HEADINGS.index(heading)
        cut = max(0, min(excess, widths[column] - _LEAST))
        widths[column] -= cut
        excess -= cut
    console = text.console(width, color=color)
    for cells in (_HEADINGS, *rows):
        line = Text(style="bold" if cells is _HEADINGS else "")
        for number, (cell, room) in enumerate(zip(cells, widths, strict=True)):
            style = _STYLES.get(cell, "yellow") if number == _GATE and cells is not _HEADINGS else ""
            line.append("  " if number else "").append(_fitted(cell, room), style=style)
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        console.print(line)
    return text.collected(console)


def _cells(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    return (
        run.number or run.path.name,
        f"{run.time:%Y-%m-%d %H:%M}",
        f"{(run.commit or NONE)[:8]}{'+' if run.dirty else ''}",
        run.branch or NONE,
        f"{run.tests}{f' (+{len(run.broken)} failed)' if run.broken else ''}",
        run.model or ("plain" if run.plain else NONE),
        run.machine or NONE,
        run.gate.result if run.gate is not None else NONE,
        ", ".join(names),
    )


def _fitted(cell: str, room: int) -> str:
    return set_cell_size(cell, room) if cell_len(cell) <= room else set_cell_size(cell, room - 1) + "…"


def render_shifts(told: Told, *, width: int, color: bool) -> str:
    """Return change points as a table, oldest first: since which commit, from which level to which."""
    console = text.console(width, color=color)
    if told.shifts:
        _print_shifts(told.shifts, console)
    else:
        console.print(Text(events.unchanged(told), style="dim"))
    for line in events.unjudged(told.why_not.values()):
        console.print(Text(line, style="dim"))
    return text.collected(console)


def _print_shifts(shifts: Sequence[Shift], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("since", "time (UTC)", "prompt", "metric", "before → after", "change", ""):
        table.add_column(heading, overflow="fold")
    for shift in shifts:
        style = "red" if shift.worse else "green" if shift.worse is not None else ""
        unit = shift.metric.unit
        table.add_row(
            printable(shift.run.label),
            f"{shift.run.time:%Y-%m-%d %H:%M}",
            printable(shift.name),
            shift.metric.label,
            f"{show(shift.point.before, unit)} → {show(shift.point.after, unit)}",
            Text(share(shift.point.change), style=style),
            p_value(shift.point.p),
        )
    console.print(table)
    for line in dict.fromkeys(_carried(shift) for shift in shifts if shift.carried is not None):
        console.print(Text(printable(line)))
    for doubt in dict.fromkeys(f"{s.metric.label}, {s.name}: {s.doubt}" for s in shifts if s.doubt is not None):
        console.print(Text(printable(doubt), style="dim"))


def _carried(shift: Shift) -> str:
    """Return who carried a change point of which there are steps."""
    said = "" if shift.carried is None else lasting.in_words(shift.carried)
    return f"{shift.metric.label}, {shift.name}, since {shift.run.label}: {said}"
