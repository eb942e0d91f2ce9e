"""The charts of steps taken apart: bars by role, an icicle, layers as a heat map, each role against the limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_infer.analysis.breakdown.shares import PhaseShares, RoleShare
from pytest_infer.analysis.breakdown.steps import OTHERS, OUTSIDE, Layers, Step, folded
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.report.breakdown.terminal import LIMIT
from pytest_infer.report.html.parts import Cell, Chart, ColumnHead, Table, anchor, percent, points, short
from pytest_infer.units import NONE, Unit, scale_of, seconds

MOST_LAYERS = 20_000
"""Prompts are left out of the closer charts above so many numbers: the whole report must stay small."""
MOST_NAMED = 7
"""So many roles have a colour of their own."""
_FAR_APART = 8
"""Where steps are so many times longer than others, their shares are shown first."""
_TINTS = ("c1", "c2", "c3", "c4", "c6", "c7", "c8")
_FOLDED = {OTHERS: "c5", OUTSIDE: "c9"}
WHAT = {DECODE: "a decode step", PREFILL: "the prefill"}


def tints(named: Sequence[str]) -> dict[str, str]:
    """Return the colour of each named role, of the others, and of what is outside the model."""
    return {**dict(zip(named, _TINTS, strict=False)), **_FOLDED}


def bars(phase: str, steps: Sequence[Step], colours: Mapping[str, str], sides: tuple[str, str] | None) -> Chart:
    """Return a bar for each step, and where there are two `sides`, one for each of them, the earlier one above."""
    rows = [row for step in steps for row in _bars(step, sides)]
    unit, scale = scale_of([of.step_s for _, _, of in rows], Unit.SECONDS)
    named = [role for role in colours if role not in _FOLDED]
    parts = [folded(of, named) for _, _, of in rows]
    series = [
        {
            "name": role,
            "tint": tint,
            "values": points([sum(one.seconds for one in of[role]) for of in parts], scale),
            "shares": points([sum(one.share for one in of[role]) for of in parts], 0.01),
            "holds": [_held(of[role], scale, unit) if role in _FOLDED else "" for of in parts],
        }
        for role, tint in colours.items()
        if any(of[role] for of in parts)
    ]
    times, shares = {"name": "time", "unit": unit}, {"name": "shares", "unit": "%"}
    apart = max(of.step_s for _, _, of in rows) > _FAR_APART * min(of.step_s for _, _, of in rows)
    beside = "" if sides is None else f"; the upper bar of two is {sides[0]}, the lower one {sides[1]}"
    return Chart(
        key=f"roles-{phase}",
        title=f"{WHAT[phase].capitalize()} by role",
        says=f"Self time of a typical step, a bar a prompt{beside}. Roles below 2 % are in “{OTHERS}”.",
        data={
            "kind": "roles",
            "unit": unit,
            "choose": "bars",
            "choices": [shares, times] if apart else [times, shares],
            "names": [name for name, _, _ in rows],
            "sides": [side for _, side, _ in rows],
            "series": series,
        },
        table=_table(phase, rows, [str(one["name"]) for one in series], parts, unit, scale),
        define=(("self time", anchor("self-time")),),
    )


def _bars(step: Step, sides: tuple[str, str] | None) -> Iterator[tuple[str, str, PhaseShares]]:
    if sides is None or step.before is None:
        yield step.name, "" if sides is None else sides[1], step.after
        return
    yield step.name, sides[0], step.before
    yield step.name, sides[1], step.after


def _held(those: Sequence[RoleShare], scale: float, unit: str) -> str:
    return ", ".join(f"{one.role} {short(one.seconds, scale)} {unit}" for one in those)


def _table(
    phase: str,
    rows: Sequence[tuple[str, str, PhaseShares]],
    names: Sequence[str],
    parts: Sequence[Mapping[str, Sequence[RoleShare]]],
    unit: str,
    scale: float,
) -> Table:
    heads = (
        ColumnHead(text="prompt", number=False),
        *(ColumnHead(text=name, unit=unit) for name in (*names, "all")),
    )
    cells = tuple(
        (
            Cell(text=" · ".join(part for part in (name, side) if part)),
            *(Cell(text=short(sum(one.seconds for one in of[role]), scale)) for role in names),
            Cell(text=short(sum(one.seconds for those in of.values() for one in those), scale)),
        )
        for (name, side, _), of in zip(rows, parts, strict=True)
    )
    return Table(caption=f"{WHAT[phase].capitalize()} by role, {unit}", heads=heads, rows=cells)


def icicle(phase: str, steps: Sequence[Step], colours: Mapping[str, str]) -> Chart:
    """Return the step, below it what is inside and outside the model, then the roles, then their layers."""
    return Chart(
        key=f"icicle-{phase}",
        title=f"{WHAT[phase].capitalize()}, from the whole to the layers",
        says="Each width is a share of the whole; a role's layers stand below it where its time is in layers.",
        data={
            "kind": "icicle",
            "levels": 4 if any(step.layers for step in steps) else 3,
            "choices": [{"name": step.name, "nodes": [*_nodes(step, colours)]} for step in steps],
        },
        table=_shares_table(phase, steps),
        define=(("self time", anchor("self-time")),),
        group=f"step-{phase}",
        wide=True,
    )


def _nodes(step: Step, colours: Mapping[str, str]) -> Iterator[list[Any]]:
    """Yield level, start and end as shares of the whole, text, seconds, colour, and a layer's role."""
    inside = sum(one.share for one in step.after.model)
    whole = sum(one.seconds for one in (*step.after.model, *step.after.outside))
    yield _node(0, 0.0, 1.0, "step" if step.after.phase == DECODE else "prefill", whole, "")
    yield _node(1, 0.0, inside, "inside the model", inside * whole, "")
    yield _node(1, inside, 1.0, OUTSIDE, (1 - inside) * whole, _FOLDED[OUTSIDE])
    at = 0.0
    for one in (*step.after.model, *step.after.outside):
        other = OUTSIDE if one in step.after.outside else OTHERS
        tint = colours.get(one.role, _FOLDED[other])
        yield _node(2, at, at + one.share, one.role, one.seconds, tint)
        within = step.layers.get(one.role, {})
        # What a role took in no layer is not below it; layers that are longer than their role fill it.
        per_second = one.share / max(one.seconds, sum(within.values())) if one.seconds else 0.0
        left = at
        for layer in sorted(within):
            right = left + within[layer] * per_second
            yield _node(3, left, right, f"layer {layer}", within[layer], tint, one.role)
            left = right
        at += one.share


