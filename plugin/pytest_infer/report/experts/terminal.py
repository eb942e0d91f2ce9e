"""Expert usage of a suite on a terminal: hottest and coldest, the map, layers beside their null, the overlap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_infer.report import text
from pytest_infer.report.experts import heatmap
from pytest_infer.report.experts.overlap import percent, write_differences, write_overlap
from pytest_infer.report.text import printable
from pytest_infer.units import NONE, count, significant, size

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.suite import View
    from pytest_infer.analysis.experts.usage import Expert, SiteUsage
    from pytest_infer.records import ExpertSite

_PERCENT = ("coverage",)
_WHOLE = ("unused", "need")
"""Figures that are whole numbers of experts, but for their means."""
_COLUMNS = ("imbalance", "gini", "entropy", "unused", "coverage", "need", "effective", "cv")
"""The figures of the layers' table; the last give way in a narrow terminal."""
_WHOSE = {"prefill": "prompt tokens", "decode": "generated tokens", "both": "prompt and generated tokens"}


def site_titles(sites: Sequence[ExpertSite]) -> list[str]:
    """Return a short name a site: `L3`; with what the model calls it where a layer has several."""
    times = Counter(site.layer for site in sites)
    return [f"L{s.layer}" if times[s.layer] == 1 else f"L{s.layer} {printable(s.name)} " for s in sites]


def how_many(sites: Sequence[ExpertSite]) -> str:
    """Return how many layers these are, or sites where a layer has several."""
    layers = len({site.layer for site in sites})
    return f"{layers} layers" if layers == len(sites) else f"{len(sites)} MoE sites ({layers} layers)"


def labels(sites: Sequence[ExpertSite]) -> dict[str, str]:
    """Return the title of each site by its name."""
    return {site.name: title for site, title in zip(sites, site_titles(sites), strict=True)}


def render(view: View, *, heading: str, top: int, width: int, color: bool) -> str:
    """Return the view as text of at most `width` columns; `top` experts at either end of the list."""
    console = text.console(width, color=color)
    for line in (heading, about(view)):
        console.print(Text(printable(line), style="bold"))
    _write_list(console, view, top)
    console.print()
    titles = site_titles(view.census.sites)
    layers = [
        heatmap.Layer(title=title, counts=found.counts.tolist(), experts=found.site.experts)
        for title, found in zip(titles, view.usages, strict=True)
    ]
    for row in heatmap.lines(layers, width):
        console.print(row)
    _write_layers(console, view)
    write_overlap(console, view)
    write_differences(console, view)
    console.print()
    for line in remarks(view):
        console.print(Text(line))
    return text.collected(console)


