"""The live line: what is being measured, rewritten in place between rounds, on a terminal only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from pytest_infer.metrics import timing
from pytest_infer.records import TokenTrace
from pytest_infer.report.text import encodable, printable
from pytest_infer.units import duration, rate

_ERASE_LINE, _UP = "\x1b[2K", "\x1b[1A"


_LONG_S = 2.0
"""From here on it is said how long a prompt will take."""


def seen(last: TokenTrace | None, rounds: int) -> str:
    """Return what the newest round shows, and how long so many more will take; nothing before the first."""
    if last is None:
        return ""
    speed, total = timing.decode_throughput(last), timing.total_s(last) or 0.0
    parts = [f"{timing.generated_tokens(last)} tokens", *([] if speed is None else [rate(speed)])]
    parts += [f"{duration(rounds * total)} left"] if rounds * total > _LONG_S else []
    return "".join(f" · {part}" for part in parts)


class LiveLine:
    """One line below the cursor, which stays where it is; nothing at all where there is no terminal.

    `suspend` returns a context in which output is not captured; `column` says where in its line the cursor is.
    """

    def __init__(
        self,
        stream: TextIO | None,
        suspend: Callable[[], AbstractContextManager[object]],
        column: Callable[[], int] = lambda: 0,
    ) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._suspend = suspend
        self._column = column
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line, by as much of a text as the terminal has columns for: more would take a second line."""
        text, width = encodable(printable(text), self._stream), shutil.get_terminal_size().columns - 1
        self._write(text if cell_len(text) <= width else set_cell_size(text, width))
        self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        column = self._column()
        back = f"\r\x1b[{column}C" if column else "\r"
        with self._suspend():
            self._stream.write(f"\n\r{_ERASE_LINE}{text}{_UP}{back}")
            self._stream.flush()
