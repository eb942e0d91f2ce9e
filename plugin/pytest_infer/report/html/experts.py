"""Experts: the map of layers and experts with the run file's own counts, coverage, placement, and skew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.experts import recorded
from pytest_infer.errors import InferError
from pytest_infer.records import ExpertSite
from pytest_infer.report.experts import terminal as experts
from pytest_infer.report.html import placement
from pytest_infer.report.html.parts import (
    Cell,
    Chart,
    ColumnHead,
    Item,
    Section,
    Table,
    anchor,
    percent,
    points,
    unique,
)
from pytest_infer.report.html.stored import StoredRun
from pytest_infer.storage.runs import Row
from pytest_infer.units import NONE, count, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.census import Census
    from pytest_infer.analysis.experts.suite import PromptUsage, View
    from pytest_infer.analysis.experts.usage import Coverage

MOST_NUMBERS = 500_000
"""Selections a prompt are left out above so many numbers: the whole report must stay small."""
_TOP = 8
_REMEDY = "see those of one with `pytest-infer experts -k TEXT`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """The use of an earlier run, by prompt, and what both runs are called."""

    names: tuple[str, str]
    prompts: Mapping[str, PromptUsage]


def section(stored: StoredRun, earlier: StoredRun | None = None, names: tuple[str, str] = ("", "")) -> Section:
    """Return what a run tells of its experts, beside an earlier one, or why it tells nothing."""
    title = "Experts"
    try:
        rows, left_out = recorded.recorded(stored.run, remedy=_REMEDY)
        if not rows:
            return Section(key="experts", title=title, absent=recorded.why_nothing(stored.run))
        prompts = recorded.prompts_of(stored.run, rows)
        items = _items(rows, prompts, _side(rows) if earlier is None else _other(earlier, names))
    except InferError as error:
        return Section(key="experts", title=title, absent=str(error))
    if left_out:
        items.append(Item(title="Left out", text=tuple(left_out)))
    return Section(key="experts", title=title, items=tuple(items))


def _other(earlier: StoredRun, names: tuple[str, str]) -> Other | None:
    try:
        rows, _ = recorded.recorded(earlier.run, remedy=_REMEDY)
        prompts = recorded.prompts_of(earlier.run, rows)
    except InferError:
        return None  # its own report says why
    return Other(names=names, prompts={prompt.name: prompt for prompt in prompts}) if prompts else None


def _side(rows: Sequence[Row]) -> Other | None:
    """Return the use of the other side, where the run itself compares two commits."""
    try:
        prompts = recorded.other_side(rows)
    except InferError:
        return None
    rev = next((row.against.rev for row in rows if row.against is not None), "") or "the other side"
    return Other(names=(rev, "this checkout"), prompts={prompt.name: prompt for prompt in prompts}) if prompts else None


def _items(rows: Sequence[Row], prompts: Sequence[PromptUsage], other: Other | None) -> list[Item]:
    from pytest_infer.analysis.experts import suite, usage  # noqa: PLC0415 - numpy is loaded where it is needed
    from pytest_infer.analysis.experts.census import Phase  # noqa: PLC0415

    phase = Phase.DECODE if any(prompt.census.decode_tokens for prompt in prompts) else Phase.PREFILL
    view = suite.view(prompts, phase, suite.By.PROMPT)
    items = [
        Item(text=(experts.about(view), *experts.remarks(view)), charts=(_heat(view, prompts, other),)),
        *_changed(view, prompts, other),
        Item(title="Hottest and coldest", tables=(_list(view),)),
    ]
    curve = usage.coverage(view.usages)
    if curve is not None:
        items.append(Item(charts=(_coverage(curve),)))
    items.append(placement.item(rows, prompts, phase))
    items.append(Item(title="Layers", tables=(_layers(view),), folded=True))
    return items


def _before(other: Other | None, prompts: Sequence[PromptUsage]) -> Census | None:
    """Return the earlier run's use by the same prompts together; None where it lacks one, or has other layers."""
    from pytest_infer.analysis.experts import census  # noqa: PLC0415

    if other is None or not all(_alike(other.prompts.get(prompt.name), prompt) for prompt in prompts):
        return None
    return census.merged([other.prompts[prompt.name].census for prompt in prompts])


