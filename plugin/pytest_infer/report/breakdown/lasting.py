"""Which role carried a change point, in words."""

from __future__ import annotations

from pytest_infer.analysis.breakdown.lasting import Lasting
from pytest_infer.metrics.breakdown import DECODE
from pytest_infer.report.breakdown.words import NOBODY, signed

_MOST = 3


def in_words(found: Lasting) -> str:
    """Return the roles with their part of the change: "experts +5.40 ms of +5.60 ms a step"."""
    if not found.roles:
        return NOBODY
    roles = [f"{one.role} {signed(one.after_s - one.before_s)}" for one in found.roles[:_MOST]]
    whole = signed(found.after_s - found.before_s)
    return f"{', '.join(roles)} of {whole}{' a step' if found.phase == DECODE else ''}"
