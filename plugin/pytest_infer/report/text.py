"""Text as it is written: consoles that write into a string, CSV, what is hostile or lacks an encoding made plain."""

from __future__ import annotations

import codecs
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
