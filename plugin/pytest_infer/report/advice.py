"""Advice as lines of a terminal, the most serious at the end of a run or all of it, as JSON, and the table of rules."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from pytest_infer.analysis.advice.advice import RULES, Advice
from pytest_infer.analysis.advice.evidence import AdviceRule, Severity
from pytest_infer.records import WarningKind
from pytest_infer.report.text import collected, printable
from pytest_infer.report.text import console as new_console

_STYLES = {Severity.CRITICAL: "red", Severity.WARNING: "yellow", Severity.INFO: ""}


def suggestions(advice: Sequence[Advice], reported: Collection[WarningKind] = ()) -> tuple[Advice, ...]:
    """Return the advice that suggests something, without what a warning above reports already."""
    known = {rule.key for rule in RULES if rule.warning in reported}
    return tuple(a for a in advice if a.suggestion is not None and a.rule not in known)


def line(advice: Advice) -> str:
    """Return one piece of advice as a line, without any control character."""
    where = "" if advice.tests == 1 or len(advice.prompts) == advice.tests else f" [{_where(advice)}]"
    if advice.suggestion is None:
        return printable(f"good: {advice.evidence} ({advice.rule})")
    return printable(f"{advice.severity.value}: {advice.evidence}{where} → {advice.suggestion} ({advice.rule})")


def _where(advice: Advice) -> str:
    if len(advice.prompts) > 2:
        return f"{len(advice.prompts)} of {advice.tests} prompts"
    return ", ".join(advice.prompts)


def write(console: Console, advice: Sequence[Advice]) -> None:
    """Write a line each."""
    for one in advice:
        console.print(Text(line(one), style="green" if one.suggestion is None else _STYLES[one.severity]))


def render(advice: Sequence[Advice], *, heading: str, width: int, color: bool) -> str:
    """Return all of it under a heading."""
    console = new_console(width, color=color)
    console.print(Text(printable(heading), style="bold"))
    write(console, advice)
    if not advice:
        console.print(Text("no advice: no rule saw its evidence"))
    return collected(console)


def as_json(advice: Sequence[Advice], *, run: str) -> str:
    """Return all of it as JSON."""
    return json.dumps({"run": run, "advice": msgspec.to_builtins(advice)}, indent=2) + "\n"


def rules_table(rules: Iterable[AdviceRule] = RULES) -> str:
    """Return the table of docs/advice.md."""
    lines = ["| rule | evidence it needs | threshold, source | what to try |", "|---|---|---|---|"]
    lines += [f"| `{r.key}` | {r.needs} | {r.threshold} | {r.what_to_try} |" for r in rules]
    return "\n".join(lines) + "\n"
