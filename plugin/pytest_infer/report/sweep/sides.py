"""A sweep or a curve of two sides, for a terminal: what changed at each length or configuration, and from where on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics import by_key
from pytest_infer.report.sweep import drawing
from pytest_infer.report.text import print_table, printable
from pytest_infer.units import NONE, column, seconds

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.verdicts import Judgement
    from pytest_infer.analysis.sweep.curve import Coefficient, Curve
    from pytest_infer.analysis.sweep.from_length import Claim
    from pytest_infer.analysis.sweep.sides import (
        Change,
        CoefficientChange,
        ConfigurationSides,
        CurveSides,
        FigureSides,
        SweptSides,
    )

WIDE = 110
"""From so many columns on an interval stands beside its change, and not below it."""
AFTER = "this checkout"
MOST_NAMED = 3
MOST_DRAWN = 2
_WORDS = {"peak_rss_bytes": ("more", "less")}
"""How more and less of a figure are called, where that is not slower and faster."""


def write(console: Console, found: SweptSides, *, drawn: bool) -> None:
    """Write each curve with both sides' fits, then the configurations; many curves are `drawn` only if so asked."""
    drawn = drawn or len(found.curves) <= MOST_DRAWN
    for one in found.curves:
        _write_curve(console, one, found.before, drawn=drawn)
    if not drawn:
        console.print(Text("the curves are drawn with -v, and in the HTML report", style="dim"))
    if found.configurations:
        _write_configurations(console, found)
    for line in left_out(found):
        console.print(Text(printable(line), style="yellow"))


def title(curve: CurveSides) -> str:
    """Return the heading of a curve."""
    return " ".join(part for part in (curve.after.prompt, label(curve.after.config)) if part)


def left_out(found: SweptSides) -> Iterator[str]:
    """Yield what is not compared, and why."""
    for line in found.left_out:
        yield f"not compared, as the work differs: {line}"


def percent(value: float | None) -> str:
    """Return a share as the end of an interval: `2.0`, `−0.3`, `∞` for one that is not bounded."""
    if value is None:
        return "∞"
    text = f"{abs(100 * value):.1f}" if abs(value) < 0.1 else f"{abs(100 * value):.0f}"
    return f"−{text}" if value < 0 and float(text) else text


def _end(value: float | None) -> str:
    """Return an end of an interval; of one that tells nothing, no more digits than that takes."""
    return ">999" if value is not None and value >= 10 else percent(value)


def change(mid: float | None, low: float | None, high: float | None, between: str = " ") -> str:
    """Return a relative change with its interval: `+3.1 % [2.0, 4.2]`; a dash where there is none.

    Alone where the interval is not known, or no wider than the change, as of rounds that are all equal.
    """
    if mid is None:
        return NONE
    sign = "+" if mid > 0 and float(percent(mid)) else ""
    said = f"{sign}{percent(mid)} %"
    return said if low == high else f"{said}{between}[{_end(low)}, {_end(high)}]"


# curves


def _write_curve(console: Console, one: CurveSides, before: str, *, drawn: bool) -> None:
    console.print(Text(printable(f"by prompt length, {before} and {AFTER}: {title(one)}"), style="bold"))
    print_table(console, _lengths(one, between=" " if console.width >= WIDE else "\n"))
    for figure in one.figures if drawn else ():
        _write_drawing(console, one, figure)
    if drawn:
        console.print(Text(printable(legend(one, before)), style="dim"))
    if any(figure.coefficients for figure in one.figures):
        print_table(console, _coefficients(one, wide=console.width >= WIDE))
        console.print(Text(deviations(one), style="dim"))
    for line in sentences(one):
        console.print(Text(line, style="bold"))


def _lengths(one: CurveSides, between: str) -> Table:
    table = _table()
    table.add_column("prompt\ntokens", justify="right", no_wrap=True)
    columns = [[str(point.tokens) for point in one.after.points]]
    for figure in one.figures:
        metric = by_key(figure.metric_key)
        times = [[getattr(p, figure.metric_key) for p in side.points] for side in (one.before, one.after)]
        unit, both = column([*times[0], *times[1]], metric.unit)
        for heading in (f"{metric.label}, {unit}\nbefore", "\nafter", "\nchange"):
            table.add_column(heading, justify="right", no_wrap=True)
        changes = [change(j.mid, j.low, j.high, between) for j in figure.judgements]
        columns += [both[: len(times[0])], both[len(times[0]) :], changes]
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def places(curve: Curve, key: str) -> list[float]:
    """Return where a curve's points of a figure stand: prompt lengths, or depths of the context."""
    if key == "ttft_s":
        return [float(point.tokens) for point in curve.points]
    return [point.depth for point in curve.points if point.depth is not None and point.tpot_s is not None]


