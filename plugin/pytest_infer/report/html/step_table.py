"""The table of a step by role: what each took, before and after where there are two sides, and of what limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_infer.analysis.breakdown.outcome import PhaseChange, RoleChange
from pytest_infer.analysis.breakdown.shares import PhaseShares, RoleShare
from pytest_infer.analysis.breakdown.steps import Step
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.report.breakdown.terminal import LIMIT
from pytest_infer.report.html.parts import Cell, ColumnHead, Table, anchor, percent, short
from pytest_infer.units import NONE, Unit, scale_of

TITLES = {DECODE: "A decode step", PREFILL: "Prefill"}
ALL = "all prompts"
_SMALL = 0.0005
"""A role below this share on all sides has no row."""


@dataclass(frozen=True, slots=True)
class _Column:
    head: ColumnHead
    cell: Callable[[str], Cell]
    total: str = ""


def table(phase: str, step: Step, sides: tuple[str, str] | None) -> Table:
    """Return the roles of a step, a row each, those outside the model last, and their sum."""
    unit, scale = scale_of([one.step_s for one in step.sides], Unit.SECONDS)
    two = step.before is not None and sides is not None
    columns = [
        _Column(ColumnHead(text="role", number=False, define=anchor("self-time")), lambda role: Cell(text=role), "all"),
        *(_two_sides(step, unit, scale) if two else _one_side(step, unit, scale)),
        *_limit(phase, step),
        *(_carrying(step.change) if two and step.change is not None and step.change.named else []),
    ]
    both = [_by_role(side) for side in step.sides]
    roles = [one for one in step.roles if max(side[one].share if one in side else 0.0 for side in both) >= _SMALL]
    rows = [tuple(column.cell(role) for column in columns) for role in roles]
    total = tuple(Cell(text=column.total) for column in columns)
    means = [f"mean of {step.after.tests} prompts"] if step.after.tests > 1 else []
    names = [step.name] if step.name != ALL else []
    beside = f": {sides[0]} → {sides[1]}" if two and sides is not None else ""
    return Table(
        caption=f"{', '.join((f'{TITLES[phase]} by role', *names, *means))}{beside}",
        heads=tuple(column.head for column in columns),
        rows=(*rows, total),
        foot=1,
    )


def _by_role(side: PhaseShares) -> dict[str, RoleShare]:
    return {one.role: one for one in (*side.model, *side.outside)}


def _one_side(step: Step, unit: str, scale: float) -> list[_Column]:
    return [_took("time", step.after, unit, scale), _share(step.after)]


def _two_sides(step: Step, unit: str, scale: float) -> list[_Column]:
    before, after = step.sides
    first, last = _by_role(before), _by_role(after)
    known = {} if step.change is None else {one.role: one for one in step.change.roles}

    def changed(role: str) -> Cell:
        own = known.get(role)
        if own is not None:
            look = "" if not own.named else "worse" if own.change_s > 0 else "better"
            return Cell(text=_interval(own, scale), look=look)
        ends = [side[role].seconds if role in side else 0.0 for side in (first, last)]
        return Cell(text=_signed(ends[1] - ends[0], scale))

    whole = sum(one.seconds for one in last.values()) - sum(one.seconds for one in first.values())
    total = _signed(whole, scale) if step.change is None else _interval(step.change, scale)
    return [
        _took("before", before, unit, scale),
        _took("after", after, unit, scale),
        _Column(ColumnHead(text="change", unit=unit, define=anchor("role-change")), changed, total),
        _share(after),
    ]


def _took(name: str, side: PhaseShares, unit: str, scale: float) -> _Column:
    known = _by_role(side)
    total = short(sum(one.seconds for one in known.values()), scale)
    return _Column(
        ColumnHead(text=name, unit=unit),
        lambda role: Cell(text=short(known[role].seconds if role in known else 0.0, scale)),
        total,
    )


def _share(side: PhaseShares) -> _Column:
    known = _by_role(side)
    return _Column(
        ColumnHead(text="share", unit="%"),
        lambda role: Cell(text=percent(known[role].share if role in known else 0.0)),
    )


def _limit(phase: str, step: Step) -> list[_Column]:
    """Return how much of the limit each role uses, on every side; nothing where none is known."""
    if not any(one.used is not None for side in step.sides for one in side.model):
        return []
    sides = [_by_role(side) for side in step.sides]

    def used(role: str) -> Cell:
        told = [NONE if role not in side else percent(side[role].used) for side in sides]
        return Cell(text=NONE if {*told} == {NONE} else " → ".join(told))

    return [_Column(ColumnHead(text=LIMIT[phase], unit="%", define=anchor("limit")), used)]


def _carrying(change: PhaseChange) -> list[_Column]:
    named = {one.role: one for one in change.named}

    def carries(role: str) -> Cell:
        one = named.get(role)
        if one is None:
            return Cell(text="")
        where = f" in {one.layers}" if one.layers else ""
        return Cell(text=f"carries it{where}", look=f"pill {'regressed' if one.change_s > 0 else 'improved'}")

    return [_Column(ColumnHead(text="the change", number=False, define=anchor("role-change")), carries)]


def _interval(change: RoleChange | PhaseChange, scale: float) -> str:
    return f"[{' '.join(_signed(value, scale) for value in (change.low_s, change.change_s, change.high_s))}]"


def _signed(value: float, scale: float) -> str:
    return f"{'−' if value < 0 else '+'}{short(abs(value), scale)}"
