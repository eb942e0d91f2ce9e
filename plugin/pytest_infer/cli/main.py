"""The commands of `pytest-infer`."""

from __future__ import annotations

import importlib.metadata
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer

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
from pytest_infer.cli.shared import Command, Group, Storage, offered, out, refuse, screen
from pytest_infer.engines import models
from pytest_infer.errors import InferError, alternatives
from pytest_infer.metrics import METRICS
from pytest_infer.report.formats import METRICS as METRICS_LISTED
from pytest_infer.report.formats import Format


class _Commands(Group):
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


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pytest-infer {importlib.metadata.version('pytest-infer')}")
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    *,
    storage: Storage = None,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Exact benchmarks of language-model inference; measuring itself is `pytest bench`."""
    if storage is not None:
        ctx.default_map = _storage_of(ctx.command, str(storage))


def _storage_of(command: Any, folder: str) -> dict[str, Any]:
    """Return the default of --storage for a group's commands: what stands before their name, as pytest-benchmark's."""
    inner = getattr(command, "commands", {})
    return {"storage": folder, **{name: _storage_of(one, folder) for name, one in inner.items()}}


@app.command(cls=Command)
def metrics(*, form: Annotated[Format, offered(METRICS_LISTED)] = Format.TERMINAL) -> None:
    """List every metric: key, unit, which way is better, definition, source."""
    out(METRICS_LISTED[form](METRICS, screen()))


@app.command(name="models", cls=Command)
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


app.command("init", cls=Command)(init.init)
app.command("compare", cls=Command)(compare.compare)
app.command("gate", cls=Command)(gate.run_gate)
app.command("bisect", cls=Command)(bisecting.bisect)
app.command("experts", cls=Command)(experts.show_experts)
app.command("placement", cls=Command)(placement.placement)
app.command("doctor", cls=Command)(doctor.doctor)
app.command("load", cls=Command)(load.load)
app.command("advice", cls=Command)(advice.show_advice)
app.command("show", cls=Command)(show.show)
app.command("export", cls=Command)(export.export)
app.command("report", cls=Command)(report.report)
app.command("history", cls=Command)(history.list_history)
app.add_typer(history.baseline, name="baseline")
