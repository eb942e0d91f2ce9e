"""What `pytest-infer loading` measured: cold and warm side by side, as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis import loading
from pytest_infer.analysis.loading import LoadingMetric, Spread
from pytest_infer.records import LoadingRound
from pytest_infer.report import text
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, show, size


def as_json(rounds: Sequence[LoadingRound]) -> str:
    """Return figures by state and by round as JSON; absent ones are null, the state's with a reason."""
    built: dict[str, Any] = {
        "model": rounds[0].model,
        "file_bytes": rounds[0].file_bytes,
        **{
            asked.value: {
                figure.key: msgspec.to_builtins(loading.spread(figure, loading.asked_for(asked, rounds)))
                for figure in loading.FIGURES
            }
            for asked in loading.ASKED
        },
        "rounds": [
            {"asked": of.asked.value, **{figure.key: loading.value(figure, of) for figure in loading.FIGURES}}
            for of in rounds
        ],
        "doubts": loading.doubts(rounds),
    }
    return json.dumps(built, indent=1, allow_nan=False) + "\n"


def render(rounds: Sequence[LoadingRound], *, width: int, color: bool) -> str:
    """Return a table of a row a figure, median and range for cold and for warm."""
    console = text.console(width, color=color)
    held = rounds[0].file_bytes
    parts = [printable(rounds[0].model), *([] if held is None else [f"{size(held)} of weights in files"])]
    each = sum(of.asked is loading.ASKED[0] for of in rounds)
    parts.append(f"{f'median of {each} rounds' if each > 1 else 'one round'} each, in fresh processes")
    console.print(Text(" · ".join(parts), style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for asked in loading.ASKED:
        table.add_column(asked.value, justify="right", no_wrap=True)
    absent: dict[str, str] = {}
    for figure in loading.FIGURES:
        spreads = [loading.spread(figure, loading.asked_for(asked, rounds)) for asked in loading.ASKED]
        table.add_row(figure.label, *(_cell(figure, spread) for spread in spreads))
        if reason := next((spread.reason for spread in spreads if spread.reason is not None), None):
            absent[figure.label] = reason
    text.print_table(console, table)
    for label, reason in absent.items():
        console.print(Text(f"{NONE} {label}: {printable(reason)}", style="dim"))
    for line in loading.doubts(rounds):
        console.print(Text(f"! {printable(line)}", style="yellow"))
    return text.collected(console)


def _cell(figure: LoadingMetric, spread: Spread) -> str:
    shown = show(spread.median, figure.unit)
    if spread.least is None or spread.least == spread.most:
        return shown
    return f"{shown} ({show(spread.least, figure.unit)} – {show(spread.most, figure.unit)})"
