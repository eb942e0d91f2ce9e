"""Adds to what is judged which parts of a step carry its change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

import msgspec.structs

from pytest_infer.analysis.breakdown import changes
from pytest_infer.analysis.breakdown.outcome import PhaseChange
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.metrics import Metric
from pytest_infer.metrics.breakdown import PHASES, TOKENISE, PhaseParts, RolePart
from pytest_infer.records import Turns

_WORTH = 0.01
_SEEN = 0.5
"""Steps that were taken apart saw a figure's change if theirs may be this share of it, or between runs its inverse."""


def told(pairs: Sequence[RowPair], judgements: Iterable[Judgement]) -> list[Judgement]:
    """Return the judgements, with the parts of each step that is known to have changed."""
    by_test = {pair.after.test: pair for pair in pairs}
    return [_told(by_test, j) for j in judgements]


def _told(by_test: dict[str, RowPair], j: Judgement) -> Judgement:
    leads = j.metric is not None and j.metric.fact is not None and j.metric.key == j.metric.fact.lead
    if not leads or j.verdict not in (Verdict.REGRESSED, Verdict.IMPROVED) or j.test not in by_test:
        return j
    slower = j.verdict is Verdict.REGRESSED
    return msgspec.structs.replace(j, carried=of(j.metric, [by_test[j.test]], j, slower=slower))


def of(metric: Metric | None, pairs: Sequence[RowPair], change: Judgement, *, slower: bool) -> PhaseChange | None:
    """Return the parts of a figure's change in some tests taken together; None where they are not known.

    Steps that did not change as the figure did say nothing of it.
    """
    phase = PHASES.get(metric.fact) if metric is not None and metric.fact is not None else None
    if phase is None or not pairs:
        return None
    if all(pair.turns is not None for pair in pairs):
        found = in_turns([pair.turns for pair in pairs if pair.turns is not None], phase, change, slower=slower)
    else:
        found = _stored(phase, pairs, change)
        saw = found is not None and _saw(found, change, slower=slower) and not _exceeds(found, change, slower=slower)
        found = found if saw else None
    return found if found is not None and (found.moved or found.named or found.everywhere) else None


def in_turns(tests: Sequence[Turns], phase: str, change: Judgement, *, slower: bool) -> PhaseChange | None:
    """Return the parts of a figure's change by steps that tests took apart in turns of a token; None as in `of`."""
    found = changes.of_turns(tests, phase, known=True)
    return found if found is not None and _saw(found, change, slower=slower) else None


def _saw(found: PhaseChange, change: Judgement, *, slower: bool) -> bool:
    """Return whether steps taken apart changed in the figure's direction, and enough, as far as their interval says.

    They are the typical ones of the beginning of a text: a change of few steps or of late ones is not among them.
    """
    if (found.change_s > 0) is not slower:
        return False
    far = found.high_s if slower else -found.low_s
    return change.mid is None or far >= _SEEN * abs(change.mid) * found.before_s


def _exceeds(found: PhaseChange, change: Judgement, *, slower: bool) -> bool:
    """Return whether steps changed by far more than the figure, whatever their interval says: they were disturbed.

    Those of stored runs were taken apart at another time than the rounds of the figure.
    """
    near = found.low_s if slower else -found.high_s
    return change.mid is not None and near > abs(change.mid) * found.before_s / _SEEN


def tokeniser(pairs: Sequence[RowPair]) -> PhaseChange | None:
    """Return the change of the tokeniser's time over all tests of a comparison in launches, which is in no step.

    None where it did not change, or by less than a hundredth of the time to the first token.
    """
    told = [pair.turns for pair in pairs if pair.turns is not None]
    found = changes.of_turns(told, TOKENISE) if told and len(told) == len(pairs) else None
    firsts = [float(row.value) for pair in pairs if (row := pair.before.metrics.get("ttft_s")) is not None]
    if found is None or not found.moved or not firsts or abs(found.change_s) < _WORTH * fmean(firsts):
        return None
    return found


def _stored(phase: str, pairs: Sequence[RowPair], change: Judgement) -> PhaseChange | None:
    sides = [pair.taken_apart() for pair in pairs]
    before, after = ([one[side].get(phase) for one in sides] for side in (0, 1))
    doubt = changes.doubt(change)
    if None in before or None in after or doubt is None:
        return None
    return changes.of_stored(phase, mean_step(before), mean_step(after), doubt)


def mean_step(tests: Sequence[PhaseParts | None]) -> PhaseParts:
    """Return the mean of the steps that are known, with the error of each role's; one that a test lacks took 0 there.

    At least one must be known.
    """
    known = [one for one in tests if one is not None]
    by_role: dict[str, list[RolePart]] = {}
    for one in known:
        for part in one.parts:
            by_role.setdefault(part.role, []).append(part)
    parts = [
        RolePart(
            role=role,
            seconds=sum(part.seconds for part in found) / len(known),
            error_s=None if any(part.error_s is None for part in found) else _error(found, len(known)),
        )
        for role, found in by_role.items()
    ]
    observed = min(one.observed for one in known)
    return replace(known[0], observed=observed, step_s=fmean(one.step_s for one in known), parts=tuple(parts))


def _error(parts: Sequence[RolePart], of_tests: int) -> float:
    return math.hypot(*(part.error_s or 0.0 for part in parts)) / of_tests
