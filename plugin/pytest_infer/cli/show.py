"""`pytest-infer show`: a stored run, printed as the end of it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pytest_infer.analysis import suite
from pytest_infer.analysis.advice.advice import Advice
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, say, screen
from pytest_infer.errors import InferError, StorageError
from pytest_infer.report.formats import SHOW, Format
from pytest_infer.report.views import ShownRun
from pytest_infer.storage import results
from pytest_infer.storage.history import History
from pytest_infer.storage.runfile import Mark
from pytest_infer.storage.runs import Run

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.two_runs import Since
    from pytest_infer.analysis.load.curve import LoadCurve
    from pytest_infer.analysis.sweep.curve import Curve
    from pytest_infer.analysis.sweep.recommend import Recommendation
    from pytest_infer.analysis.sweep.sides import SweptSides


def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Number, commit, branch, tag, path, baseline:NAME, latest~1.")
    ] = "latest",
    *,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Also a card a prompt, what it generated, and the experts, as pytest -v."),
    ] = False,
    form: Annotated[Format, offered(SHOW)] = Format.TERMINAL,
    storage: Storage = None,
) -> None:
    """Print a stored run again, as the summary at its end: a row a prompt, cautions, and the advice of that day."""
    try:
        history = open_history(storage)
        chosen = history.select(run)
        stored = results.shown(chosen.path)
        advice = _advice(stored, chosen)
        since = None if chosen.gate is not None else _since(history, chosen)
    except InferError as error:
        refuse(error)
    if not stored.results:
        say(f"run {chosen.label} holds no measurements of pytest-infer; pytest-benchmark compare shows what it has")
        raise typer.Exit(Exit.NOTHING.value)
    swept = any(r.config or r.curve for r in stored.results)
    recommended, curves, sides = _swept(chosen) if swept else (None, (), None)
    shown = RunSummary(
        results=stored.results,
        averages=suite.of_run(stored.results, stored.averages),
        failed=stored.failed,
        unmeasured=chosen.unmeasured,
        notes=() if chosen.gate is None else tuple(_gate(chosen.gate)),
        advice=advice,
        recommended=recommended,
        curves=curves,
        sides=sides,
        load=_load(chosen) if any(r.under_load for r in stored.results) else (),
        since=since,
        saved=True,
    )
    out(SHOW[form](ShownRun(run=chosen, summary=shown, verbose=verbose), screen()))


def _since(history: History, run: Run) -> Since | None:
    """Return what changed since the run before; nothing where that cannot be read."""
    from pytest_infer.analysis.compare import two_runs  # noqa: PLC0415

    return two_runs.since(replace(history, runs=history.before(run)), run.rows)


def _swept(run: Run) -> tuple[Recommendation | None, tuple[Curve, ...], SweptSides | None]:
    """Return what a sweep recommends, its curves, and what both sides say where it compared two."""
    # Imported late: numpy and scipy are for sweeps only.
    from pytest_infer.analysis.sweep.curve import curves  # noqa: PLC0415
    from pytest_infer.analysis.sweep.recommend import recommend  # noqa: PLC0415
    from pytest_infer.analysis.sweep.sides import of  # noqa: PLC0415

    return recommend(run.rows), curves(run.rows), of(run.rows)


def _load(run: Run) -> tuple[LoadCurve, ...]:
    from pytest_infer.analysis.load.curve import curves  # noqa: PLC0415

    return curves(run.rows)


def _advice(stored: results.Shown, run: Run) -> tuple[Advice, ...]:
    try:
        return msgspec.json.decode(stored.advice, type=tuple[Advice, ...])
    except msgspec.ValidationError as error:
        raise StorageError(f"{run.path}: its advice cannot be read: {error}") from error


def _gate(mark: Mark) -> Iterator[str]:
    against = f" against {mark.against}" if mark.against else ""
    if mark.headline:
        yield mark.headline
    yield f"gate{against}: {mark.result} ({', '.join(mark.rules)})"
