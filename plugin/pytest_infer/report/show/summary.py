"""The end of a run: what one looks at first, in the order of what matters; -v adds the rest, -q keeps three lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from pytest_infer.analysis import alike
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics.result import Result
from pytest_infer.records import WarningKind
from pytest_infer.report import advice, load
from pytest_infer.report.breakdown import operators
from pytest_infer.report.breakdown import terminal as breakdown
from pytest_infer.report.compare import terminal as comparison
from pytest_infer.report.show import card, details, noise, remarks, since, table
from pytest_infer.report.sweep import curve, sides
from pytest_infer.report.sweep import terminal as sweep
from pytest_infer.report.text import collected, encodable, printable
from pytest_infer.report.text import console as new_console
from pytest_infer.units import plural

if TYPE_CHECKING:
    import pytest

    from pytest_infer.report.show.since import Cell

_ALARMS_ONLY = -2
"""The verbosity of -qq."""


def write_summary(reporter: pytest.TerminalReporter, run: RunSummary) -> None:
    """Write the summary to pytest's terminal, nothing if no test measures; with -q only what `quiet` says."""
    how: dict[str, Any] = {"width": reporter._tw.fullwidth, "color": reporter._tw.hasmarkup}
    if reporter.verbosity < 0:
        text = quiet(run, **how, brief=reporter.verbosity > _ALARMS_ONLY)
    elif run.results or run.unmeasured or run.notes or run.disabled or run.gated is not None or run.noise:
        text = render(run, **how, verbose=reporter.verbosity > 0)
    else:
        text = ""
    if text:
        reporter.ensure_newline()
        reporter.section("inference", bold=True)
        tell(reporter, text)


def tell(reporter: pytest.TerminalReporter, text: str) -> None:
    """Write to pytest's terminal, which would escape a whole text, its lines' ends too, for one sign that it lacks."""
    reporter.write(encodable(text, reporter._tw._file))


def quiet(run: RunSummary, *, width: int, color: bool, brief: bool = True) -> str:
    """Return what is never left out: the lines that begin with "!", and what was judged with all notes about it.

    `brief`: before them the models, the means, and what changed since the last run, each in a line.
    """
    console = new_console(width, color=color)
    for results, apart in alike.tables(run.prompts) if brief else ():
        console.print(*_heads(results, apart), sep="\n")
        console.print(Text(f"{_counted(results)}: {table.mean_line(results)}"))
    if brief:
        load.write(console, run.load)
    if brief and run.results and run.since is not None:
        console.print(Text(since.line(run.since)))
    remarks.write_alarms(console, run)
    _write_judged(console, run)
    return collected(console)


def render(run: RunSummary, *, width: int, color: bool, verbose: bool = False) -> str:
    """Return the summary as text of at most `width` columns, with ANSI colours or without any escape."""
    console = new_console(width, color=color)
    told = run.recommended is not None or bool(run.curves)
    cells = None if run.since is None else since.cells(run.since)
    if not told or verbose:
        for results, apart in alike.tables(run.prompts):
            console.print(*_heads(results, apart), sep="\n")
            _write_results(console, results, cells, run, verbose=verbose)
    load.write(console, run.load)
    if run.since is not None:
        console.print(Text(since.line(run.since), style="bold"))
    if run.recommended is not None:
        sweep.write(console, run.recommended)
    if run.sides is not None:
        sides.write(console, run.sides, drawn=verbose)
    for one in run.curves if run.sides is None or not run.sides.curves else ():
        curve.write(console, one)
    if verbose:
        details.write_machine(console, run.results)
    remarks.write(console, run, verbose=verbose)
    _write_judged(console, run)
    _write_next(console, run)
    return collected(console)


def _write_judged(console: Console, run: RunSummary) -> None:
    if run.gated is not None:
        comparison.write_gate(console, run.gated)
    if run.noise:
        noise.write(console, run.noise)


def _write_results(
    console: Console,
    results: tuple[Result, ...],
    cells: Mapping[str, Cell] | None,
    run: RunSummary,
    *,
    verbose: bool,
) -> None:
    before = "" if run.since is None else run.since.before.number or ""
    table.write(console, results, cells, before)
    for line in breakdown.lines(results, width=console.width, brief=not (verbose or run.apart)):
        console.print(line)
    for line in operators.lines(results, width=console.width):
        console.print(line)
    if verbose:
        details.write(console, results)
        title = table.titles(results)
        for result in results:
            card.write(console, result, title[result.nodeid])
            operators.write(console, result, title[result.nodeid])


_USUAL = "transformers"
"""The engine that is not named."""


def _heads(results: Sequence[Result], apart: Sequence[str]) -> Iterator[Text]:
    """Yield the configuration, if there is one; then what was measured, how often, and whether the machine let it.

    `apart` is what tells the model from others of the run.
    """
    result, model = results[0], results[0].model
    if result.config:
        yield Text(printable(label(result.config)), style="bold")
    engine = None if model.engine in (_USUAL, model.name) else model.engine
    parts = [part for part in (model.name, engine, model.engine_args, model.dtype, model.device) if part]
    if model.threads is not None:
        parts.append(plural(model.threads, "thread"))
    parts += [word for word in apart if word not in parts]
    rounds = result.timed_rounds
    parts.append(f"median ± sd of {rounds} rounds" if rounds > 1 else "1 round")
    disturbed = sum(any(w.kind is WarningKind.DISTURBED for w in r.warnings) for r in results)
    head = Text(printable(" · ".join(parts)), style="bold").append(" · ")
    if disturbed:
        yield head.append(f"machine busy in {disturbed} of {_counted(results)}", style="yellow")
    elif any(r.unseen for r in results):
        yield head.append("machine busy: one round cannot show how much", style="yellow")
    else:
        yield head.append("machine quiet" if not any(r.quiet for r in results) else "machine quiet but for moments")


def _counted(results: Sequence[Result]) -> str:
    """Return how many prompts there are, or tests, where several are of one prompt."""
    return plural(len(results), "prompt" if len({r.prompt.name for r in results}) == len(results) else "test")


def _write_next(console: Console, run: RunSummary) -> None:
    """Write all advice where it was asked for; else one thing that is worth doing now."""
    if run.all_advice:
        advice.write(console, run.advice)
        return
    warnings = frozenset(warning.kind for result in run.results for warning in result.warnings)
    found = advice.suggestions(run.advice, warnings)
    if found:
        first, more = found[0], f"; {len(found) - 1} more" if len(found) > 1 else ""
        where = f"{first.rule}{more}: {_ADVICE[run.saved]}"
        console.print(Text(printable(f"next: {first.evidence} → {first.suggestion} ({where})")))
    elif run.results and run.gated is None and not run.disabled:
        console.print(Text(_NEXT[run.saved]))


_ADVICE = {True: "pytest-infer advice", False: "--infer-advice"}
_NEXT = {
    True: "next: pytest-infer report",
    False: "next: --benchmark-autosave keeps a run, and tells what changed since the last one",
}
