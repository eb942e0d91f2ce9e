"""Draw what a terminal showed as docs/pictures/terminal.svg.

`tmux capture-pane -e -p | python benchmarks/terminal_picture.py` reads the pane with its colours, keeps the command and
the section `inference`, and writes an SVG that fetches nothing.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "terminal.svg"
COMMAND = "$ pytest bench --benchmark-autosave"
_FONTS = re.compile(r"@font-face\s*{.*?}", re.DOTALL)


def section(pane: str) -> list[Text]:
    """Return the lines from the heading of our section to pytest's last one."""
    # All of it at once: in a capture colours run on from line to line.
    lines = Text.from_ansi(pane).split("\n")
    start = next(n for n, line in enumerate(lines) if "= inference =" in line.plain)
    end = next(n for n, line in enumerate(lines) if n > start and re.search(r"= .*\d+ passed.* =", line.plain))
    return list(lines)[start : end + 1]


def draw(pane: str) -> str:
    """Return the picture."""
    shown = section(pane)
    console = Console(record=True, width=max(line.cell_len for line in shown), file=io.StringIO(), highlight=False)
    console.print(Text(COMMAND, style="bold"))
    console.print(Text("…", style="dim"))
    for line in shown:
        console.print(line, no_wrap=True)
    svg = console.export_svg(title="pytest-infer")
    return _FONTS.sub("", svg).replace("Fira Code", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas")


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(sys.stdin.read()), encoding="utf-8")
