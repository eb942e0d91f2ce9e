"""`pytest-infer report`: stored runs as one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit
from pytest_infer.cli.shared import (
    AllowDifferent,
    Confidence,
    RepoUrl,
    Storage,
    chosen_runs,
    open_history,
    refuse,
    repository,
    say,
    screen,
    wrote,
)
from pytest_infer.errors import InferError
from pytest_infer.report.compare import headline
from pytest_infer.report.formats import REPORT, Format
from pytest_infer.report.views import ReportedRun
from pytest_infer.storage.files import is_stream

if TYPE_CHECKING:
    from pytest_infer.report.html.compare import Compared
    from pytest_infer.storage.history import History
    from pytest_infer.storage.runs import Run


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN…",
            help="The run to show, or the runs to compare, the earlier one first: numbers, commits, branches, tags, "
            "paths, baseline:NAME, latest~1; default: the newest.",
        ),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")] = Path(
        "report.html"
    ),
    repo_url: RepoUrl = None,
    allow_different: AllowDifferent = None,
    confidence: Confidence = CONFIDENCE,
    storage: Storage = None,
) -> None:
    """Write runs as one HTML file: the last RUN in full, compared with the first, and the history that led to it."""
    # Imported late: other commands need no templates.
    from pytest_infer.report.html import page  # noqa: PLC0415

    try:
        fingerprint.check_allowed(allow_different or ())
        history = open_history(storage)
        if not runs and not history.runs:
            say(f"no run in {history.folder}: pytest bench --benchmark-autosave makes one")
            raise typer.Exit(Exit.NOTHING.value)
        chosen = chosen_runs(history, runs or ["latest"])
        allowed = tuple(allow_different or ())
        against = [compared(history, chosen[0], other, allowed, confidence) for other in chosen[1:]]
        where = repository(repo_url)
        found = ReportedRun(run=chosen[-1], runs=history.runs, compared=against, repository=where)
        page.publish(output, REPORT[Format.HTML](found, screen()))
    except InferError as error:
        refuse(error)
    size = "" if is_stream(output) else f", {output.stat().st_size / 2**20:.1f} MiB"
    wrote(output, f"{output}: {chosen[-1].label}{size}")


def compared(history: History, before: Run, after: Run, allowed: Sequence[str], confidence: float) -> Compared:
    """Return a run beside an earlier one, as a report shows it."""
    from pytest_infer.analysis.compare import two_runs  # noqa: PLC0415
    from pytest_infer.report.html.compare import Compared  # noqa: PLC0415 - as above

    one = two_runs.judged(history, before, after.rows, allowed=allowed, confidence=confidence)
    return Compared(
        before=before.label,
        after=after.label,
        judgements=one.judgements,
        confidence=confidence,
        suite=one.suite,
        headline=headline.in_words(one.headline, one.judgements),
        earlier=before,
        later=after,
    )
