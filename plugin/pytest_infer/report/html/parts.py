"""What sections are made of: figures with their unit and definition, tables, charts with the table behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_infer.analysis import alike
from pytest_infer.metrics import Metric
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, Unit, significant


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnHead:
    """The head of a column or row: what it is, its unit, and the anchor of its definition in the glossary."""

    text: str
    unit: str = ""
    define: str | None = None
    number: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A change drawn as a line from `low` to `high` with a dot at `mid`, all in the drawing's own units, and 0 there.

    `threshold` is how far a change may go on either side.
    """

    low: float
    mid: float
    high: float
    zero: float
    threshold: tuple[float, float] | None = None
    look: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: text, why it should be read with care or is absent, where it leads, and how it looks.

    `link` is an anchor of the page and `url` a page elsewhere. A table is sorted by `sort`, else by the text.
    """

    text: str
    note: str | None = None
    link: str | None = None
    url: str | None = None
    key: str | None = None
    """The anchor of the row, in its first cell."""
    sort: float | None = None
    look: str = ""
    drawn: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table: every row has a cell for each head; the first cell heads its row."""

    caption: str
    heads: tuple[ColumnHead, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: int = 0
    """So many of the last rows sum the others up."""
    quiet: bool = False
    """Whether the caption is for screen readers only, as what stands above says the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing by report.js from `data`, with the words that say what it shows, and the same figures as a table.

    `define` are (label, anchor) of what its axes show. Charts of one `group` share one choice.
    A `wide` one has the whole width where several stand beside each other.
    """

    key: str
    title: str
    says: str
    data: Mapping[str, Any]
    table: Table
    define: tuple[tuple[str, str], ...] = ()
    tall: bool = False
    wide: bool = False
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One remark of a list: how serious, what was seen, what to do, and about what."""

    mark: str
    look: str
    text: str
    do: str | None = None
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One line of a card: what it answers, the answer, and where it leads, in the page or elsewhere."""

    name: str
    text: str
    link: str | None = None
    url: str | None = None
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One part of a section: a heading with what stands under it."""

    title: str | None = None
    key: str | None = None
    text: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[Note, ...] = ()
    folded: bool = False
    beside: bool = False
    """Whether tables stand beside each other where there is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of the page; `absent` says why there is nothing to show."""

    key: str
    title: str
    lead: str = ""
    items: tuple[Item, ...] = ()
    absent: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Return all charts of the section."""
        return tuple(chart for item in self.items for chart in item.charts)


def anchor(key: str) -> str:
    """Return where the glossary defines a metric or term."""
    return f"def-{key}"


def unique(names: Sequence[str]) -> list[str]:
    """Return names as the page shows them, each once."""
    return alike.unique(map(printable, names))


def head(metric: Metric, unit: str | None = None) -> ColumnHead:
    """Return the head of a metric's column, in the unit that its figures are shown in."""
    shown = metric.unit.value if unit is None else unit
    return ColumnHead(
        text=metric.label,
        unit="" if metric.unit in (Unit.TEXT, Unit.RATIO, Unit.COUNT) else shown,
        define=anchor(metric.key),
        number=metric.unit is not Unit.TEXT,
    )


def points(values: Sequence[float | None], scale: float, digits: int = 4) -> list[float | None]:
    """Return figures for a drawing, so many significant digits each: a report holds a hundred thousand of them."""
    return [None if value is None else float(f"{value / scale:.{digits}g}") for value in values]


def short(value: float | None, scale: float = 1.0, digits: int = 3) -> str:
    """Return a figure of a table in the column's unit; a dash for none."""
    return NONE if value is None else significant(value / scale, digits)


def percent(share: float | None, digits: int = 3) -> str:
    """Return a share as a percentage, without the sign; a dash for none."""
    return NONE if share is None else significant(100 * share, digits)
