"""The page: sections into one file that opens offline, with everything untrusted escaped on its way in."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pytest_infer.analysis.advice import advice
from pytest_infer.errors import StorageError
from pytest_infer.report.html import (
    anchors,
    breakdown,
    cards,
    compare,
    experts,
    fidelity,
    glossary,
    history,
    load,
    machine,
    overview,
    prompts,
    stored,
    sweep,
)
from pytest_infer.report.html.compare import Compared
from pytest_infer.report.html.parts import Chart
from pytest_infer.report.site import entry
from pytest_infer.report.text import printable
from pytest_infer.storage import files
from pytest_infer.storage.code import commit_address
from pytest_infer.storage.runs import Run

TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("charts.js", "tables.js", "save.js", "report.js", "theme.js", "search.js")
ECHARTS = Path(__file__).parent / "vendor" / "echarts"
_UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def write(
    path: Path, run: Run, runs: Sequence[Run], compared: Sequence[Compared] = (), repository: str | None = None
) -> None:
    """Write the report of a run; `runs` are those of its storage, oldest first, and `compared` comes before its gate.

    Commits lead to their pages in `repository`, a web address. Raises StorageError where a run cannot be read or the
    file not be written.
    """
    publish(path, render(run, runs, compared, repository))


def publish(path: Path, page: str) -> None:
    """Write a page to its file; raise StorageError where that fails."""
    try:
        with files.publishing(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}; choose another file") from error


def render(
    run: Run,
    runs: Sequence[Run],
    compared: Sequence[Compared] = (),
    repository: str | None = None,
    library: str | None = None,
) -> str:
    """Return the report of a run as HTML.

    As a page of a site it draws with the `library` that lies there, an address, and tells the index what it holds.
    """
    found = stored.read(run)
    gated = compare.of_gate(found.gate, run.label)
    every = [*compared, *([gated] if gated is not None else [])]
    mine = next((one for one in reversed(compared) if one.after == run.label), None)
    earlier = None if mine is None or mine.earlier is None else stored.read(mine.earlier)
    names = "", ""
    if mine is not None and mine.earlier is not None:
        names = mine.earlier.number or mine.earlier.label, run.number or mine.after
    swept, loaded = sweep.section(found), load.section(found)
    told = history.known(run, runs)
    sections = anchors.anchored(
        (
            overview.section(found, advice.advise({test.row.test: test.block for test in found.tests})),
            compare.section(every),
            breakdown.section(found, mine, gated),
            prompts.section(found, earlier, names),
            fidelity.section(found, None if mine is None else mine.earlier),
            experts.section(found, earlier, names),
            machine.section(found),
            swept,
            *([] if loaded is None else [loaded]),
            history.section(told, repository),
        )
    )
    top = cards.cards(every, told, repository)
    mark = None
    if library is not None:
        against = compare.card(every[-1], len(every)) if every else None
        if against is not None and every[-1].before is not None:
            against["says"] += f", against {every[-1].before}"
        message = told.messages.get(run.commit or "")
        mark = entry.element(entry.of(run, found.tests, message, against, cards.lasting(told)))
    style = text(TEMPLATES / "report.css")
    paths = [*([ECHARTS / "echarts.min.js"] if library is None else []), *(TEMPLATES / name for name in _SCRIPTS)]
    scripts = [text(path) for path in paths]
    template = environment().get_template("report.html.j2")
    return template.render(
        run=run,
        found=found,
        sections=sections,
        cards=top,
        library=library,
        entry=mark,
        commit=commit_address(repository, run.commit),
        recommended=sweep.recommended(swept),
        glossary=tuple(glossary.entries()),
        style=Markup(style),  # noqa: S704 - our own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - our own, and ECharts' whose hash a test checks
        style_hash=content_hash(style),
        script_hashes=[content_hash(script) for script in scripts],
        data=data({chart.key: chart for section in sections for chart in section.charts}),
        notice=text(ECHARTS / "NOTICE"),
        version=importlib.metadata.version("pytest-infer"),
        echarts_version=echarts_version(),
    )


def echarts_version() -> str:
    """Return the version of the charts' library."""
    return str(tomllib.loads(text(ECHARTS / "VERSION.toml"))["version"])


def data(charts: Mapping[str, Chart]) -> Markup:
    """Return the charts' data as JSON that is safe within a script element: no markup, nothing invisible."""
    clean = {key: _clean({"title": chart.title, "says": chart.says, **chart.data}) for key, chart in charts.items()}
    text = json.dumps(clean, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(_UNSAFE))  # noqa: S704 - escaped in the line itself


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _clean(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(held) for held in value]
    return value


def environment(*more: Path) -> jinja2.Environment:
    """Return what makes pages from our templates, and from those of more folders; what it is given is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*more, TEMPLATES]),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: Any) -> Any:
    """Make control, formatting and direction characters visible: what names and outputs hold is untrusted."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def text(path: Path) -> str:
    """Return one of our own files."""
    return path.read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """Return a content hash as Content-Security-Policy level 2 writes it, of the element's text as it stands."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
