"""Comparisons and gates on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.report import text
from pytest_infer.report.text import printable
from pytest_infer.storage.runs import Run
from pytest_infer.units import NONE, show

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.gate import Gated

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
    if metric is None:  # of a rule on experts, or unknown to this version
        after = judgement.after
        return "" if after is None else printable(after) if isinstance(after, str) else f"{after:.3f}"
    before, after = _figure(judgement.before, metric), _figure(judgement.after, metric)
    if judgement.before is None or before == after:
        return after
    return f"{before} → {after}"


def _figure(value: float | str | None, metric: Metric) -> str:
    shown = printable(show(value, metric.unit))
    return shown[:8] if len(shown) == 64 and shown.isalnum() else shown


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


def titles(judgements: Iterable[Judgement]) -> dict[str, str]:
    """Return how each test is headed: by its prompt's name, or by its own where several tests have that prompt."""
    names = {j.test: j.name for j in judgements}
    times = Counter(names.values())
    return {test: printable(name if times[name] == 1 else test) for test, name in names.items()}


def render_judgements(
    judgements: Sequence[Judgement], *, heading: Sequence[str], width: int, color: bool, by_metric: bool = False
) -> str:
    """Return judgements as text of at most `width` columns, grouped by test or by metric."""
    console = text.console(width, color=color)
    for line in heading:
        console.print(Text(printable(line), style="bold"))
    _write_groups(console, judgements, by_metric=by_metric, apart=True)
    console.print()
    _write_summary(console, judgements)
    return text.collected(console)


def write_gate(console: Console, gated: Gated) -> None:
    """Write what a gate of this run found: all but what is unchanged, then the verdict."""
    _write_groups(console, [j for j in gated.judgements if j.verdict not in (Verdict.UNCHANGED, None)])
    _write_summary(console, gated.judgements)
    style = "green" if gated.exit is Exit.PASSED else "bold red" if gated.exit is Exit.REGRESSED else "yellow"
    against = f" against {printable(gated.against)}" if gated.against else ""
    console.print(Text(f"gate{against}: {gated.exit.word}", style=style))


def _write_groups(
    console: Console, judgements: Sequence[Judgement], *, by_metric: bool = False, apart: bool = False
) -> None:
    """Write judgements in groups whose columns are aligned over all of them; two lines each where one is too long."""
    title = titles(judgements)
    groups: dict[str, list[Judgement]] = {}
    for j in judgements:
        groups.setdefault(_what(j) if by_metric else title[j.test], []).append(j)
    rows = {name: [_cells(j, title[j.test] if by_metric else _what(j)) for j in js] for name, js in groups.items()}
    widths = [
        max(map(cell_len, column)) for column in zip(*(row for group in rows.values() for row in group), strict=True)
    ]
    one_line = 2 + sum(width + 2 for width in widths if width) - 2 <= console.width
    for name, members in groups.items():
        if apart:
            console.print()
        console.print(Text(name, style="bold"))
        for j, row in zip(members, rows[name], strict=True):
            style = _STYLES.get(j.verdict, "") if j.verdict is not None else "dim"
            for line in _aligned(row, widths, style) if one_line else _folded(row, widths[0], console.width, style):
                console.print(line)


def _what(judgement: Judgement) -> str:
    return printable(label(judgement)) or "test"


def _cells(j: Judgement, what: str) -> tuple[str, str, str, str, str]:
    shown = change(j)
    return what, values(j), f"change: {shown}" if shown else "", p_value(j.p), verdict(j)


def _aligned(row: Sequence[str], widths: Sequence[int], style: str) -> list[Text]:
    padded = [set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True) if width]
    line = Text("  " + "  ".join(padded[:-1] if widths[-1] else padded))
    if widths[-1]:
        line.append("  ").append(row[-1], style=style)
    line.rstrip()
    return [line]


