"""Expert usage of a suite on a terminal: the hottest and coldest, the map, the layers beside their null, the overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.report import heatmap, text
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, count, significant, size

if TYPE_CHECKING:
    from pytest_infer.analysis.census import Site
    from pytest_infer.analysis.expert_view import View
    from pytest_infer.analysis.usage import Expert, SiteUsage

_PERCENT = ("coverage",)
_WIDE = (("imbalance", 80), ("gini", 80), ("entropy", 80), ("unused", 80), ("coverage", 80), ("need", 80), ("cv", 110))
"""The figures of the layers' table, each with the columns that a terminal must have for it."""
_WHOSE = {"prefill": "prompt tokens", "decode": "generated tokens", "both": "prompt and generated tokens"}


def site_titles(sites: Sequence[Site]) -> list[str]:
    """Return a short name a site: `L3`; with what the model calls it where a layer has several."""
    times = Counter(site.layer for site in sites)
    return [f"L{s.layer}" if times[s.layer] == 1 else f"L{s.layer} {printable(s.name)} " for s in sites]


def labels(sites: Sequence[Site]) -> dict[str, str]:
    """Return the title of each site by its name."""
    return {site.name: title for site, title in zip(sites, site_titles(sites), strict=True)}


def render(view: View, *, heading: str, top: int, width: int, color: bool) -> str:
    """Return the view as text of at most `width` columns; `top` experts at either end of the list."""
    console = text.console(width, color=color)
    for line in (heading, about(view)):
        console.print(Text(printable(line), style="bold"))
    _write_list(console, view, top)
    console.print()
    for row in heatmap.lines(view.usages, site_titles(view.census.sites), width):
        console.print(row)
    _write_layers(console, view)
    _write_overlap(console, view)
    _write_differences(console, view)
    console.print()
    for line in remarks(view):
        console.print(Text(line))
    return text.collected(console)


def about(view: View) -> str:
    """Return what was counted: layers, experts, and whose tokens."""
    sites, census = view.census.sites, view.census
    shapes = {(site.experts, site.k) for site in sites}
    shape = (
        f"{len(sites)} layers × {sites[0].experts} experts, top {sites[0].k}"
        if len(shapes) == 1
        else f"{len(sites)} MoE sites of different sizes"
    )
    shared = f" + {sites[0].shared} shared" if len(shapes) == 1 and sites[0].shared else ""
    tokens = {"prefill": census.prefill_tokens, "decode": census.decode_tokens}
    n = sum(tokens.values()) if view.phase.value == "both" else tokens[view.phase.value]
    many = len(view.prompts)
    return f"{shape}{shared} · {count(n)} {_WHOSE[view.phase.value]} of {many} prompt{'s' if many > 1 else ''}"


def chosen(view: View, top: int) -> tuple[Sequence[Expert], Sequence[Expert]]:
    """Return the hottest and the coldest experts, the coldest first, none of them in both."""
    hottest = view.experts[:top]
    rest = view.experts[len(hottest) :]
    return hottest, tuple(reversed(rest[-top:])) if top else ()


def mark(expert: Expert) -> str:
    """Return whether an expert differs from its fair share beyond chance."""
    return "hot" if expert.hot else "cold" if expert.cold else "by chance?"


