"""Which prompts, tags or groups share a hot set, and which use other experts, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.report.text import print_table, printable
from pytest_infer.units import NONE

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.suite import View

_FEW = "few prompts"


def percent(value: float | None) -> str:
    """Return a share as a whole percentage without its sign."""
    return NONE if value is None else f"{100 * value:.0f}"


def write_overlap(console: Console, view: View) -> None:
    """Write who serves whom; nothing for a single one."""
    names = [printable(name) for name in view.overlap.names]
    if len(names) < 2:
        return
    console.print()
    console.print(Text(f"selections of one {view.by.value} that the hot quarter of another serves, %", style="bold"))
    room = min(24, max(map(len, names)), console.width // 3)
    fits = room + 5 + 5 * len(names) <= console.width
    (_matrix if fits else _each)(console, view, names, max(room, 10))
    console.print(
        Text(
            f"even routing: {percent(view.overlap.even)}; itself: planned on the very text that is scored, so too good",
            style="dim",
        )
    )


def _cut(name: str, room: int) -> str:
    shown = Text(name)
    shown.truncate(room, overflow="ellipsis", pad=True)
    return shown.plain


def _matrix(console: Console, view: View, names: Sequence[str], room: int) -> None:
    """Write a row for each that is planned on, a column for each that is scored."""
    found = view.overlap
    console.print(Text(" " * (room + 4) + "".join(f"{n:>5}" for n in range(1, len(names) + 1)), style="bold"))
    for number, (name, row) in enumerate(zip(names, found.matrix, strict=True), start=1):
        console.print(Text(f"{number:>3} {_cut(name, room)}" + "".join(f"{percent(x):>5}" for x in row)))
    for name, row in (("all others", found.rest), ("itself", found.itself)):
        console.print(Text(f"    {_cut(name, room)}" + "".join(f"{percent(x):>5}" for x in row), style="dim"))


def _each(console: Console, view: View, names: Sequence[str], room: int) -> None:
    """Write a row for each that is scored, where a matrix would be too wide: its worst and best planner."""
    found = view.overlap
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("served", no_wrap=True, overflow="ellipsis", max_width=room)
    for head in ("worst", "median", "best", "all others", "itself"):
        table.add_column(head, justify="right", no_wrap=True)
    for number, name in enumerate(names):
        of = found.by_others(number) or (None, None, None)
        table.add_row(name, *map(percent, (*of, found.rest[number], found.itself[number])))
    console.print(table)


def write_differences(console: Console, view: View) -> None:
    """Write how far each pair of tags or groups is apart, beside chance; nothing for prompts."""
    if not view.differences:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"{view.by.value}s", no_wrap=True, overflow="ellipsis")
    for head in ("elsewhere", "by chance", "p", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    room = max(6, (console.width - 50) // 2)
    for found in view.differences:
        names = (_cut(printable(name), room).rstrip() for name in (found.first, found.second))
        table.add_row(
            ", ".join(names),
            f"{100 * found.distance:.1f} %",
            f"{100 * found.null:.1f} %",
            f"{found.p:.3f}",
            verdict(found.by, differs=found.differs),
        )
    console.print()
    print_table(console, table)
    notes = ["elsewhere: selections that go to other experts (total variation)"]
    if any(found.differs and found.by == "tokens" for found in view.differences):
        notes.append(f"{_FEW}: these texts differ; whether their {view.by.value}s do takes more prompts of each")
    for note in notes:
        console.print(Text(note, style="dim"))


def verdict(by: str, *, differs: bool) -> str:
    """Return what a difference came to; one prompt a side says nothing of the kind of text."""
    if not differs:
        return "within chance"
    return "differ" if by == "prompts" else f"differ ({_FEW})"
