"""Curves over the length of the prompt, for a terminal: a row a length, and what the fits say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.sweep.axes import label
from pytest_infer.report.text import print_table, printable
from pytest_infer.units import NONE, Unit, column, seconds, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.curve import Coefficient, Curve, DecodeFit, PrefillFit


def write(console: Console, curve: Curve) -> None:
    """Write one curve."""
    title = printable(" ".join(part for part in (curve.prompt, label(curve.config)) if part))
    console.print(Text(f"by prompt length: {title}", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    time, times = column([point.ttft_s for point in curve.points], Unit.SECONDS)
    headings = (
        "prompt\ntokens",
        f"TTFT\n{time}",
        "prefill\ntok/s",
        "attention\n% of TTFT",
        "depth\ntokens",
        "decode\ntok/s",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for point, ttft in zip(curve.points, times, strict=True):
        table.add_row(
            str(point.tokens),
            ttft,
            significant(point.tokens / point.ttft_s),
            _share(curve.prefill, point.tokens),
            NONE if point.depth is None else f"{point.depth:g}",
            NONE if point.tpot_s is None else significant(1 / point.tpot_s),
        )
    print_table(console, table)
    for line in (*prefill(curve), *decode(curve)):
        console.print(Text(line))


def _share(fit: PrefillFit | None, tokens: int) -> str:
    """Return the quadratic part of the fitted TTFT at a length, where there is one."""
    if fit is None or fit.quadratic.low <= 0:
        return NONE
    return significant(100 * fit.share_at(tokens))


def prefill(curve: Curve) -> Iterator[str]:
    """Yield what the fit of TTFT says."""
    fit, longest = curve.prefill, curve.points[-1].tokens
    if fit is None:
        yield f"no fit of TTFT: {len(curve.points)} lengths, and it takes 5"
        return
    yield (
        f"TTFT = {seconds(fit.constant.value)} + {_each(fit.linear)} a token + {_each(fit.quadratic)} a token² "
        f"(points within {100 * fit.worst:.1f} %)"
    )
    part = f"attention, the quadratic part, is {significant(100 * fit.share)} % of TTFT at {longest} tokens"
    if fit.quadratic.low <= 0:
        yield (
            f"attention: no quadratic part shows up to {longest} tokens, so this range does not tell where it dominates"
        )
    elif fit.crossing is None:
        yield f"{part}; no linear part shows, so nothing tells from which length on it dominates"
    elif fit.crossing.value <= longest:
        yield f"attention, the quadratic part, outgrows the linear one from {_tokens(fit.crossing)} tokens on"
    else:
        yield (
            f"{part} and dominates nowhere in this range; the fit, extrapolated, has it outgrow the linear part from "
            f"{_tokens(fit.crossing)} tokens on"
        )


def decode(curve: Curve) -> Iterator[str]:
    """Yield what the fit of TPOT says, nothing without one."""
    fit: DecodeFit | None = curve.decode
    if fit is None:
        return
    cost = fit.per_token
    more = tuple(1000 * value for value in (cost.value, cost.low, cost.high))
    if cost.low <= 0 <= cost.high:
        yield "decode: a step does not measurably depend on the depth of the context"
    else:
        yield (
            f"decode: 1000 tokens more of context add {seconds(more[0])} [{seconds(more[1])}, {seconds(more[2])}] "
            f"to a step of {seconds(fit.constant.value)} (points within {100 * fit.worst:.1f} %)"
        )


def _each(coefficient: Coefficient) -> str:
    return f"{seconds(coefficient.value)} [{seconds(coefficient.low)}, {seconds(coefficient.high)}]"


def _tokens(coefficient: Coefficient) -> str:
    return f"{coefficient.value:,.0f} [{coefficient.low:,.0f}, {coefficient.high:,.0f}]"
