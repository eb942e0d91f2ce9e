"""Text for a terminal: consoles that write into a string, and untrusted text made harmless."""

from __future__ import annotations

import io
import re

from rich.console import Console

_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


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


def collected(of: Console) -> str:
    """Return what was written to such a console, without the spaces that pad the ends of lines."""
    stream = of.file
    return _PADDING.sub(r"\1", stream.getvalue()) if isinstance(stream, io.StringIO) else ""
