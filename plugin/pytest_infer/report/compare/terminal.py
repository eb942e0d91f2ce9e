"""Comparisons and gates on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pytest_infer.analysis.compare.verdicts import Exit, Judgement, SuiteChange, Verdict
from pytest_infer.report import text
from pytest_infer.report.breakdown import words as breakdown
from pytest_infer.report.compare import accepted, headline, words
from pytest_infer.report.compare.words import Line
from pytest_infer.report.text import printable

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.gate import Gated

SUITE = "suite: geometric mean over its prompts"

STYLES = {
    Verdict.REGRESSED: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.ACCEPTED: "yellow",
    Verdict.IMPROVED: "green",
    Verdict.UNCHANGED: "dim",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.INCOMPARABLE: "yellow",
    Verdict.NEW: "cyan",
}


def render_judgements(
    judgements: Sequence[Judgement],
    *,
    heading: Sequence[str],
    width: int,
    color: bool,
    by_metric: bool = False,
    fold: bool = True,
    headline: str = "",
    suite: Sequence[SuiteChange] = (),
) -> str:
    """Return judgements as text of at most `width` columns, grouped by test or by metric, the headline first.

    `fold`: figures that are one fact share a line.
    """
    console = text.console(width, color=color)
    if headline:
        console.print(Text(headline, style="bold"))
    for line in heading:
        console.print(Text(printable(line), style="" if headline else "bold"))
    lines = words.folded(judgements) if fold else [Line(j) for j in judgements]
    _write_groups(console, _rows(lines, suite, by_metric=by_metric, fold=fold), apart=True)
    console.print()
    write_summary(console, [line.judgement for line in lines])
    if any(line.also for line in lines):
        console.print(Text("  figures that tell the same are folded: --metric all shows each", style="dim"))
    return text.collected(console)


def write_gate(console: Console, gated: Gated) -> None:
    """Write what a gate of this run found: its headline, all but what is unchanged, then the verdict."""
    if said := headline.in_words(gated.headline, gated.judgements):
        console.print(Text(said, style="bold"))
    worth = [Line(j) for j in gated.judgements if j.verdict not in (Verdict.UNCHANGED, None)]
    _write_groups(console, _rows(worth, gated.suite))
    write_summary(console, gated.judgements)
    style = "green" if gated.exit is Exit.PASSED else "bold red" if gated.exit is Exit.REGRESSED else "yellow"
    against = f" against {printable(gated.against)}" if gated.against else ""
    console.print(Text(f"gate{against}: {gated.exit.word}", style=style))
    if gated.said is not None:
        console.print(Text(gated.said, style="yellow"))
    for line in (*accepted.lines(gated), *accepted.how(gated)):
        console.print(Text(line, style="yellow"))


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a group: its cells, what is folded into it, and the parts of a step that changed most."""

    group: tuple[str, str]
    cells: tuple[str, str, str, str, str]
    verdict: Verdict | None
    also: str = ""
    parts: Sequence[str] = ()


def _rows(
    lines: Sequence[Line], suite: Sequence[SuiteChange], *, by_metric: bool = False, fold: bool = True
) -> list[_Row]:
    """Return the suite's lines, then those of its prompts."""
    title = words.titles(line.judgement for line in lines)
    rows = []
    shown = words.folded([change.judgement for change in suite]) if fold else [Line(c.judgement) for c in suite]
    counts = {change.judgement.metric_key: headline.counted(change) for change in suite}
    for line, whole in (*((line, True) for line in shown), *((line, False) for line in lines)):
        j = line.judgement
        prompt = "suite" if whole else title[j.test]
        # A prompt may be called like the suite.
        group = ("metric", what(j)) if by_metric else ("suite", SUITE) if whole else ("prompt", prompt)
        changed = words.change(j)
        figures = counts[j.metric_key] if whole else words.values(j)
        cells = (
            prompt if by_metric else what(j),
            figures,
            f"change: {changed}" if changed else "",
            words.p_value(j.p_adjusted),
            words.verdict(j),
        )
        parts = () if j.carried is None else breakdown.rows(j.carried)
        rows.append(_Row(group, cells, j.verdict, words.also(line), parts))
    return rows


def _write_groups(console: Console, rows: Sequence[_Row], *, apart: bool = False) -> None:
    """Write lines in groups whose columns are aligned over all of them; two lines each where one is too long."""
    groups: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    widths = [max(map(cell_len, column)) for column in zip(*(row.cells for row in rows), strict=True)]
    one_line = 2 + sum(width + 2 for width in widths if width) - 2 <= console.width
    lines: list[Text] = []
    for (_, name), members in groups.items():
        if apart:
            lines.append(Text())
        lines.append(Text(name, style="bold"))
        for row in members:
            style = STYLES.get(row.verdict, "") if row.verdict is not None else "dim"
            cells = row.cells
            lines += _aligned(cells, widths, style) if one_line else _folded(cells, widths[0], console.width, style)
            if row.also:
                wrapped = Text(row.also, style="dim").wrap(console, max(1, console.width - 4))
                lines += [Text("    ").append_text(line) for line in wrapped]
            for part in row.parts:
                wrapped = Text(part, style="dim").wrap(console, max(1, console.width - 6))
                lines += [Text("      ").append_text(line) for line in wrapped]
    # At once: rich takes longer to begin a line than to write it.
    console.print(Text("\n").join(lines))


def what(judgement: Judgement) -> str:
    """Return how the line of a judgement begins."""
    return printable(words.label(judgement)) or "test"


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


def write_summary(console: Console, judgements: Sequence[Judgement]) -> None:
    """Write how many of each verdict there are, and why some could not be given."""
    counts = Counter(j.verdict for j in judgements if j.verdict is not None)
    line = Text()
    for kind in Verdict:
        if counts[kind]:
            line.append(f"{', ' if line else ''}{counts[kind]} {kind.value}", style=STYLES[kind])
    console.print(line or Text("nothing to compare", style="yellow"))
    reasons = Counter(
        f"{j.verdict.value}: {j.reason}" for j in judgements if j.verdict is not None and j.reason is not None
    )
    for reason, times in reasons.most_common(6):
        console.print(Text(f"  {printable(reason)}{f' ({times}×)' if times > 1 else ''}", style="dim"))
