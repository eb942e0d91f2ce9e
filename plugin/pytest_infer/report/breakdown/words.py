"""The parts of a step's change in words."""

from __future__ import annotations

from pytest_infer.analysis.breakdown.outcome import PhaseChange, RoleChange
from pytest_infer.metrics.breakdown import DECODE
from pytest_infer.units import seconds

ALIKE = "every part alike, as another machine, clock rate or compiler flag does it"
_NAMED = 2
"""So many roles a headline names; more are counted."""
_ROWS = 2
"""So many roles are shown below a figure that changed."""
NOBODY = "no part carries it beyond doubt"


def carriers(change: PhaseChange) -> str:
    """Return which roles carry a change: `experts +5.40 ms of +5.60 (layers 12-23)`; nothing where none can be told."""
    if change.everywhere:
        return ALIKE
    named = change.named
    if not named:
        return ""
    parts = [f"{one.role} {signed(one.change_s)}{_in_layers(one)}" for one in named]
    first, unit = signed(named[0].change_s), signed(named[0].change_s).split()[-1]
    whole = signed(change.change_s).removesuffix(f" {unit}")
    parts[0] = f"{named[0].role} {first} of {whole}{_in_layers(named[0])}"
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more


def rows(change: PhaseChange) -> list[str]:
    """Return the lines below: what the parts that changed most took before and after."""
    return [
        f"{one.role}: {seconds(one.before_s)} → {seconds(one.after_s)} a {_what(change)}, {signed(one.change_s)} "
        f"[{signed(one.low_s)}, {signed(one.high_s)}]"
        for one in change.roles[:_ROWS]
    ]


def _what(change: PhaseChange) -> str:
    return "step" if change.phase == DECODE else change.phase


def signed(value: float) -> str:
    """Return a change of time with its sign: `+5.40 ms`, `−12.0 µs`."""
    return f"{'−' if value < 0 else '+'}{seconds(abs(value))}"


def _in_layers(one: RoleChange) -> str:
    return f" ({one.layers})" if one.layers else ""
