"""Regressions that somebody accepted: how much of a change each allows, and what becomes of a gate's verdicts."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.rules import Form, Rule
from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange, Verdict, reach, worse_sign
from pytest_infer.analysis.sweep import axes
from pytest_infer.checkouts.accepted import Written
from pytest_infer.errors import OptionError
from pytest_infer.metrics import METRICS, Fact

if TYPE_CHECKING:
    # What reads what is accepted must not load numpy.
    from pytest_infer.analysis.compare.comparison import Wanted
    from pytest_infer.storage.runs import Row

MISSING = "missing"
"""In place of a metric: that a test of the baseline is gone."""
LOST = "the baseline has this test and this run did not measure it: restore it, or set a new baseline"
UNMEASURED = "not measured in this run"
"""Of a test that was to be run."""
_FACTS = {fact.value: fact for fact in (Fact.PREFILL, Fact.DECODE, Fact.TOTAL)}
"""Names that stand for all figures which tell the same, as headlines have them."""
_PERCENT = re.compile(r"\d+(?:\.\d+)?\s*%", re.ASCII)
_GOOD = (Verdict.UNCHANGED, Verdict.IMPROVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What is accepted: a change of up to the limit of the rules, one a figure; no rule for a test that is gone."""

    written: Written
    rules: tuple[Rule, ...]

    @property
    def live(self) -> bool:
        """Return whether it still counts."""
        return self.written.expired is None

    @property
    def said(self) -> str:
        """Return where it is written, and why."""
        return f"{self.written.where}: {self.written.reason}"

    def bound(self, rule: Rule, row: Row) -> float | None:
        """Return what it allows of what a gate's rule asks of a test; None where it is about something else."""
        for own in self.rules:
            if own.metric is rule.metric and own.covers(row.name, row.config):
                relative = own.form is Form.RELATIVE
                fits = rule.form is Form.RELATIVE if relative else rule.form in (Form.EXACT, Form.CLOSE)
                return own.limit if fits else None
        return None

    def lost(self, judgement: Judgement) -> bool:
        """Return whether it is about a test that is gone."""
        if self.rules or judgement.verdict is not Verdict.MISSING or judgement.reason != LOST:
            return False
        prompt = self.written.prompt
        # Of a test that is gone only the node id may be known, with the prompt in it as rules name it.
        inside = judgement.test.partition("::")[2].partition("[")[2].removesuffix("]")
        names = (judgement.name, judgement.test, inside)
        return prompt is None or any(fnmatch.fnmatchcase(name, axes.meant(prompt)) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Something accepted, and in how many verdicts it has a part."""

    accepted: Accepted
    times: int


def parse(written: Iterable[Written]) -> tuple[Accepted, ...]:
    """Return what was written, understood; raise OptionError with one line for what is no change of a figure."""
    return tuple(Accepted(written=one, rules=_rules(one)) for one in written)


def _rules(one: Written) -> tuple[Rule, ...]:
    if one.metric == MISSING:
        if one.bound is not None:
            raise OptionError(f"{one.where}: a test is missing or not: leave out {one.bound!r}")
        return ()
    if one.bound is not None and not _PERCENT.fullmatch(one.bound):
        raise OptionError(f"{one.where}: {one.text!r}: the bound is a share of the earlier value, as 5%")
    fact = _FACTS.get(one.metric)
    names = [one.metric]
    if fact is not None:
        names = [rules.short_name(m) for m in METRICS if m.fact is fact and m.judged]
    asked = "exact" if one.bound is None else one.bound
    of = "" if one.prompt is None else f"[{one.prompt}]"
    try:
        return rules.parse([f"{name}{of}:{asked}" for name in names])
    except OptionError as error:
        why = str(error).partition("': ")[2] or str(error)
        missing = "" if one.bound is not None or fact is None else ": give a bound, as 5%"
        raise OptionError(f"{one.where}: {one.text!r} cannot be accepted{missing or f': {why}'}") from None


def check_covered(accepted: Iterable[Accepted], names: Collection[str]) -> None:
    """Raise OptionError for one that is about none of these prompts (`axes.names`); what is gone cannot be among them.

    An expired one may be about prompts of old.
    """
    for one in accepted:
        if one.live and one.rules:
            try:
                rules.check_covered(one.rules[:1], names)
            except OptionError as error:
                near = str(error).rpartition("; ")[2]
                raise OptionError(f"{one.written.where}: {one.written.text!r} is about no prompt; {near}") from None


class Accepting:
    """Asks a gate's questions again with the bounds that are accepted, and gives its verdicts anew.

    A bound takes the place of the rule's threshold: what is beyond it still fails, and what may be is inconclusive.
    """

    def __init__(self, accepted: Sequence[Accepted]) -> None:
        self._all = accepted
        self._live = [one for one in accepted if one.live]
        self._chosen: dict[tuple[str, str | None], tuple[Accepted, float]] = {}
        self._again: dict[tuple[str, str | None], Judgement] = {}
        self._times: dict[int, int] = {}

    @property
    def any(self) -> bool:
        """Return whether anything is accepted."""
        return bool(self._live)

    def wanted(self, row: Row, asked: Iterable[tuple[Rule, Wanted]]) -> Iterator[Wanted]:
        """Yield what is wanted of a test with the thresholds that are accepted."""
        for rule, want in asked:
            bounds = [(one, bound) for one in self._live if (bound := one.bound(rule, row)) is not None]
            if not bounds:
                yield want
                continue
            one, bound = max(bounds, key=lambda pair: pair[1])
            self._chosen[row.test, rule.text] = one, bound
            yield changed(want, threshold=max(want.threshold, bound))

    def asked_again(self, judgements: Iterable[Judgement]) -> None:
        """Take the verdicts that follow from `wanted`."""
        self._again = {(j.test, j.rule): j for j in judgements if (j.test, j.rule) in self._chosen}

    def applied(self, judgements: Iterable[Judgement]) -> list[Judgement]:
        """Return a gate's judgements with what is accepted."""
        return [self._applied(judgement) for judgement in judgements]

    def _applied(self, j: Judgement) -> Judgement:
        if j.verdict is Verdict.MISSING:
            gone = next((one for one in self._live if one.lost(j)), None)
            return j if gone is None else self._accept(j, gone)
        again = self._again.get((j.test, j.rule))
        if again is None or j.verdict not in (Verdict.REGRESSED, Verdict.INCONCLUSIVE):
            return j
        one, bound = self._chosen[j.test, j.rule]
        if again.verdict in _GOOD:
            return replace(self._accept(j, one), threshold=again.threshold)
        if j.verdict is Verdict.INCONCLUSIVE:
            return j
        if j.mid is None:
            return self._accept(j, one)
        self._count(one)
        return _beyond(j, again, f"beyond the {100 * bound:g} % accepted ({one.said})")

    def _accept(self, j: Judgement, one: Accepted) -> Judgement:
        self._count(one)
        return replace(j, verdict=Verdict.ACCEPTED, reason=one.said)

    def _count(self, one: Accepted) -> None:
        self._times[id(one)] = self._times.get(id(one), 0) + 1

    def used(self) -> tuple[Used, ...]:
        """Return everything accepted, with in how many verdicts it has a part."""
        return tuple(Used(accepted=one, times=self._times.get(id(one), 0)) for one in self._all)


def _beyond(j: Judgement, again: Judgement, too_much: str) -> Judgement:
    """Return a regression that is larger than what is accepted, or may be, or of which nothing tells that it is not."""
    if again.verdict is Verdict.REGRESSED:
        return replace(j, reason=too_much)
    end = reach(again)
    reaches = end is None or end > (again.threshold or 0.0)
    reason = f"the interval reaches {too_much}" if reaches else again.reason
    return replace(j, verdict=Verdict.INCONCLUSIVE, threshold=again.threshold, reason=reason)


def of_suite(changes: Iterable[SuiteChange], judgements: Iterable[Judgement]) -> tuple[SuiteChange, ...]:
    """Return the suite's changes; one that got worse is accepted where all is that got worse in its prompts.

    It is up to what the most is in one of them.
    """
    verdicts: dict[str | None, set[Verdict | None]] = {}
    most: dict[str | None, float] = {}
    for j in judgements:
        verdicts.setdefault(j.metric_key, set()).add(j.verdict)
        if j.verdict is Verdict.ACCEPTED and j.threshold is not None:
            most[j.metric_key] = max(j.threshold, most.get(j.metric_key, 0.0))

    def told(change: SuiteChange) -> SuiteChange:
        j = change.judgement
        of = verdicts.get(j.metric_key, set())
        if j.verdict is not Verdict.REGRESSED or Verdict.ACCEPTED not in of or Verdict.REGRESSED in of:
            return change
        threshold = most.get(j.metric_key, j.threshold)
        return replace(change, judgement=replace(j, verdict=Verdict.ACCEPTED, threshold=threshold))

    return tuple(map(told, changes))


def suggested(judgements: Iterable[Judgement]) -> list[str]:
    """Return what would accept the regressions of a gate, one a figure, as a commit's message has it.

    The bound is what leaves room for the next measurement: as far above the estimate as two ends of the interval, in
    whole percents. None accepts what evidence shows that never tells of a bound.
    """
    worst: dict[str, list[Judgement]] = {}
    for j in judgements:
        name = MISSING if j.verdict is Verdict.MISSING and j.reason == LOST else _name(j)
        if name is not None:
            worst.setdefault(name, []).append(j)
    return [f"[infer-accept: {name}{_of(js)}{_room(js)}: WHY]" for name, js in worst.items()]


def _name(j: Judgement) -> str | None:
    if j.verdict is not Verdict.REGRESSED or j.metric is None or j.rule is None or not j.conclusive:
        return None
    exact = j.mid is None and rules.parse([j.rule])[0].form in (Form.EXACT, Form.CLOSE)
    return rules.short_name(j.metric) if j.mid is not None or exact else None


def _of(judgements: Sequence[Judgement]) -> str:
    names = {j.name for j in judgements}
    return f"[{next(iter(names))}]" if len(names) == 1 and not set("[]:") & set(*names) else ""


def _room(judgements: Sequence[Judgement]) -> str:
    ends = [end for j in judgements if (end := _end(j)) is not None]
    return f" {math.ceil(100 * max(ends))}%" if ends else ""


def _end(j: Judgement) -> float | None:
    if j.mid is None:
        return None
    mid, end = worse_sign(j.metric) * j.mid, reach(j)
    return mid + 2 * ((mid * 1.5 if end is None else end) - mid)
