"""The lines below a run's tables: what to look at twice, what was not measured, and the notes of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from pytest_infer.analysis import alike
from pytest_infer.analysis.fidelity import closeness
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics.result import Result
from pytest_infer.records import Ranks, WarningKind
from pytest_infer.report import surroundings
from pytest_infer.report.text import print_whole, printable
from pytest_infer.units import NONE, Unit, show, size

_NAMED = 3
"""So many tests of a sweep are named in a remark that they share."""
_ALARM = "! "
"""Begins a line that no option hides."""


def write(console: Console, run: RunSummary, *, verbose: bool) -> None:
    """Write them; `verbose` adds what needs no second look."""
    _write_warnings(console, run)
    for line in _quiet(run.results) if verbose else ():
        console.print(Text(printable(line), style="dim"))
    for line in _fidelity(run):
        console.print(Text(printable(line)))
    for unread in dict.fromkeys(surroundings.unread(r.machine.unread) for r in run.results):
        if unread is not None:
            console.print(Text(printable(unread), style="dim"))
    ranks = _ranks([r.ranks for r in run.results if r.ranks is not None])
    if ranks is not None:
        console.print(Text(printable(ranks), style="dim"))
    _write_failed(console, run)
    if run.unmeasured:
        console.print(Text(printable(f"not measured: {', '.join(run.unmeasured)}"), style="yellow"))
    if run.disabled:
        console.print(
            Text(
                "benchmarks are disabled: each prompt ran once; nothing was recorded, nothing was gated", style="yellow"
            )
        )
    for note in run.notes:
        print_whole(console, printable(note))


def _ranks(of: Sequence[Ranks]) -> str | None:
    """Return the most memory and CPU time of each process of a distributed run; None where there was one process."""
    parts = []
    for rank in range(max((one.size for one in of), default=0)):
        told = [one.memory[rank] for one in of if rank < len(one.memory)]
        peaks = [one.peak_rss_bytes for one in told if one.peak_rss_bytes is not None]
        why = next((f" ({one.absent})" for one in told if one.absent is not None), "")
        took = [s for one in of if rank < len(one.cpu_s) and (s := one.cpu_s[rank]) is not None]
        cpu = f" and {show(max(took), Unit.SECONDS)} of CPU a round" if took else ""
        parts.append(f"{size(max(peaks)) if peaks else NONE}{cpu} in rank {rank}{why}")
    return f"at most {', '.join(parts)}; everything else is rank 0's" if parts else None


def write_alarms(console: Console, run: RunSummary) -> None:
    """Write those that begin with "!", and where something was judged every note, as they say how far to trust it."""
    _write_warnings(console, run)
    _write_failed(console, run)
    judged = run.gated is not None or bool(run.noise)
    for note in run.notes:
        if judged or note.startswith(_ALARM):
            print_whole(console, printable(note))


def _write_warnings(console: Console, run: RunSummary) -> None:
    for line in _warnings(run.results):
        console.print(Text(printable(line), style="yellow"))


def _write_failed(console: Console, run: RunSummary) -> None:
    for nodeid in run.failed:
        line = f"{_ALARM}{nodeid} did not pass after it was measured: its row is marked and no baseline"
        console.print(Text(printable(line), style="red"))


def _titles(results: Sequence[Result]) -> dict[str, str]:
    """Return how remarks call each test: its prompt and its configuration, if there is one, or its own name."""
    return alike.titles(
        {r.nodeid: f"{r.prompt.name} [{label(r.config)}]" if r.config else r.prompt.name for r in results}
    )


def _warnings(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line per warning, and a single one for a kind that several prompts share."""
    title = _titles(results)
    for kind in WarningKind:
        found = [(title[r.nodeid], c.text) for r in results for c in r.warnings if c.kind is kind]
        if len(found) == 1:
            yield f"{_ALARM}{found[0][0]}: {found[0][1]}"
        elif found:
            # A sweep has many tests, whose names are long.
            many = len(found) > _NAMED and any(r.config for r in results)
            where = f"{len(found)} of {len(results)} tests" if many else ", ".join(name for name, _ in found)
            yield f"{_ALARM}{kind.value} in {where}. {found[0][0]}: {found[0][1]}"


def _fidelity(run: RunSummary) -> Iterator[str]:
    """Yield how far outputs are from those of the reference, prompt by prompt, and a line for all that are alike.

    A gate says it with its verdicts, and a sweep in its table.
    """
    found = [(r, r.fidelity) for r in run.results if r.fidelity is not None and not r.config and run.gated is None]
    title, close = _titles(run.results), []
    for result, fidelity in found:
        most = closeness.bound(result.model, fidelity)
        if fidelity.split is None and closeness.close(fidelity, most):
            close.append(fidelity)
        else:
            told = closeness.told(fidelity, most, same=fidelity.split is None)
            bound = f"; KL is a lower bound: {fidelity.bound}" if fidelity.bound else ""
            yield f"{title[result.nodeid]}: output {told} (reference: {fidelity.reference}{bound})"
    if close:
        furthest = max(close, key=lambda one: one.kl_mean)
        many = f"{len(close)} of {len(found)} prompts" if len(close) < len(found) else "all prompts"
        size = closeness.size(furthest)
        yield f"output as that of {furthest.reference} in {many}, the furthest with {size}: arithmetic"


def _quiet(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line about disturbed rounds that do not show, or were measured again."""
    # Without the reasons, and what to do about them: nothing needs to be done.
    title = _titles(results)
    found = [(title[r.nodeid], warning.text.partition(" (round")[0]) for r in results for warning in r.quiet]
    # A single round has nothing beside it in which it could show.
    several = all(r.timed_rounds > 1 for r in results if r.quiet)
    if len(found) == 1:
        yield f"{found[0][0]}: {found[0][1]}; {'its times do not show it' if several else 'one round cannot show it'}"
    elif found:
        how = "whose times do not show it" if several else "which single rounds cannot show"
        yield f"{len(found)} of {len(results)} tests had disturbed rounds {how}"
        yield f"({found[0][0]}: {found[0][1]})"
