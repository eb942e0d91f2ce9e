"""Text as it is written: consoles that write into a string, CSV, what is hostile or lacks an encoding made plain."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.table import Column, Table

_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
# A spreadsheet takes the wide ones too, and, where its list separator is `;`, what follows one for another cell.
_FORMULA = re.compile(r'(^|;)(?="*[=+\-@＝＋－＠])')  # noqa: RUF001

_NAME = 12
"""A name in a table is cut to so many columns before a figure gives way."""

PLAIN = "pytest_infer.plain"
"""The error handler by which a stream writes what its encoding lacks as signs of ASCII that are as wide."""
_ALIKE = dict(zip("−–—─│┤└…·→×✗✓≠≥≤±µμ²³█▉▊▋▌▍▎▏▓▒░○●◉", "----||+..>xxv/><~uu23#####|||+=-o*@", strict=True))


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ALIKE.get(sign, "?" * cell_len(sign)) for sign in lacking), error.end


codecs.register_error(PLAIN, _plain)


def encodable(text: str, stream: Any) -> str:
    """Return the text as a stream can write it: what its encoding lacks is replaced as `PLAIN` does."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, PLAIN).decode(encoding)


def printable(text: str) -> str:
    """Return the text with control and formatting characters made visible: output may hold terminal escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def console(width: int, *, color: bool) -> Console:
    """Return a console of `width` columns that collects what is written, with ANSI colours or without any escape."""
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        emoji=False,
        markup=False,  # names hold [brackets]
    )


def print_whole(on: Console, line: str) -> None:
    """Print a line wrapped between words; one with a word that is wider than the console is left to the terminal.

    A path that is cut in two cannot be copied.
    """
    on.print(Text(line), soft_wrap=any(cell_len(word) > on.width for word in line.split()))


def print_table(on: Console, table: Table, spare: Sequence[str] = ()) -> None:
    """Print a table without cutting a figure, which its columns to the right are: without room for all some give way.

    Those headed as in `spare` go first, then the last figures. Names are cut, down to some columns.
    """
    gap = table.padding[1] + table.padding[3]
    width = on.width + gap - _behind(on, table)
    wide = sum(_whole(one) + gap for one in table.columns) > width
    on.print(_narrowed(table, spare, width, gap) if wide else table)


def _behind(on: Console, table: Table) -> int:
    """Return the columns that rich takes behind the last one, as it does before 14.3."""
    from rich.table import Table  # noqa: PLC0415 - as below

    alone = Table(box=None, pad_edge=False, padding=table.padding)
    alone.add_column(width=1)
    return on.measure(alone).maximum - 1


def _narrowed(table: Table, spare: Sequence[str], width: int, gap: int) -> Table:
    from rich.table import Table  # noqa: PLC0415 - what prints no table needs none

    columns = list(table.columns)
    giving = [*spare, *(str(column.header) for column in reversed(columns[1:]) if column.justify == "right")]
    for head in giving:
        if sum(_least(one) + gap for one in columns) > width:
            columns = [one for one in columns if one.header != head]
    room = width - sum(_least(one) + gap for one in columns)
    more = {}
    for column in sorted(columns, key=lambda one: one.justify != "right"):
        more[id(column)] = max(0, min(room, _whole(column) - _least(column)))
        room -= more[id(column)]
    found = Table(box=None, pad_edge=False, padding=table.padding, header_style=table.header_style)
    for one in columns:
        found.add_column(one.header, justify=one.justify, overflow=one.overflow, width=_least(one) + more[id(one)])
    for row, cells in zip(table.rows, zip(*(one.cells for one in columns), strict=True), strict=True):
        found.add_row(*cells, style=row.style)
    return found


def _whole(column: Column) -> int:
    return max(cell_len(line) for cell in (column.header, *column.cells) for line in str(cell).splitlines() or [""])


def _least(column: Column) -> int:
    """Return the columns that figures need, whose heading may be wrapped, or a name that may be cut."""
    if column.justify != "right":
        return min(_whole(column), _NAME)
    cells = [line for cell in column.cells for line in str(cell).splitlines()]
    return max(map(cell_len, (*cells, *str(column.header).split())), default=0)


def collected(of: Console) -> str:
    """Return what was written to such a console, without the spaces that pad the ends of lines."""
    stream = of.file
    return _PADDING.sub(r"\1", stream.getvalue()) if isinstance(stream, io.StringIO) else ""


def csv_cell(value: Any) -> Any:
    """Return what is written for a value: nothing for None, a list's parts with `;` between, text made harmless.

    A text that begins like a formula, or goes on like one after a `;`, gets an apostrophe there, which spreadsheets
    take for "this is text" (OWASP, "CSV Injection"); control and formatting characters are made visible.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (tuple, list)):
        value = ";".join(map(str, value))
    if not isinstance(value, str):
        return value
    return _FORMULA.sub(r"\1'", printable(value))


def csv_lines(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the heading and a line a row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for cells in _with_heading(fields, rows):
        writer.writerow(cells)
        yield stream.getvalue()
        stream.seek(0)
        stream.truncate()


def _with_heading(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    yield [csv_cell(field) for field in fields]
    for row in rows:
        yield [csv_cell(row.get(field)) for field in fields]
