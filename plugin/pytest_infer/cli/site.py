"""`pytest-infer site`: a page a run and an index over them, for GitHub or GitLab Pages or any folder that is served."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit
from pytest_infer.cli.report import compared
from pytest_infer.cli.shared import RepoUrl, Storage, allowed_by_ini, open_history, out, refuse, repository, say
from pytest_infer.errors import InferError, StorageError
from pytest_infer.report.text import printable
from pytest_infer.units import plural

if TYPE_CHECKING:
    from pytest_infer.report.site.entry import Entry
    from pytest_infer.storage.history import History
    from pytest_infer.storage.runs import Run


def site(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the site; it is made if need be.")],
    *,
    keep: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="So many pages, the newest; others are removed. Default: all."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Write the pages of all stored runs anew.")] = False,
    repo_url: RepoUrl = None,
    storage: Storage = None,
) -> None:
    """Add the stored runs that have no page yet to a static site, and write its index from all pages there.

    Runs whose files are gone keep their pages: the folder alone is what is published and kept.
    """
    # Imported late: other commands need no templates.
    from pytest_infer.report.html import page  # noqa: PLC0415
    from pytest_infer.report.site import index  # noqa: PLC0415

    try:
        where = repository(repo_url)
        history = open_history(storage)
        there = _of_runs(_pages(folder / index.RUNS))
        runs = [run for run in reversed(history.runs) if not run.plain]
        if not (there or runs):
            say(f"no run in {history.folder}, and no page in {folder}: pytest bench --benchmark-autosave makes a run")
            raise typer.Exit(Exit.NOTHING.value)
        library = f"../{index.ASSETS}/{_library(folder / index.ASSETS)}"
        allowed = allowed_by_ini()
        added = kept = 0
        for run in runs:
            if kept == keep:
                break
            if run.identity in there and not again:
                kept += 1
            elif (text := _page(history, run, where, library, allowed)) is not None:
                page.publish(folder / index.RUNS / there.get(run.identity, _name(run)), text)
                added, kept = added + 1, kept + 1
        pages = _pages(folder / index.RUNS, say)
        removed = _older(pages, keep)
        for name in removed:
            (folder / index.RUNS / name).unlink(missing_ok=True)
            del pages[name]
        # An earlier version named pages otherwise: a run may have two, and who has the address of one finds it there.
        listed = {name: pages[name] for name in _of_runs(pages).values()}
        page.publish(folder / "index.html", index.render(listed, where))
    except InferError as error:
        refuse(error)
    except OSError as error:
        refuse(f"{error.filename or folder}: {error.strerror}")
    gone = f", {len(removed)} removed" if removed else ""
    out(printable(f"{folder / 'index.html'}: {plural(len(listed), 'run')}, {added} added{gone}") + "\n")


def _pages(folder: Path, tell: Callable[[str], None] | None = None) -> dict[str, Entry]:
    """Return what the pages there tell, by file, and say which tell nothing."""
    from pytest_infer.report.site import entry  # noqa: PLC0415

    found = {}
    for path in sorted(folder.glob("*.html")):
        told = entry.read(path)
        if told is not None:
            found[path.name] = told
        elif tell is not None:
            tell(f"left out of the index: {path} is no page that pytest-infer site wrote")
    return found


def _library(folder: Path) -> str:
    """Write the charts' library where pages find it, and return its name, which holds its version."""
    from pytest_infer.report.html import page  # noqa: PLC0415

    name = f"echarts-{page.echarts_version()}.min.js"
    if not (folder / name).is_file():
        page.publish(folder / name, page.text(page.ECHARTS / "echarts.min.js"))
        page.publish(folder / f"{name}.LICENSE.txt", page.text(page.ECHARTS / "LICENSE"))
    return name


def _name(run: Run) -> str:
    """Return the name of a run's page.

    It is the run's own, whatever a gate marks in its file later; runs of several machines may be of one second.
    """
    digest = hashlib.sha256(f"{run.machine}/{run.path.parent.name}/{run.path.name}".encode(errors="replace"))
    name = f"{run.time:%Y%m%dT%H%M%SZ}-{(run.commit or 'unversioned')[:8]}-{digest.hexdigest()[:6]}"
    return f"{re.sub(r'[^0-9A-Za-z-]', '_', name)}.html"


def _page(history: History, run: Run, where: str | None, library: str, allowed: Sequence[str]) -> str | None:
    """Return the page of a run; of one that cannot be read say that it is left out."""
    from pytest_infer.report.html import page  # noqa: PLC0415

    if not run.readable:
        return None
    try:
        earlier = _before(history, run, allowed)
        against = [] if earlier is None else [compared(history, earlier, run, allowed, CONFIDENCE)]
        return page.render(run, history.runs, against, where, library)
    except InferError as error:
        say(f"left out: {error}")
        return None
    finally:
        for one in history.runs:
            one.forget()


def _before(history: History, run: Run, allowed: Sequence[str]) -> Run | None:
    """Return the baseline of a run among those that led to it, which can be read as a whole.

    Where none may, it is the newest that did not fail its gate: the comparison says why it is none.
    """
    from pytest_infer.analysis.compare import gate  # noqa: PLC0415
    from pytest_infer.analysis.history import trends  # noqa: PLC0415
    from pytest_infer.report.html import stored  # noqa: PLC0415

    earlier = [one for one in trends.leading_to(run, history.runs)[:-1] if not one.regressed]
    while earlier:
        found = gate.baseline_for(run.rows, earlier, allowed) or earlier[-1]
        with suppress(StorageError):
            stored.read(found)
            return found
        earlier.remove(found)
    return None


def _of_runs(pages: Mapping[str, Entry]) -> dict[tuple[datetime, str | None], str]:
    """Return the page of each run; of several the last one by name."""
    return {entry.identity: name for name, entry in pages.items()}


def _older(pages: Mapping[str, Entry], keep: int | None) -> list[str]:
    newest = sorted(_of_runs(pages).items(), key=lambda one: (one[0][0], one[1]), reverse=True)
    kept = {identity for identity, _ in newest[:keep]}
    return [name for name, entry in pages.items() if entry.identity not in kept]
