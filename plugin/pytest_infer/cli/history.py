"""`pytest-infer history` and `pytest-infer baseline`: which runs there are, and names for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.cli.plain import Command, Group
from pytest_infer.cli.shared import Storage, open_history, out, refuse, say, screen
from pytest_infer.errors import InferError, OptionError
from pytest_infer.metrics import METRICS, Metric, by_key
from pytest_infer.report.compare.words import PRIMARY
from pytest_infer.report.formats import CHANGE_POINTS, HISTORY, Format
from pytest_infer.report.text import printable
from pytest_infer.report.views import ListedRuns
from pytest_infer.storage import baselines
from pytest_infer.storage.history import History
from pytest_infer.units import Unit

baseline = typer.Typer(cls=Group, no_args_is_help=True, help="Names for runs that others are compared with.")


def list_history(
    *,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this branch.")] = None,
    limit: Annotated[
        int | None, typer.Option("-n", min=1, help="So many, the newest; default: 30, and all for change points.")
    ] = None,
    change_points: Annotated[
        bool, typer.Option("--change-points", help="Show since which commit a metric has been at another level.")
    ] = False,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric (repeat it); all for all.")
    ] = None,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    storage: Storage = None,
) -> None:
    """List the stored runs, oldest first: commit, branch, model, machine, and what a gate said."""
    if not change_points and (metric or keyword):
        refuse("--metric and -k choose the figures of --change-points: give that too")
    try:
        history = open_history(storage)
        names = _names(history)
    except InferError as error:
        refuse(error)
    runs = [run for run in history.runs if branch is None or run.branch == branch]
    if not runs:
        if history.runs:
            say(f"no run in {history.folder} is of the branch {branch}")
        else:
            say(f"no runs in {history.folder}: pytest bench --benchmark-autosave makes one")
        raise typer.Exit(Exit.NOTHING.value)
    if not change_points:
        out(HISTORY[Format.TERMINAL](ListedRuns(runs=runs[-(limit or 30) :], names=names), screen()))
        return
    # Imported late: only this needs numpy and scipy.
    from pytest_infer.analysis.history import trends  # noqa: PLC0415

    try:
        found = trends.told(runs, _metrics(metric), keyword, limit)
    except InferError as error:
        refuse(error)
    named = metric and "all" not in metric
    for one in found.absent if named else ():
        say(f"no run has {one.label}")
    if not (found.judged or found.why_not):
        if not named:
            say("no run has any of the figures: choose others with --metric")
        raise typer.Exit(Exit.NOTHING.value)
    out(CHANGE_POINTS[Format.TERMINAL](found, screen()))


def _metrics(names: Sequence[str] | None) -> list[Metric]:
    """Return the metrics asked for; by default those that a comparison shows first, which have a level."""
    if names is None:
        return [by_key(key) for key in PRIMARY if by_key(key).unit is not Unit.TEXT]
    if "all" in names:
        return [m for m in METRICS if m.unit is not Unit.TEXT]
    found = [rules.metric_named(name) for name in names]
    for metric in found:
        if metric.unit is Unit.TEXT:
            raise OptionError(f"--metric {metric.key}: a text is at no level; see it with pytest-infer compare")
    return found


def _names(history: History) -> dict[Path, list[str]]:
    # Unlike Path.resolve, this raises nothing for links that lead in a circle.
    files = {os.path.realpath(path): run.path for run in history.runs for path in history.files_of(run)}
    found: dict[Path, list[str]] = {}
    for name, path in baselines.names(history.folder).items():
        file = files.get(os.path.realpath(history.folder / path))
        if file is not None:
            found.setdefault(file, []).append(name)
    return found


@baseline.command("set", cls=Command)
def set_baseline(name: str, run: str, *, storage: Storage = None) -> None:
    """Let NAME stand for RUN: then `baseline:NAME` selects it."""
    try:
        history = open_history(storage)
        chosen = history.select(run)
        if chosen.regressed:
            refuse(f"run {chosen.label} failed its gate: it is no baseline")
        baselines.name(history.folder, name, chosen.path)
    except InferError as error:
        refuse(error)
    typer.echo(printable(f"baseline:{name} is {chosen.label}"))


@baseline.command("list", cls=Command)
def list_baselines(*, storage: Storage = None) -> None:
    """List the names and the files they stand for."""
    try:
        for name, path in baselines.names(open_history(storage).folder).items():
            typer.echo(printable(f"{name}  {path}"))
    except InferError as error:
        refuse(error)


@baseline.command("forget", cls=Command)
def forget_baseline(name: str, *, storage: Storage = None) -> None:
    """Remove a name; the run stays."""
    try:
        baselines.forget(open_history(storage).folder, name)
    except InferError as error:
        refuse(error)
