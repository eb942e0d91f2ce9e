"""CSV that neither a terminal nor a spreadsheet takes for commands."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pytest_infer.report.text import printable

# A spreadsheet takes the wide ones too, and, where its list separator is `;`, what follows one for another cell.
_FORMULA = re.compile(r'(^|;)(?="*[=+\-@＝＋－＠])')  # noqa: RUF001


def cell(value: Any) -> Any:
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


def lines(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the heading and a line a row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for cells in _with_heading(fields, rows):
        writer.writerow(cells)
        yield stream.getvalue()
        stream.seek(0)
        stream.truncate()


def _with_heading(fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    yield [cell(field) for field in fields]
    for row in rows:
        yield [cell(row.get(field)) for field in fields]
