"""The commands of `pytest-infer`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pytest_infer.analysis.compare.ending import SKIP, STOP
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.cli import (
    advice,
    compare,
    doctor,
    experts,
    export,
    gate,
    history,
    init,
    load,
    placement,
    report,
    show,
)
from pytest_infer.cli.bisect import command as bisecting
from pytest_infer.cli.shared import out, refuse, screen
from pytest_infer.engines import models
from pytest_infer.errors import InferError, alternatives
from pytest_infer.metrics import METRICS
from pytest_infer.report.formats import METRICS as METRICS_LISTED
from pytest_infer.report.formats import Format


class _Commands(TyperGroup):
    """The commands. With `--exit=bisect`, git takes neither wrong usage nor a crash for a verdict."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> Any:
        """Run a command, and end with its exit code."""
        words = sys.argv[1:] if args is None else list(args)
        asked = any(pair[0] == "--exit=bisect" or pair == ("--exit", "bisect") for pair in pairwise([*words, ""]))
        if not asked:
            return super().main(args, *more, **named)
        try:
            return super().main(args, *more, **named)
        except SystemExit as end:
            raise SystemExit(STOP if end.code == Exit.USAGE.value else end.code) from None
        except Exception:  # noqa: BLE001 - a fault of ours, which is no verdict
            traceback.print_exc()
            raise SystemExit(SKIP) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=True, help="Exact benchmarks of language-model inference."
)


@app.callback()
def _main() -> None:
    """Exact benchmarks of language-model inference; measuring itself is `pytest bench`."""


@app.command()
def metrics(
    *, markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/metrics.md.")] = False
) -> None:
    """List every metric: key, unit, which way is better, definition, source."""
    out(METRICS_LISTED[Format.MARKDOWN if markdown else Format.TERMINAL](METRICS, screen()))


@app.command(name="models")
def list_models(
    build: Annotated[str | None, typer.Option(metavar="NAME", help="Build this model into the cache now.")] = None,
) -> None:
    """List the models that need no hub, or build one of them."""
    if build is None:
        for model in models.BUNDLED.values():
            typer.echo(f"{model.name:<14} {model.description}")
        return
    if build not in models.BUNDLED:
        refuse(alternatives("model", build, models.BUNDLED))
    try:
        typer.echo(str(models.BUNDLED[build].ensure(lambda line: typer.echo(line, err=True))))
    except InferError as error:
        refuse(str(error))


app.command("init")(init.init)
app.command("compare")(compare.compare)
app.command("gate")(gate.run_gate)
app.command("bisect")(bisecting.bisect)
app.command("experts")(experts.show_experts)
app.command("placement")(placement.placement)
app.command("doctor")(doctor.doctor)
app.command("load")(load.load)
app.command("advice")(advice.show_advice)
app.command("show")(show.show)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("history")(history.list_history)
app.add_typer(history.baseline, name="baseline")
