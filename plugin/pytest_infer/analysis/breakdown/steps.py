"""Steps as pictures show them: by role and layer, beside those of another side, and small roles folded together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.breakdown import carried, changes, shares
from pytest_infer.analysis.breakdown.carried import mean_step
from pytest_infer.analysis.breakdown.shares import PhaseShares, RoleShare
from pytest_infer.metrics.breakdown import PHASES
from pytest_infer.records import OUTSIDE as OUTSIDE_ROLES
from pytest_infer.records import Turns
from pytest_infer.storage import sidecar

if TYPE_CHECKING:
    from pytest_infer.analysis.breakdown.outcome import PhaseChange
    from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange
    from pytest_infer.metrics.result import Result

OTHERS, OUTSIDE = "others", "outside the model"
_SMALL = 0.02

Layers = Mapping[str, Mapping[int, float]]
"""Seconds of a step by role and the number of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Tests of one run with the arrays beside its file."""

    results: Sequence[Result]
    arrays: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The step of a phase of one test, or the mean of several, and that of the other side where there is one.

    `change` has intervals, where it is known how far runs or launches scatter. `layers` are those of this side, and
    `layer_changes` how much longer each role took in each than on the other one; empty where that is not kept.
    """

    name: str
    after: PhaseShares
    before: PhaseShares | None = None
    change: PhaseChange | None = None
    layers: Layers = field(default_factory=dict)
    layer_changes: Layers = field(default_factory=dict)

    @property
    def sides(self) -> tuple[PhaseShares, ...]:
        """Return the other side's step, if there is one, and this one's."""
        return (self.after,) if self.before is None else (self.before, self.after)

    @property
    def roles(self) -> list[str]:
        """Return the roles of both sides, those of the model first, then those outside, the largest first."""
        most: dict[str, float] = {}
        for one in (one for side in self.sides for one in (*side.model, *side.outside)):
            most[one.role] = max(most.get(one.role, 0.0), one.seconds)
        return sorted(most, key=lambda role: (role in OUTSIDE_ROLES, -most[role]))


def of_runs(name: str, phase: str, after: Side, before: Side | None = None, doubt: float | None = None) -> Step | None:
    """Return the mean step of a side's tests beside the same tests of an earlier run; None where nothing is known.

    `doubt` is what `changes.of_stored` calls so; with it the change has intervals.
    """
    own = _shares(after.results, phase)
    if own is None:
        return None
    layers = _layers(after, phase)
    there = None if before is None else _shares(before.results, phase)
    if before is None or there is None:
        return Step(name=name, after=own, layers=layers)
    change = None
    if doubt is not None:
        was, now = (mean_step([one.breakdown.get(phase) for one in side.results]) for side in (before, after))
        change = changes.of_stored(phase, was, now, doubt)
    moved = _difference(_layers(before, phase), layers)
    return Step(name=name, after=own, before=there, change=change, layers=layers, layer_changes=moved)


def of_turns(name: str, phase: str, tests: Sequence[Turns], moved: Judgement | None = None) -> Step | None:
    """Return the mean step of tests whose sides took turns of a token; None where one was not taken apart.

    `moved` is their figure, if it is known to have changed: roles are then named as the headline does.
    """
    change = changes.of_turns(tests, phase)
    if moved is not None and change is not None:
        told = carried.in_turns(tests, phase, moved, slower=(moved.mid or 0.0) > 0)
        change = replace(change, roles=tuple(replace(one, named=False) for one in change.roles), everywhere=False)
        change = told or change
    if change is None or not 0 < min(change.before_s, change.after_s) < math.inf:
        return None
    shifts: dict[str, dict[int, float]] = {}
    for one in (one for turns in tests for one in turns.parts[phase]):
        for layer, differences in zip(one.layers, one.layer_change_ns, strict=False):
            of_role = shifts.setdefault(one.role, {})
            of_role[layer] = of_role.get(layer, 0.0) + fmean(differences) / 1e9 / len(tests)
    before, after = (
        _plain(phase, len(tests), {one.role: getattr(one, side) for one in change.roles})
        for side in ("before_s", "after_s")
    )
    return Step(name=name, after=after, before=before, change=change, layer_changes=shifts)


def doubts(judgements: Iterable[Judgement], suite: Iterable[SuiteChange]) -> dict[tuple[str, str], float]:
    """Return by test and phase what `changes.of_stored` calls the doubt; under "" that of the mean of the suite."""
    every = ((of, changes.doubt(j)) for of, j in _leading(judgements, suite))
    return {of: doubt for of, doubt in every if doubt is not None}


