"""`pytest-infer gate`: a stored run against an earlier one, with an exit code that says how it ended."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pytest_infer.analysis.compare import ending, fingerprint, rules
from pytest_infer.analysis.compare.accepted import UNMEASURED, Accepted, check_covered, parse
from pytest_infer.analysis.compare.ending import Ending
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit
from pytest_infer.analysis.sweep import axes
from pytest_infer.checkouts import accepted as written
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
from pytest_infer.errors import InferError, NothingStoredError, OptionError, StorageError, alternatives
from pytest_infer.report.compare import exports
from pytest_infer.report.formats import GATE, GATE_ON_GITHUB, Format
from pytest_infer.report.views import GatedRun
from pytest_infer.storage import files
from pytest_infer.storage.history import History
from pytest_infer.storage.runfile import JudgedMark
from pytest_infer.storage.runs import Run

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.gate import Gated


def run_gate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run to be gated.")] = "latest",
    *,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="What it is held against; default: the newest comparable run of committed code, in which no test "
            "failed or was left unmeasured, and which its gate did not call regressed, unless an earlier one has "
            "twice as many of the tests or more.",
        ),
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
    accepted: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Regressions that are accepted, beside those of commit messages; off: none of either; "
            f"default: infer_accepted of the ini file, else {written.FILE}.",
        ),
    ] = None,
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
        candidate = history.select(run, strict=True)
        allowed = tuple(allow_different or ())
        before = _against(history, candidate, against) if against else _baseline(history, candidate, allowed)
        parsed = rules.of_kinds(parsed, {row.under_load is not None for row in candidate.rows})
        _check(candidate, before, parsed)
        accepting = () if end.bisect else _accepted(accepted, before, candidate)
        found = _gated(history, before, candidate, parsed, allow_failed or (), allowed, accepting, confidence)
        gated = replace(found, ending=end)
    except NothingStoredError as error:
        say(str(error))
        raise typer.Exit(end.code(())) from None
    except InferError as error:
        refuse(error)
    nothing = "no stored run" if any(rule.compares for rule in parsed) else "bounds only"
    heading = [f"gate {candidate.label} against {gated.against or nothing}", f"{100 * confidence:g} % intervals"]
    shown = GatedRun(gated=gated, heading=heading)
    out(GATE[form](shown, screen()))
    if before is None and nothing == "no stored run":
        say("no stored run to compare with (same machine and software, clean code, not failed)")
    if github:
        _write_github(shown, form)
    if mark and gated.exit is Exit.NOTHING and candidate.gate is not None and candidate.gate.result != gated.exit.word:
        say(f"the run keeps what a gate that judged it said: {candidate.gate.result}")
    elif mark:
        _mark(history, candidate, shown)
    raise typer.Exit(gated.code)


def _ending(inconclusive: str | None, exits: str) -> Ending:
    """Return what the exit code is to say; raise OptionError for what cannot be read."""
    asked = inconclusive or inifile.doubt(Path.cwd()) or ending.FAIL
    for option, given, known in (("--inconclusive", asked, ending.DOUBTS), ("--exit", exits, ending.EXITS)):
        if given not in known:
            raise OptionError(f"{option}: {alternatives('value', given, known)}")
    return Ending(passes_doubt=asked == ending.PASS, bisect=exits == ending.BISECT, option="--")


def _accepted(given: str | None, before: Run | None, candidate: Run) -> tuple[Accepted, ...]:
    """Return what is accepted of the changes since the baseline's commit; raise OptionError for what cannot be read."""
    named = given or inifile.accepted(Path.cwd())
    if named == written.OFF:
        return ()
    base = None if before is None else before.commit
    found = written.read(Path.cwd(), Path(named) if named else None, base, candidate.commit or "HEAD")
    if found.unread is not None:
        say(f"nothing is accepted: {found.unread}")
    parsed = parse(found.written)
    if base is not None:
        names = {name for row in candidate.rows for name in axes.names(row.name, row.config)}
        check_covered(parsed, names)
    return parsed


def _check(candidate: Run, before: Run | None, parsed: Sequence[rules.Rule]) -> None:
    """Refuse rules about nothing, a baseline that failed its gate, and figures that nobody can have measured."""
    from pytest_infer.analysis.compare import possible  # noqa: PLC0415

    names = [(axes.names(row.name, row.config), row.metrics.keys()) for row in candidate.rows]
    rules.check_covered(parsed, {name for named, _ in names for name in named})
    if before is not None and before.regressed:
        refuse(f"--against: run {before.label} failed its own gate; choose another")
    possible.refuse(candidate)
    rules.check_measured(parsed, names)
    if before is not None:
        possible.refuse(before)


def _mark(history: History, candidate: Run, of: GatedRun) -> None:
    """Keep the result in the run's file, and where that is a copy or a link in the file that later runs find."""
    gated = of.gated
    result = JudgedMark(
        result=gated.exit.word,
        against=gated.against,
        rules=tuple(rule.text for rule in gated.rules),
        headline=of.said or None,
        judgements=msgspec.Raw(msgspec.json.encode(gated.judgements)),
        suite=msgspec.Raw(msgspec.json.encode(gated.suite)),
    )
    found = [candidate, *(run for run in history.runs if run.identity == candidate.identity)]
    # A link in the storage stays the path: the mark takes its place.
    for path in {os.path.realpath(run.path): run.path for run in found}.values():
        try:
            files.mark(path, result)
        except StorageError as error:
            say(str(error))


def _against(history: History, candidate: Run, against: str) -> Run:
    """Return the run that a selector names, or the next one that it fits where it names the candidate itself."""
    found = history.select(against)
    if found.identity != candidate.identity:
        return found
    try:
        found = history.other_than(candidate).select(against)
    except StorageError:
        refuse(f"--against {against}: that is the run to be gated itself; name another")
    if found.identity == candidate.identity:
        refuse(f"--against {against}: that is the run to be gated itself; name another")
    return found


def _named(tests: Iterable[str], names: Sequence[str]) -> set[str]:
    return {test for test in tests if any(fnmatch.fnmatchcase(test, name) for name in names)}


def _baseline(history: History, candidate: Run, allowed: Sequence[str]) -> Run | None:
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    return gate.baseline_for(candidate.rows, history.before(candidate), allowed)


def _gated(
    history: History,
    before: Run | None,
    candidate: Run,
    parsed: Sequence[rules.Rule],
    allow_failed: Sequence[str],
    allowed: Sequence[str],
    accepted: Sequence[Accepted],
    confidence: float,
) -> Gated:
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415

    bad = dict.fromkeys(candidate.lost, UNMEASURED) | dict.fromkeys(candidate.broken, "failed in this run")
    excused = _named([*bad, *candidate.skipped], allow_failed)
    unfit = {test: why for test, why in bad.items() if test not in excused}
    if before is None:
        return gate.judge([], parsed, unfit=unfit, new=candidate.rows, allowed=allowed, confidence=confidence)
    pairs, gone, new = gate.stored_pairs(before, candidate.rows, history)
    # What failed has no row and is no test that is gone: `unfit` tells of it, or it was accepted by name.
    gone = [row for row in gone if row.test not in unfit and row.test not in excused]
    return gate.judge(
        pairs,
        parsed,
        missing=gone,
        unfit=unfit,
        new=new,
        against=before.label,
        allowed=allowed,
        accepted=accepted,
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
