"""Comparisons for machines and pull requests: JSON, CSV, Markdown, and GitHub's annotations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange, Verdict
from pytest_infer.report.compare import accepted
from pytest_infer.report.compare import headline as headlines
from pytest_infer.report.compare.words import Line, change, folded, label, p_value, titles, values, verdict
from pytest_infer.report.text import csv_lines, printable

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.gate import Gated

_MARKS = {
    Verdict.REGRESSED: "🔴",
    Verdict.MISSING: "🔴",
    Verdict.ACCEPTED: "🟠",
    Verdict.IMPROVED: "🟢",
    Verdict.UNCHANGED: "⚪",
    Verdict.INCONCLUSIVE: "🟡",
    Verdict.INCOMPARABLE: "🟡",
    Verdict.NEW: "🔵",
}


def flat(judgement: Judgement) -> dict[str, Any]:
    """Return a judgement as one table row; changes and thresholds are shares (0.05 is 5 %)."""
    row: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(judgement))
    return row


def flat_suite(change: SuiteChange) -> dict[str, Any]:
    """Return a figure of the suite as a judgement with how many prompts are in it, and what its interval is made of."""
    about: dict[str, Any] = msgspec.to_builtins(change)
    return {**flat(change.judgement), **{key: value for key, value in about.items() if key != "judgement"}}


def as_json_rows(rows: Sequence[dict[str, Any]], **about: Any) -> str:
    """Return flat judgements as JSON, with what else is said of the comparison before them."""
    return json.dumps({**about, "judgements": list(rows)}, indent=2, allow_nan=False) + "\n"


def as_csv(rows: Iterable[dict[str, Any]], first: Sequence[str] = ()) -> str:
    """Return flat judgements as CSV with a heading; `first` are columns that they have before their own."""
    columns = [name for name in Judgement.__struct_encode_fields__ if name != "carried"]
    return "".join(csv_lines((*first, *columns), rows))


def as_markdown(
    judgements: Sequence[Judgement],
    heading: Sequence[str],
    *,
    headline: str = "",
    suite: Sequence[SuiteChange] = (),
    fold: bool = True,
) -> str:
    """Return judgements as Markdown for a pull request: the headline and what changed first, the rest folded away.

    `fold`: figures that are one fact share a line.
    """
    lines_ = folded(judgements) if fold else [Line(j) for j in judgements]
    counts = Counter(line.judgement.verdict for line in lines_ if line.judgement.verdict is not None)
    said = ", ".join(f"{_MARKS[kind]} {counts[kind]} {kind.value}" for kind in Verdict if counts[kind])
    lines = [f"### {escape(headline)}", ""] if headline else []
    lines += [*(f"**{escape(line)}**  " for line in heading), "", said or "nothing to compare", ""]
    if suite:
        lines += [*_suite_rows(suite, fold=fold), ""]
    rest = (Verdict.UNCHANGED, None)
    title = titles(judgements)
    first = [line for line in lines_ if line.judgement.verdict not in rest]
    if first:
        lines += [*_rows(first, title), ""]
    others = [line for line in lines_ if line.judgement.verdict in rest]
    if others:
        lines += [
            "<details><summary>unchanged and for information</summary>",
            "",
            *_rows(others, title),
            "",
            "</details>",
            "",
        ]
    bad = [line.judgement for line in first]
    reasons = dict.fromkeys(f"{j.verdict.value}: {j.reason}" for j in bad if j.reason and j.verdict)
    lines += [f"- {escape(reason)}" for reason in list(reasons)[:6]]
    noted = [line.judgement for line in lines_ if line.judgement.note]
    lines += [f"- {escape(f'{title[j.test]}: {label(j)} {j.note}')}" for j in noted[:6]]
    return "\n".join(lines).rstrip() + "\n"


def _suite_rows(suite: Sequence[SuiteChange], *, fold: bool) -> list[str]:
    counted = {change.judgement.metric_key: headlines.counted(change) for change in suite}
    judgements = [change.judgement for change in suite]
    rows = []
    for line in folded(judgements) if fold else [Line(j) for j in judgements]:
        j = line.judgement
        rows.append((_mark(j), line.label, counted[j.metric_key], change(j), p_value(j.p_adjusted), verdict(j)))
    return table(("", "suite", "mean over", "change", "", "verdict"), rows)


def _rows(lines: Iterable[Line], title: Mapping[str, str]) -> list[str]:
    rows = []
    for line in lines:
        j = line.judgement
        what = (_mark(j), title[j.test], line.label, values(j))
        rows.append((*what, change(j), p_value(j.p_adjusted), verdict(j)))
    return table(("", "prompt", "figure", "before → after", "change", "", "verdict"), rows)


def _mark(judgement: Judgement) -> str:
    return _MARKS[judgement.verdict] if judgement.verdict else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; cells need not be escaped."""
    lines = ["|" + "|".join(f" {escape(head)} " if head else " " for head in heads) + "|", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(map(escape, row)) + " |" for row in rows]


def escape(text: str) -> str:
    """Return text that Markdown and HTML leave as it is: names and outputs are not to be trusted."""
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#@!" else c for c in shown)


def github_annotations(judgements: Sequence[Judgement]) -> str:
    """Return a workflow command per judgement that needs a look: errors for failures, warnings for doubts."""
    levels = {
        Verdict.REGRESSED: "error",
        Verdict.MISSING: "error",
        Verdict.ACCEPTED: "notice",
        Verdict.INCONCLUSIVE: "warning",
        Verdict.INCOMPARABLE: "warning",
    }
    title = titles(judgements)
    lines = []
    for j in judgements:
        if j.verdict in levels:
            about = _property(f"{title[j.test]}: {printable(label(j)) or j.verdict.value}")
            parts = (
                values(j),
                change(j),
                p_value(j.p_adjusted),
                verdict(j),
                printable(j.reason or ""),
                printable(j.note or ""),
            )
            lines.append(f"::{levels[j.verdict]} title={about}::{_data('  '.join(p for p in parts if p))}")
    return "".join(f"{line}\n" for line in lines)


def _data(text: str) -> str:
    """Escape the text of a workflow command as GitHub's toolkit does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def write_summary(gated: Gated, heading: Sequence[str], environ: Mapping[str, str], more: str = "") -> None:
    """Append the Markdown to the job's step summary, where GitHub Actions asks for one; raise OSError if that fails.

    `more` is Markdown that stands below it.
    """
    summary = environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(gate_as_markdown(gated, [*heading, *ended(gated)]) + f"\n{more}")


def gate_as_markdown(gated: Gated, heading: Sequence[str]) -> str:
    """Return what a gate found as Markdown."""
    said = headlines.in_words(gated.headline, gated.judgements)
    text = as_markdown(gated.judgements, heading, headline=said, suite=gated.suite)
    return text if gated.ending.bisect else text + accepted.how_as_markdown(gated.judgements)


def ended(gated: Gated) -> list[str]:
    """Return how a gate ended, what an inconclusive verdict means where there is one, and what was accepted."""
    return [f"gate: {gated.exit.word}", *([gated.said] if gated.said is not None else []), *accepted.lines(gated)]
