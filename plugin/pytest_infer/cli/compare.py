"""`pytest-infer compare` and `pytest-infer gate`: stored runs against each other."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_infer.analysis.compare import ending, fingerprint, rules
from pytest_infer.analysis.compare.ending import Ending
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit, Judgement, SuiteChange, Verdict
from pytest_infer.analysis.sweep import axes
from pytest_infer.cli import inifile
from pytest_infer.cli.shared import (
    AllowDifferent,
    Confidence,
    Storage,
    offered,
    open_history,
    out,
    refuse,
    say,
    screen,
)
from pytest_infer.errors import InferError, OptionError, StorageError, alternatives
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.report.compare import exports
from pytest_infer.report.compare.runs import ComparedRuns
from pytest_infer.report.formats import COMPARE, GATE, GATE_ON_GITHUB, Format, GatedRun
from pytest_infer.storage import files
from pytest_infer.storage.history import History
from pytest_infer.storage.runfile import Mark
from pytest_infer.storage.runs import Run

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.compare.headline import Headline

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
    form: Annotated[Format, offered(COMPARE)] = Format.TERMINAL,
    allow_different: AllowDifferent = None,
    confidence: Confidence = CONFIDENCE,
    storage: Storage = None,
) -> None:
    """Compare two runs, or several with the first: every metric with its interval and verdict."""
    # Imported late, here and below: other commands and --help need neither numpy nor scipy.
    from pytest_infer.analysis.experts import drift  # noqa: PLC0415

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
        drifts = [drift.of_runs(chosen[0], other, keyword) for other in chosen[1:]]
    except InferError as error:
        refuse(str(error))
    found = ComparedRuns(
        runs=chosen,
        judgements=[one.judgements for one in compared],
        suites=[one.suite for one in compared],
        headlines=[one.headline for one in compared],
        drifts=drifts,
        confidence=confidence,
        only=only,
        by_metric=by_metric,
    )
    out(COMPARE[form](found, screen()))
    if not any(one.judgements for one in compared):
        raise typer.Exit(Exit.NOTHING.value)


def _metrics(names: Sequence[str] | None) -> list[Metric] | None:
    if names is None:
        return None
    return list(METRICS) if "all" in names else [rules.metric_named(name) for name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Every figure of a run beside that of an earlier one, those of the suite, and what it comes to."""

    judgements: tuple[Judgement, ...]
    suite: tuple[SuiteChange, ...]
    headline: Headline | None


def judged(
    history: History,
    before: Run,
    after: Run,
    keyword: str | None = None,
    only: Sequence[Metric] | None = None,
    allowed: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Judged:
    """Return every figure of a run beside that of an earlier one, and the tests that only one of them has."""
    from pytest_infer.analysis.compare import comparison as comparing  # noqa: PLC0415
    from pytest_infer.analysis.compare import gate, headline, suite  # noqa: PLC0415

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
    changes = suite.changes(pairs, found, confidence)
    said = headline.of(pairs, found, changes, confidence)
    return Judged(judgements=tuple(found), suite=changes, headline=said)


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
    inconclusive: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(ending.DOUBTS),
            help=f"Whether a run that is only inconclusive fails, with exit code {Exit.INCONCLUSIVE.value}, or passes; "
            "default: infer_inconclusive of the ini file, else fail.",
        ),
    ] = None,
    exits: Annotated[
        str,
        typer.Option(
            "--exit",
            metavar="|".join(ending.EXITS),
            help="For a pipeline, or for `git bisect run`: 0 good, 1 regressed, 125 neither, 128 wrong usage.",
        ),
    ] = ending.PLAIN,
    form: Annotated[Format, offered(GATE)] = Format.TERMINAL,
    allow_different: AllowDifferent = None,
    allow_failed: Annotated[
        list[str] | None,
        typer.Option(metavar="TEST", help="Accept that this test failed or was not measured (repeat it; * and ?)."),
    ] = None,
    confidence: Confidence = CONFIDENCE,
    storage: Storage = None,
) -> None:
    """Hold a run against an earlier one: 0 passed, 1 regressed, 10 inconclusive, 11 nothing to compare, 2 usage."""
    try:
        end = _ending(inconclusive, exits)
        fingerprint.check_allowed(allow_different or ())
        parsed = rules.parse(
            rule or inifile.gate_rules(Path.cwd()), source=rules.Source.TYPED if rule else rules.Source.INI
        )
        history = open_history(storage)
        if not history.runs:
            say(f"no run in {history.folder}: nothing to gate")
            raise typer.Exit(end.code(()))
        candidate = history.select(run)
        allowed = tuple(allow_different or ())
        if run == "latest" and (newer := history.newer_unread(candidate)) is not None:
            refuse(f"{newer.name} is newer than {candidate.label} and cannot be read: mend it, or name the run to gate")
        rules.check_covered(parsed, {one for row in candidate.rows for one in axes.names(row.name, row.config)})
        before = _against(history, candidate, against) if against else _baseline(history, candidate, allowed)
        if before is not None and before.regressed:
            refuse(f"--against: run {before.label} failed its own gate; choose another")
        from pytest_infer.analysis.compare import possible  # noqa: PLC0415

        possible.refuse(candidate)
        rules.check_measured(parsed, [(axes.names(r.name, r.config), r.metrics.keys()) for r in candidate.rows])
        if before is not None:
            possible.refuse(before)
        unfit = _unfit(candidate, allow_failed or ())
        gated = replace(_gated(history, before, candidate, parsed, unfit, allowed, confidence), ending=end)
    except InferError as error:
        refuse(str(error))
    nothing = "no stored run" if any(rule.form is not rules.Form.BOUND for rule in parsed) else "bounds only"
    heading = [f"gate {candidate.label} against {gated.against or nothing}", f"{100 * confidence:g} % intervals"]
    found = GatedRun(gated=gated, heading=heading)
    out(GATE[form](found, screen()))
    if before is None and nothing == "no stored run":
        say("no stored run to compare with (same machine and software, clean code, not failed)")
    if github:
        _write_github(found, form)
    if mark:
        result = Mark(
            result=gated.exit.word,
            against=gated.against,
            rules=tuple(r.text for r in gated.rules),
            headline=found.said or None,
        )
        try:
            files.mark(candidate.path, result)
        except StorageError as error:
            say(str(error))
    raise typer.Exit(gated.code)


