"""Comparisons, gates and histories on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.analysis.verdicts import Exit, Judgement, Verdict
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.report import text
from pytest_infer.report.text import printable
from pytest_infer.storage.history import Run
from pytest_infer.units import NONE, show

if TYPE_CHECKING:
    from pytest_infer.analysis.gate import Gated
    from pytest_infer.analysis.trends import Shift

PRIMARY = ("ttft_s", "tpot_s", "itl_p99_s", "total_s", "decode_throughput", "peak_rss_bytes", "output_sha256")
"""What a comparison shows where nothing is asked for, beside whatever else changed."""

_STYLES = {
    Verdict.REGRESSED: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.IMPROVED: "green",
    Verdict.UNCHANGED: "dim",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.INCOMPARABLE: "yellow",
    Verdict.NEW: "cyan",
}
_WORTH_A_LINE = (Verdict.REGRESSED, Verdict.IMPROVED)


def share(value: float | None, *, end: float = 1) -> str:
    """Return a relative change: `+2.4 %`, `−12 %`; an end of an interval that is not bounded as ±∞."""
    if value is None:
        return "+∞" if end > 0 else "−∞"
    percent = 100 * value
    digits = 1 if abs(percent) < 10 else 0
    text = f"{abs(percent):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if percent > 0 else "−"
    return f"{sign}{text} %"


def p_value(p: float | None) -> str:
    """Return a p-value as it is usually written."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def change(judgement: Judgement) -> str:
    """Return criterion's form, `[low mid high]`; a change without an interval alone; nothing where there is none."""
    if judgement.mid is None:
        return ""
    if judgement.p is None or judgement.low == judgement.high:
        return share(judgement.mid)
    low, high = share(judgement.low, end=-1), share(judgement.high)
    return f"[{low} {share(judgement.mid)} {high}]"


def verdict(judgement: Judgement) -> str:
    """Return the verdict, with the threshold where it decided."""
    if judgement.verdict is None:
        return ""
    said, threshold = judgement.verdict.value, judgement.threshold
    if judgement.verdict in _WORTH_A_LINE and threshold is not None and judgement.mid is not None:
        said += f" (threshold {100 * threshold:g} %)"
    return said


def values(judgement: Judgement) -> str:
    """Return both figures with their unit: `7.35 ms → 7.61 ms`; one where they are equal or there is only one."""
    metric = judgement.metric
    if metric is None:
        return "" if judgement.after is None else f"{judgement.after:.3f}"
    before, after = _short(show(judgement.before, metric.unit)), _short(show(judgement.after, metric.unit))
    if judgement.before is None or before == after:
        return after
    return f"{before} → {after}"


def _short(text: str) -> str:
    return text[:8] if len(text) == 64 and text.isalnum() else text


def label(judgement: Judgement) -> str:
    """Return the rule of a gate, or the metric's name."""
    if judgement.rule is not None:
        return judgement.rule
    return judgement.metric.label if judgement.metric is not None else ""


def worth_showing(judgements: Iterable[Judgement], only: Sequence[Metric] | None) -> list[Judgement]:
    """Return the asked-for metrics, or the primary ones and whatever else changed."""
    return [
        j
        for j in judgements
        if only is not None
        or j.metric is None
        or j.rule is not None
        or j.metric.key in PRIMARY
        or j.verdict in _WORTH_A_LINE
    ]


def render_judgements(
    judgements: Sequence[Judgement], *, heading: Sequence[str], width: int, color: bool, by_metric: bool = False
) -> str:
    """Return judgements as text of at most `width` columns, grouped by test or by metric."""
    console = text.console(width, color=color)
    for line in heading:
        console.print(Text(printable(line), style="bold"))
    for name, members in _grouped(judgements, by_metric=by_metric).items():
        console.print()
        console.print(Text(printable(name), style="bold"))
        console.print(_table(members, by_metric=by_metric, narrow=width < 100))
    console.print()
    _write_summary(console, judgements)
    return text.collected(console)


def write_gate(console: Console, gated: Gated) -> None:
    """Write what a gate of this run found: all but what is unchanged, then the verdict."""
    shown = [j for j in gated.judgements if j.verdict is not Verdict.UNCHANGED]
    narrow = console.width < 100
    for name, members in _grouped(shown, by_metric=False).items():
        console.print(Text(printable(name), style="bold"))
        console.print(_table(members, by_metric=False, narrow=narrow))
    _write_summary(console, gated.judgements)
    style = "green" if gated.exit is Exit.PASSED else "bold red" if gated.exit is Exit.REGRESSED else "yellow"
    against = f" against {printable(gated.against)}" if gated.against else ""
    console.print(Text(f"gate{against}: {gated.exit.word}", style=style))


def _grouped(judgements: Iterable[Judgement], *, by_metric: bool) -> dict[str, list[Judgement]]:
    groups: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        group = label(judgement) if by_metric else judgement.name
        groups.setdefault(group, []).append(judgement)
    return groups


