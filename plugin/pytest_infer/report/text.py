"""Text as it is written: consoles that write into a string, CSV, and untrusted text made harmless in both."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)
# A spreadsheet takes the wide ones too, and, where its list separator is `;`, what follows one for another cell.
_FORMULA = re.compile(r'(^|;)(?="*[=+\-@＝＋－＠])')  # noqa: RUF001


def printable(text: str) -> str:
    """Return the text with control and formatting characters made visible: output may hold terminal escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Whole(Console):
    """Wraps lines between words, and never cuts one that is wider than it is: a path or a test's id can be copied."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Leave a line that holds such a word to the terminal."""
        texts = [one for one in objects if isinstance(one, Text)]
        if any(cell_len(word) > self.width for text in texts for word in text.plain.split()):
            how.setdefault("soft_wrap", True)
        super().print(*objects, **how)


def console(width: int, *, color: bool) -> Console:
    """Return a console of `width` columns that collects what is written, with ANSI colours or without any escape."""
    return _Whole(
        file=io.StringIO(),
        width=width,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        emoji=False,
        markup=False,  # names hold [brackets]
    )


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
    if isinstance(value, tuple):
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
