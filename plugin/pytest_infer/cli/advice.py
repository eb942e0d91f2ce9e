"""`pytest-infer advice`: what a stored run's figures say about what to change."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
import typer

from pytest_infer.analysis.advice import advice
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.cli.shared import Storage, color, open_history, out, refuse, say, width
from pytest_infer.errors import InferError
from pytest_infer.report.advice import render
from pytest_infer.storage import blocks


def show_advice(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Number, commit, branch, tag, path, baseline:NAME, latest~1.")
    ] = "latest",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="Print the table of docs/advice.md instead.")] = False,
    storage: Storage = None,
) -> None:
    """Show all advice on a stored run, by today's rules: the evidence, and what to try; good signs last."""
    if rules:
        out(advice.rules_table())
        return
    try:
        chosen = open_history(storage).select(run)
        found = blocks.of_run(chosen.path)
    except InferError as error:
        refuse(str(error))
    if not found:
        say(f"run {chosen.label} holds no measurements of pytest-infer")
        raise typer.Exit(Exit.NOTHING.value)
    given = advice.advise(found)
    if as_json:
        told = {"run": str(chosen.path), "advice": msgspec.to_builtins(given)}
        out(json.dumps(told, indent=2) + "\n")
    else:
        heading = " · ".join(part for part in (chosen.label, chosen.model) if part)
        out(render(given, heading=heading, width=width(), color=color()))