def _ending(inconclusive: str | None, exits: str) -> Ending:
    """Return what the exit code is to say; raise OptionError for what cannot be read."""
    asked = inconclusive or inifile.doubt(Path.cwd()) or ending.FAIL
    for option, given, known in (("--inconclusive", asked, ending.DOUBTS), ("--exit", exits, ending.EXITS)):
        if given not in known:
            raise OptionError(f"{option}: {alternatives('value', given, known)}")
    return Ending(passes_doubt=asked == ending.PASS, bisect=exits == ending.BISECT, option="--")


def _against(history: History, candidate: Run, against: str) -> Run:
    """Return the run that a selector names, or the next one that it fits where it names the candidate itself."""
    found = history.select(against)
    if found.path.resolve() != candidate.path.resolve():
        return found
    try:
        found = history.other_than(candidate).select(against)
    except StorageError:
        refuse(f"--against {against}: that is the run to be gated itself; name another")
    if found.path.resolve() == candidate.path.resolve():
        refuse(f"--against {against}: that is the run to be gated itself; name another")
    return found


def _unfit(candidate: Run, accepted: Sequence[str]) -> dict[str, str]:
    """Return the tests of a run that failed or were not measured, with the reason, but for those accepted by name."""
    found = dict.fromkeys(candidate.unmeasured, "not measured in this run") | dict.fromkeys(
        candidate.failed, "failed in this run"
    )
    return {test: why for test, why in found.items() if not any(fnmatch.fnmatchcase(test, name) for name in accepted)}


def _baseline(history: History, candidate: Run, allowed: Sequence[str]) -> Run | None:
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    return gate.baseline_for(candidate.rows, history.before(candidate), allowed)


def _gated(
    history: History,
    before: Run | None,
    candidate: Run,
    parsed: Sequence[rules.Rule],
    unfit: Mapping[str, str],
    allowed: Sequence[str],
    confidence: float,
) -> Gated:
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    if before is None:
        return gate.judge([], parsed, unfit=unfit, new=candidate.rows, allowed=allowed, confidence=confidence)
    pairs, gone, new = gate.stored_pairs(before, candidate.rows, history)
    return gate.judge(
        pairs,
        parsed,
        missing=gone,
        unfit=unfit,
        new=new,
        against=before.label,
        allowed=allowed,
        confidence=confidence,
    )


def _write_github(of: GatedRun, form: Format) -> None:
    # GitHub reads workflow commands from both streams; what is read by a program stays what it is on stdout.
    beside = form in (Format.TERMINAL, Format.MARKDOWN)
    typer.echo(GATE_ON_GITHUB[Format.GITHUB](of, screen()), nl=False, err=not beside)
    try:
        exports.write_summary(of.gated, of.heading, os.environ)
    except OSError as error:
        say(f"the step summary cannot be written: {error.strerror}")
