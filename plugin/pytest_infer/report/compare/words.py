"""The words of comparisons: a change, a verdict, a figure; which figures are shown, which folded into others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_infer.analysis import alike
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.metrics import Direction, Fact, Metric
from pytest_infer.report.breakdown.words import NOBODY, carriers
from pytest_infer.report.text import printable
from pytest_infer.units import Unit, show

PRIMARY = (
    *("ttft_s", "tpot_s", "itl_p99_s", "total_s", "decode_throughput", "peak_rss_bytes", "output_sha256"),
    *("level_s_per_token", "level_ttft_p50_s", "level_ttft_p99_s", "level_misses"),
)
"""What a comparison shows where nothing is asked for, beside whatever else changed."""


def share(value: float | None, *, end: float = 1) -> str:
    """Return a relative change: `+2.4 %`, `−12 %`; an end of an interval that is not bounded as ±∞."""
    if value is None:
        return "+∞" if end > 0 else "−∞"
    percent = 100 * value
    digits = 1 if abs(percent) < 10 else 0
    text = f"{abs(percent):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if percent > 0 else "−"
    return f"{sign}{text} %"


def p_value(p: float | None) -> str:
    """Return a p-value as it is usually written."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def change(judgement: Judgement) -> str:
    """Return criterion's form, `[low mid high]`; a change without an interval alone; nothing where there is none."""
    if judgement.mid is None:
        return ""
    if judgement.p is None or judgement.low == judgement.high is not None:
        return share(judgement.mid)
    low, high = share(judgement.low, end=-1), share(judgement.high)
    return f"[{low} {share(judgement.mid)} {high}]"


def verdict(judgement: Judgement) -> str:
    """Return the verdict, with the threshold where it decided."""
    if judgement.verdict is None:
        return ""
    said, threshold = judgement.verdict.value, judgement.threshold
    if judgement.verdict is Verdict.ACCEPTED and threshold is not None and judgement.mid is not None:
        return f"{said} (up to {100 * threshold:g} %)"
    decided = judgement.verdict in (Verdict.REGRESSED, Verdict.IMPROVED)
    if decided and threshold is not None and judgement.mid is not None:
        said += f" (threshold {100 * threshold:g} %)"
    return said


def values(judgement: Judgement) -> str:
    """Return both figures with their unit: `7.35 ms → 7.61 ms`; one where they are equal or there is only one."""
    metric = judgement.metric
    if metric is None:  # of a rule on experts, or unknown to this version
        after = judgement.after
        return "" if after is None else printable(after) if isinstance(after, str) else f"{after:.3f}"
    before, after = figure(judgement.before, metric), figure(judgement.after, metric)
    if judgement.before is None or before == after:
        return after
    return f"{before} → {after}"


def figure(value: float | str | None, metric: Metric) -> str:
    """Return a figure with its unit; of a hash its first digits."""
    shown = printable(show(value, metric.unit))
    return shown[:8] if len(shown) == 64 and shown.isalnum() else shown


def label(judgement: Judgement) -> str:
    """Return the rule of a gate, or the metric's name."""
    if judgement.rule is not None:
        return judgement.rule
    return judgement.metric.label if judgement.metric is not None else ""


def worth_showing(judgements: Iterable[Judgement], only: Sequence[Metric] | None) -> list[Judgement]:
    """Return the asked-for metrics, or the primary ones and whatever else changed."""
    return [
        j
        for j in judgements
        if only is not None
        or j.metric is None
        or j.rule is not None
        or j.metric.key in PRIMARY
        or _changed(j, j.metric)
    ]


def _changed(j: Judgement, metric: Metric) -> bool:
    """Return whether a figure is known to have changed, or to be gone or new."""
    if j.verdict is Verdict.INCOMPARABLE:
        # What must be the same is compared whatever else differs: it does not match.
        return metric.direction is Direction.EXACT
    return j.verdict not in (Verdict.UNCHANGED, Verdict.INCONCLUSIVE, None)


def titles(judgements: Iterable[Judgement]) -> dict[str, str]:
    """Return how each test is headed: by its prompt's name, or by its own where several tests have that prompt."""
    found = alike.titles({j.test: j.name for j in judgements})
    return {test: printable(title) for test, title in found.items()}


@dataclass(frozen=True, slots=True)
class Line:
    """A figure, and those `also` folded into it: they are one fact with it, and came to the same verdict."""

    judgement: Judgement
    also: tuple[Judgement, ...] = ()

    @property
    def label(self) -> str:
        """Return the figure's name, and how many are folded into it."""
        more = f" (and {len(self.also)} that tell{'s' if len(self.also) == 1 else ''} the same)" if self.also else ""
        return label(self.judgement) + more


def folded(judgements: Sequence[Judgement]) -> list[Line]:
    """Return a line a fact of each test, in the order given; a gate's rules each have their own."""
    leads = _leads(judgements)
    also: dict[int, list[Judgement]] = {}
    for j in judgements:
        lead = _lead_of(j, leads)
        if lead is not None and lead is not j:
            also.setdefault(id(lead), []).append(j)
    inside = {id(j) for js in also.values() for j in js}
    return [Line(j, tuple(also.get(id(j), ()))) for j in judgements if id(j) not in inside]


def _leads(judgements: Iterable[Judgement]) -> dict[tuple[str, Fact], Judgement]:
    found: dict[tuple[str, Fact], Judgement] = {}
    for j in judgements:
        fact = _fact(j)
        if fact is not None and ((j.test, fact) not in found or j.metric_key == fact.lead):
            found[j.test, fact] = j
    return found


def _fact(j: Judgement) -> Fact | None:
    return j.metric.fact if j.rule is None and j.metric is not None else None


def _lead_of(j: Judgement, leads: dict[tuple[str, Fact], Judgement]) -> Judgement | None:
    """Return the judgement that says the same as this one: of its fact, or of a part of what it is the whole of."""
    fact = _fact(j)
    if fact is None:
        return None
    for one in (*fact.parts, fact):
        lead = leads.get((j.test, one))
        if lead is not None and lead.verdict is j.verdict:
            return lead
    return None


def also(line: Line) -> str:
    """Return what is told beside a figure: its note, the parts that carry it, and what is folded into it, each with its
    change."""
    parts = []
    for j in line.also:
        rate = " tok/s" if j.metric is not None and j.metric.unit is Unit.TOKENS_PER_SECOND else ""
        parts.append(f"{label(j)}{rate}{f' {share(j.mid)}' if j.mid is not None else ''}")
    folded_ = f"also {', '.join(parts)}" if parts else ""
    own = line.judgement
    where = "" if own.carried is None else f"where: {carriers(own.carried) or NOBODY}"
    return "; ".join(part for part in (printable(own.note or ""), printable(where), folded_) if part)
