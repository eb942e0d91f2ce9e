"""The headline of a comparison in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange, Verdict, worse_sign
from pytest_infer.metrics import Direction, Kind, Metric
from pytest_infer.report.breakdown.words import ALIKE, carriers, signed
from pytest_infer.report.compare.words import titles
from pytest_infer.report.text import printable
from pytest_infer.units import Unit, percent_up, plural

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.headline import Counted, Differs, Headline, Told, Unsure

_NAMED = 3
"""So many prompts are named; of more, the rest is counted."""
_INFINITE = float("inf")
_WHY = re.compile(rf": (?=[^:]+ [+−][\d.]+ \w?s\b|{re.escape(ALIKE)})")
"""Between a change and the parts that carry it."""
_LONGEST = 28
"""Characters of a prompt's name in a headline."""


def in_words(headline: Headline | None, judgements: Iterable[Judgement]) -> str:
    """Return the headline as one line; nothing where nothing was judged."""
    if headline is None:
        return ""
    judgements = list(judgements)
    title = _titles(judgements)
    groups = [list(told) for _, told in groupby(headline.told, key=lambda one: what(one.metric))]
    groups.sort(key=_weight)
    # With several of these the line would be one of rests.
    rests = sum(bool(group[-1].named) for group in groups) < 2
    parts = [_told(group, title, rests=rests) for group in groups]
    parts += map(_differs, headline.differs)
    if headline.lost:
        parts.append(f"{plural(headline.lost, 'test')} missing")
    if headline.failed:
        parts.append(f"{plural(headline.failed, 'test')} failed")
    if headline.others:
        parts.append(f"also worse: {', '.join(metric.label for metric in headline.others)}")
    if headline.tokeniser is not None:
        parts.append(f"outside the steps: tokeniser {signed(headline.tokeniser.change_s)} a prompt")
    if headline.told or headline.differs or headline.lost or headline.failed:
        parts += [_unsure(one, title, short=True) for one in headline.unsure]
    else:
        parts.insert(0, _quiet(headline, title))
    verdicts = {j.verdict for j in judgements}
    if Verdict.ACCEPTED in verdicts:
        parts.append("accepted in part" if verdicts & {Verdict.REGRESSED, Verdict.MISSING} else "accepted")
    return printable("; ".join(parts))


def _weight(group: Sequence[Told]) -> tuple[bool, float]:
    """Return the place of what is told of a figure: what got worse before what did not, the largest change first."""
    return not any(one.worse for one in group), -max(abs(one.change.mid or 0.0) for one in group)


def answers(said: str) -> tuple[str, str, tuple[str, ...]]:
    """Return what a headline says first, which parts of a step carry that, and all else, each for a line of its own."""
    first, *rest = said.split("; ")
    others: list[str] = []
    for clause in rest:
        # What the others did is told with what these did.
        if others and clause.startswith("the other "):
            others[-1] += f"; {clause}"
        else:
            others.append(clause)
    why = _WHY.search(first)
    if why is None:
        return first, "", tuple(others)
    return first[: why.start()], first[why.end() :], tuple(others)


def _titles(judgements: Iterable[Judgement]) -> dict[str, str]:
    """Return how the headline names each test: of a node id, what stands in its brackets, as long as that is unique."""
    judgements = list(judgements)
    found, own = titles(judgements), {j.test: printable(j.name) for j in judgements}
    inner = {test: name if name == own[test] else test.partition("[")[2].rstrip("]") for test, name in found.items()}
    times = Counter(inner.values())
    return {
        test: _short(name) if name and times[name] == 1 else _short(found[test], end=found[test] != own[test])
        for test, name in inner.items()
    }


def _short(name: str, *, end: bool = False) -> str:
    """Return a name of a few words; of a test's own its end, which tells it from others."""
    if len(name) <= _LONGEST:
        return name
    return f"…{name[1 - _LONGEST :].lstrip()}" if end else f"{name[: _LONGEST - 1].rstrip()}…"


def counted(of: SuiteChange | Counted) -> str:
    """Return how many prompts are in a figure of the suite: `all 9 prompts`, `8 of 9 prompts: 1 incomparable`."""
    if of.prompts == of.of:
        return f"all {of.of} prompts"
    return f"{of.prompts} of {of.of} prompts: {', '.join(f'{count} {why}' for why, count in of.left_out.items())}"


def what(metric: Metric) -> str:
    """Return how a headline calls what a figure tells."""
    return metric.label if metric.fact is None else metric.fact.value


def _told(parts: Sequence[Told], title: Mapping[str, str], *, rests: bool) -> str:
    about, last = what(parts[0].metric), parts[-1]
    said = ", ".join(
        f"{_where(one, title)}{_extent(one.change, one.metric, worse=one.worse)}{_carried(one) if one.named else ''}"
        for one in parts
    )
    if not last.named:
        coverage = f", {counted(last.counted)}" if last.counted.of > 1 else ""
        allowed = f" (within the {100 * last.allowed:g} % allowed)" if last.allowed is not None else ""
        return f"{about} {said}{coverage}{allowed}{_carried(last)}"
    return f"{about} {said}{_rest(last.rest) if rests else ''}"


