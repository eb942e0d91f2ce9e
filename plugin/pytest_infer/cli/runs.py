"""`pytest-infer history` and `pytest-infer baseline`: which runs there are, and names for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pytest_infer.cli.shared import Storage, color, open_history, out, refuse, width
from pytest_infer.errors import InferError
from pytest_infer.report.runs import render_history
from pytest_infer.storage import baselines
from pytest_infer.storage.history import History

baseline = typer.Typer(no_args_is_help=True, help="Names for runs that others are compared with.")


def list_history(
    *,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this branch.")] = None,
    limit: Annotated[int, typer.Option("-n", min=1, help="So many, the newest.")] = 30,
    storage: Storage = None,
) -> None:
    """List the stored runs, oldest first: commit, branch, model, machine, and what a gate said."""
    try:
        history = open_history(storage)
        names = _names(history)
    except InferError as error:
        refuse(str(error))
    runs = [run for run in history.runs if branch is None or run.branch == branch][-limit:]
    if not runs:
        typer.echo(f"no runs in {history.folder}: pytest bench --benchmark-autosave makes one", err=True)
        raise typer.Exit(4)
    out(render_history(runs, names, width=width(), color=color()))


def _names(history: History) -> dict[Path, list[str]]:
    files = {run.path.resolve(): run.path for run in history.runs}
    found: dict[Path, list[str]] = {}
    for name, path in baselines.names(history.folder).items():
        file = files.get((history.folder / path).resolve())
        if file is not None:
            found.setdefault(file, []).append(name)
    return found


@baseline.command("set")
def set_baseline(name: str, run: str, *, storage: Storage = None) -> None:
    """Let NAME stand for RUN: then `baseline:NAME` selects it."""
    try:
        history = open_history(storage)
        chosen = history.select(run)
        if chosen.regressed:
            refuse(f"run {chosen.label} failed its gate: it is no baseline")
        baselines.name(history.folder, name, chosen.path)
    except InferError as error:
        refuse(str(error))
    typer.echo(f"baseline:{name} is {chosen.label}")


@baseline.command("list")
def list_baselines(*, storage: Storage = None) -> None:
    """List the names and the files they stand for."""
    try:
        for name, path in baselines.names(open_history(storage).folder).items():
            typer.echo(f"{name}  {path}")
    except InferError as error:
        refuse(str(error))


@baseline.command("forget")
def forget_baseline(name: str, *, storage: Storage = None) -> None:
    """Remove a name; the run stays."""
    try:
        baselines.forget(open_history(storage).folder, name)
    except InferError as error:
        refuse(str(error))
