"""The gate: rules over tests, against an earlier run, another commit's rounds, or a bound."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_infer.analysis.breakdown import carried
from pytest_infer.analysis.breakdown.stored import Taken
from pytest_infer.analysis.compare import accepted as accepting
from pytest_infer.analysis.compare import bounds, comparison, earlier, fingerprint, headline, possible, stats, suite
from pytest_infer.analysis.compare.accepted import Accepted, Accepting, Used
from pytest_infer.analysis.compare.comparison import RowPair, Wanted
from pytest_infer.analysis.compare.ending import Ending
from pytest_infer.analysis.compare.headline import Headline
from pytest_infer.analysis.compare.rules import Form, Rule, Source
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit, Judgement, SuiteChange, Verdict, limit, outcome
from pytest_infer.analysis.fidelity import stored
from pytest_infer.metrics import Kind, Metric, read
from pytest_infer.metrics.summary import why_not
from pytest_infer.records import Round, Turns
from pytest_infer.storage.history import History
from pytest_infer.storage.runs import Row, Run

if TYPE_CHECKING:
    from pytest_infer.records import PromptRecord

_NOT_FINITE = "nonfinite_logits"
_OF_PAIRS = (Form.RELATIVE, Form.EXACT, Form.CLOSE)
_EARLY = "the run ended before it was measured"
_NO_RULE = 0.01
"""The threshold that turns are measured for where no rule says one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """What a gate found: a judgement per test and rule, what it was compared with, and how it is to end.

    `suite` and `headline` say what it comes to over all prompts; how the gate ends follows from the judgements alone.
    `accepted` is what somebody accepted, with how many judgements follow from it.
    """

    judgements: tuple[Judgement, ...]
    rules: tuple[Rule, ...]
    against: str | None
    suite: tuple[SuiteChange, ...] = ()
    headline: Headline | None = None
    accepted: tuple[Used, ...] = ()
    ending: Ending = Ending()  # noqa: RUF009 - frozen

    @property
    def exit(self) -> Exit:
        """Return what it found, whatever of it may pass."""
        return outcome(self.judgements)

    @property
    def code(self) -> int:
        """Return the exit code."""
        return self.ending.code(self.judgements)

    @property
    def said(self) -> str | None:
        """Return the line that says what an inconclusive verdict means; None where there is none."""
        return self.ending.said(self.judgements)


def needs_baseline(rules: Iterable[Rule]) -> bool:
    """Return whether any rule compares with something."""
    return any(rule.compares for rule in rules)


def baseline_for(run_rows: Sequence[Row], candidates: Sequence[Run], allowed: Collection[str]) -> Run | None:
    """Return the newest earlier run that may be a baseline, None for none.

    It is whole, of clean code, did not fail its gate, holds nothing impossible, none of these tests was taken from it,
    and it is comparable in some. An earlier one that has twice as many or more takes its place: one of part of the
    tests leaves the others without an earlier figure.
    """
    news = {row.test: row for row in run_rows if not row.plain}
    found, least = None, 1
    for run in reversed(candidates[-earlier.SEARCHED :]):
        # First what is known without reading its tests.
        if run.tests < least or run.plain or run.dirty or run.lost or run.broken or run.regressed:
            continue
        if not run.readable:
            continue
        both = [(row, news[row.test]) for row in run.rows if row.test in news and not row.plain]
        if len(both) < least or any(old.again(new) or possible.impossible(old) is not None for old, new in both):
            continue
        if any(not _other_setting(old, new, allowed) for old, new in both):
            found, least = run, 2 * len(both)
        if least > len(news):
            break
    return found


def _other_setting(old: Row, new: Row, allowed: Collection[str]) -> bool:
    # A changed output or prompt is for the gate to report, not a reason to look further back.
    found = fingerprint.differences(old, new, allowed)
    return any(d.kind not in ("workload", fingerprint.OUTPUT) for d in found)


