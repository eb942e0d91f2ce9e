"""From estimates of a change to a verdict: significance and size, corrected for the number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from pytest_infer.analysis.breakdown.outcome import PhaseChange
from pytest_infer.metrics import METRICS, Direction, Metric

if TYPE_CHECKING:
    # What renders verdicts must not load numpy.
    from pytest_infer.analysis.compare.stats import Estimate

_METRICS = {metric.key: metric for metric in METRICS}

CONFIDENCE = 0.99
"""Of every interval; 1 − CONFIDENCE is also the false-alarm rate that Holm's correction keeps over all rows."""

_ROUNDING = 1e-9
"""So much of a limit may be missing by the rounding of floats."""

_NEARLY_ALL = 0.999
"""No threshold asks for a larger loss of a good thing, which cannot lose all of it."""


class Verdict(StrEnum):
    """What a comparison can say of one figure; a gate also, that somebody accepted a regression."""

    REGRESSED = "regressed"
    ACCEPTED = "accepted"
    IMPROVED = "improved"
    UNCHANGED = "unchanged"
    INCONCLUSIVE = "inconclusive"
    INCOMPARABLE = "incomparable"
    MISSING = "missing"
    NEW = "new"


class Exit(int, Enum):
    """How a gate ends, as an exit code: none that pytest (0 to 6), sysexits (64 to 78), git or a shell (125 on) give.

    But for 0 and 1, which mean the same there: all passed, a test failed.
    """

    PASSED = 0
    REGRESSED = 1
    USAGE = 2
    INCONCLUSIVE = 10
    NOTHING = 11

    @property
    def word(self) -> str:
        """Return it in a word, as kept in run files, which hold no number."""
        return "nothing to compare" if self is Exit.NOTHING else self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One estimate of a change (log-ratio) and what its interval must lie beyond to call it real.

    `conclusive` is False for an assumption that can show a change but never that there is none.
    """

    estimate: Estimate
    beyond: float = 0.0
    conclusive: bool = True


_STORED = {"name": "prompt", "metric_key": "metric", "low": "change_low", "mid": "change", "high": "change_high"}


class Judgement(msgspec.Struct, frozen=True, kw_only=True, rename=_STORED):
    """One figure of one test, before and after, and what was decided; encoded, it is what a run file keeps of it.

    `low`, `mid`, `high` are relative changes (0.024 is +2.4 %). `p` is two-sided; `p_adjusted` is corrected for all
    rows judged together, and decides. `rule` is the gate's line, if it was one; `reason` is for people. The verdict is
    None where neither way is better. `metric_key` and `unit` are the metric's, which a stored one may have had alone.
    `carried` says which parts of a step carry a change, where steps were taken apart. `conclusive` is False where the
    evidence can show a change but never that there is none, or that it is within a bound.
    """

    test: str
    name: str
    metric_key: str | None = None
    unit: str | None = None
    rule: str | None = None
    before: float | str | None = None
    after: float | str | None = None
    low: float | None = None
    mid: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    rounds: tuple[int, int] | None = None
    threshold: float | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    note: str | None = None
    carried: PhaseChange | None = None
    conclusive: bool = True

    @property
    def metric(self) -> Metric | None:
        """Return the metric; None without one, and for one of a version that measured more than this one."""
        return None if self.metric_key is None else _METRICS.get(self.metric_key)


class SuiteChange(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of the whole suite: the geometric mean of its prompts' ratios, judged like a prompt's.

    `judgement` holds the geometric means before and after. `prompts` of the `of` prompts whose figure was asked for are
    in it; `left_out` says how many are not, by reason. `how` says what the interval is made of, and `spread` whether
    that holds how far launches or runs of the same code lie apart.
    """

    judgement: Judgement
    prompts: int
    of: int
    left_out: dict[str, int] = {}
    how: str = ""
    spread: bool = True


def restored(stored: msgspec.Raw) -> tuple[Judgement, ...]:
    """Return the judgements that a run file keeps; none where they cannot be read."""
    try:
        return msgspec.json.decode(stored, type=tuple[Judgement, ...])
    except msgspec.ValidationError:
        return ()


