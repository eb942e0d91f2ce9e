"""Several runs beside the first, on a terminal: a table per test, a column per run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msgspec import structs
from rich.text import Text

from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange, Verdict
from pytest_infer.metrics import METRICS
from pytest_infer.report import text
from pytest_infer.report.compare import words
from pytest_infer.report.compare.terminal import STYLES, SUITE, what, write_summary
from pytest_infer.report.compare.words import Line
from pytest_infer.report.text import printable
from pytest_infer.units import NONE

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKS = {
    Verdict.REGRESSED: "✗",
    Verdict.MISSING: "✗",
    Verdict.ACCEPTED: "✗",
    Verdict.IMPROVED: "✓",
    Verdict.UNCHANGED: "=",
    Verdict.INCONCLUSIVE: "?",
    Verdict.INCOMPARABLE: "≠",
    Verdict.NEW: "·",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyRun:
    """A run beside the first: what it is called, its judgements, its suite's, and its headline."""

    label: str
    judgements: Sequence[Judgement]
    suite: Sequence[SuiteChange] = ()
    headline: str = ""


def render_many(of: Sequence[ManyRun], first: str, *, width: int, color: bool, fold: bool = True) -> str:
    """Return several runs beside the first: a table per test, a column per run, each change with its verdict's mark.

    Where the columns do not fit, a line per run instead.
    """
    console = text.console(width, color=color)
    for number, run in enumerate(of, 1):
        if run.headline:
            console.print(Text(f"{_LETTERS[number]}  {run.headline}", style="bold"))
    for number, label in enumerate([first, *(run.label for run in of)]):
        console.print(Text(f"{_LETTERS[number]}  {printable(label)}"))
    every = [j for run in of for j in run.judgements]
    tables = [(SUITE, _rows([_by_figure(_changes(run.suite)) for run in of], fold=fold))]
    tables += [
        (title, _rows([_by_figure([j for j in run.judgements if j.test == test]) for run in of], fold=fold))
        for test, title in words.titles(every).items()
    ]
    rows = [row for _, table in tables for row in table]
    widths = (
        [max(len(x) for x in (cell.plain for cell in column)) for column in zip(*rows, strict=True)] if rows else []
    )
    fits = 2 + sum(w + 2 for w in widths) - 2 <= width
    for title, table in tables:
        if not table:
            continue
        console.print()
        console.print(Text(title, style="bold"))
        for line in _aligned(table, widths) if fits else _folded(table):
            console.print(line)
    console.print()
    lines = [line for run in of for line in (words.folded(run.judgements) if fold else map(Line, run.judgements))]
    write_summary(console, [line.judgement for line in lines])
    found = {j.verdict for j in every}
    console.print(Text("  ".join(f"{_MARKS[kind]} {kind.value}" for kind in Verdict if kind in found), style="dim"))
    return text.collected(console)


def _rows(runs: Sequence[dict[str, Judgement]], *, fold: bool) -> list[list[Text]]:
    """Return a row of cells for each figure: its name, its value in the first run, and what each other run has.

    A figure that is folded in every run has none.
    """
    if fold:
        lines = [line for run in runs for line in words.folded([*run.values()])]
        kept = {*_by_figure(line.judgement for line in lines)}
        runs = [{figure: j for figure, j in run.items() if figure in kept} for run in runs]
    order = [metric.key for metric in METRICS]
    figures = sorted({f for run in runs for f in run}, key=lambda f: order.index(f) if f in order else -1)
    found = [[run.get(figure) for run in runs] for figure in figures]
    return [[Text(what(next(j for j in js if j is not None))), *_cells(js)] for js in found]


def _changes(suite: Sequence[SuiteChange]) -> list[Judgement]:
    """Return the suite's judgements without their figures: each run shares other prompts with the first."""
    return [structs.replace(change.judgement, before=None, after=None) for change in suite]


def _by_figure(judgements: Iterable[Judgement]) -> dict[str, Judgement]:
    return {j.metric_key or what(j): j for j in judgements}


def _cells(found: Sequence[Judgement | None]) -> Iterable[Text]:
    first = next(j for j in found if j is not None)
    yield Text(NONE if first.metric is None else words.figure(first.before, first.metric))
    for j in found:
        if j is None:
            yield Text(NONE)
            continue
        parts = (
            j.verdict.value if j.metric is None and j.verdict is not None else "",
            "" if j.metric is None or j.after is None else words.figure(j.after, j.metric),
            words.share(j.mid) if j.mid is not None else "",
            _MARKS[j.verdict] if j.verdict is not None else "",
        )
        style = STYLES.get(j.verdict, "") if j.verdict is not None else ""
        yield Text(" ".join(part for part in parts if part), style=style)


def _aligned(table: Sequence[Sequence[Text]], widths: Sequence[int]) -> Iterable[Text]:
    heads = [Text(""), *(Text(_LETTERS[n], style="bold") for n in range(len(widths) - 1))]
    for row in (heads, *table):
        line = Text("  ").append_text(row[0]).append(" " * (widths[0] - len(row[0])))
        for cell, width in zip(row[1:], widths[1:], strict=True):
            line.append(" " * (2 + width - len(cell))).append_text(cell)
        yield line


def _folded(table: Sequence[Sequence[Text]]) -> Iterable[Text]:
    for name, *cells in table:
        yield Text("  ").append_text(name)
        for number, cell in enumerate(cells):
            yield Text(f"    {_LETTERS[number]}  ").append_text(cell)