def _node(level: int, start: float, end: float, text: str, took: float, tint: str, of: str = "") -> list[Any]:
    return [level, *points([start, end], 1, 5), text, seconds(took), tint, of]


def _shares_table(phase: str, steps: Sequence[Step]) -> Table:
    roles = list(dict.fromkeys(role for step in steps for role in step.roles))
    shares = [{one.role: one.share for one in (*step.after.model, *step.after.outside)} for step in steps]
    heads = (ColumnHead(text="role", number=False), *(ColumnHead(text=step.name, unit="%") for step in steps))
    rows = tuple((Cell(text=role), *(Cell(text=percent(own.get(role))) for own in shares)) for role in roles)
    return Table(caption=f"Shares of {WHAT[phase]}", heads=heads, rows=rows)


def layers(phase: str, steps: Sequence[Step], sides: tuple[str, str] | None) -> Chart | None:
    """Return roles by layers, or how much longer each took on this side; None where no layer is known."""
    moved = sides is not None and any(step.layer_changes for step in steps)
    maps = [step.layer_changes if moved else step.layers for step in steps]
    values = [own for one in maps for of_role in one.values() for own in of_role.values()]
    if not values:
        return None
    unit, scale = scale_of([max(values, key=abs)], Unit.SECONDS)
    numbers = sorted({layer for one in maps for of_role in one.values() for layer in of_role})
    choices = []
    for step, one in zip(steps, maps, strict=True):
        ranked = _ranked(one)
        cells = [
            [numbers.index(layer), row, *points([one[role][layer]], scale)]
            for row, role in enumerate(ranked)
            for layer in sorted(one[role])
        ]
        choices.append({"name": step.name, "roles": ranked, "cells": cells})
    told = f"{sides[1]} less {sides[0]}" if moved and sides is not None else "seconds of a typical step"
    return Chart(
        key=f"layers-{phase}",
        title=f"{WHAT[phase].capitalize()} by role and layer, {'change in ' if moved else ''}{unit}",
        says=f"Colour: {told}; what is in no numbered layer, as the head, has no row.",
        data={
            "kind": "layers",
            "unit": unit,
            "layers": [str(number) for number in numbers],
            "change": moved,
            "choices": choices,
        },
        table=_layers_table(steps, maps, numbers, unit, scale),
        define=(("self time", anchor("self-time")),),
        group=f"step-{phase}",
    )


