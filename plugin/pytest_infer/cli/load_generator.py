"""`pytest-infer load-generator`: the environment that load tests send their requests from."""

from __future__ import annotations

import typer

from pytest_infer.cli.plain import Command, Group
from pytest_infer.cli.shared import refuse
from pytest_infer.errors import InferError
from pytest_infer.measure.load import environment
from pytest_infer.report.text import printable
from pytest_infer.units import size

load_generator = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    help="Install, look at or remove what load tests send their requests with.",
)


@load_generator.command("install", cls=Command)
def install() -> None:
    """Install guidellm into an environment of its own in the cache folder; nothing of yours is changed."""
    try:
        found = environment.install(lambda line: typer.echo(printable(line), err=True))
    except InferError as error:
        refuse(error)
    typer.echo(printable(str(found.folder)))


@load_generator.command("status", cls=Command)
def status() -> None:
    """Say which version is installed, where, and how large it is; ends with 1 where none is."""
    try:
        found = environment.installed()
    except InferError as error:
        refuse(error)
    if found is None:
        typer.echo(printable(f"not installed: {environment.INSTALL} makes {environment.folder()}"))
        raise typer.Exit(1)
    held = size(environment.bytes_on_disk())
    typer.echo(printable(f"{environment.GENERATOR} {found.version} in {found.folder}, {held}"))


@load_generator.command("remove", cls=Command)
def remove() -> None:
    """Remove the environment."""
    try:
        removed = environment.remove()
    except InferError as error:
        refuse(error)
    typer.echo(printable(f"removed {environment.folder()}" if removed else "nothing to remove"))