def times(curve: Curve, key: str) -> list[float]:
    """Return a curve's times of a figure, seconds."""
    return [time for point in curve.points if (time := getattr(point, key)) is not None]


def fitted(curve: Curve, key: str) -> Callable[[float], float] | None:
    """Return the fit of a figure as a function of its place, None without one."""
    prefill, decode = curve.prefill, curve.decode
    if key == "ttft_s":
        if prefill is None:
            return None
        return lambda n: prefill.constant.value + prefill.linear.value * n + prefill.quadratic.value * n * n
    if decode is None:
        return None
    return lambda depth: decode.constant.value + decode.per_token.value * depth


def _write_drawing(console: Console, one: CurveSides, figure: FigureSides) -> None:
    key = figure.metric_key
    at = places(one.after, key)
    sides = [drawing.Side(values=times(side, key), fit=fitted(side, key)) for side in (one.before, one.after)]
    if len(at) < 2 or any(len(side.values) != len(at) for side in sides):
        return
    every = [value for side in sides for value in side.values]
    over = "prompt length" if key == "ttft_s" else "depth of the context"
    console.print(Text(f"{by_key(key).label} by {over}, tokens"))
    ends = (seconds(max(every)), seconds(min(every)))
    for line in drawing.lines(at, *sides, width=console.width, logarithmic=key == "ttft_s", ends=ends):
        console.print(line, no_wrap=True)


def legend(one: CurveSides, before: str) -> str:
    """Return what the marks of the drawings are."""
    fits = any(figure.coefficients for figure in one.figures)
    first, second = (f", fit {mark}" if fits else "" for mark in drawing.FITS)
    return f"{drawing.BEFORE} {before}{first}   {drawing.AFTER} {AFTER}{second}   {drawing.BOTH} both"


def _coefficients(one: CurveSides, *, wide: bool) -> Table:
    table = _table()
    for heading, right in (("fit", False), ("", False), ("before", True), ("after", True), ("change", True)):
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for figure in one.figures:
        for number, coefficient in enumerate(figure.coefficients):
            table.add_row(
                "" if number else by_key(figure.metric_key).label,
                coefficient.name,
                *(each(side) if wide else seconds(side.value) for side in (coefficient.before, coefficient.after)),
                coefficient_change(coefficient),
            )
    return table


def deviations(one: CurveSides) -> str:
    """Return how far points lie from the fits: where that is much, the coefficients say little."""
    fits = {"TTFT": (one.before.prefill, one.after.prefill), "TPOT": (one.before.decode, one.after.decode)}
    said = [f"{name} {percent(a.worst)} and {percent(b.worst)} %" for name, (a, b) in fits.items() if a and b]
    return f"the points lie within so much of their fits: {', '.join(said)}"


def each(coefficient: Coefficient) -> str:
    """Return a coefficient with its interval."""
    ends = f"[{seconds(coefficient.low)}, {seconds(coefficient.high)}]"
    return f"{seconds(coefficient.value)} {ends}".replace("-", "−")


def coefficient_change(of: CoefficientChange) -> str:
    """Return how a coefficient changed: by a share of it where it is distinct from 0, else in seconds."""
    if of.share is not None:
        return change(of.share.value, of.share.low, of.share.high)
    return NONE if of.change is None else each(of.change)


def sentences(one: CurveSides) -> Iterator[str]:
    """Yield, for each phase, from which length on a change shows, or that none does."""
    for figure in one.figures:
        tokens = [point.tokens for point in one.after.points]
        yield from (f"{figure.phase}: {line}" for line in _said(figure, tokens))