def _alike(before: PromptUsage | None, after: PromptUsage) -> bool:
    return before is not None and [s.slots for s in before.census.sites] == [s.slots for s in after.census.sites]


def _changed(view: View, prompts: Sequence[PromptUsage], other: Other | None) -> Iterator[Item]:
    """Yield by how much each expert's share of its layer changed between two runs, all prompts together."""
    from pytest_infer.analysis.experts import difference  # noqa: PLC0415

    before = _before(other, prompts)
    if other is None or before is None:
        return
    changes = difference.share_changes(before, view.census, view.phase)
    most = max(map(len, changes))
    rows = tuple(
        (Cell(text=title), *(Cell(text=f"{100 * one:+.2f}".replace("-", "−")) for one in layer))
        + (Cell(text=NONE),) * (most - len(layer))
        for title, layer in zip(experts.site_titles(view.census.sites), changes, strict=True)
    )
    heads = (ColumnHead(text="layer", number=False), *(ColumnHead(text=f"E{number}") for number in range(most)))
    caption = f"Percentage points of the layer's selections, {other.names[1]} less {other.names[0]}"
    title = f"What changed since {other.names[0]}"
    yield Item(title=title, tables=(Table(caption=caption, heads=heads, rows=rows),), folded=True)


def _heat(view: View, prompts: Sequence[PromptUsage], other: Other | None) -> Chart:
    sites, census = view.census.sites, view.census
    titles = experts.site_titles(sites)
    names = unique(["all prompts", *(prompt.name for prompt in prompts)])
    every = [*zip(names, (census, *(prompt.census for prompt in prompts)), strict=True)]
    earlier = [_before(other, prompts), *(_before(other, [prompt]) for prompt in prompts)]
    numbers = sum(site.slots for site in sites) * 2 * (len(every) + sum(one is not None for one in earlier))
    shown = every if numbers <= MOST_NUMBERS and len(every) > 2 else every[:1]
    left = "" if shown is every or len(every) == 2 else "; each prompt's own map is left out for its size"
    whose = {"decode": "generated", "prefill": "prompt"}[view.phase.value]
    choices = [
        {
            "name": name,
            **_numbers(one),
            "tokens": {"decode": one.decode_tokens, "prefill": one.prefill_tokens},
            **({} if before is None else {"before": _numbers(before)}),
        }
        for (name, one), before in zip(shown, earlier, strict=False)
    ]
    return Chart(
        key="heat",
        title="Selections by layer and expert",
        says=(
            f"Colour: an expert's selections / the mean of its layer, so 1 is the fair share. The numbers are the run "
            f"file's own counts, of {whose} tokens at first{left}."
            + ("" if other is None else " As a map of changes: percentage points of the layer's selections.")
        ),
        data={
            "kind": "heat",
            "layers": titles,
            "experts": [site.experts for site in sites],
            "phase": view.phase.value,
            "choices": choices,
            "sides": [] if other is None else list(other.names),
        },
        table=_counts(view, titles, whose),
        define=(("selections", anchor("selections")),),
        tall=len(sites) > 16,
    )


def _numbers(one: Census) -> dict[str, list[list[int]]]:
    return {"decode": [site.tolist() for site in one.decode], "prefill": [site.tolist() for site in one.prefill]}


def _counts(view: View, titles: Sequence[str], whose: str) -> Table:
    most = max(len(usage.counts) for usage in view.usages)
    heads = (ColumnHead(text="layer", number=False), *(ColumnHead(text=f"E{number}") for number in range(most)))
    rows = tuple(
        (
            Cell(text=title),
            *(Cell(text=count(n)) for n in usage.counts.tolist()),
            *(Cell(text=NONE),) * (most - len(usage.counts)),
        )
        for title, usage in zip(titles, view.usages, strict=True)
    )
    return Table(caption=f"Selections by {whose} tokens of all prompts", heads=heads, rows=rows)