def _write_list(console: Console, view: View, top: int) -> None:
    named = labels(view.census.sites)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("hottest", "times", "percent", "95 % interval", "× fair"):
        table.add_column(head, justify="left" if head == "hottest" else "right", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    hottest, coldest = chosen(view, top)
    for expert in hottest:
        table.add_row(*_expert(expert, named))
    if coldest:
        table.add_row(Text("coldest", style="bold"))
    for expert in coldest:
        table.add_row(*_expert(expert, named))
    console.print()
    console.print(table)


def _expert(expert: Expert, named: dict[str, str]) -> tuple[str, ...]:
    return (
        f"{named[expert.site.name]}E{expert.expert}",
        count(expert.times),
        f"{100 * expert.share:.1f} %",
        f"{100 * expert.low:.1f}–{100 * expert.high:.1f} %",
        f"{expert.ratio:.2f}",
        mark(expert),
    )


def pair(usage: SiteUsage, key: str) -> str:
    """Return a figure and its null: `2.69 / 1.12`."""
    null = usage.expected.get(key)
    return both(usage.figures.get(key), null.mean if null is not None else None, key)


def both(value: float | None, null: float | None, key: str) -> str:
    """Return a figure beside the same under even routing, in percent where it is a share."""
    scale = 100 if key in _PERCENT else 1
    return " / ".join(NONE if x is None else _short(x * scale) for x in (value, null))


def _short(value: float) -> str:
    return significant(value, 3) if abs(value) >= 1 else f"{value:.2f}" if value else "0"


def _write_layers(console: Console, view: View) -> None:
    from pytest_infer.analysis import skew, usage  # noqa: PLC0415 - numpy; whoever has a view has loaded it

    keys = [key for key, least in _WIDE if console.width >= least or key in ("imbalance", "gini")]
    heads = {f.key: f.label + (" %" if f.key in _PERCENT else "") for f in skew.FIGURES}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    for head in [heads[key] for key in keys] + (["reuse %"] if view.reuse else []):
        table.add_column(head, justify="right", no_wrap=True)
    titles = site_titles(view.census.sites)
    for number, (title, found) in enumerate(zip(titles, view.usages, strict=True)):
        reuse = [reused(view, number)] if view.reuse else []
        table.add_row(title, *(pair(found, key) for key in keys), *reuse)
    table.add_section()
    whole = usage.model(view.usages)
    cells = [both(*whole.get(key, (None, None)), key) for key in keys]
    table.add_row("mean", *cells, *([""] if view.reuse else []), style="bold")
    console.print()
    console.print(table)
    console.print(Text("figure / what even routing of as many tokens shows by chance", style="dim"))


def reused(view: View, number: int) -> str:
    """Return how much of a token's experts the token before had, beside chance."""
    reuse = view.reuse[number]
    return NONE if reuse is None else f"{100 * reuse.measured:.0f} / {100 * reuse.chance:.0f}"


def percent(value: float | None) -> str:
    """Return a share as a whole percentage without its sign."""
    return NONE if value is None else f"{100 * value:.0f}"


def _write_overlap(console: Console, view: View) -> None:
    names = [printable(name) for name in view.overlap.names]
    if len(names) < 2:
        return
    console.print()
    console.print(Text(f"selections of one {view.by.value} that the hot quarter of another serves, %", style="bold"))
    room = min(24, max(map(len, names)), console.width // 3)
    fits = room + 5 + 5 * len(names) <= console.width
    (_matrix if fits else _each)(console, view, names, max(room, 10))
    console.print(
        Text(
            f"even routing: {percent(view.overlap.even)}; itself: planned on the text that is scored, too good to be true",
            style="dim",
        )
    )


def _cut(name: str, room: int) -> str:
    shown = Text(name)
    shown.truncate(room, overflow="ellipsis", pad=True)
    return shown.plain


def _matrix(console: Console, view: View, names: Sequence[str], room: int) -> None:
    """Write a row for each that is planned on, a column for each that is scored."""
    found = view.overlap
    console.print(Text(" " * (room + 4) + "".join(f"{n:>5}" for n in range(1, len(names) + 1)), style="bold"))
    for number, (name, row) in enumerate(zip(names, found.matrix, strict=True), start=1):
        console.print(Text(f"{number:>3} {_cut(name, room)}" + "".join(f"{percent(x):>5}" for x in row)))
    for name, row in (("all others", found.rest), ("itself", found.itself)):
        console.print(Text(f"    {_cut(name, room)}" + "".join(f"{percent(x):>5}" for x in row), style="dim"))


def _each(console: Console, view: View, names: Sequence[str], room: int) -> None:
    """Write a row for each that is scored, where a matrix would be too wide: its worst and best planner."""
    found = view.overlap
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("served", no_wrap=True, overflow="ellipsis", max_width=room)
    for head in ("worst", "median", "best", "all others", "itself"):
        table.add_column(head, justify="right", no_wrap=True)
    for number, name in enumerate(names):
        others = sorted(x for n, row in enumerate(found.matrix) if n != number and (x := row[number]) is not None)
        of = [others[0], others[len(others) // 2], others[-1]] if others else [None] * 3
        table.add_row(name, *map(percent, (*of, found.rest[number], found.itself[number])))
    console.print(table)


def _write_differences(console: Console, view: View) -> None:
    if not view.differences:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"{view.by.value}s", no_wrap=True, overflow="ellipsis")
    for head in ("elsewhere", "by chance", "p", ""):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for found in view.differences:
        table.add_row(
            f"{printable(found.first)}, {printable(found.second)}",
            f"{100 * found.distance:.1f} %",
            f"{100 * found.null:.1f} %",
            f"{found.p:.3f}",
            verdict(found.by, differs=found.differs),
        )
    console.print()
    console.print(table)
    console.print(Text("elsewhere: selections that go to other experts (total variation)", style="dim"))


def verdict(by: str, *, differs: bool) -> str:
    """Return what a difference came to; one prompt a side says nothing of the kind of text."""
    if not differs:
        return "no difference beyond chance"
    return "differ" if by == "prompts" else "these texts differ; more prompts must tell whether the kinds do"


def remarks(view: View) -> Iterable[str]:
    """Yield what else there is to say: whether to trust the list, the other phase, bytes, pairs."""
    if view.sample.small:
        more = view.sample.more_tokens
        yield (
            f"! too few tokens to name hot experts in {view.sample.unnamed} of {view.sample.layers} layers"
            + (f"; at least {count(more)} more would do if the hottest stay as hot" if more is not None else "")
        )
    if view.across is not None:
        yield (
            f"the prompts' hot quarter serves {percent(view.across)} % of the generated tokens' selections "
            f"(even routing: {percent(view.overlap.even)} %)"
        )
    weightless = [usage.weightless for usage in view.usages if usage.weightless]
    if weightless:
        yield f"{100 * sum(weightless) / len(view.usages):.1f} % of the selections need no weights"
    if view.steps:
        parts = (f"{size(s.measured)} (even: {size(s.uniform)}) for {s.batch}" for s in view.steps)
        yield f"expert weights a decode step reads, by sequences at a time: {', '.join(parts)}"
    named = labels(view.census.sites)
    if view.pairs:
        shown = ", ".join(
            f"{named[p.site.name]} E{p.together.first}+E{p.together.second} {p.together.lift:.1f}×" for p in view.pairs
        )
        yield f"chosen together more than chance has it: {shown}"