def restored_suite(stored: msgspec.Raw) -> tuple[SuiteChange, ...]:
    """Return what a run file keeps of the suite; none where it cannot be read."""
    try:
        return msgspec.json.decode(stored, type=tuple[SuiteChange, ...])
    except msgspec.ValidationError:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A change to be judged: all of its evidence must agree. `draft` holds what is known before the decision.

    `undecidable` says why nothing follows from the evidence, whatever it says.
    """

    draft: Judgement
    evidence: tuple[Evidence, ...]
    threshold: float
    doubt: str | None = None
    undecidable: str | None = None


def decide(questions: Sequence[Question], confidence: float = CONFIDENCE) -> list[Judgement]:
    """Return a judgement for each question; the p-values are adjusted for all of them together (Holm).

    Regressed: the estimate is worse by more than the threshold, and every piece of evidence is significant.
    Unchanged: every interval ends within the threshold of a regression. Neither: inconclusive.
    """
    tails = [_tails(question) for question in questions]
    raw = [min(1.0, 2 * min(both)) for both in tails]
    asked = zip(questions, tails, raw, holm(raw), strict=True)
    return [_judge(question, both, p, adjusted, confidence) for question, both, p, adjusted in asked]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, in the same order (Holm 1979): step-down Bonferroni."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - step)))
        adjusted[index] = highest
    return adjusted


def worse_sign(metric: Metric | None) -> int:
    """Return +1 where more is worse, −1 where less is worse."""
    return -1 if metric is not None and metric.direction is Direction.HIGHER else 1


def reach(j: Judgement) -> float | None:
    """Return how much worse a figure may have become by its interval, a share; None where nothing bounds it."""
    end = j.high if worse_sign(j.metric) > 0 else j.low
    return None if end is None else max(0.0, end * worse_sign(j.metric))


def significant(p_adjusted: float, confidence: float) -> bool:
    """Return whether a p-value that is adjusted for all rows shows a change."""
    return p_adjusted <= (1 - confidence) * (1 + _ROUNDING)


def limit(metric: Metric | None, threshold: float) -> float:
    """Return a threshold as a log-ratio: 5 % more of a bad thing is 1.05 of it, 5 % less of a good one 0.95."""
    return math.log1p(threshold) if worse_sign(metric) > 0 else -math.log1p(-min(threshold, _NEARLY_ALL))


def _tails(question: Question) -> tuple[float, float]:
    """Return the one-sided p-values of "worse" and "better": the weakest evidence counts (intersection–union test)."""
    sign = worse_sign(question.draft.metric)
    up = max(e.estimate.p_above(e.beyond) for e in question.evidence)
    down = max(e.estimate.p_below(-e.beyond) for e in question.evidence)
    return (up, down) if sign > 0 else (down, up)


def _judge(question: Question, tails: tuple[float, float], p: float, p_adjusted: float, confidence: float) -> Judgement:
    sign = worse_sign(question.draft.metric)
    worse, better = tails
    intervals = [e.estimate.interval(confidence) for e in question.evidence]
    low, high = min(i[0] for i in intervals), max(i[1] for i in intervals)
    mid = question.evidence[0].estimate.mid
    # What is no more than that is within it.
    most = limit(question.draft.metric, question.threshold) * (1 + _ROUNDING)
    shown = significant(p_adjusted, confidence)
    reason = question.undecidable or question.doubt or "the interval reaches beyond the threshold"
    conclusive = all(e.conclusive for e in question.evidence)
    verdict = Verdict.INCONCLUSIVE
    if question.undecidable is not None:
        pass
    elif shown and worse <= better and mid * sign > most:
        verdict = Verdict.REGRESSED
    elif shown and better < worse and mid * sign < -most:
        verdict = Verdict.IMPROVED
    elif (high if sign > 0 else -low) <= most and conclusive:
        verdict = Verdict.UNCHANGED
    return replace(
        question.draft,
        verdict=verdict,
        reason=reason if verdict is Verdict.INCONCLUSIVE else None,
        low=_relative(low),
        mid=_relative(mid),
        high=_relative(high),
        p=p,
        p_adjusted=p_adjusted,
        threshold=question.threshold,
        conclusive=conclusive,
    )


def _relative(log_ratio: float) -> float | None:
    """Return a log-ratio as a relative change; None for an end of an interval that is not bounded."""
    return math.expm1(log_ratio) if math.isfinite(log_ratio) and log_ratio < 700 else None


def outcome(judgements: Sequence[Judgement]) -> Exit:
    """Return how a gate ends: one regression or missing test fails it, and what was not compared never passes."""
    verdicts = {j.verdict for j in judgements}
    if verdicts & {Verdict.REGRESSED, Verdict.MISSING}:
        return Exit.REGRESSED
    # Of a test that is gone, which somebody accepted, no rule told anything.
    judged = {j.verdict for j in judgements if j.verdict is not Verdict.ACCEPTED or j.rule is not None}
    if not judged & {Verdict.ACCEPTED, Verdict.IMPROVED, Verdict.UNCHANGED, Verdict.INCONCLUSIVE}:
        return Exit.NOTHING
    return Exit.INCONCLUSIVE if verdicts & {Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE} else Exit.PASSED