def _list(view: View) -> Table:
    named = experts.labels(view.census.sites)
    hottest, coldest = experts.chosen(view, _TOP)
    gates = any(expert.gate is not None for expert in view.experts)
    rows = tuple(
        (
            Cell(text=f"{named[expert.site.name].strip()}E{expert.expert}"),
            Cell(text=count(expert.times)),
            Cell(text=f"{100 * expert.share:.1f}"),
            Cell(text=f"{100 * expert.low:.1f}–{100 * expert.high:.1f}"),
            Cell(text=f"{expert.ratio:.2f}"),
            *([Cell(text=NONE if expert.gate is None else f"{expert.gate:.2f}")] if gates else []),
            Cell(
                text=experts.mark(expert),
                look=f"pill {'hot' if expert.hot else 'cold' if expert.cold else 'unchanged'}",
            ),
        )
        for expert in (*hottest, *reversed(coldest))
    )
    heads = (
        ColumnHead(text="expert", number=False),
        ColumnHead(text="selections", define=anchor("selections")),
        ColumnHead(text="share", unit="%", define=anchor("share")),
        ColumnHead(text="95 % interval", unit="%", define=anchor("share")),
        ColumnHead(text="× fair", define=anchor("fair")),
        *([ColumnHead(text="mean gate", define=anchor("gate"))] if gates else []),
        ColumnHead(text="hot or cold", number=False, define=anchor("hot")),
    )
    return Table(caption="Experts by their share of their layer's selections", quiet=True, heads=heads, rows=rows)


def _coverage(curve: Coverage) -> Chart:
    tenths = [min(range(len(curve.part)), key=lambda n, t=tenth: abs(curve.part[n] - t / 10)) for tenth in range(1, 11)]  # type: ignore[misc]
    rows = tuple(
        (Cell(text=percent(curve.part[n])), *(Cell(text=percent(of[n])) for of in (curve.mean, curve.low, curve.high)))
        for n in dict.fromkeys(tenths)
    )
    quarter = min(range(len(curve.part)), key=lambda n: abs(curve.part[n] - 0.25))
    return Chart(
        key="coverage",
        title="Coverage: what the most used experts serve",
        says=(
            f"The most used {percent(curve.part[quarter])} % of a layer's experts serve "
            f"{percent(curve.mean[quarter])} % of its selections, mean of the layers. The diagonal is even use."
        ),
        data={
            "kind": "lines",
            "x": {"name": "experts of a layer, the most used first", "unit": "%", "values": points(curve.part, 0.01)},
            "y": {"name": "selections served", "unit": "%", "top": 100},
            "series": [
                {"name": "mean of the layers", "values": points(curve.mean, 0.01), "look": "strong"},
                {"name": "least layer", "values": points(curve.low, 0.01), "look": "thin"},
                {"name": "most layer", "values": points(curve.high, 0.01), "look": "thin"},
                {"name": "even use", "values": points(curve.part, 0.01), "look": "dashed"},
            ],
        },
        table=Table(
            caption="Share of selections served",
            heads=tuple(
                ColumnHead(text=text, unit="%", define=anchor("coverage") if number else None)
                for number, text in enumerate(("experts", "mean", "least layer", "most layer"))
            ),
            rows=rows,
        ),
        define=(("coverage", anchor("coverage")),),
    )


def _layers(view: View) -> Table:
    from pytest_infer.analysis.experts import skew  # noqa: PLC0415

    titles = experts.site_titles(view.census.sites)
    rows = tuple(
        (
            Cell(text=title),
            Cell(text=_shape(usage.site)),
            *(_figure(usage.figures, usage.expected, figure.key) for figure in skew.FIGURES),
        )
        for title, usage in zip(titles, view.usages, strict=True)
    )
    heads = (
        ColumnHead(text="layer", number=False),
        ColumnHead(text="experts"),
        *(ColumnHead(text=figure.label, define=anchor(f"skew-{figure.key}")) for figure in skew.FIGURES),
    )
    return Table(caption="Skew of each layer, beside what uniform routing would show by chance", heads=heads, rows=rows)


def _shape(site: ExpertSite) -> str:
    return f"{site.experts}, top {site.k}"


def _figure(figures: Mapping[str, float], expected: Mapping[str, Any], key: str) -> Cell:
    value, null = figures.get(key), expected.get(key)
    if value is None:
        return Cell(text=NONE)
    return Cell(text=significant(value) + ("" if null is None else f" / {significant(null.mean)}"))
