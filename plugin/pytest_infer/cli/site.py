"""`pytest-infer site`: a page a run and an index over them, for GitHub or GitLab Pages or any folder that is served."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit
from pytest_infer.cli.report import compared
from pytest_infer.cli.shared import RepoUrl, Storage, open_history, out, refuse, repository, say
from pytest_infer.errors import InferError
from pytest_infer.report.text import printable

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
        there = _pages(folder / index.RUNS)
        wanted = [(run, name) for run, name in _named(history, keep) if again or name not in there]
        if not (there or wanted):
            say(f"no run in {history.folder}, and no page in {folder}: pytest bench --benchmark-autosave makes a run")
            raise typer.Exit(Exit.NOTHING.value)
        library = f"../{index.ASSETS}/{_library(folder / index.ASSETS)}"
        for run, name in wanted:
            earlier = _before(history, run)
            against = [] if earlier is None else [compared(history, earlier, run, (), CONFIDENCE)]
            page.publish(folder / index.RUNS / name, page.render(run, history.runs, against, where, library))
        pages = _pages(folder / index.RUNS, say)
        removed = _older(pages, keep)
        for name in removed:
            (folder / index.RUNS / name).unlink(missing_ok=True)
            del pages[name]
        page.publish(folder / "index.html", index.render(pages, where))
    except InferError as error:
        refuse(error)
    except OSError as error:
        refuse(f"{error.filename or folder}: {error.strerror}")
    gone = f", {len(removed)} removed" if removed else ""
    out(
        printable(
            f"{folder / 'index.html'}: {len(pages)} run{'' if len(pages) == 1 else 's'}, {len(wanted)} added{gone}"
        )
        + "\n"
    )


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


def _named(history: History, keep: int | None) -> Iterator[tuple[Run, str]]:
    """Yield the runs that belong on the site, oldest first, each with the name of its page.

    The name is the run's own, whatever a gate marks in its file later; runs of several machines may be of one second.
    """
    for run in [run for run in history.runs if not run.plain and run.readable][-(keep or len(history.runs)) :]:
        digest = hashlib.sha256(f"{run.machine}/{run.path.parent.name}/{run.path.name}".encode(errors="replace"))
        name = f"{run.time:%Y%m%dT%H%M%SZ}-{(run.commit or 'unversioned')[:8]}-{digest.hexdigest()[:6]}"
        yield run, f"{re.sub(r'[^0-9A-Za-z-]', '_', name)}.html"


def _before(history: History, run: Run) -> Run | None:
    """Return the run before one, of its branch where there is one, that may stand for it: none that failed its gate."""
    earlier = [one for one in history.before(run) if not (one.plain or one.regressed) and one.readable]
    own = [one for one in earlier if one.branch == run.branch]
    return next(reversed(own or earlier), None)


def _older(pages: Mapping[str, Entry], keep: int | None) -> list[str]:
    newest = sorted(pages, key=lambda name: (pages[name].at, name), reverse=True)
    return [] if keep is None else newest[keep:]
