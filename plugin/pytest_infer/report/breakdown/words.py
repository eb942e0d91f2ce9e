"""The parts of a step's change in words."""

from __future__ import annotations

from pytest_infer.analysis.breakdown.outcome import PhaseChange, RoleChange
from pytest_infer.units import seconds

ALIKE = "every part alike, as another machine, clock rate or compiler flag does it"
_NAMED = 2
"""So many roles a headline names; more are counted."""
_ROWS = 2


def carriers(change: PhaseChange) -> str:
    """Return which roles carry a change: `experts +5.4 of +5.6 ms (layers 12-23)`; nothing where none can be told."""
    if change.everywhere:
        return ALIKE
    named = change.named
    if not named:
        return ""
    whole = f" of {signed(change.change_s)}"
    parts = [f"{one.role} {signed(one.change_s)}{'' if n else whole}{_in_layers(one)}" for n, one in enumerate(named)]
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more


def rows(change: PhaseChange) -> list[str]:
    """Return the lines below a figure that changed: what the largest parts took before and after, and all others."""
    what = "step" if change.phase == "decode" else change.phase
    if change.everywhere:
        first = f"where: {ALIKE}"
    elif change.named:
        first = f"where: {carriers(change)}, a {what} of {seconds(change.before_s)}"
    else:
        first = f"where: no part of a {what} carries it beyond doubt"
    lines = [first]
    for one in change.roles[:_ROWS]:
        interval = f"[{_number(one.low_s, one.high_s)}]"
        lines.append(f"{one.role}: {seconds(one.before_s)} → {seconds(one.after_s)}, {signed(one.change_s)} {interval}")
    return lines


def signed(value: float) -> str:
    """Return a change of time with its sign: `+5.40 ms`, `−12.0 µs`."""
    return f"{'−' if value < 0 else '+'}{seconds(abs(value))}"


def _in_layers(one: RoleChange) -> str:
    return f" ({one.layers})" if one.layers else ""


def _number(low: float, high: float) -> str:
    return f"{signed(low)}, {signed(high)}"
