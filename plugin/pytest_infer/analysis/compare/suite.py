"""The suite as one: of each metric the geometric mean over prompts of after / before, with interval and verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from pytest_infer.analysis.compare import earlier, stats
from pytest_infer.analysis.compare.comparison import SINGLE, RowPair
from pytest_infer.analysis.compare.stats import Student
from pytest_infer.analysis.compare.verdicts import (
    CONFIDENCE,
    Evidence,
    Judgement,
    Question,
    SuiteChange,
    Verdict,
    decide,
    limit,
)
from pytest_infer.metrics import Direction, Metric
from pytest_infer.units import Unit

JUDGED = (Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.IMPROVED, Verdict.UNCHANGED)
"""What a comparable figure may be, that which counts first where several rules ask for it."""


DISTURBED = "disturbed"
"""Why a prompt is not in a mean: most of a side's rounds were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A prompt that is in the mean of a figure, and what was judged of it."""

    pair: RowPair
    judgement: Judgement

    def rounds(self, key: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the rounds of both sides."""
        return self.pair.before.metrics[key].numbers, self.pair.after.metrics[key].numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A metric that was judged of several prompts; `threshold` is the strictest, `rule` the line that has it."""

    metric: Metric
    threshold: float
    rule: str | None
    members: tuple[Member, ...]
    left_out: Mapping[str, int]

    @property
    def of(self) -> int:
        """Return of how many prompts it was asked for."""
        return len(self.members) + sum(self.left_out.values())

    def only(self, tests: Collection[str]) -> Figure:
        """Return the figure of some of its prompts."""
        kept = tuple(member for member in self.members if member.judgement.test in tests)
        return replace(self, members=kept)


def changes(
    pairs: Sequence[RowPair],
    judgements: Sequence[Judgement],
    confidence: float = CONFIDENCE,
    found: Sequence[Figure] | None = None,
) -> tuple[SuiteChange, ...]:
    """Return the suite's change in each figure that two or more prompts have, comparable ones only.

    `found` are these figures where they are known already.

    They are a family of their own for Holm's correction, and change nothing of the prompts' verdicts.
    """
    return of_figures(figures(pairs, judgements) if found is None else found, confidence)


def of_figures(found: Iterable[Figure], confidence: float = CONFIDENCE) -> tuple[SuiteChange, ...]:
    """Return the changes of some figures, judged together; a figure of a single prompt has none."""
    asked = [(figure, _said(figure)) for figure in found if len(figure.members) > 1]
    questions = [
        Question(draft=_draft(figure), evidence=said.evidence, threshold=figure.threshold, doubt=said.doubt)
        for figure, said in asked
        if said.evidence
    ]
    decided = iter(decide(questions, confidence))
    return tuple(
        SuiteChange(
            judgement=next(decided) if said.evidence else structs.replace(_draft(figure), reason=said.doubt),
            prompts=len(figure.members),
            of=figure.of,
            left_out=dict(figure.left_out),
            how=said.how,
            spread=said.spread,
        )
        for figure, said in asked
    )


def figures(pairs: Sequence[RowPair], judgements: Sequence[Judgement]) -> list[Figure]:
    """Return the metrics that were judged by their ratio, each with the prompts that can be in its mean."""
    by_test = {pair.after.test: pair for pair in pairs}
    found: dict[str, dict[str, list[Judgement]]] = {}
    for j in judgements:
        if j.test in by_test and _by_ratio(j):
            found.setdefault(j.metric_key or "", {}).setdefault(j.test, []).append(j)
    return [_figure(list(tests.values()), by_test) for tests in found.values()]


def _by_ratio(j: Judgement) -> bool:
    """Return whether a judgement is about a ratio: not about a bound, text, or a figure that must be the same."""
    metric = j.metric
    if metric is None or j.threshold is None or metric.unit is Unit.TEXT:
        return False
    exact = j.mid is None and j.verdict in (Verdict.REGRESSED, Verdict.UNCHANGED)
    return not exact and metric.judged and metric.direction is not Direction.EXACT


def _figure(tests: Sequence[Sequence[Judgement]], pairs: Mapping[str, RowPair]) -> Figure:
    strictest = min((j for js in tests for j in js), key=lambda j: j.threshold or 0.0)
    metric = strictest.metric
    if metric is None:
        raise ValueError("a figure of the suite is about a metric")
    members, left_out = [], Counter[str]()
    for js in tests:
        first = min(js, key=lambda j: JUDGED.index(j.verdict) if j.verdict in JUDGED else len(JUDGED))
        member = Member(pair=pairs[first.test], judgement=first)
        why = _why_not(member, metric)
        if why is None:
            members.append(member)
        else:
            left_out[why] += 1
    return Figure(
        metric=metric,
        threshold=strictest.threshold or 0.0,
        rule=strictest.rule,
        members=tuple(members),
        left_out=left_out,
    )


def _why_not(member: Member, metric: Metric) -> str | None:
    verdict = member.judgement.verdict
    if verdict not in JUDGED:
        return "not measured" if verdict is None else verdict.value
    if member.pair.disturbed(metric, member.judgement.threshold) is not None:
        return DISTURBED
    before, after = member.rounds(metric.key)
    constant = len({*before, *after}) == 1
    return None if constant or min((*before, *after)) > 0 else "without a ratio"


def _draft(figure: Figure) -> Judgement:
    metric = figure.metric
    return Judgement(
        test="",
        name="suite",
        metric_key=metric.key,
        unit=metric.unit.value,
        rule=figure.rule,
        before=_middle(earlier.number(member.pair.before, metric) for member in figure.members),
        after=_middle(earlier.number(member.pair.after, metric) for member in figure.members),
        threshold=figure.threshold,
        verdict=Verdict.INCONCLUSIVE,
    )


def _middle(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean; None where a value has no logarithm."""
    known = list(values)
    logs = [math.log(value) for value in known if value is not None]
    return math.exp(sum(logs) / len(logs)) if logs and len(logs) == len(known) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What is known of a figure's change, as a comparison's evidence; how, and whether it holds the spread of launches.

    Without evidence `doubt` says why.
    """

    evidence: tuple[Evidence, ...] = ()
    doubt: str | None = None
    how: str = ""
    spread: bool = True


def _said(figure: Figure) -> _Said:
    key, many = figure.metric.key, len(figure.members)
    in_launches = {} if figure.metric.repeatable else {m.judgement.test: m.pair.by_launch(key) for m in figure.members}
    told = [member for member in figure.members if in_launches.get(member.judgement.test) is not None]
    others = [member for member in figure.members if in_launches.get(member.judgement.test) is None]
    if any(_direct(member, figure.metric) is None for member in others):
        return _Said(doubt="not every prompt was measured in launches") if told else _stored(figure)
    parts = [(1 / many, one) for member in others if (one := _direct(member, figure.metric)) is not None]
    hows = ["pairs of rounds"] if any(one.se for _, one in parts) else []
    doubt: str | None = "more pairs of rounds are needed (--infer-max-rounds)"
    if told:
        from pytest_infer.analysis.compare import shared_launches  # noqa: PLC0415 - it needs numpy and scipy

        estimate, how = shared_launches.change(told, key)
        if estimate is None:
            return _Said(
                doubt="one launch does not tell how far launches lie apart: more are needed (--infer-launches)"
            )
        parts.append((len(told) / many, estimate))
        hows.insert(0, how)
        doubt = "launches of equal code lie too far apart: more of them tell more (--infer-launches)"
    return _Said(
        evidence=(Evidence(estimate=stats.weighted(parts)),),
        doubt=doubt,
        how=" and ".join(hows) or "figures without noise",
        spread="pairs of rounds" not in hows,
    )


def _direct(member: Member, metric: Metric) -> Student | None:
    """Return a prompt's change where its own rounds tell it alone: in pairs, or without noise."""
    before, after = member.rounds(metric.key)
    if len({*before, *after}) == 1:
        return stats.certain(0.0)
    if metric.repeatable:
        return stats.certain(math.log(after[-1] / before[-1]))
    if member.pair.paired and len(before) == len(after) > 1:
        return stats.student([b - a for a, b in zip(stats.logs(before), stats.logs(after), strict=True)])
    return None


def _stored(figure: Figure) -> _Said:
    """Return what rounds that were not measured next to each other tell, with the spread from run to run."""
    metric, members = figure.metric, figure.members
    rounds = [member.rounds(metric.key) for member in members]
    own = [_direct(member, metric) or stats.welch(*sides) for member, sides in zip(members, rounds, strict=True)]
    known = [one for one in own if one is not None]
    within = stats.weighted([(1 / len(own), one) for one in known]) if len(known) == len(own) else None
    evidence = [] if within is None else [Evidence(estimate=within, beyond=limit(metric, figure.threshold))]
    if within is None and any(member.pair.paired for member in members):
        return _Said(doubt=SINGLE)
    spreads = [member.pair.block_spread for member in members]
    if any(spread is not None for spread in spreads):
        apart = [math.inf if spread is None else spread.get(metric.key, math.inf) for spread in spreads]
        if within is None or not math.isfinite(sum(apart)):
            return _Said(doubt=SINGLE)
        blocks = Evidence(estimate=stats.within(within.mid, sum(apart) / len(apart), CONFIDENCE))
        said = "the blocks of one side differ too much: leave out --infer-against-sequential"
        return _Said(evidence=(*evidence, blocks), doubt=said, how="blocks of rounds", spread=False)
    sides = [[earlier.number(row, metric) for row in (m.pair.before, m.pair.after)] for m in members]
    before, after = (_middle(values) for values in zip(*sides, strict=True))
    if before is None or after is None:
        return _Said(doubt="a figure reads 0: there is no ratio to it")
    runs, remedy = _earlier_runs(figure), earlier.remedy(members[0].pair.after)
    scatter = earlier.apart([math.log(new / old) for old, new in sides if old and new]) / math.sqrt(len(sides))
    found, doubt = earlier.spread(runs, before, after, evidence, remedy, scatter)
    return _Said(evidence=tuple(found), doubt=doubt, how=f"{len(runs)} earlier runs")


def _earlier_runs(figure: Figure) -> list[float]:
    """Return the geometric mean of the prompts in each earlier run that every one of them is comparable with."""
    by_prompt = [
        {row.run: value for row in member.pair.history if (value := earlier.number(row, figure.metric)) is not None}
        for member in figure.members
    ]
    common = [run for run in by_prompt[0] if all(run in one for one in by_prompt)]
    return [math.exp(sum(math.log(one[run]) for one in by_prompt) / len(by_prompt)) for run in common]
