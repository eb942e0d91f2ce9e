"""`pytest-infer experts`: which experts a stored run used, and how far its prompts agree about them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.analysis.experts import recorded
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, say, screen
from pytest_infer.errors import InferError, StorageError
from pytest_infer.report.formats import EXPERTS, Format
from pytest_infer.report.views import UsedExperts
from pytest_infer.storage.runs import Row, Run


class Whose(StrEnum):
    """Which tokens are counted."""

    DECODE = "decode"
    PREFILL = "prefill"
    BOTH = "both"


class Division(StrEnum):
    """What the overlap is between."""

    PROMPT = "prompt"
    TAG = "tag"
    GROUP = "group"


def show_experts(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Number, commit, branch, tag, path, baseline:NAME, latest~1.")
    ] = "latest",
    *,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    phase: Annotated[Whose, typer.Option("--phase", help="Generated tokens, the prompts' own, or both.")] = (
        Whose.DECODE
    ),
    by: Annotated[Division, typer.Option("--by", help="What the overlap is between.")] = Division.PROMPT,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Hottest and coldest experts listed.")] = 8,
    form: Annotated[Format, offered(EXPERTS)] = Format.TERMINAL,
    storage: Storage = None,
) -> None:
    """Show the experts a run used: hottest and coldest, a map, skew beside chance, and who shares a hot set."""
    try:
        chosen = open_history(storage).select(run)
        rows = rows_of(chosen, keyword)
        if not rows:
            say(recorded.why_nothing(chosen, keyword))
            raise typer.Exit(Exit.NOTHING.value)
        _write(chosen, rows, phase, by, top, form)
    except InferError as error:
        refuse(error)


def _write(run: Run, rows: Sequence[Row], phase: Whose, by: Division, top: int, form: Format) -> None:
    # Imported late: other commands and --help need no numpy.
    from pytest_infer.analysis.experts import suite  # noqa: PLC0415
    from pytest_infer.analysis.experts.census import Phase, tokens  # noqa: PLC0415

    view = suite.view(recorded.prompts_of(run, rows), Phase(phase.value), suite.By(by.value))
    if not tokens(view.census, view.phase):
        other = "decode" if phase is Whose.PREFILL else "prefill"
        raise StorageError(f"run {run.label} has no {phase.value} tokens; try --phase {other}")
    if by is not Division.PROMPT and not view.overlap.names:
        raise StorageError(f"no prompt of run {run.label} has a {by.value}; give them some in the suite file")
    out(EXPERTS[form](UsedExperts(view=view, run=run, top=top), screen()))


def rows_of(run: Run, keyword: str | None = None) -> list[Row]:
    """Return the tests of a run whose expert usage adds up, naming on stderr those that do not.

    Raises StorageError where they are of several models.
    """
    found, left_out = recorded.recorded(run, keyword)
    for line in left_out:
        say(f"left out: {line}")
    return found