def _table(members: Sequence[Judgement], *, by_metric: bool, narrow: bool) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for _ in range(4 if narrow else 5):
        table.add_column(overflow="fold")
    for j in members:
        style = _STYLES.get(j.verdict, "") if j.verdict is not None else "dim"
        what = printable(j.name if by_metric else label(j))
        shown = change(j)
        said = Text(verdict(j), style=style)
        if narrow:
            table.add_row(f"  {what}", values(j), shown, said)
        else:
            table.add_row(f"  {what}", values(j), f"change: {shown}" if shown else "", p_value(j.p), said)
    return table


def _write_summary(console: Console, judgements: Sequence[Judgement]) -> None:
    counts = Counter(j.verdict for j in judgements if j.verdict is not None)
    line = Text()
    for kind in Verdict:
        if counts[kind]:
            line.append(f"{', ' if line else ''}{counts[kind]} {kind.value}", style=_STYLES[kind])
    console.print(line or Text("nothing to compare", style="yellow"))
    reasons = Counter(
        f"{j.verdict.value}: {j.reason}" for j in judgements if j.verdict is not None and j.reason is not None
    )
    for reason, times in reasons.most_common(6):
        console.print(Text(f"  {printable(reason)}{f' ({times}×)' if times > 1 else ''}", style="dim"))


def render_many(runs: Sequence[Run], compared: Sequence[Sequence[Judgement]], *, width: int, color: bool) -> str:
    """Return several runs beside the first: a table per test, a column per run, each change with its verdict's mark."""
    console = text.console(width, color=color)
    for number, run in enumerate(runs):
        console.print(Text(f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[number]}  {printable(run.label)}", style="bold"))
    tests = list(dict.fromkeys((j.test, j.name) for judgements in compared for j in judgements))
    for test, name in tests:
        console.print()
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left", header_style="bold")
        table.add_column(printable(name), overflow="fold")
        for number in range(len(runs)):
            table.add_column("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number], justify="right")
        cells = [{j.metric.key: j for j in js if j.test == test and j.metric is not None} for js in compared]
        for metric in METRICS:
            found = [cell.get(metric.key) for cell in cells]
            if any(found):
                table.add_row(metric.label, *_row(metric, found))
        console.print(table)
    console.print()
    _write_summary(console, [j for judgements in compared for j in judgements])
    return text.collected(console)


def _row(metric: Metric, found: Sequence[Judgement | None]) -> list[Text]:
    first = next((j for j in found if j is not None), None)
    cells = [Text(_short(show(first.before, metric.unit)) if first is not None else NONE)]
    for j in found:
        if j is None:
            cells.append(Text(NONE))
            continue
        changed = f" {share(j.mid)}" if j.mid is not None else ""
        style = _STYLES.get(j.verdict, "") if j.verdict is not None else ""
        cells.append(Text(f"{_short(show(j.after, metric.unit))}{changed}", style=style))
    return cells


def render_history(runs: Sequence[Run], names: dict[str, list[str]], *, width: int, color: bool) -> str:
    """Return runs as a table, oldest first; `names` are the baselines that each file name has."""
    console = text.console(width, color=color)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("run", "time (UTC)", "commit", "branch", "tests", "model", "machine", "gate", "baseline"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    for run in runs:
        gate = run.gate.result if run.gate is not None else NONE
        table.add_row(
            run.number or run.path.name,
            f"{run.time:%Y-%m-%d %H:%M}",
            f"{(run.commit or NONE)[:8]}{'+' if run.dirty else ''}",
            printable(run.branch or NONE),
            f"{run.tests}{f' (+{len(run.failed)} failed)' if run.failed else ''}",
            printable(run.model or ("plain" if run.plain else NONE)),
            printable(run.machine or NONE),
            Text(gate, style="green" if gate == "passed" else "red" if gate == "regressed" else "yellow"),
            ", ".join(names.get(run.path.name, [])),
        )
    console.print(table)
    return text.collected(console)


def render_shifts(shifts: Sequence[Shift], *, width: int, color: bool) -> str:
    """Return change points as a table, oldest first: since which commit, from which level to which."""
    console = text.console(width, color=color)
    if not shifts:
        console.print(Text("no change points: every metric has stayed at its level", style="dim"))
        return text.collected(console)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("since", "time (UTC)", "prompt", "metric", "before → after", "change", ""):
        table.add_column(heading, overflow="fold")
    for shift in shifts:
        style = "red" if shift.worse else "green" if shift.worse is not None else ""
        unit = shift.metric.unit
        table.add_row(
            printable(shift.run.label),
            f"{shift.run.time:%Y-%m-%d %H:%M}",
            printable(shift.name),
            shift.metric.label,
            f"{show(shift.point.before, unit)} → {show(shift.point.after, unit)}",
            Text(share(shift.point.change), style=style),
            p_value(shift.point.p),
        )
    console.print(table)
    return text.collected(console)