def stored_pairs(
    before: Run, after: Sequence[Row], history: History, fresh: Mapping[str, PromptRecord] | None = None
) -> tuple[list[RowPair], list[Row], list[Row]]:
    """Return the tests of a run beside those of its baseline with their history, those missing, and those new.

    What was taken from the baseline has no earlier figure in it, and is new. `fresh` are the records of `after`, by
    test, where that run is not stored yet.
    """
    runs = [*history.before(before), before]
    both, gone, new = comparison.match(before.rows, after)
    new += [b for a, b in both if a.again(b)]
    both = [(a, b) for a, b in both if not a.again(b)]
    scored, apart, digests = stored.Scored(fresh or {}), Taken(fresh or {}), earlier.Known(history)
    pairs = []
    for a, b in both:
        found = stored.between(a, b, scored, before.label)
        known, unscored = (None, found) if isinstance(found, str) else (found, None)
        row = stored.with_figures(b, known)
        comparable = earlier.comparable_history(a, runs, digests, b)
        steps = partial(apart.both, a, b)
        pairs.append(RowPair(before=a, after=row, history=comparable, unscored=unscored, taken_apart=steps))
    digests.save()
    return pairs, gone, new


def judge(
    pairs: Sequence[RowPair],
    rules: Sequence[Rule],
    *,
    missing: Sequence[Row | str] = (),
    unfit: Mapping[str, str] | None = None,
    new: Sequence[Row] = (),
    unmeasured: Sequence[str] = (),
    against: str | None = None,
    allowed: Collection[str] = (),
    accepted: Sequence[Accepted] = (),
    confidence: float = CONFIDENCE,
) -> Gated:
    """Judge every test by every rule that covers it.

    `missing` are tests that the baseline has and this run lacks (they fail), `new` those it has first. `unfit` are
    tests that failed in this run or were not measured, with the reason: they fail as well. Before those `unmeasured`
    the run ended: without them nothing passes. `accepted` are regressions that somebody accepted: suite and headline
    tell them as what they are.
    """
    compare = partial(comparison.judge, pairs, allowed=allowed, confidence=confidence)
    found = compare(lambda row: [want for _, want in _wanted(row, rules)])
    accept = Accepting(accepted)
    if accept.any:
        accept.asked_again(compare(lambda row: accept.wanted(row, _wanted(row, rules))))
    afters = [*(pair.after for pair in pairs), *new]
    found = _without_figure(found, rules)
    unscored = {pair.after.test: pair.unscored for pair in pairs}
    found += [
        bounds.held(row, rule, confidence, unscored.get(row.test)) for rule in rules for row in _bounded(rule, afters)
    ]
    found += [
        bounds.drifted(pair, rule, allowed) for pair in pairs for rule in rules if _about(rule, Form.DRIFT, pair.after)
    ]
    unfit = {row.test: why for row in afters if (why := _not_finite(row)) is not None} | dict(unfit or {})
    found += [_missing(row) for row in missing if (row if isinstance(row, str) else row.test) not in unfit]
    found += [Judgement(test=test, name=test, verdict=Verdict.MISSING, reason=why) for test, why in unfit.items()]
    found += [Judgement(test=test, name=test, verdict=Verdict.INCOMPARABLE, reason=_EARLY) for test in unmeasured]
    if needs_baseline(rules):
        found += [
            Judgement(test=row.test, name=row.title, verdict=Verdict.NEW, reason="no earlier figure") for row in new
        ]
    order = {row.test: number for number, row in enumerate(afters)}
    found.sort(key=lambda j: order.get(j.test, len(order)))
    found = carried.told(pairs, found)
    figures = suite.figures(pairs, found)
    changes = suite.changes(pairs, found, confidence, figures)
    said = headline.of(pairs, found, changes, confidence, figures)
    found = accept.applied(found)
    return Gated(
        judgements=tuple(found),
        rules=tuple(rules),
        against=against,
        suite=accepting.of_suite(changes, found),
        headline=said,
        accepted=accept.used(),
    )


def _wanted(row: Row, rules: Sequence[Rule]) -> Iterator[tuple[Rule, Wanted]]:
    """Yield what rules ask of a test that has two sides."""
    for rule in rules:
        if rule.metric is not None and rule.form in _OF_PAIRS and _covers(rule, row):
            exact, close = rule.form is Form.EXACT, rule.form is Form.CLOSE
            yield rule, Wanted(metric=rule.metric, threshold=rule.limit, rule=rule.text, exact=exact, close=close)


def _covers(rule: Rule, row: Row) -> bool:
    return rule.covers(row.name, row.config)


