"""`pytest-infer compare` and `pytest-infer gate`: stored runs against each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_infer.analysis.compare import fingerprint, rules
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit, Judgement, Verdict
from pytest_infer.cli import inifile
from pytest_infer.cli.shared import (
    AllowDifferent,
    As,
    Confidence,
    Format,
    Storage,
    color,
    open_history,
    out,
    refuse,
    say,
    width,
)
from pytest_infer.errors import InferError, StorageError
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.report.compare import exports
from pytest_infer.report.compare import terminal as comparison
from pytest_infer.report.experts import drift as moved
from pytest_infer.storage import marks
from pytest_infer.storage.heads import Mark, Run
from pytest_infer.storage.history import History

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.experts.drift import LayerDrift

_MOST_RUNS = 26


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN…",
            help="Numbers, commits, branches, tags, paths, baseline:NAME, latest~1; default: the two newest.",
        ),
    ] = None,
    *,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric (repeat it); all for all.")
    ] = None,
    by_metric: Annotated[bool, typer.Option("--by-metric", help="Group by metric instead of by prompt.")] = False,
    form: As = Format.TERMINAL,
    allow_different: AllowDifferent = None,
    confidence: Confidence = CONFIDENCE,
    storage: Storage = None,
) -> None:
    """Compare two runs, or several with the first: every metric with its interval and verdict."""
    try:
        fingerprint.check_allowed(allow_different or ())
        history = open_history(storage)
        if not runs and len(history.runs) < 2:
            say(f"fewer than two runs in {history.folder}: nothing to compare")
            raise typer.Exit(Exit.NOTHING.value)
        chosen = [history.select(name) for name in (runs or ["latest~1", "latest"])]
        only = _metrics(metric)
        if len(chosen) < 2 or len(chosen) > _MOST_RUNS:
            refuse(f"compare takes 2 to {_MOST_RUNS} runs, not {len(chosen)}")
        compared = [
            judged(history, chosen[0], other, keyword, only, tuple(allow_different or ()), confidence)
            for other in chosen[1:]
        ]
        drifts = [_drift(chosen[0], other, keyword) for other in chosen[1:]]
    except InferError as error:
        refuse(str(error))
    shown = [comparison.worth_showing(judgements, only) for judgements in compared]
    _write(chosen, compared, shown, drifts, form, by_metric=by_metric, confidence=confidence)
    if not any(compared):
        raise typer.Exit(Exit.NOTHING.value)


def _metrics(names: Sequence[str] | None) -> list[Metric] | None:
    if names is None:
        return None
    return list(METRICS) if "all" in names else [rules.metric_named(name) for name in names]


def judged(
    history: History,
    before: Run,
    after: Run,
    keyword: str | None = None,
    only: Sequence[Metric] | None = None,
    allowed: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> list[Judgement]:
    """Return every figure of a run beside that of an earlier one, and the tests that only one of them has."""
    # Imported late, here and below: other commands and --help need neither numpy nor scipy.
    from pytest_infer.analysis.compare import comparison as comparing  # noqa: PLC0415
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    rows = [row for row in after.rows if keyword is None or keyword in row.test]
    pairs, gone, new = gate.stored_pairs(before, rows, history)
    wanted = comparing.all_metrics(only)
    found = comparing.judge(pairs, lambda _row: wanted, allowed=allowed, confidence=confidence)
    found = [j for j in found if j.before is not None or j.after is not None]
    found += [Judgement(test=row.test, name=row.name, verdict=Verdict.NEW) for row in new]
    found += [
        Judgement(test=row.test, name=row.name, verdict=Verdict.MISSING)
        for row in gone
        if keyword is None or keyword in row.test
    ]
    return found


def _drift(before: Run, after: Run, keyword: str | None) -> dict[str, tuple[LayerDrift, ...]]:
    """Return how far the experts' shares of each test that both runs recorded them for have moved.

    Tests go by their prompts' names, or by their own where several have one prompt.
    """
    from pytest_infer.analysis.experts import drift  # noqa: PLC0415

    found = {}
    times = Counter(row.name for row in after.rows)
    for row in after.rows:
        old = before.row(row.test)
        if old is not None and (keyword is None or keyword in row.test):
            layers = drift.between(old.experts, row.experts)
            if layers is not None:
                found[row.name if times[row.name] == 1 else row.test] = layers
    return found


def _write(
    runs: Sequence[Run],
    compared: Sequence[Sequence[Judgement]],
    shown: Sequence[Sequence[Judgement]],
    drifts: Sequence[Mapping[str, Sequence[LayerDrift]]],
    form: Format,
    *,
    by_metric: bool,
    confidence: float,
) -> None:
    heading = [f"{runs[0].label} → {', '.join(run.label for run in runs[1:])}", f"{100 * confidence:g} % intervals"]
    names = [str(run.path) for run in runs]
    every = [{"run": name, **exports.flat(j)} for name, js in zip(names[1:], compared, strict=True) for j in js]
    if form is Format.JSON:
        usage = dict(zip(names[1:], map(moved.flat, drifts), strict=True))
        out(exports.as_json_rows(every, runs=names, confidence=confidence, expert_drift=usage))
    elif form is Format.CSV:
        out(exports.as_csv(every, ("run",)))
    elif form is Format.MARKDOWN:
        heads = [[f"{runs[0].label} → {run.label}", heading[1]] for run in runs[1:]]
        out("\n".join(exports.as_markdown(js, head) for js, head in zip(shown, heads, strict=True)))
    elif len(compared) == 1:
        out(comparison.render_judgements(shown[0], heading=heading, width=width(), color=color(), by_metric=by_metric))
    else:
        out(comparison.render_many(runs, shown, width=width(), color=color()))
    if form is Format.TERMINAL:
        labels = [run.label for run in runs[1:]]
        out(moved.render(list(zip(labels, drifts, strict=True)), width=width(), color=color()))


def run_gate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run to be gated.")] = "latest",
    *,
    against: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="What it is held against; default: the newest run that fits and passed."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            metavar="RULE",
            help=f"ttft:5%, tpot[story]:3%, decode_throughput>=15, output:exact, experts:drift<0.02 (repeat it); "
            f"default: infer_gate of the ini file, else {', '.join(rules.DEFAULT)}.",
        ),
    ] = None,
    github: Annotated[bool, typer.Option("--github", help="Also write GitHub's annotations and step summary.")] = False,
    mark: Annotated[bool, typer.Option(help="Keep the result in the run's file.")] = True,
    form: As = Format.TERMINAL,
    allow_different: AllowDifferent = None,
    confidence: Confidence = CONFIDENCE,
    storage: Storage = None,
) -> None:
    """Hold a run against an earlier one: 0 passed, 1 regressed, 2 wrong usage, 3 inconclusive, 4 nothing to compare."""
    try:
        fingerprint.check_allowed(allow_different or ())
        parsed = rules.parse(rule or inifile.gate_rules(Path.cwd()))
        history = open_history(storage)
        if not history.runs:
            say(f"no run in {history.folder}: nothing to gate")
            raise typer.Exit(Exit.NOTHING.value)
        candidate = history.select(run)
        allowed = tuple(allow_different or ())
        before = history.select(against) if against else _baseline(history, candidate, allowed)
        if before is not None and before.regressed:
            refuse(f"--against: run {before.label} failed its own gate; choose another")
        gated = _gated(history, before, candidate, parsed, allowed, confidence)
    except InferError as error:
        refuse(str(error))
    nothing = "no stored run" if any(rule.form is not rules.Form.BOUND for rule in parsed) else "bounds only"
    heading = [f"gate {candidate.label} against {gated.against or nothing}", f"{100 * confidence:g} % intervals"]
    _write_gate(gated, heading, form)
    if before is None and nothing == "no stored run":
        say("no stored run to compare with (same machine and software, clean code, not failed)")
    if github:
        _write_github(gated, heading, form)
    if mark:
        found = Mark(result=gated.exit.word, against=gated.against, rules=tuple(r.text for r in gated.rules))
        try:
            marks.write(candidate.path, found)
        except StorageError as error:
            say(str(error))
    raise typer.Exit(gated.exit.value)


def _baseline(history: History, candidate: Run, allowed: Sequence[str]) -> Run | None:
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    return gate.baseline_for(candidate.rows, history.before(candidate), allowed)


def _gated(
    history: History,
    before: Run | None,
    candidate: Run,
    parsed: Sequence[rules.Rule],
    allowed: Sequence[str],
    confidence: float,
) -> Gated:
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    if before is None:
        return gate.judge([], parsed, new=candidate.rows, allowed=allowed, confidence=confidence)
    pairs, gone, new = gate.stored_pairs(before, candidate.rows, history)
    return gate.judge(
        pairs, parsed, missing=gone, new=new, against=before.label, allowed=allowed, confidence=confidence
    )


def _write_gate(gated: Gated, heading: Sequence[str], form: Format) -> None:
    if form is Format.JSON:
        out(exports.as_json_rows([exports.flat(j) for j in gated.judgements], result=gated.exit.word))
    elif form is Format.CSV:
        out(exports.as_csv([exports.flat(j) for j in gated.judgements]))
    elif form is Format.MARKDOWN:
        out(exports.as_markdown(gated.judgements, [*heading, gated.exit.word]))
    else:
        out(comparison.render_judgements(gated.judgements, heading=heading, width=width(), color=color()))
        out(f"gate: {gated.exit.word}\n")


def _write_github(gated: Gated, heading: Sequence[str], form: Format) -> None:
    # GitHub reads workflow commands from both streams; JSON and CSV on stdout stay what they are.
    typer.echo(exports.github_annotations(gated.judgements), nl=False, err=form in (Format.JSON, Format.CSV))
    try:
        exports.write_summary(gated, heading, os.environ)
    except OSError as error:
        say(f"the step summary cannot be written: {error.strerror}")