def moved(judgements: Iterable[Judgement], suite: Iterable[SuiteChange]) -> dict[tuple[str, str], Judgement]:
    """Return by test and phase its figure, where its interval excludes 0; under "" the suite's."""
    return {of: j for of, j in _leading(judgements, suite) if (j.low or 0.0) > 0 or (j.high or 0.0) < 0}


def _leading(
    judgements: Iterable[Judgement], suite: Iterable[SuiteChange]
) -> Iterator[tuple[tuple[str, str], Judgement]]:
    """Yield the judgements that tell of a phase, with their test and phase."""
    phases = {fact.lead: phase for fact, phase in PHASES.items()}
    for test, j in (*((j.test, j) for j in judgements), *(("", change.judgement) for change in suite)):
        if j.metric_key in phases:
            yield (test, phases[j.metric_key]), j


def worth(steps: Iterable[Step], most: int) -> tuple[str, ...]:
    """Return the roles of the model that get a name in pictures of all steps: the largest, 2 % of some step or more."""
    found: dict[str, float] = {}
    for one in (one for step in steps for side in step.sides for one in side.model):
        found[one.role] = max(found.get(one.role, 0.0), one.share)
    ranked = sorted((role for role in found if found[role] >= _SMALL), key=lambda role: -found[role])
    return tuple(ranked[:most])


def folded(of: PhaseShares, named: Sequence[str]) -> dict[str, list[RoleShare]]:
    """Return what a bar shows, in order: each named role, the others of the model, and what is outside it."""
    own = {one.role: one for one in of.model}
    return {
        **{role: [own[role]] if role in own else [] for role in named},
        OTHERS: [one for one in of.model if one.role not in named],
        OUTSIDE: [*of.outside],
    }


def _shares(results: Sequence[Result], phase: str) -> PhaseShares | None:
    """Return the shares of a phase; None where there are none, or of a damaged file whose times no sum can hold."""
    try:
        found = shares.of(results, phase)
    except OverflowError:
        return None
    whole = 0.0 if found is None else sum(one.seconds for one in (*found.model, *found.outside))
    return found if found is not None and 0 < whole < math.inf and 0 < found.step_s < math.inf else None


def _plain(phase: str, tests: int, seconds: Mapping[str, float]) -> PhaseShares:
    """Return the shares of a step of which nothing else is known."""
    whole = sum(max(0.0, own) for own in seconds.values())
    every = [
        RoleShare(role=role, seconds=max(0.0, own), share=max(0.0, own) / whole, used=None)
        for role, own in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return PhaseShares(
        phase=phase,
        tests=tests,
        step_s=whole,
        model=tuple(one for one in every if one.role not in OUTSIDE_ROLES),
        outside=tuple(one for one in every if one.role in OUTSIDE_ROLES),
        cost=0.0,
        missed=None,
        adds_up=None,
    )


def _layers(side: Side, phase: str) -> dict[str, dict[int, float]]:
    """Return the mean of the tests by role and layer; a test without one took 0 there, damaged arrays are none."""
    tests = [(one.nodeid, parts) for one in side.results if (parts := one.breakdown.get(phase)) is not None]
    found: dict[str, dict[int, float]] = {}
    for nodeid, parts in tests:
        for role in (part.role for part in parts.parts):
            for layer, seconds in _known(side.arrays.get(sidecar.layers_key(nodeid, phase, role))):
                of_role = found.setdefault(role, {})
                of_role[layer] = of_role.get(layer, 0.0) + seconds / len(tests)
    return found


def _known(array: Any) -> list[tuple[int, float]]:
    if array is None or len(array) != 2:
        return []
    pairs = zip(*array.tolist(), strict=True)
    return [(int(layer), max(0.0, own)) for layer, own in pairs if math.isfinite(layer) and math.isfinite(own)]


def _difference(before: Layers, after: Layers) -> dict[str, dict[int, float]]:
    """Return after − before where both sides know their layers; a role that one side does not have took 0 there."""
    if not before or not after:
        return {}
    return {
        role: {
            layer: after.get(role, {}).get(layer, 0.0) - before.get(role, {}).get(layer, 0.0)
            for layer in sorted({*before.get(role, {}), *after.get(role, {})})
        }
        for role in dict.fromkeys((*after, *before))
    }
