"""`pytest-infer comment` and `undecided`: what a stored run's gate found, for a pull request and for its next try."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from pytest_infer import untrusted
from pytest_infer.analysis.compare import verdicts
from pytest_infer.analysis.compare.verdicts import Exit, Verdict
from pytest_infer.cli import posting
from pytest_infer.cli.shared import Storage, open_history, out, refuse, say, screen
from pytest_infer.errors import InferError, OptionError, alternatives
from pytest_infer.report.compare.comment import CommentedRun, again, marker
from pytest_infer.report.formats import COMMENT, Format
from pytest_infer.report.text import printable
from pytest_infer.storage import runfile
from pytest_infer.storage.files import publishing
from pytest_infer.storage.history import History

_NAME = re.compile(r"[\w .:/-]{1,80}")
_RUN = Annotated[str, typer.Argument(metavar="RUN", help="Number, commit, branch, tag, path, baseline:NAME, latest~1.")]


def comment(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN…",
            help="Number, commit, branch, tag, path, baseline:NAME, latest~1; of several, each takes the place of those"
            " before it for the tests that it measured.",
        ),
    ] = None,
    *,
    post: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(posting.HOSTS),
            help="Post it to the pull request of this CI job, or update the one that is there; the token is read from "
            "GITHUB_TOKEN or GITLAB_TOKEN.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it to this file; default: stdout.")] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What it goes by, where a pull request has several of them.")
    ] = "inference benchmarks",
    author: Annotated[
        str, typer.Option(metavar="LOGIN", help="On GitHub, whose comments are ours to update.")
    ] = "github-actions[bot]",
    storage: Storage = None,
) -> None:
    """Write what the gate of a run found as a comment on a pull request: one, which is updated in place."""
    try:
        if _NAME.fullmatch(name) is None or "--" in name:
            raise OptionError("--name takes up to 80 letters, digits, spaces and . : / - (no two - in a row)")
        if post is not None and post not in posting.HOSTS:
            raise OptionError(f"--post: {alternatives('host', post, posting.HOSTS)}")
        host = None if post is None else posting.HOSTS[post](os.environ, author)
        history = open_history(storage)
        gated = [_gated(history, run, name) for run in runs or ("latest",)]
        if len({one.run.commit for one in gated}) > 1:
            labels = ", ".join(one.run.label for one in gated)
            raise OptionError(f"{labels}: a comment is about one commit, measured once or again")
        found = again(gated)
        text = COMMENT[Format.MARKDOWN](found, screen())
        if output is not None:
            _write(output, text)
        elif host is None:
            out(text)
        if host is not None:
            typer.echo(printable(posting.post(host, marker(name), text, anew=not found.quiet)))
    except InferError as error:
        refuse(error)


def undecided(run: _RUN = "latest", *, storage: Storage = None) -> None:
    """List the tests that a run's gate could not tell, one a line, to measure these alone again with more time.

    As pytest takes them in this folder.
    """
    try:
        found = _gated(open_history(storage), run, "")
    except InferError as error:
        refuse(error)
    never = [j for j in found.judgements if j.verdict is Verdict.INCOMPARABLE]
    if never:
        say(f"{len(never)} incomparable, which no further measurement decides: {never[0].reason}")
        raise typer.Exit(Exit.INCONCLUSIVE.value)
    tests = dict.fromkeys(j.test for j in found.judgements if j.verdict is Verdict.INCONCLUSIVE)
    if not tests:
        say(f"run {found.run.label}: nothing is undecided")
        raise typer.Exit(Exit.NOTHING.value)
    out("".join(f"{printable(_from_here(test))}\n" for test in tests))


def _from_here(test: str) -> str:
    """Return a test's id, which is relative to pytest's rootdir, relative to this folder, in which that is or below."""
    file, colons, name = test.partition("::")
    here = Path.cwd()
    root = next((place for place in (here, *here.parents) if untrusted.is_file(place / file)), here)
    return f"{os.path.relpath(root / file)}{colons}{name}"


def _gated(history: History, selector: str, name: str) -> CommentedRun:
    """Return a run with what its gate found; end with exit code 11 where it had none."""
    chosen = history.select(selector)
    mark = runfile.read(chosen.path, runfile.ALL).pytest_infer.gate
    judgements = () if mark is None else verdicts.restored(mark.judgements)
    if mark is None or not judgements:
        say(f"run {chosen.label} keeps no verdicts: run pytest with --infer-against, or pytest-infer gate")
        raise typer.Exit(Exit.NOTHING.value)
    suite = verdicts.restored_suite(mark.suite)
    return CommentedRun(run=chosen, mark=mark, judgements=judgements, suite=suite, name=name)


def _write(path: Path, text: str) -> None:
    try:
        with publishing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise OptionError(f"--output {path}: {error.strerror}; choose another file") from error
