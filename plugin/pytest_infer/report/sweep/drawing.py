"""A curve of two sides drawn in characters: their points, their fits, and what is which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from pytest_infer.analysis.sweep.scale import Scale

HEIGHT = 10
WIDEST = 72
_MARGIN = 10
"""Columns left of the drawing, for the ends of its scale."""
BEFORE, AFTER, BOTH = "○", "●", "◉"
FITS = ("·", "─")
_STYLES = {BEFORE: "yellow", FITS[0]: "yellow", AFTER: "cyan", FITS[1]: "cyan", BOTH: "bold"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side's values at the same places as the other's, and its fit, if there is one."""

    values: Sequence[float]
    fit: Callable[[float], float] | None = None


def lines(
    at: Sequence[float], before: Side, after: Side, *, width: int, logarithmic: bool, ends: Sequence[str]
) -> list[Text]:
    """Return the drawing of both sides over `at`, which is drawn in logarithms, as lines of at most `width` columns.

    `ends` are what stands at the largest and the smallest value, which are drawn in logarithms too if so asked.
    """
    columns = max(16, min(width, WIDEST) - _MARGIN)
    drawn = [*before.values, *after.values]
    x = Scale(min(at), max(at), columns, logarithmic=True)
    y = Scale(min(drawn), max(drawn), HEIGHT, logarithmic=logarithmic)
    cells: dict[tuple[int, int], str] = {}
    for side, mark in ((before, FITS[0]), (after, FITS[1])):
        for column in range(columns) if side.fit is not None else ():
            value = side.fit(x.back(column)) if side.fit is not None else 0.0
            if y.holds(value):
                cells[column, y.place(value)] = mark
    for place, first, second in zip(at, before.values, after.values, strict=True):
        column = x.place(place)
        cells[column, y.place(first)] = BEFORE
        cells[column, y.place(second)] = BOTH if y.place(first) == y.place(second) else AFTER
    labels = {HEIGHT - 1: ends[0], 0: ends[1]}
    found = []
    for row in range(HEIGHT - 1, -1, -1):
        line = Text(f"{labels.get(row, ''):>{_MARGIN - 2}} ┤" if row in labels else f"{'':>{_MARGIN - 2}} │")
        for column in range(columns):
            mark = cells.get((column, row), " ")
            line.append(mark, style=_STYLES.get(mark, ""))
        found.append(line)
    found.append(Text(f"{'':>{_MARGIN - 2}} └{'─' * (columns)}"))
    found.append(Text(_below(at, x, columns)))
    return found


def _below(at: Sequence[float], x: Scale, columns: int) -> str:
    """Return the places below the drawing, as many as there is room for; the last one always."""
    line = [" "] * (columns + 1)
    free = columns + 1
    for place in sorted(at, reverse=True):
        text = f"{place:g}"
        start = max(0, min(x.place(place) - len(text) // 2, columns + 1 - len(text)))
        if start + len(text) >= free and free <= columns:
            continue
        line[start : start + len(text)] = text
        free = start
    return " " * _MARGIN + "".join(line).rstrip()