def _ranked(one: Layers) -> list[str]:
    return sorted(one, key=lambda role: -sum(map(abs, one[role].values())))


def _layers_table(
    steps: Sequence[Step], maps: Sequence[Layers], numbers: Sequence[int], unit: str, scale: float
) -> Table:
    several = len(steps) > 1
    heads = (
        *([ColumnHead(text="prompt", number=False)] if several else []),
        ColumnHead(text="role", number=False),
        *(ColumnHead(text=f"layer {number}") for number in numbers),
    )
    rows = tuple(
        (
            *([Cell(text=step.name)] if several else []),
            Cell(text=role),
            *(Cell(text=short(one[role].get(number), scale)) for number in numbers),
        )
        for step, one in zip(steps, maps, strict=True)
        for role in _ranked(one)
    )
    return Table(caption=f"Self time by role and layer, {unit}", heads=heads, rows=rows)


def reach(phase: str, steps: Sequence[Step], colours: Mapping[str, str], sides: tuple[str, str] | None) -> Chart | None:
    """Return a dot a role: its share of the step and how much of the limit it uses; None where no use is known."""
    choices = [{"name": step.name, "points": _dots(step, colours)} for step in steps]
    if not any(choice["points"] for choice in choices):
        return None
    limit = LIMIT[phase].removeprefix("of ")
    without = dict.fromkeys(
        one.role for step in steps for one in step.after.model if one.used is None and one.share >= 0.005
    )
    left_out = f" No figure for {', '.join(without)}." if without else ""
    hollow = f" Hollow dots are {sides[0]}." if sides is not None and any(step.before for step in steps) else ""
    return Chart(
        key=f"reach-{phase}",
        title=f"Each role against {limit}",
        says=f"Far to the right and low: worth optimising. High: done.{hollow}{left_out}",
        data={
            "kind": "reach",
            "x": {"name": f"share of {WHAT[phase]}", "unit": "%"},
            "y": {"name": f"share of {limit}", "unit": "%"},
            "sides": list(sides or ()),
            "choices": choices,
        },
        table=_reach_table(steps, limit),
        define=(("share of the limit", anchor("limit")),),
        group=f"step-{phase}",
    )


def _dots(step: Step, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    before = {} if step.before is None else {one.role: one for one in step.before.model}
    found = []
    for one in step.after.model:
        if one.used is None:
            continue
        other = before.get(one.role)
        known = other is not None and other.used is not None
        found.append(
            {
                "name": one.role,
                "tint": colours.get(one.role, _FOLDED[OTHERS]),
                "at": points([one.share, one.used], 0.01),
                "was": points([other.share, other.used], 0.01) if known and other is not None else None,
                "took": seconds(one.seconds),
            }
        )
    return found


def _reach_table(steps: Sequence[Step], limit: str) -> Table:
    rows = tuple(
        (
            Cell(text=step.name),
            Cell(text=one.role),
            Cell(text=percent(one.share)),
            Cell(text=NONE if one.used is None else percent(one.used)),
        )
        for step in steps
        for one in step.after.model
    )
    heads = (
        ColumnHead(text="prompt", number=False),
        ColumnHead(text="role", number=False),
        ColumnHead(text="share", unit="%", define=anchor("self-time")),
        ColumnHead(text=f"of {limit}", unit="%", define=anchor("limit")),
    )
    return Table(caption=f"Share of {limit} by role", heads=heads, rows=rows)
