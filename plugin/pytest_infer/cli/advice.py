"""`pytest-infer advice`: what a stored run's figures say about what to change."""

from __future__ import annotations

from typing import Annotated

import typer

from pytest_infer.analysis.advice import advice
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.cli.shared import Storage, offered, open_history, out, refuse, say, screen
from pytest_infer.errors import InferError
from pytest_infer.report.formats import ADVICE, ADVICE_RULES, Format
from pytest_infer.report.views import AdvisedRun
from pytest_infer.storage import runfile


def show_advice(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Number, commit, branch, tag, path, baseline:NAME, latest~1.")
    ] = "latest",
    *,
    form: Annotated[Format, offered(ADVICE)] = Format.TERMINAL,
    rules: Annotated[bool, typer.Option("--rules", help="Print the table of docs/advice.md instead.")] = False,
    storage: Storage = None,
) -> None:
    """Show all advice on a stored run, by today's rules: the evidence, and what to try; good signs last."""
    if rules:
        out(ADVICE_RULES[Format.MARKDOWN](advice.RULES, screen()))
        return
    try:
        chosen = open_history(storage).select(run)
        found = dict(runfile.read(chosen.path, runfile.ALL).tests())
    except InferError as error:
        refuse(error)
    if not found:
        say(f"run {chosen.label} holds no measurements of pytest-infer")
        raise typer.Exit(Exit.NOTHING.value)
    given = AdvisedRun(advice=advice.advise(found), run=chosen)
    out(ADVICE[form](given, screen()))
