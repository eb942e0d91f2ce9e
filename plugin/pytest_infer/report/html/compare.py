"""Comparisons: every figure before and after, its interval drawn and in numbers, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_infer.analysis.compare import verdicts
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement, SuiteChange, Verdict
from pytest_infer.report.compare import headline, words
from pytest_infer.report.compare.words import Line
from pytest_infer.report.html.parts import Answer, Cell, ColumnHead, Interval, Item, Section, Table, anchor
from pytest_infer.report.text import printable
from pytest_infer.storage.runfile import JudgedMark
from pytest_infer.storage.runs import Run

_BAD = (Verdict.REGRESSED, Verdict.MISSING)
_MOVED = (*_BAD, Verdict.ACCEPTED, Verdict.IMPROVED)
_UNSURE = (Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE)
_WORST_FIRST = (*_BAD, Verdict.ACCEPTED, *_UNSURE, Verdict.IMPROVED, Verdict.UNCHANGED)
_FIRST, _OPEN = 12, 4
"""So many figures stand on the overview, and if they are no more than so many, unfolded."""
_ROUNDING = 0.003
"""Two changes that are no further apart read the same."""
_WIDTH = 120.0
"""Of the drawing of an interval."""
_WIDEST = 1.0
"""Intervals are drawn to ± 100 % at most; the numbers beside them say the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Judgements of one run against another (or against what a gate found), to be shown.

    `before` is None for a gate of bounds alone. `earlier` and `later` are the runs, where both are stored.
    """

    before: str | None
    after: str
    judgements: tuple[Judgement, ...]
    confidence: float = CONFIDENCE
    suite: tuple[SuiteChange, ...] = ()
    headline: str = ""
    earlier: Run | None = None
    later: Run | None = None

    @property
    def sides(self) -> str:
        """Return what was compared, in words."""
        return f"{self.before or 'bounds only'} → {self.after}"


def of_gate(mark: JudgedMark | None, after: str) -> Compared | None:
    """Return what a gate kept in the run's file; None where it kept no judgements, or none that can be read."""
    found = () if mark is None else verdicts.restored(mark.judgements)
    if mark is None or not found:
        return None
    return Compared(
        before=mark.against,
        after=after,
        judgements=found,
        suite=verdicts.restored_suite(mark.suite),
        headline=printable(mark.headline or ""),
    )


def section(compared: Sequence[Compared]) -> Section:
    """Return the section of all comparisons."""
    if not compared:
        why = "one run is shown and no gate judged it; `pytest-infer report A B` compares two"
        return Section(key="comparison", title="Comparison", absent=why)
    items = [item for number, one in enumerate(compared, 1) for item in _items(one, number)]
    return Section(key="comparison", title="Comparison", items=tuple(items))


def _items(one: Compared, number: int) -> list[Item]:
    title = words.titles(one.judgements)
    shown = words.folded(words.worth_showing(one.judgements, None))
    kept = {id(line.judgement) for line in shown}
    rest = [Line(j) for j in one.judgements if id(j) not in kept]
    lead = (
        f"{100 * one.confidence:g} % intervals of after / before − 1, from rounds or launches compared with their "
        "partners; the medians beside them are those of all rounds of a side."
    )
    items = [
        Item(
            title=one.sides,
            key=f"comparison-{number}",
            text=(one.headline, lead) if one.headline else (lead,),
            tables=tuple(_tables(one, shown, title)),
        )
    ]
    if reasons := _reasons(one.judgements):
        items.append(Item(title="Why some verdicts could not be given", text=tuple(reasons), folded=True))
    if rest:
        items.append(Item(title="All other figures", tables=(_table("All other figures", rest, title),), folded=True))
    return items


def _tables(one: Compared, shown: Sequence[Line], title: Mapping[str, str]) -> Iterable[Table]:
    judged = words.worth_showing([change.judgement for change in one.suite], None)
    if judged:
        counts = {change.judgement.metric_key: headline.counted(change) for change in one.suite}
        yield _table("The suite: geometric mean over its prompts", words.folded(judged), {"": "suite"}, counts)
    if shown:
        yield _table("The figures asked for first, and whatever else changed", shown, title)


def _reasons(judgements: Iterable[Judgement]) -> list[str]:
    """Return why verdicts could not be given, the most frequent first."""
    found = Counter(f"{j.verdict.value}: {j.reason}" for j in judgements if j.verdict is not None and j.reason)
    return [f"{reason}{f' ({times}×)' if times > 1 else ''}" for reason, times in found.most_common(6)]


def card(one: Compared, number: int, since: Sequence[Answer] = ()) -> dict[str, Any]:
    """Return what the overview says first of a comparison: what changed, why, since when, and the figures behind it."""
    lines = words.folded(one.judgements)
    counts = Counter(line.judgement.verdict for line in lines if line.judgement.verdict is not None)
    title = words.titles(one.judgements)
    worth = {id(line.judgement): line for line in lines if line.judgement.verdict in _MOVED}
    first = [line.judgement for line in worth.values()]
    most = {j.test: max(abs(other.mid or 0) for other in first if other.test == j.test) for j in first}
    first.sort(key=lambda j: (j.verdict is Verdict.IMPROVED, -most[j.test], j.test, -abs(j.mid or 0)))
    worst = next((kind for kind in _WORST_FIRST if counts[kind]), None)
    says, why, also = headline.answers(one.headline) if one.headline else (_says(counts, worst), "", ())
    return {
        "says": says,
        "answers": [
            *([Answer(name="why", text=why)] if why else []),
            *since,
            *(Answer(name="also", text=line) for line in also),
            Answer(name="compared", text=one.sides, link=f"comparison-{number}"),
        ],
        "counts": [(kind.value, counts[kind]) for kind in Verdict if counts[kind]],
        "look": (worst or Verdict.INCOMPARABLE).value,
        "table": _table("What changed", [worth[id(j)] for j in first[:_FIRST]], title) if first else None,
        "open": len(first) <= _OPEN,
        "more": max(0, len(first) - _FIRST),
        "key": f"comparison-{number}",
    }