def _said(figure: FigureSides, tokens: Sequence[int]) -> Iterator[str]:
    found = figure.finding
    for claim in found.claims:
        yield _claimed(claim, figure.judgements, tokens)
    if found.within:
        yield "no length shows a change beyond 1 %"
    elif not found.claims:
        line = "no length shows a change"
        if found.widest is not None and found.widest not in found.unknown:
            largest = "any" if found.bound is None else f"one of {_end(found.bound)} %"
            line += f"; {largest} at {tokens[found.widest]} tokens is not ruled out"
        yield line
    if found.unknown:
        reason = next((r for n in found.unknown if (r := figure.judgements[n].reason)), "no interval")
        yield printable(f"nothing can be said at {_listed([tokens[n] for n in found.unknown])} tokens: {reason}")


def _claimed(claim: Claim, judgements: Sequence[Judgement], tokens: Sequence[int]) -> str:
    which = "slower" if claim.worse else "faster"
    shown = judgements[claim.numbers[-1]] if claim.on else max((judgements[n] for n in claim.numbers), key=_size)
    at = tokens[next(n for n in claim.numbers if judgements[n] is shown)]
    said = f"{change(shown.mid, shown.low, shown.high)} at {at}"
    if not claim.on:
        return f"{which} at {_listed([tokens[n] for n in claim.numbers])} tokens: {said}"
    if len(claim.numbers) == len(tokens):
        return f"{which} at every length: {said}"
    return f"{which} from {tokens[claim.numbers[0]]} tokens on: {said}"


def _size(judgement: Judgement) -> float:
    return abs(judgement.mid or 0.0)


def _listed(numbers: Sequence[int]) -> str:
    names = [str(number) for number in numbers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# configurations


def _write_configurations(console: Console, found: SweptSides) -> None:
    between = " " if console.width >= WIDE else "\n"
    console.print(Text(printable(f"{AFTER} against {found.before}, by configuration"), style="bold"))
    table = _table()
    table.add_column("configuration", overflow="fold")
    for key in measured(found.configurations):
        table.add_column(by_key(key).label, justify="right", no_wrap=True)
    for one in found.configurations:
        cells = [cell(one.changes.get(key), between) for key in measured(found.configurations)]
        table.add_row(Text(printable(one.label)), *cells)
    print_table(console, table)
    for line in of_configurations(found.configurations):
        console.print(Text(printable(line), style="bold"))


def measured(configurations: Sequence[ConfigurationSides]) -> list[str]:
    """Return the keys of the figures that any configuration has, in the order in which they are told."""
    return list(dict.fromkeys(key for one in configurations for key in one.changes))


def cell(one: Change | None, between: str = " ") -> str:
    """Return what changed in a configuration, a dash for nothing."""
    return NONE if one is None else change(one.mid, one.low, one.high, between)


def of_configurations(configurations: Sequence[ConfigurationSides]) -> Iterator[str]:
    """Yield, for each figure, with which configurations it changed, or that it did with none."""
    for key in measured(configurations):
        metric = by_key(key)
        known = [(one, one.changes[key]) for one in configurations if key in one.changes]
        worse, better = _WORDS.get(key, ("slower", "faster"))
        shown = False
        for word, sign in ((worse, 1), (better, -1)):
            changed = [(one, it) for one, it in known if it.shown and it.mid * sign > 0]
            if changed:
                shown = True
                names = [f"{one.label}: {cell(it)}" for one, it in changed]
                if len(names) > MOST_NAMED:
                    names[MOST_NAMED - 1 :] = [f"{len(names) - MOST_NAMED + 1} others"]
                with_all = "with every configuration, " if len(changed) == len(configurations) else "with "
                yield f"{metric.label}: {word} {with_all}{'; '.join(names)}"
        if not shown:
            yield f"{metric.label}: {_none(known)}"


def _none(known: Sequence[tuple[ConfigurationSides, Change]]) -> str:
    ends = {one.label: (it.low, it.high) for one, it in known}
    reach = {
        name: max(abs(low), abs(high)) for name, (low, high) in ends.items() if low is not None and high is not None
    }
    if len(reach) < len(known):
        why = next((it.reason for _, it in known if it.low is None and it.reason is not None), None)
        return f"no configuration shows a change, and none is ruled out: {why or 'more rounds are needed'}"
    widest = max(reach, key=reach.__getitem__)
    if reach[widest] <= 0.01:
        return "no configuration shows a change beyond 1 %"
    return f"no configuration shows a change; one of {_end(reach[widest])} % with {widest} is not ruled out"
