"""What a bisection says: a line a step, the commit at its end, and how to go on where it stopped."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.cli.bisect.halving import Commit, Mark
from pytest_infer.cli.bisect.runs import NOT_OF_GOOD
from pytest_infer.cli.bisect.search import Step
from pytest_infer.report.compare import words
from pytest_infer.report.text import printable

_LEAST_SUBJECT = 12


def figure(judgement: Judgement) -> str:
    """Return how a figure is named: its rule, and the prompt."""
    rule = printable(words.label(judgement))
    return rule if "[" in rule else f"{rule} of {printable(judgement.name)}"


def found(judgement: Judgement | None) -> str:
    """Return the interval of a figure, or its values where it has none, and the verdict."""
    if judgement is None:
        return "not measured"
    said = judgement.verdict.value if judgement.verdict is not None else ""
    return " ".join(part for part in (words.change(judgement) or words.values(judgement), said) if part)


def step(of: Step, commit: Commit, left: int | None, width: int) -> str:
    """Return the line of a step: commit, subject, interval, verdict, steps left; below it why it was skipped."""
    said = found(of.judgement) if of.judgement is not None else "skipped"
    if of.mark is Mark.SKIP and of.judgement is not None:
        said += ", skipped"
    if left is not None:
        said += f", {left} {'step' if left == 1 else 'steps'} left"
    room = max(_LEAST_SUBJECT, width - cell_len(commit.short) - cell_len(said) - 3)
    line = f"{commit.short} {_cut(printable(commit.subject), room)}  {said}"
    return line + (f"\n  {'measured twice; ' if of.again else ''}{printable(of.why)}" if of.why else "")


def _cut(text: str, room: int) -> str:
    return set_cell_size(text, room) if cell_len(text) <= room else f"{set_cell_size(text, room - 1)}…"


def following(
    first: Judgement,
    now: Judgement,
    others: Sequence[Judgement],
    broken: Sequence[Judgement] = (),
    *,
    commits: int,
    steps: int,
) -> list[str]:
    """Return what is searched for: a figure of BAD, and by which rule commits are judged from now on.

    `broken` are bounds that GOOD may break as well.
    """
    said = [f"following {figure(first)}: {commits} commits, about {steps} {'step' if steps == 1 else 'steps'}"]
    if now.rule != first.rule:
        said.append(f"  bad from here on: beyond {figure(now)}, halfway to that change")
    if others:
        also = ", ".join(map(figure, others))
        said.append(f"  also worse, and not followed: {also} (--rule and -k choose)")
    if broken:
        said.append(f"  left out: {', '.join(map(figure, broken))}: {NOT_OF_GOOD}")
    return said


def nothing_to_find(of: Step, judgements: Sequence[Judgement], good: Commit, bad: Commit) -> list[str]:
    """Return why there is nothing to be searched for: the figures of BAD against GOOD."""
    between = f"{bad.short} against {good.short}"
    if of.mark is Mark.GOOD:
        lines = [f"nothing to find: {between} did not get worse"]
    elif of.judgement is not None and of.judgement.verdict is Verdict.INCONCLUSIVE:
        lines = [
            f"cannot tell whether {between} got worse: give it more --infer-time, or a wider threshold with --rule"
        ]
    else:
        lines = [f"nothing to find: {between} cannot be compared: {printable(of.why or '')}"]
    width = max((cell_len(figure(j)) for j in judgements if j.rule), default=0)
    return lines + [f"  {set_cell_size(figure(j), width)}  {found(j)}" for j in judgements if j.rule]


def named(
    commit: Commit, judgement: Judgement | None, parents: Sequence[tuple[Commit, Judgement | None]], good: Commit
) -> list[str]:
    """Return the end: the commit, its figure against GOOD, and that of each parent."""
    lines = [
        f"first bad commit: {commit.hash}",
        f"  {printable(commit.subject)}",
        f"  {printable(commit.author)}, {commit.date}",
    ]
    if judgement is not None:
        lines.append(f"  {figure(judgement)} against {good.short}: {found(judgement)}")
    lines += [f"  its parent {parent.short}: {found(before)}" for parent, before in parents]
    if not parents and good.hash in commit.parents:
        lines.append(f"  its parent is {good.short} itself")
    return lines


def ranged(suspects: Sequence[Commit], known: Sequence[Step | None]) -> list[str]:
    """Return the end where commits had to be skipped: all that may be the first bad one, newest first."""
    lines = [f"the first bad commit is one of these {len(suspects)}; those skipped could not be judged:"]
    for commit, of in zip(suspects, known, strict=True):
        said = "" if of is None else f"  {'skipped' if of.mark is Mark.SKIP else found(of.judgement)}"
        lines.append(f"  {commit.hash} {printable(commit.subject)}{said}")
    return lines


def go_on(how: str, good: str, bad: str, options: Sequence[str], left: int) -> list[str]:
    """Return what is known where a bisection ended early, and the command that goes on from there."""
    command = shlex.join(["pytest-infer", "bisect", good[:12], bad[:12], *options])
    return [
        f"{how}: the first bad commit is one of {left}, after {good[:12]} and up to {bad[:12]}; to go on:",
        f"  {printable(command)}",
    ]
