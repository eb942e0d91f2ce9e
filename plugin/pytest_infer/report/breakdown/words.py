"""The parts of a step's change in words."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_infer.analysis.breakdown.outcome import PhaseChange
from pytest_infer.metrics.breakdown import DECODE
from pytest_infer.units import seconds

ALIKE = "every part alike, as another machine, clock rate or compiler flag does it"
_NAMED = 2
"""So many roles a headline names; more are counted."""
_ROWS = 2
"""So many roles are shown below a figure that changed."""
_LITTLE = 0.05
"""By so much may parts exceed the whole, and be all of it."""
NOBODY = "no part carries it beyond doubt"


def carriers(change: PhaseChange) -> str:
    """Return which roles carry a change: `experts +5.40 ms of +5.60 (layers 12-23)`; nothing where none can be told.

    Where they changed by more than the whole did, the rest went the other way: `experts +6.99 ms, the rest −1.10 ms`.
    """
    if change.everywhere:
        return ALIKE
    named = [(f"{one.role} ", one.change_s, f" ({one.layers})" if one.layers else "") for one in change.named]
    return parts_of(named, change.change_s, most=_NAMED)


def parts_of(named: Sequence[tuple[str, float, str]], whole_s: float, *, most: int, per: str = "") -> str:
    """Return named parts of a change of `whole_s` seconds, each as (text before, seconds, text after), `most` of them.

    Named parts that come to the whole, as written or by little more, are all of it; where they or the first exceed it
    otherwise, the rest is told as well; else the first is told "of" the whole. `per` says of what: " a step".
    """
    if not named:
        return ""
    (before, took, after), *_ = named
    parts = [f"{role}{signed(seconds_)}{layers}" for role, seconds_, layers in named]
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    together = sum(seconds_ for _, seconds_, _ in named)
    of_whole = together / whole_s if whole_s else 0.0
    if signed(together) == signed(whole_s) or 1 < of_whole <= 1 + _LITTLE:
        if len(named) == 1:
            return f"{before}{signed(took)}{per}, all of it{after}"
        return f"{', '.join(parts[:most])}{more}{per}, all of it"
    if whole_s and max(of_whole, took / whole_s) > 1:
        return f"{', '.join(parts[:most])}{more}, the rest {signed(whole_s - together)}{per}"
    whole = signed(whole_s).removesuffix(f" {signed(took).split()[-1]}")
    parts[0] = f"{before}{signed(took)} of {whole}{after}"
    return f"{', '.join(parts[:most])}{more}{per}"


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
