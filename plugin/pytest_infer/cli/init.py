"""`pytest-infer init`: the files of a suite, written where there are none yet."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from pytest_infer.checkouts.git import git
from pytest_infer.cli import inifile
from pytest_infer.cli.shared import refuse
from pytest_infer.errors import AgainstError, InferError, OptionError, alternatives
from pytest_infer.report.text import printable

_SCRIPT = "bench/ci.sh"
_CI: dict[str, tuple[str, str] | None] = {
    "github": (".github/workflows/inference-benchmarks.yml", "inference-benchmarks.yml"),
    "gitlab": (".gitlab/inference-benchmarks.yml", "gitlab-ci.yml"),
    "shell": None,
}
"""What runs the script, by host: where it belongs, and its starter; a plain shell needs nothing else."""
_HEADS = ("refs/remotes/origin/HEAD", "HEAD")
_STORAGE = "results"
_INI = "pytest.ini"
_SAFE = re.compile(r"(?!-)[A-Za-z0-9._/-]+")
"""A path that is itself unquoted in a shell, as an option's value, and in a list of YAML's."""
_PROJECT = ("pyproject.toml", "setup.py", "setup.cfg")
"""What pip can install, where one of these lies."""


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An empty folder, or your repository.")] = Path(),
    *,
    ci: Annotated[
        str | None,
        typer.Option(
            "--ci",
            metavar="|".join(_CI),
            help=f"Also {_SCRIPT}, which gates pull requests and keeps a history, and what runs it there.",
        ),
    ] = None,
) -> None:
    """Write a suite to start from: bench/ with prompts and a test, and results/; nothing is ever overwritten."""
    shown = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    try:
        if ci is not None and ci not in _CI:
            raise OptionError(f"--ci: {alternatives('host', ci, _CI)}")
        configured = inifile.nearest(folder.resolve())
        ini = configured is None or configured.path == folder.resolve() / _INI
        for name, text in files(folder, ini=ini, ci=ci):
            kept = not write(folder / name, text)
            typer.echo(f"left alone  {name} (it is there already)" if kept else f"wrote       {name}")
        hints = list(_hints(folder, configured, ci=ci))
    except InferError as error:
        refuse(error)
    for hint in hints:
        typer.echo(printable(hint))
    typer.echo(printable(f"next: {shown}pytest bench --benchmark-autosave"))


def files(folder: Path, *, ini: bool, ci: str | None) -> Iterator[tuple[str, str]]:
    """Yield the files by name and text; `ini` is for a folder that no other configuration of pytest reaches."""
    place = None if ci is None else _CI[ci]
    inner = "" if place is None else _inner(folder)
    yield "bench/test_prompts.py", _starter("test_prompts.py")
    yield "bench/prompts.toml", _starter("prompts.toml")
    yield f"{_STORAGE}/.gitignore", _starter("gitignore")
    if ini:
        yield _INI, _starter(_INI)
    if ci is None:
        return
    yield _SCRIPT, _starter("ci.sh")
    if place is not None:
        own = f"-e {f'./{inner}'.rstrip('/')} " if any((folder / name).is_file() for name in _PROJECT) else ""
        # It runs at the top of the repository. The packages come last: their folder may hold any of these words.
        text = re.sub("bench/|inference-output", rf"{inner}\g<0>", _starter(place[1]))
        text = text.replace("branches: [main]", f"branches: [{_branch(folder)}]")
        yield place[0], text.replace("{packages}", f"{own}pytest-infer")


def _repository(folder: Path) -> Path | None:
    return next((place for place in (folder.resolve(), *folder.resolve().parents) if (place / ".git").exists()), None)


def _branch(folder: Path) -> str:
    """Return the default branch, as YAML: the remote's as this clone knows it, else `master` if on it, or `main`."""
    root, found = _repository(folder), ""
    if root is not None:
        with suppress(OSError, AgainstError):
            remote, own = (git(root, "symbolic-ref", "--short", ref).stdout.strip() for ref in _HEADS)
            found = remote.removeprefix("origin/") or (own if own == "master" else "")
    return f'"{found}"' if found != "main" and _SAFE.fullmatch(found) else "main"


def _inner(folder: Path) -> str:
    """Return a folder as the top of its repository sees it, with a slash behind it; "" for the top itself.

    Raises OptionError for a name that a workflow cannot hold as it is.
    """
    root = _repository(folder)
    inner = "" if root in (None, folder.resolve()) else f"{folder.resolve().relative_to(root)}/"
    if _SAFE.fullmatch(inner) is None and inner:
        raise OptionError(f"--ci: a workflow cannot name {inner}: use a folder without spaces and special characters")
    return inner


def write(path: Path, text: str) -> bool:
    """Write a file unless one, or a link, of that name is there; return whether it was written.

    Raises OptionError where it cannot be written; nothing of it is then left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            try:
                file.write(text)
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise
    except FileExistsError:
        if path.parent.is_dir():
            return False
        raise OptionError(f"{path.parent} is no folder; give another one") from None
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error.strerror}") from error
    return True


def _hints(folder: Path, configured: inifile.IniFile | None, *, ci: str | None) -> Iterator[str]:
    """Yield what is left to do by hand, since a file of the user's own is never changed."""
    if configured is not None and configured.storage is None:
        yield (
            f"add {inifile.STORAGE_OPTION}={_STORAGE} to addopts in {configured.path}, "
            f"so that runs are kept in {_STORAGE}/ (until then: .benchmarks/, where pytest-infer looks too)"
        )
    root = _repository(folder)
    place = None if ci is None else _CI[ci]
    if place is not None and root is not None and root != folder.resolve():
        script = folder.resolve().relative_to(root) / _SCRIPT
        yield f"{place[0]} counts at the top of the repository only: move it to {root}, where it runs {script}"
    if place is not None and ci == "gitlab":
        yield f"add to .gitlab-ci.yml, which GitLab reads: include: [{{ local: {place[0]} }}]"


def _starter(name: str) -> str:
    return (resources.files("pytest_infer.cli") / "starter" / f"{name}.txt").read_text(encoding="utf-8")