def _carried(one: Told) -> str:
    said = "" if one.carried is None else carriers(one.carried)
    return f": {said}" if said else ""


def _where(one: Told, title: Mapping[str, str]) -> str:
    return f"of {_names([title[test] for test in one.named])} " if one.named else ""


def _names(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _rest(rest: Mapping[str, int]) -> str:
    many = sum(rest.values())
    if not many:
        return ""
    others = f"; the other {f'{many} prompts' if many > 1 else 'prompt'}"
    if len(rest) == 1:
        return f"{others} {next(iter(rest))}"
    return f"{others}: {', '.join(f'{count} {what}' for what, count in rest.items())}"


def moved(judgement: Judgement, *, worse: bool) -> str:
    """Return a change of one test's figure by its fact: `decode 5.1 % slower [4.2, 6.0]`."""
    metric = judgement.metric
    return "" if metric is None else f"{what(metric)} {_extent(judgement, metric, worse=worse)}"


def subject(judgement: Judgement) -> str:
    """Return what a judgement is about, by its fact."""
    return "" if judgement.metric is None else what(judgement.metric)


def _extent(j: Judgement, metric: Metric, *, worse: bool) -> str:
    """Return how large a change is, with its interval, in the direction that the words name: `5.1 % slower [4, 6]`."""
    mid = j.mid or 0.0
    sign = 1 if mid >= 0 else -1
    ends = sorted((_end(j.low, -1) * sign, _end(j.high, 1) * sign))
    interval = f" [{_number(ends[0])}, {_number(ends[1])}]" if ends[0] < ends[1] else ""
    return f"{_number(abs(mid))} % {way(metric, mid, worse=worse)}{interval}"


def way(metric: Metric, mid: float, *, worse: bool) -> str:
    """Return the word for a change: slower or faster of a time or a rate, higher or lower of all else."""
    speed = metric.kind is Kind.TIMED and metric.unit in (Unit.SECONDS, Unit.TOKENS_PER_SECOND)
    if speed:
        return "slower" if worse else "faster"
    return "higher" if mid > 0 else "lower"


def _end(value: float | None, way: int) -> float:
    return way * _INFINITE if value is None else value


def _number(share: float, *, signed: bool = False) -> str:
    percent = 100 * share
    text = "∞" if abs(percent) == _INFINITE else f"{abs(percent):.{1 if abs(percent) < 9.95 else 0}f}"
    zero = text == "0.0"
    return ("" if zero else "−" if percent < 0 else "+" if signed else "") + text


def _unsure(one: Unsure, title: Mapping[str, str], *, short: bool = False) -> str:
    suspect, about = one.suspect, what(one.metric)
    if one.below is None or suspect.mid is None:
        return _untold([about], suspect.reason)
    if short:
        return f"cannot tell {about} below {percent_up(one.below)}"
    sign = worse_sign(one.metric)
    low, high = sorted((_end(suspect.low, -1) * sign, _end(suspect.high, 1) * sign))
    interval = f"[{_number(low, signed=True)}, {_number(high, signed=True)}]"
    return f"cannot tell below {percent_up(one.below)}: largest suspect {about} of {title[suspect.test]} {interval}"


def _untold(about: Sequence[str], reason: str | None) -> str:
    return f"cannot tell {_names(about)}{f': {reason}' if reason else ''}"


def _quiet(headline: Headline, title: Mapping[str, str]) -> str:
    """Return what is said where nothing is known to have moved."""
    if headline.unsure:
        widest = max(headline.unsure, key=lambda one: _INFINITE if one.below is None else one.below)
        if widest.below is None:
            alike = [u for u in headline.unsure if u.below is None and u.suspect.reason == widest.suspect.reason]
            times = [one for one in alike if one.metric.kind is Kind.TIMED] or alike
            return _untold([what(one.metric) for one in times], widest.suspect.reason)
        return _unsure(widest, title)
    if headline.bound is not None:
        part = headline.counted is not None and headline.counted.prompts < headline.counted.of
        coverage = f", {counted(headline.counted)}" if part and headline.counted is not None else ""
        return f"no change{f' beyond {percent_up(headline.bound)}' if headline.bound else ''}{coverage}"
    if headline.judged:
        return f"cannot tell: {headline.reason}" if headline.reason else "nothing got worse"
    return f"nothing to compare: {headline.reason}" if headline.reason else "nothing to compare"


def _differs(one: Differs) -> str:
    j, where = one.judgement, f"in {one.tests} of {plural(one.of, 'prompt')}"
    if one.told is not None and j.metric is not None:
        among = (
            ""
            if one.of == 1
            else f" ({where})"
            if one.tests == 1
            else f" (the furthest of {where.removeprefix('in ')})"
        )
        return f"{j.metric.label} {one.told}{among}"
    if j.metric is None:
        return f"experts moved {where}"
    exact = j.metric.direction is Direction.EXACT or j.threshold is not None
    return f"{j.metric.label} differs {where}" if exact else f"{j.rule} does not hold {where}"