def about(view: View) -> str:
    """Return what was counted: layers, experts, and whose tokens."""
    sites, census = view.census.sites, view.census
    shapes = {(site.experts, site.k) for site in sites}
    shape = (
        f"{how_many(sites)} × {sites[0].experts} experts, top {sites[0].k}"
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
    gates = any(expert.gate is not None for expert in view.experts)
    for head in ("hottest", "times", "percent", "95 % interval", "× fair", *(["gate"] if gates else [])):
        table.add_column(head, justify="left" if head == "hottest" else "right", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    hottest, coldest = chosen(view, top)
    for expert in hottest:
        table.add_row(*_expert(expert, named, gates=gates))
    if coldest:
        table.add_row(Text("coldest", style="bold"))
    for expert in coldest:
        table.add_row(*_expert(expert, named, gates=gates))
    console.print()
    text.print_table(console, table)


def _expert(expert: Expert, named: Mapping[str, str], *, gates: bool) -> tuple[str, ...]:
    return (
        f"{named[expert.site.name]}E{expert.expert}",
        count(expert.times),
        f"{100 * expert.share:.1f} %",
        f"{100 * expert.low:.1f}–{100 * expert.high:.1f} %",
        f"{expert.ratio:.2f}",
        *([NONE if expert.gate is None else f"{expert.gate:.2f}"] if gates else []),
        mark(expert),
    )


def pair(usage: SiteUsage, key: str) -> str:
    """Return a figure beside the same under even routing: `2.69 / 1.12`."""
    null = usage.expected.get(key)
    return f"{figure(usage.figures.get(key), key)} / {figure(null.mean if null is not None else None, key)}"


def figure(value: float | None, key: str) -> str:
    """Return a figure of skew, in percent where it is a share; a dash for one that is unknown."""
    if value is None or key in _PERCENT:
        return percent(value)
    if key in _WHOLE:
        return f"{value:.1f}".removesuffix(".0")
    return significant(value, 3) if value >= 1 else f"{value:.2f}"


def _write_layers(console: Console, view: View) -> None:
    """Write a row a layer; what even routing gives stands in a row of its own, or in each cell where layers differ."""
    from pytest_infer.analysis.experts import skew, usage  # noqa: PLC0415 - numpy; whoever has a view has loaded it

    heads = {f.key: f.label + (" %" if f.key in _PERCENT else "") for f in skew.FIGURES}
    first = view.usages[0].expected
    alike = all(found.expected == first for found in view.usages)
    extra = ["reuse %", "by chance"] if view.reuse else []
    titles = site_titles(view.census.sites)
    keys = _fitting(heads, console.width - max(map(len, titles)) - sum(len(x) + 2 for x in extra), alike=alike)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer", no_wrap=True, overflow="ellipsis")
    for head in [heads[key] for key in keys] + extra:
        table.add_column(head, justify="right", no_wrap=True)
    if alike:
        table.add_row("even", *(figure(first[key].mean if key in first else None, key) for key in keys), style="dim")
    for number, (title, found) in enumerate(zip(titles, view.usages, strict=True)):
        cells = [figure(found.figures.get(key), key) if alike else pair(found, key) for key in keys]
        table.add_row(title, *cells, *(reused(view, number) if view.reuse else ()))
    whole = usage.model(view.usages)
    means = [whole.get(key, (None, None)) for key in keys]
    cells = [
        figure(x, key) if alike else f"{figure(x, key)} / {figure(y, key)}"
        for (x, y), key in zip(means, keys, strict=True)
    ]
    table.add_row("mean", *cells, style="bold")
    console.print()
    text.print_table(console, table)
    what = (
        "even: what even routing of as many tokens shows by chance"
        if alike
        else "figure / by chance under even routing"
    )
    console.print(Text(what, style="dim"))


def _fitting(heads: Mapping[str, str], room: int, *, alike: bool) -> list[str]:
    """Return the figures whose columns fit, at least two."""
    keys: list[str] = []
    for key in _COLUMNS:
        room -= 2 + max(len(heads[key]), 5 if alike else 13)
        if room >= 0 or len(keys) < 2:
            keys.append(key)
    return keys


def reused(view: View, number: int) -> tuple[str, str]:
    """Return how much of a token's experts the token before had, in percent, and the same by chance."""
    reuse = view.reuse[number]
    return (NONE, NONE) if reuse is None else (percent(reuse.measured), percent(reuse.chance))


def remarks(view: View) -> Iterable[str]:
    """Yield what else there is to say: whether to trust the list, the other phase, bytes, pairs."""
    if view.sample.small:
        more = view.sample.more_tokens
        yield (
            f"! too few tokens to name hot experts in {view.sample.unnamed} of {how_many(view.census.sites)}"
            + (f"; at least {count(more)} more would do if the hottest stay as hot" if more is not None else "")
        )
    if view.across is not None:
        yield (
            f"the prompts' hot quarter serves {percent(view.across)} % of the generated tokens' selections "
            f"(even routing: {percent(view.overlap.even)} %)"
        )
    if view.weightless:
        yield f"{100 * view.weightless:.1f} % of the selections need no weights"
    if view.steps:
        parts = (f"{size(s.measured)} (even: {size(s.uniform)}) for {s.batch}" for s in view.steps)
        yield f"expert weights a decode step reads, by sequences at a time: {', '.join(parts)}"
    named = labels(view.census.sites)
    if view.pairs:
        shown = ", ".join(
            f"{named[p.site.name]} E{p.together.first}+E{p.together.second} {p.together.lift:.1f}×" for p in view.pairs
        )
        yield f"chosen together more than chance has it: {shown}"