def _folded(row: Sequence[str], first: int, width: int, style: str) -> list[Text]:
    """Return the figures, and below them the change; the verdict stands beside the figures where there is none."""
    what, figures, changed, p, said = row
    padded = set_cell_size(what, max(cell_len(what), min(first, width // 3)))
    top = Text("  " + "  ".join(part for part in (padded, figures) if part))
    if not changed and cell_len(top.plain) + 2 + cell_len(said) <= width:
        top.append("  ").append(said, style=style)
        top.rstrip()
        return [top]
    below = Text("    " + "".join(f"{part}  " for part in (changed, p) if part)).append(said, style=style)
    below.rstrip()
    top.rstrip()
    return [top, below] if below.plain.strip() else [top]


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


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKS = {
    Verdict.REGRESSED: "✗",
    Verdict.MISSING: "✗",
    Verdict.IMPROVED: "✓",
    Verdict.UNCHANGED: "=",
    Verdict.INCONCLUSIVE: "?",
    Verdict.INCOMPARABLE: "≠",
    Verdict.NEW: "·",
}


def render_many(runs: Sequence[Run], compared: Sequence[Sequence[Judgement]], *, width: int, color: bool) -> str:
    """Return several runs beside the first: a table per test, a column per run, each change with its verdict's mark.

    Where the columns do not fit, a line per run instead.
    """
    console = text.console(width, color=color)
    for number, run in enumerate(runs):
        console.print(Text(f"{_LETTERS[number]}  {printable(run.label)}", style="bold"))
    every = [j for judgements in compared for j in judgements]
    tables = {
        title: _many_rows([{_what(j): j for j in js if j.test == test} for js in compared])
        for test, title in titles(every).items()
    }
    rows = [row for table in tables.values() for row in table]
    widths = (
        [max(len(x) for x in (cell.plain for cell in column)) for column in zip(*rows, strict=True)] if rows else []
    )
    fits = 2 + sum(w + 2 for w in widths) - 2 <= width
    for title, table in tables.items():
        console.print()
        console.print(Text(title, style="bold"))
        for line in _many_aligned(table, widths) if fits else _many_folded(table):
            console.print(line)
    console.print()
    _write_summary(console, every)
    found = {j.verdict for j in every}
    console.print(Text("  ".join(f"{_MARKS[kind]} {kind.value}" for kind in Verdict if kind in found), style="dim"))
    return text.collected(console)


def _many_rows(runs: Sequence[dict[str, Judgement]]) -> list[list[Text]]:
    """Return a row of cells for each figure: its name, its value in the first run, and what each other run has."""
    order = [metric.label for metric in METRICS]
    names = sorted({name for run in runs for name in run}, key=lambda n: order.index(n) if n in order else -1)
    return [[Text(name), *_many_cells([run.get(name) for run in runs])] for name in names]


def _many_cells(found: Sequence[Judgement | None]) -> Iterable[Text]:
    first = next(j for j in found if j is not None)
    yield Text(NONE if first.metric is None else _figure(first.before, first.metric))
    for j in found:
        if j is None:
            yield Text(NONE)
            continue
        parts = (
            j.verdict.value if j.metric is None and j.verdict is not None else "",
            "" if j.metric is None else _figure(j.after, j.metric),
            share(j.mid) if j.mid is not None else "",
            _MARKS[j.verdict] if j.verdict is not None else "",
        )
        style = _STYLES.get(j.verdict, "") if j.verdict is not None else ""
        yield Text(" ".join(part for part in parts if part), style=style)


def _many_aligned(table: Sequence[Sequence[Text]], widths: Sequence[int]) -> Iterable[Text]:
    heads = [Text(""), *(Text(_LETTERS[n], style="bold") for n in range(len(widths) - 1))]
    for row in (heads, *table):
        line = Text("  ").append_text(row[0]).append(" " * (widths[0] - len(row[0])))
        for cell, width in zip(row[1:], widths[1:], strict=True):
            line.append(" " * (2 + width - len(cell))).append_text(cell)
        yield line


def _many_folded(table: Sequence[Sequence[Text]]) -> Iterable[Text]:
    for what, *cells in table:
        yield Text("  ").append_text(what)
        for number, cell in enumerate(cells):
            yield Text(f"    {_LETTERS[number]}  ").append_text(cell)