def _says(counts: Mapping[Verdict, int], worst: Verdict | None) -> str:
    bad = sum(counts.get(kind, 0) for kind in _BAD)
    if bad:
        said = " or ".join(kind.value for kind in _BAD if counts.get(kind))
        return f"{bad} figure{'s' if bad > 1 else ''} {said}"
    if worst is Verdict.ACCEPTED:
        return f"{counts[worst]} accepted, nothing else regressed"
    if worst is Verdict.INCONCLUSIVE or (worst is Verdict.INCOMPARABLE and set(counts) - {worst, Verdict.NEW}):
        return "No regression found, but not everything can be said"
    if worst is Verdict.IMPROVED:
        return f"{counts.get(Verdict.IMPROVED, 0)} improved, nothing regressed"
    return "Nothing changed" if worst is Verdict.UNCHANGED else "Nothing could be compared"


def _table(
    caption: str, lines: Sequence[Line], title: Mapping[str, str], counts: Mapping[str | None, str] | None = None
) -> Table:
    """Return a table of judgements; those of the suite have the number of its prompts (`counts`) for the figures."""
    widest = _widest([line.judgement for line in lines])
    rows = []
    last = None
    for line in lines:
        j = line.judgement
        name = title[j.test]
        metric = j.metric
        rows.append(
            (
                Cell(text=name, look="same" if name == last else ""),
                Cell(text=line.label or "test", link=None if metric is None else anchor(metric.key)),
                _verdict(j),
                Cell(text=words.values(j), note=_note(j), sort=_first(j))
                if counts is None
                else Cell(text=counts[j.metric_key], note=_note(j)),
                Cell(text=words.change(j), sort=j.mid),
                Cell(text="", drawn=_drawn(j, widest)),
                Cell(text=words.p_value(j.p_adjusted), sort=j.p_adjusted),
            )
        )
        last = name
    scale, medians = f"± {100 * widest:.3g} %", ColumnHead(text="medians", unit="before → after")
    heads = (
        ColumnHead(text="prompt", number=False),
        ColumnHead(text="figure", number=False),
        ColumnHead(text="verdict", define=anchor("verdict"), number=False),
        medians if counts is None else ColumnHead(text="mean over", number=False),
        ColumnHead(text="change", unit="%", define=anchor("interval")),
        ColumnHead(text="drawn", unit=scale, define=anchor("interval"), number=False),
        ColumnHead(text="p", define=anchor("p")),
    )
    return Table(caption=caption, heads=heads, rows=tuple(rows))


def _first(j: Judgement) -> float | None:
    """Return the figure by which the medians are sorted, whatever unit each is shown in."""
    return next((value for value in (j.before, j.after) if isinstance(value, float | int)), None)


def _note(j: Judgement) -> str | None:
    """Return what is to be read beside the medians: the note, and why the change is not their quotient."""
    apart, before, after = None, j.before, j.after
    if j.mid is not None and isinstance(before, float | int) and isinstance(after, float | int) and before:
        quotient = after / before - 1
        if abs(quotient - j.mid) > _ROUNDING and words.share(quotient) != words.share(j.mid):
            apart = (
                f"medians of all rounds, {words.share(quotient)} apart; the change compares rounds, or launches, with "
                "their partners, and is what was judged"
            )
    return "; ".join(part for part in (j.note, apart) if part) or None


def _verdict(j: Judgement) -> Cell:
    if j.verdict is None:
        return Cell(text="", note=j.reason)
    return Cell(text=j.verdict.value, look=f"pill {j.verdict.value}", note=j.reason)


def _widest(judgements: Sequence[Judgement]) -> float:
    """Return how far the drawings reach: to the ends of three intervals in four, and to every change found."""
    ends = sorted(max(abs(j.low), abs(j.high)) for j in judgements if j.low is not None and j.high is not None)
    found = [abs(j.mid) for j in judgements if j.verdict in (Verdict.REGRESSED, Verdict.IMPROVED) and j.mid is not None]
    most = [ends[int(0.75 * (len(ends) - 1))]] if ends else []
    return min(_WIDEST, 1.1 * max([*most, *(1.2 * change for change in found)], default=0.0)) or 0.01


def _drawn(j: Judgement, widest: float) -> Interval | None:
    return drawn((j.low, j.mid, j.high), widest, j.threshold, j.verdict.value if j.verdict else "")


Ends = tuple[float | None, float | None, float | None]
"""The lower end of an interval, its middle, and its upper end."""


def reach(changes: Iterable[Ends]) -> float:
    """Return how far the drawings of a column of changes reach."""
    ends = [abs(end) for change in changes for end in change if end is not None]
    return min(_WIDEST, 1.1 * max(ends, default=0.0)) or 0.01


def drawn(change: Ends, widest: float, limit: float | None, look: str) -> Interval | None:
    """Return the drawing of a change with its interval, None where it has none; `limit` is that on either side."""
    low, mid, high = change
    if mid is None or low is None or high is None:
        return None

    def at(value: float) -> float:
        return round(_WIDTH / 2 * (1 + max(-1.0, min(1.0, value / widest))), 1)

    band = None if limit is None else (at(-limit), at(limit))
    return Interval(low=at(low), mid=at(mid), high=at(high), zero=at(0), threshold=band, look=look)
