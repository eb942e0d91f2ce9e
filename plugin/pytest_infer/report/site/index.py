"""The index of a site: its branches, each with its newest run, and all runs, the newest first."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from pytest_infer.metrics import by_key
from pytest_infer.report.html import page
from pytest_infer.report.html.parts import Cell, ColumnHead, Table, head
from pytest_infer.report.site.entry import FIGURES, Entry, Said
from pytest_infer.storage.code import commit_address
from pytest_infer.units import NONE, column

if TYPE_CHECKING:
    from collections.abc import Sequence

TEMPLATES = Path(__file__).parent / "templates"
RUNS = "runs"
"""The folder of the runs' pages within a site."""
ASSETS = "assets"
"""The folder of what all pages share."""
_NO_BRANCH = "no branch"


def render(pages: Mapping[str, Entry], repository: str | None) -> str:
    """Return the index of pages by the name of their file."""
    newest = sorted(pages.items(), key=lambda one: (one[1].at, one[0]), reverse=True)
    branches: dict[str, list[tuple[str, Entry]]] = {}
    for one in newest:
        branches.setdefault(one[1].branch or _NO_BRANCH, []).append(one)
    style = page.text(page.TEMPLATES / "report.css")
    scripts = [page.text(page.TEMPLATES / name) for name in ("tables.js", "theme.js")]
    return (
        page.environment(TEMPLATES)
        .get_template("index.html.j2")
        .render(
            runs=len(pages),
            title=next((entry.model for _, entry in newest if entry.model), "Runs"),
            branches=_branches(branches),
            table=_runs(newest, repository),
            style=Markup(style),  # noqa: S704 - our own file
            scripts=[Markup(script) for script in scripts],  # noqa: S704 - our own
            style_hash=page.content_hash(style),
            script_hashes=[page.content_hash(script) for script in scripts],
            version=importlib.metadata.version("pytest-infer"),
        )
    )


def _branches(branches: Mapping[str, Sequence[tuple[str, Entry]]]) -> Table:
    rows = []
    for name, runs in branches.items():
        file, entry = runs[0]
        rows.append(
            (
                Cell(text=name, url=f"{RUNS}/{file}"),
                Cell(text=f"{entry.at:%Y-%m-%d %H:%M}"),
                Cell(text=str(len(runs))),
                _said(entry.lasting),
                _said(entry.said),
            )
        )
    heads = (
        ColumnHead(text="branch", number=False),
        ColumnHead(text="newest run", unit="UTC", number=False),
        ColumnHead(text="runs"),
        ColumnHead(text="lasting change", number=False),
        ColumnHead(text="newest run against an earlier one", number=False),
    )
    return Table(caption="Branches, each with its newest run", quiet=True, heads=heads, rows=tuple(rows))


def _runs(newest: Sequence[tuple[str, Entry]], repository: str | None) -> Table:
    units = {key: column([entry.figures.get(key) for _, entry in newest], by_key(key).unit) for key in FIGURES}
    rows = []
    for number, (file, entry) in enumerate(newest):
        commit = f"{(entry.commit or NONE)[:8]}{'+' if entry.dirty else ''}"
        rows.append(
            (
                Cell(text=f"{entry.at:%Y-%m-%d %H:%M}", url=f"{RUNS}/{file}"),
                _said(entry.said),
                Cell(text=entry.branch or NONE),
                Cell(text=commit, url=commit_address(repository, entry.commit)),
                Cell(text=entry.message or NONE, look="message"),
                _verdict(entry),
                *(Cell(text=units[key][1][number], sort=entry.figures.get(key)) for key in FIGURES),
                Cell(text=entry.model or NONE),
                Cell(text=entry.machine or NONE),
            )
        )
    heads = (
        ColumnHead(text="run", unit="UTC", number=False),
        *(ColumnHead(text=text, number=False) for text in ("what changed", "branch", "commit", "message", "gate")),
        *(_plain(head(by_key(key), units[key][0])) for key in FIGURES),
        *(ColumnHead(text=text, number=False) for text in ("model", "machine")),
    )
    return Table(caption="All runs, newest first; figures are means over the prompts", heads=heads, rows=tuple(rows))


def _plain(of: ColumnHead) -> ColumnHead:
    """Return a head without the link to a definition, which the index has not."""
    return ColumnHead(text=of.text, unit=of.unit, number=of.number)


def _verdict(entry: Entry) -> Cell:
    looks = {"passed": "improved", "regressed": "regressed"}
    return (
        Cell(text=NONE)
        if entry.gate is None
        else Cell(text=entry.gate, look=f"pill {looks.get(entry.gate, 'warning')}")
    )


def _said(said: Said | None) -> Cell:
    looks = {"regressed": "worse", "missing": "worse", "improved": "better"}
    return Cell(text=NONE) if said is None else Cell(text=said.text, look=f"message {looks.get(said.look, '')}".strip())