def _without_figure(judgements: Sequence[Judgement], rules: Sequence[Rule]) -> list[Judgement]:
    """Return judgements in which a rule that found its figure in no prompt, on neither side, passes nothing."""
    asked = {rule.text for rule in rules if rule.source is not Source.DEFAULT}
    measured = {j.rule for j in judgements if j.before is not None or j.after is not None}
    return [
        replace(j, verdict=Verdict.INCOMPARABLE, reason=f"no prompt has {j.metric_key}: the rule is about nothing")
        if j.rule in asked - measured
        else j
        for j in judgements
    ]


def _not_finite(row: Row) -> str | None:
    """Return why what a test generated means nothing, whatever the rules ask of it."""
    found = row.metrics.get(_NOT_FINITE)
    passes = found.numbers if found is not None else ()
    return f"logits of {passes[0]:g} forward passes are NaN or infinite" if passes and passes[0] else None


def _about(rule: Rule, form: Form, row: Row) -> bool:
    return rule.form is form and _covers(rule, row)


def _bounded(rule: Rule, rows: Iterable[Row]) -> list[Row]:
    """Return what a bound is about: one that names none is about prompts or about levels, whichever have its figure."""
    found = [row for row in rows if _about(rule, Form.BOUND, row)]
    if rule.metric is None or rule.prompt is not None:
        return found
    own = [row for row in found if why_not(rule.metric, under_load=row.under_load is not None) is None]
    return own or found


def _missing(row: Row | str) -> Judgement:
    test, name = (row, row) if isinstance(row, str) else (row.test, row.title)
    return Judgement(test=test, name=name, verdict=Verdict.MISSING, reason=accepting.LOST)


def settled(
    rules: Sequence[Rule],
    name: str,
    before: Sequence[Round],
    after: Sequence[Round],
    config: Mapping[str, str] | None = None,
) -> bool:
    """Return whether the pairs so far tell every timed figure that a rule is about within the rule's threshold.

    It asks for the width of the interval only, not for where it lies: stopping because a result looks good would
    raise the false alarms, stopping because it is precise does not (Chow & Robbins 1965).
    """
    for rule in rules:
        metric = rule.metric
        if rule.form is not Form.RELATIVE or metric is None or metric.kind is not Kind.TIMED:
            continue
        if not rule.covers(name, config):
            continue
        a, b = _timed(metric, before), _timed(metric, after)
        if not a or len(a) != len(b):
            continue
        low, high = stats.paired(a, b).interval(CONFIDENCE)
        if not high - low < limit(metric, rule.limit):
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How well a change is known that a rule asks for: half the interval's width, as a share, beside the threshold."""

    half: float
    threshold: float

    @property
    def enough(self) -> bool:
        """Whether the interval is narrower than the threshold."""
        return 2 * self.half < self.threshold


def precision(
    rules: Sequence[Rule], name: str, turns: Turns, config: Mapping[str, str] | None = None
) -> Precision | None:
    """Return how well the change is known that turns tell worst, beside the threshold of its rule.

    None while it is not known: there is one launch, or none has an observation yet.
    """
    from pytest_infer.analysis.compare import launches  # noqa: PLC0415

    wanted = [
        (key, rule.limit)
        for rule in rules
        if rule.form is Form.RELATIVE and rule.metric is not None and rule.covers(name, config)
        for key in launches.parts(rule.metric.key)
    ] or [(key, _NO_RULE) for key in ("ttft_s", "tpot_s")]
    found = []
    for key, threshold in wanted:
        told = launches.told(key, turns, first_share=None)
        estimate = None if told is None else launches.estimate(told.values)
        if estimate is not None and threshold > 0:
            low, high = estimate.interval(CONFIDENCE)
            found.append(Precision(half=math.expm1((high - low) / 2), threshold=threshold))
    return max(found, key=lambda one: one.half / one.threshold, default=None)


def _timed(metric: Metric, rounds: Sequence[Round]) -> list[float]:
    """Return a figure of each round; nothing where it is not one of single rounds.

    Load and tokenising are timed once a prompt: no round changes them. A rate of a batch changes as that of each of its
    sequences does.
    """
    if not isinstance(metric.read, read.trace):
        return []
    figures = [metric.read.of(one.trace) for one in rounds]
    return [figure for figure in figures if figure is not None and figure > 0]
