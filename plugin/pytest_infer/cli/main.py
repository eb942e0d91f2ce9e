"""The commands of `pytest-infer`."""

from __future__ import annotations

import atexit
import codecs
import gc
import io
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any

import typer

from pytest_infer.cli.plain import Command, Group
from pytest_infer.cli.shared import Storage, offered, out, refuse, screen
from pytest_infer.errors import InferError, alternatives
from pytest_infer.report.formats import METRICS as METRICS_LISTED
from pytest_infer.report.formats import Format
from pytest_infer.report.text import PLAIN

_COMMANDS = (
    "metrics",
    "models",
    "init",
    "compare",
    "gate",
    "comment",
    "undecided",
    "bisect",
    "experts",
    "placement",
    "doctor",
    "loading",
    "load-generator",
    "advice",
    "show",
    "export",
    "report",
    "site",
    "history",
    "baseline",
)
"""In the order in which --help lists them."""


def _command(name: str) -> Any:  # noqa: C901, PLR0911, PLR0912 - one for each
    """Return the function of a command, or the commands under a name; its module is imported now."""
    match name:
        case "metrics":
            return metrics
        case "models":
            return list_models
        case "init":
            from pytest_infer.cli.init import init  # noqa: PLC0415

            return init
        case "compare":
            from pytest_infer.cli.compare import compare  # noqa: PLC0415

            return compare
        case "gate":
            from pytest_infer.cli.gate import run_gate  # noqa: PLC0415

            return run_gate
        case "comment":
            from pytest_infer.cli.comment import comment  # noqa: PLC0415

            return comment
        case "undecided":
            from pytest_infer.cli.comment import undecided  # noqa: PLC0415

            return undecided
        case "bisect":
            from pytest_infer.cli.bisect.command import bisect  # noqa: PLC0415

            return bisect
        case "experts":
            from pytest_infer.cli.experts import experts  # noqa: PLC0415

            return experts
        case "placement":
            from pytest_infer.cli.placement import placement  # noqa: PLC0415

            return placement
        case "doctor":
            from pytest_infer.cli.doctor import doctor  # noqa: PLC0415

            return doctor
        case "loading":
            from pytest_infer.cli.loading import loading  # noqa: PLC0415

            return loading
        case "load-generator":
            from pytest_infer.cli.load_generator import load_generator  # noqa: PLC0415

            return load_generator
        case "advice":
            from pytest_infer.cli.advice import show_advice  # noqa: PLC0415

            return show_advice
        case "show":
            from pytest_infer.cli.show import show  # noqa: PLC0415

            return show
        case "export":
            from pytest_infer.cli.export import export  # noqa: PLC0415

            return export
        case "report":
            from pytest_infer.cli.report import report  # noqa: PLC0415

            return report
        case "site":
            from pytest_infer.cli.site import site  # noqa: PLC0415

            return site
        case "history":
            from pytest_infer.cli.history import list_history  # noqa: PLC0415

            return list_history
        case "baseline":
            from pytest_infer.cli.history import baseline  # noqa: PLC0415

            return baseline
    raise KeyError(name)


class _Imported(Mapping[str, Any]):
    """Commands by name, each imported when it is looked at: that of others takes longer than most commands do."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            found = _command(name)
            if not isinstance(found, typer.Typer):
                one = typer.Typer(add_completion=False)
                one.command(name, cls=Command)(found)
                found = one
            self._made[name] = typer.main.get_command(found)
            self._made[name].name = name
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Commands(Group):
    """The commands. With `--exit=bisect`, git takes neither wrong usage nor a crash for a verdict."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.commands = _Imported()  # type: ignore[assignment]  # nobody adds one

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> Any:
        """Run a command, and end with its exit code."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
                stream.reconfigure(errors=PLAIN)
        with _garbage_is_rare():
            return self._main(args, *more, **named)

    def _main(self, args: Sequence[str] | None, *more: Any, **named: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        asked = any(pair[0] == "--exit=bisect" or pair == ("--exit", "bisect") for pair in pairwise([*words, ""]))
        if not asked:
            return super().main(args, *more, **named)
        from pytest_infer.analysis.compare.ending import SKIP, STOP  # noqa: PLC0415
        from pytest_infer.analysis.compare.verdicts import Exit  # noqa: PLC0415

        try:
            return super().main(args, *more, **named)
        except SystemExit as end:
            raise SystemExit(STOP if end.code == Exit.USAGE.value else end.code) from None
        except Exception:  # noqa: BLE001 - a fault of ours, which is no verdict
            traceback.print_exc()
            raise SystemExit(SKIP) from None


# Else Python looks for cycles in all that is left at its end: a twelfth of a short command's time.
atexit.register(gc.freeze)


@contextmanager
def _garbage_is_rare() -> Iterator[None]:
    """Look for cycles seldom: a command makes few, lives shortly, and spends an eighth of its time in looking."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=True, help="Exact benchmarks of language-model inference."
)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata  # noqa: PLC0415 - 20 ms, for a command that compares in 300

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
    name = ctx.invoked_subcommand
    if storage is not None and name is not None and isinstance(ctx.command, Group):
        # Of that command alone: to look at one is to import it.
        ctx.default_map = {name: _storage_of(ctx.command.commands[name], str(storage))}


def _storage_of(command: Any, folder: str) -> dict[str, Any]:
    """Return the default of --storage for a group's commands: what stands before their name, as pytest-benchmark's."""
    inner = getattr(command, "commands", {})
    return {"storage": folder, **{name: _storage_of(one, folder) for name, one in inner.items()}}


def metrics(*, form: Annotated[Format, offered(METRICS_LISTED)] = Format.TERMINAL) -> None:
    """List every metric: key, unit, which way is better, definition, source."""
    from pytest_infer.metrics import METRICS  # noqa: PLC0415

    out(METRICS_LISTED[form](METRICS, screen()))


def list_models(
    build: Annotated[str | None, typer.Option(metavar="NAME", help="Build this model into the cache now.")] = None,
    gguf: Annotated[str | None, typer.Option(metavar="NAME", help="Write this one as a GGUF file.")] = None,
) -> None:
    """List the models that need no hub, or build one of them and say where it is."""
    from pytest_infer.engines import models  # noqa: PLC0415

    if build is not None and gguf is not None:
        refuse("--build and --gguf: one of them")
    name = build or gguf
    if name is None:
        for model in models.BUNDLED.values():
            typer.echo(f"{model.name:<14} {model.description}")
        return
    if name not in models.BUNDLED:
        refuse(alternatives("model", name, models.BUNDLED))

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    try:
        typer.echo(str(models.BUNDLED[name].ensure(tell) if gguf is None else models.gguf(name, "auto", tell)))
    except InferError as error:
        refuse(error)
