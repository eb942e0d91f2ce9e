"""Lasting changes as events: what moved together since one run, and not figure by figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from pytest_infer.analysis.breakdown.lasting import CarryingRole, Lasting
from pytest_infer.metrics import Fact, Kind, Metric

if TYPE_CHECKING:
    from pytest_infer.analysis.history.trends import Series, Shift
    from pytest_infer.storage.runs import Run

_NEAR = 2
"""So many runs apart may two series place one change, since noise moves the place that fits best."""
_TAILS = frozenset({"itl_p90_s", "itl_p95_s", "itl_p99_s", "itl_max_s"})
"""Of a step's length: no fact of their own, they follow decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One fact that changed one way, by the figure that speaks for it: a shift a test, of `of` tests that have it."""

    metric: Metric
    shifts: tuple[Shift, ...]
    of: int

    @property
    def worse(self) -> bool | None:
        """Return whether it is for the worse; None where neither way is better, or all of it is in doubt."""
        return next((shift.worse for shift in self.shifts if shift.worse is not None), None)

    @property
    def changes(self) -> tuple[float, float]:
        """Return the least and the most change of a test."""
        found = sorted((shift.point.change for shift in self.shifts), key=abs)
        return found[0], found[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What carried an event's change of a step: the mean of `tests` of the `of` tests whose steps tell it."""

    change: Lasting
    tests: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What has been at another level since `run`, or was for the `runs` until it was undone, the largest change first.

    `before` and `since` count the runs on the two levels that were compared. `carried` says what carried it, for each
    phase in which runs that took steps apart tell it.
    """

    run: Run
    moved: tuple[Moved, ...]
    before: int
    since: int
    runs: int
    p: float
    until: Run | None = None
    carried: tuple[Carried, ...] = ()

    @property
    def worse(self) -> bool | None:
        """Return whether anything of it is for the worse, None where nothing is either way."""
        known = [one.worse for one in self.moved if one.worse is not None]
        return any(known) if known else None

    @property
    def doubt(self) -> str | None:
        """Return why it may be the machine's, where all of its shifts are in doubt."""
        doubts = [shift.doubt for one in self.moved for shift in one.shifts]
        return doubts[0] if all(doubts) else None


def events(shifts: Sequence[Shift], series: Series, runs: Sequence[Run]) -> tuple[Event, ...]:
    """Return the shifts as events, in the order of time; `runs` are those of the series, oldest first.

    Shifts since one run are one event, but for those that were undone, which are another. Where two series place one
    change some runs apart, those of the fewer join those of the more if they tell the same facts, the same way, and no
    figure of a test shifts in both.
    """
    place = {run.path: number for number, run in enumerate(runs)}
    groups: dict[int, list[Shift]] = {}
    for shift in shifts:
        groups.setdefault(place[shift.run.path], []).append(shift)
    for at in sorted(groups, key=lambda one: (len(groups[one]), one)):
        # Of those that joined it each stays as near to where it was placed: what undid one is always later.
        own = {place[shift.run.path] for shift in groups[at]}
        near = [other for other in groups if other != at and all(abs(other - one) <= _NEAR for one in own)]
        joins = [other for other in near if _same(groups[at], groups[other])]
        if joins:
            groups[max(joins, key=lambda other: (len(groups[other]), -abs(other - at)))] += groups.pop(at)
    counted = Counter(key for _, key in series)
    return tuple(event for at, found in sorted(groups.items()) for event in _events(runs[at:], found, counted))


def _way(shift: Shift) -> bool:
    """Return whether more time or memory is taken: of a rate, which is better if higher, whether it fell."""
    return (shift.point.change > 0) != (shift.metric.kind is Kind.TIMED and shift.metric.direction.value == "higher")


def facts(metric: Metric) -> tuple[Fact | str, ...]:
    """Return the facts that a metric tells: its own with its parts, or none but itself."""
    fact = Fact.DECODE if metric.key in _TAILS else metric.fact
    return (metric.key,) if fact is None else (fact, *fact.parts)


def _told(shift: Shift) -> set[tuple[Fact | str, bool]]:
    """Return the facts that a shift tells, each with its way."""
    return {(one, _way(shift)) for one in facts(shift.metric)}


def _same(few: Iterable[Shift], many: Iterable[Shift]) -> bool:
    told = set().union(*map(_told, many))
    taken = {(shift.test, shift.metric.key) for shift in many}
    return all(_told(shift) & told and (shift.test, shift.metric.key) not in taken for shift in few)


def _events(runs: Sequence[Run], found: Sequence[Shift], counted: Mapping[str, int]) -> Iterator[Event]:
    """Yield what was undone of a group of shifts, then what lasts; `runs` are those since."""
    moved = _told_apart(found, counted)
    for lasts in (False, True):
        parts = [
            replace(one, shifts=those)
            for one in moved
            if (those := tuple(shift for shift in one.shifts if (shift.until is None) is lasts))
        ]
        if not parts:
            continue
        parts.sort(key=lambda one: (one.worse is not True, -len(one.shifts) * abs(fmean(one.changes))))
        mine = [shift for shift in found if (shift.until is None) is lasts]
        surest = min(mine, key=lambda shift: shift.point.p)
        ends = [runs.index(shift.until) for one in parts for shift in one.shifts if shift.until is not None]
        yield Event(
            run=runs[0],
            moved=tuple(parts),
            before=surest.before,
            since=surest.since,
            runs=max(ends, default=len(runs)),
            p=surest.point.p,
            until=runs[max(ends)] if ends else None,
            carried=tuple(one for phase in ("prefill", "decode") if (one := _carried(phase, mine)) is not None),
        )


def _told_apart(found: Sequence[Shift], counted: Mapping[str, int]) -> list[Moved]:
    """Return the facts that changed, each once."""
    by_fact: dict[tuple[Fact | str, bool], list[Shift]] = {}
    for shift in found:
        fact = shift.metric.fact if shift.metric.fact is not None else shift.metric.key
        by_fact.setdefault((fact, _way(shift)), []).append(shift)
    moved = []
    for (fact, way), those in by_fact.items():
        parts = [Fact.DECODE] if fact in _TAILS else [] if not isinstance(fact, Fact) else list(fact.parts)
        # A total moves because a part of it does, and a tail because all steps do.
        if not any((part, way) in by_fact for part in parts):
            moved.append(_moved(fact, those, counted))
    return moved


def _moved(fact: Fact | str, shifts: Sequence[Shift], counted: Mapping[str, int]) -> Moved:
    """Return what one metric says of a fact: the one that speaks for it, or else the one of the most tests."""
    keys = Counter(shift.metric.key for shift in shifts)
    lead = fact.lead if isinstance(fact, Fact) and fact.lead in keys else keys.most_common(1)[0][0]
    those = tuple(shift for shift in shifts if shift.metric.key == lead)
    return Moved(metric=those[0].metric, shifts=those, of=counted[lead])


def _carried(phase: str, shifts: Sequence[Shift]) -> Carried | None:
    """Return the mean change of the tests' steps with the roles that carried it in most of them."""
    known: dict[str, Lasting] = {}
    for shift in shifts:
        if shift.carried is not None and shift.carried.phase == phase:
            known.setdefault(shift.test, shift.carried)
    times = Counter(one.role for change in known.values() for one in change.roles)
    named = [role for role, count in times.most_common() if 2 * count > len(known)]
    those = [change for change in known.values() if {*named} <= {one.role for one in change.roles}]
    if not those:
        return None
    roles = [_mean(role, those) for role in named]
    roles.sort(key=lambda one: -abs(one.after_s - one.before_s))
    ends = [fmean(getattr(change, end) for change in those) for end in ("before_s", "after_s")]
    change = Lasting(phase=phase, before_s=ends[0], after_s=ends[1], roles=tuple(roles))
    return Carried(change=change, tests=len(those), of=len(known))


def _mean(role: str, those: Sequence[Lasting]) -> CarryingRole:
    mine = [one for change in those for one in change.roles if one.role == role]
    return CarryingRole(role=role, before_s=fmean(x.before_s for x in mine), after_s=fmean(x.after_s for x in mine))
