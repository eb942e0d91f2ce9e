"""The live line: what is being measured, rewritten in place between rounds, on a terminal only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TextIO

_CLEAR = "\r\x1b[2K"


class LiveLine:
    """One line at the bottom of the terminal; nothing at all where there is no terminal.

    `suspend` returns a context in which output is not captured.
    """

    def __init__(self, stream: TextIO | None, suspend: Callable[[], AbstractContextManager[object]]) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._suspend = suspend
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line."""
        width = shutil.get_terminal_size().columns - 1
        self._write(_CLEAR + text[:width])
        self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._write(_CLEAR)
            self._shown = False

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with self._suspend():
            self._stream.write(text)
            self._stream.flush()
