"""What a machine can tell: the spread of equal code, and the changes that it lets through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.report.compare import words
from pytest_infer.report.text import print_table, printable

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.noise import NamedFloor

_NOISE = {
    "pair": "spread: of a pair's ratio; offset: between two processes of the same code; N pairs: the smallest change "
    "that so many pairs of rounds find 19 times in 20",
    "launch": "spread: between launches, each two processes of the same code; offset: their mean; N launches: the "
    "smallest change that so many find 19 times in 20",
}


def write(console: Console, noise: tuple[NamedFloor, ...]) -> None:
    """Write the table."""
    console.print(Text("noise floor: this checkout against itself", style="bold"))
    for of in dict.fromkeys(named.floor.of for named in noise):
        _write_floors(console, [named for named in noise if named.floor.of == of], of)


def _write_floors(console: Console, noise: list[NamedFloor], of: str) -> None:
    counts = sorted({n for named in noise for n in named.floor.detectable})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("prompt", overflow="fold")
    table.add_column("figure", no_wrap=True)
    many = "pairs" if of == "pair" else "launches"
    for heading in ("spread", "offset", *(f"{n} {many}" for n in counts)):
        table.add_column(heading, justify="right", no_wrap=True)
    for named in noise:
        found = [f"{100 * named.floor.detectable[n]:.1f} %" for n in counts]
        cells = (f"{100 * named.floor.spread:.1f} %", words.share(named.floor.bias), *found)
        table.add_row(printable(named.name), named.label, *cells)
    print_table(console, table)
    console.print(Text(_NOISE[of], style="dim"))
