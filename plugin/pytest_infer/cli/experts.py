"""`pytest-infer experts`: which experts a stored run used, and how far its prompts agree about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import BadZipFile

import typer

from pytest_infer.analysis.verdicts import Exit
from pytest_infer.cli.shared import As, Format, Storage, color, open_history, out, refuse, say, width
from pytest_infer.errors import InferError, StorageError
from pytest_infer.report.text import printable
from pytest_infer.storage import sidecar
from pytest_infer.storage.heads import Run
from pytest_infer.storage.rows import Row

if TYPE_CHECKING:
    from pytest_infer.analysis.expert_view import Prompt


class Whose(str, Enum):
    """Which tokens are counted."""

    DECODE = "decode"
    PREFILL = "prefill"
    BOTH = "both"


class Division(str, Enum):
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
    form: As = Format.TERMINAL,
    storage: Storage = None,
) -> None:
    """Show the experts a run used: hottest and coldest, a map, skew beside chance, and who shares a hot set."""
    try:
        chosen = open_history(storage).select(run)
        rows = recorded(chosen, keyword)
        if not rows:
            say(why_nothing(chosen, keyword))
            raise typer.Exit(Exit.NOTHING.value)
        _write(chosen, rows, phase, by, top, form)
    except InferError as error:
        refuse(str(error))


def _write(run: Run, rows: Sequence[Row], phase: Whose, by: Division, top: int, form: Format) -> None:
    # Imported late: other commands and --help need no numpy.
    from pytest_infer.analysis import expert_view  # noqa: PLC0415
    from pytest_infer.analysis.census import Phase, tokens  # noqa: PLC0415
    from pytest_infer.report import expert_exports, experts  # noqa: PLC0415

    view = expert_view.view(prompts_of(run, rows), Phase(phase.value), expert_view.By(by.value))
    if not tokens(view.census, view.phase):
        other = "decode" if phase is Whose.PREFILL else "prefill"
        raise StorageError(f"run {run.label} has no {phase.value} tokens; try --phase {other}")
    if by is not Division.PROMPT and not view.overlap.names:
        raise StorageError(f"no prompt of run {run.label} has a {by.value}; give them some in the suite file")
    heading = " · ".join(part for part in (run.label, run.model) if part)
    if form is Format.JSON:
        out(expert_exports.as_json(view, run=str(run.path), model=run.model))
    elif form is Format.CSV:
        out(expert_exports.as_csv(view))
    elif form is Format.MARKDOWN:
        out(expert_exports.as_markdown(view, heading=heading, top=top))
    else:
        out(experts.render(view, heading=heading, top=top, width=width(), color=color()))


def recorded(run: Run, keyword: str | None = None) -> list[Row]:
    """Return the tests of a run whose expert usage adds up, naming on stderr those that do not.

    Raises StorageError where they are of several models.
    """
    found = []
    for row in run.rows:
        usage = row.experts
        if usage.counts is None or (keyword is not None and keyword not in row.test):
            continue
        if usage.check not in (None, "passed"):
            say(f"left out: {row.test}: {usage.check}")
        else:
            found.append(row)
    models = {(row.model.get("name"), row.model.get("weights_sha256")): row for row in found}
    if len(models) > 1:
        names = ", ".join(sorted(printable(str(name)) for name, _ in models))
        raise StorageError(f"run {run.label} holds expert usage of several models ({names}); choose tests with -k")
    return found


def why_nothing(run: Run, keyword: str | None = None) -> str:
    """Return the line that says why a run has no expert usage to show."""
    rows = [row for row in run.rows if keyword is None or keyword in row.test]
    if not rows:
        return f"run {run.label} has no test whose name holds {printable(keyword or '')!r}"
    reasons = Counter(_reason(row) for row in rows)
    return f"no expert usage in run {run.label}: {'; '.join(printable(reason) for reason, _ in reasons.most_common(3))}"


def _reason(row: Row) -> str:
    if row.plain:
        return "it is pytest-benchmark's own, not measured with `infer`"
    usage = row.experts
    if usage.counts is not None:
        return f"selections do not add up ({usage.check})"
    return usage.absent or "not recorded"


def prompts_of(run: Run, rows: Sequence[Row]) -> list[Prompt]:
    """Return what is worked with: each test's census, and its trace from the run's sidecar where it kept one.

    Tests go by their prompts' names, or by their own where several have one prompt.
    """
    from pytest_infer.analysis import census  # noqa: PLC0415
    from pytest_infer.analysis.expert_view import Prompt  # noqa: PLC0415

    arrays = _arrays(run) if any(row.experts.trace for row in rows) else {}
    times = Counter(row.name for row in rows)
    found = []
    for row in rows:
        taken = census.of(row.experts)
        if taken is None:
            continue
        found.append(
            Prompt(
                name=row.name if times[row.name] == 1 else row.test,
                census=taken,
                tags=tuple(map(str, row.prompt.get("tags", ()))),
                group=row.prompt.get("group"),
                weights=row.experts.weights,
                trace=_trace(arrays, row, [site.name for site in taken.sites]),
            )
        )
    return found


def _arrays(run: Run) -> dict[str, Any]:
    try:
        return sidecar.read(run.path)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise StorageError(f"{sidecar.path_for(run.path)} cannot be read: {error}") from error


def _trace(arrays: dict[str, Any], row: Row, sites: Sequence[str]) -> tuple[Any, ...] | None:
    if not row.experts.trace:
        return None
    found = [arrays.get(sidecar.expert_key(row.test, site)) for site in sites]
    return None if any(rows is None or rows.ndim != 2 for rows in found) else tuple(found)
