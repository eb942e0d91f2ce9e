"""Expert usage of a suite for machines and pull requests: JSON, CSV and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pytest_infer.report.compare.exports import escape, table
from pytest_infer.report.experts import terminal as shown
from pytest_infer.report.experts.overlap import percent, verdict
from pytest_infer.report.text import csv_lines

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.suite import View
    from pytest_infer.analysis.experts.usage import SiteUsage

_FIELDS = ("layer", "site", "expert", "times", "share", "low", "high", "ratio", "named", "gate", "prefill", "decode")


def as_json(view: View, **about: Any) -> str:
    """Return the whole view; shares are between 0 and 1, `null` figures those of even routing."""
    census = view.census
    found = {
        **about,
        "phase": view.phase.value,
        "tokens": {"prefill": census.prefill_tokens, "decode": census.decode_tokens},
        "prompts": list(view.prompts),
        "layers": [_layer(view, number, usage) for number, usage in enumerate(view.usages)],
        "experts": rows(view),
        "sample": asdict(view.sample),
        "overlap": {"by": view.by.value, **asdict(view.overlap)},
        "differences": [asdict(found) for found in view.differences],
        "prefill_hot_serves_decode": view.across,
        "decode_step_bytes": [asdict(step) for step in view.steps],
        "together": [{"site": p.site.name, **asdict(p.together)} for p in view.pairs],
    }
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def _layer(view: View, number: int, usage: SiteUsage) -> dict[str, Any]:
    site = usage.site
    return {
        "site": site.name,
        "layer": site.layer,
        "experts": site.experts,
        "slots": site.slots,
        "k": site.k,
        "shared": site.shared or 0,
        "selections": usage.selections,
        "weightless": usage.weightless,
        "figures": dict(usage.figures),
        "null": {key: asdict(expected) for key, expected in usage.expected.items()},
        "hot": list(usage.hot),
        "cold": list(usage.cold),
        "more_tokens": usage.more_tokens,
        "reuse": asdict(reuse) if view.reuse and (reuse := view.reuse[number]) is not None else None,
    }


def rows(view: View) -> list[dict[str, Any]]:
    """Return a row an expert, the hottest first, with its counts of both phases."""
    places = {site.name: number for number, site in enumerate(view.census.sites)}
    found = []
    for expert in view.experts:
        n = places[expert.site.name]
        values = (
            expert.site.layer,
            expert.site.name,
            expert.expert,
            expert.times,
            expert.share,
            expert.low,
            expert.high,
            expert.ratio,
            "hot" if expert.hot else "cold" if expert.cold else None,
            expert.gate,
            int(view.census.prefill[n][expert.expert]),
            int(view.census.decode[n][expert.expert]),
        )
        found.append(dict(zip(_FIELDS, values, strict=True)))
    return found


def as_csv(view: View) -> str:
    """Return a row an expert with a heading."""
    return "".join(csv_lines(_FIELDS, rows(view)))


def as_markdown(view: View, *, heading: str, top: int) -> str:
    """Return the list, the layers and the overlap as tables for a pull request."""
    from pytest_infer.analysis.experts import skew  # noqa: PLC0415 - numpy; whoever has a view has loaded it

    named = shown.labels(view.census.sites)
    parts = [f"**{escape(heading)}**  ", escape(shown.about(view)), ""]
    for title, experts in zip(("hottest", "coldest"), shown.chosen(view, top), strict=True):
        cells = [
            (
                f"{named[e.site.name]}E{e.expert}",
                str(e.times),
                f"{100 * e.share:.1f} %",
                f"{100 * e.low:.1f}–{100 * e.high:.1f} %",
                f"{e.ratio:.2f}",
                shown.mark(e),
            )
            for e in experts
        ]
        parts += [*table((title, "times", "percent", "95 % interval", "× fair", ""), cells), ""] if cells else []
    heads = ("layer", *(f.label + (" %" if f.key == "coverage" else "") for f in skew.FIGURES))
    titles = shown.site_titles(view.census.sites)
    layers = [
        (title, *(shown.pair(usage, f.key) for f in skew.FIGURES))
        for title, usage in zip(titles, view.usages, strict=True)
    ]
    parts += [*table(heads, layers), "", "figure / what even routing of as many tokens shows by chance", ""]
    parts += _overlap(view)
    parts += [f"- {escape(line)}" for line in shown.remarks(view)]
    return "\n".join(parts).rstrip() + "\n"


def _overlap(view: View) -> list[str]:
    found = view.overlap
    if len(found.names) < 2:
        return []
    lines = [
        (name, *map(percent, row))
        for name, row in (
            *zip(found.names, found.matrix, strict=True),
            ("all others", found.rest),
            ("itself", found.itself),
        )
    ]
    parts = [*table(("hot quarter of, % served of", *found.names), lines), ""]
    if view.differences:
        cells = [
            (
                f"{d.first}, {d.second}",
                f"{100 * d.distance:.1f} %",
                f"{100 * d.null:.1f} %",
                f"{d.p:.3f}",
                verdict(d.by, differs=d.differs),
            )
            for d in view.differences
        ]
        parts += [*table((f"{view.by.value}s", "elsewhere", "by chance", "p", ""), cells), ""]
    return parts
