"""What the commands over stored runs share: their options, and how they end."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pytest_infer import untrusted
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.cli import inifile
from pytest_infer.errors import InferError, NothingStoredError, OptionError
from pytest_infer.report.formats import Format, Screen
from pytest_infer.report.text import printable
from pytest_infer.storage import code, history
from pytest_infer.storage.files import is_stream
from pytest_infer.storage.history import History
from pytest_infer.storage.runs import Run

_WEB = re.compile(r"https?://[^\s/?#\"'<>]+[^\s\"'<>]*")
DEFAULT_STORAGE = (Path("results"), Path(".benchmarks"))


def _folder(given: str) -> Path:
    folder = inifile.folder_of(given)
    if folder is None:
        raise typer.BadParameter(f"{given} is no folder: runs are read from pytest-benchmark's file storage only")
    return folder


Storage = Annotated[
    Path | None,
    typer.Option(
        "--storage",
        metavar="FOLDER",
        # Not typer's own: a path would lose one of the slashes of file://.
        parser=_folder,
        help="pytest-benchmark's storage; default: what PYTEST_ADDOPTS or addopts names with --benchmark-storage, "
        "results, .benchmarks.",
    ),
]


def allowed_by_ini() -> list[str]:
    """Return what may differ by the ini file; refuse what cannot be read."""
    # Imported late: `--help` and what compares nothing need none of it.
    from pytest_infer.analysis.compare import fingerprint  # noqa: PLC0415

    try:
        found = _keys(inifile.allowed(Path.cwd()))
        fingerprint.check_allowed(found, inifile.ALLOWED)
    except InferError as error:
        refuse(error)
    return found


def _keys(lines: Iterable[str]) -> list[str]:
    return [key.strip() for line in lines for key in line.split(",") if key.strip()]


AllowDifferent = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-different",
        metavar="KEYS",
        callback=lambda given: _keys(given) if given else allowed_by_ini(),
        help="Compare although these differ: torch, threads, cpu, output, …, or all of machine, software, model; "
        "default: infer_allow_different of the ini file.",
    ),
]
Confidence = Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.")]

RepoUrl = Annotated[
    str | None,
    typer.Option(
        "--repo-url",
        metavar="URL",
        help="Where commits lead: a repository's web address, or one with {commit} in it; off: nowhere. "
        "Default: that of the git remote.",
    ),
]


def repository(given: str | None) -> str | None:
    """Return the web address that commits lead to; refuse what is none."""
    if given is None:
        return code.repository()
    if given == "off":
        return None
    if not _WEB.fullmatch(given):
        refuse(f"--repo-url {given}: no web address; give one like https://github.com/you/yours, or off")
    return given


def offered(view: Mapping[Format, object], told: str | None = None) -> Any:
    """Return the option `--format` of a command: it takes the formats that its view is written in, and no other."""
    names = [form.value for form in view]
    one = f"<{'|'.join(names)}>"
    return typer.Option(
        "--format",
        parser=lambda text: _format(view, text),
        metavar=one,
        autocompletion=lambda: names,
        help=told or f"{', '.join(names[:-1])} or {names[-1]}.",
    )


def _format(view: Mapping[Format, object], text: str) -> Format:
    # A default comes as a member already, which is its own text.
    for form in view:
        if form.value == text:
            return form
    known = ", ".join(repr(form.value) for form in view)
    raise typer.BadParameter(f"{text!r} is not one of {known}.")


def refuse(why: str | InferError) -> NoReturn:
    """End with one line that says what to do, and exit code 2, or 11 where no run is stored yet."""
    say(str(why))
    raise typer.Exit((Exit.NOTHING if isinstance(why, NothingStoredError) else Exit.USAGE).value)


def say(line: str) -> None:
    """Write a line to stderr; names of files and runs in it are not to be trusted."""
    typer.echo(printable(f"pytest-infer: {line}"), err=True)


def wrote(path: Path, line: str) -> None:
    """Tell what was written to a file; on stderr where that is a pipe, or stdout, which then holds nothing else."""
    typer.echo(printable(line), err=is_stream(path))


def open_history(storage: Path | None) -> History:
    """Return the runs of the storage, naming on stderr what could not be read.

    Without a folder: the one that pytest's own configuration names, else the first of the usual ones that holds a run;
    where it is not there yet, no run is stored, and a path still names one.
    """
    if storage is None:
        storage = inifile.storage(Path.cwd()) or _usual()
        if not (untrusted.is_dir(storage) or untrusted.is_file(storage)):
            return History(folder=storage, runs=())
    found = history.load(storage, say)
    for warning in found.warnings:
        say(warning)
    return found


def chosen_runs(history: History, names: Sequence[str]) -> list[Run]:
    """Return the run of each selector; raise OptionError where two of them name one run, which nobody compares."""
    found: dict[tuple[datetime, str | None], str] = {}
    chosen = []
    for name in names:
        run = history.select(name)
        if run.identity in found:
            raise OptionError(f"{found[run.identity]} and {name} are both {run.label}: name two runs")
        found[run.identity] = name
        chosen.append(run)
    return chosen


def _usual() -> Path:
    there = [folder for folder in DEFAULT_STORAGE if folder.is_dir()]
    holding = (folder for folder in there if any(folder.rglob("*.json")))
    return next(holding, next(iter(there), DEFAULT_STORAGE[0]))


def screen() -> Screen:
    """Return stdout, of so many columns as the terminal has or as suit a log, with stderr for remarks."""
    return Screen(
        width=shutil.get_terminal_size((120, 24)).columns,
        color=sys.stdout.isatty() and "NO_COLOR" not in os.environ,
        remark=say,
    )


def out(text: str) -> None:
    """Write a finished text to stdout."""
    sys.stdout.write(text)
