"""Which role carried a change point, in words."""

from __future__ import annotations

from pytest_infer.analysis.breakdown.lasting import Lasting
from pytest_infer.metrics.breakdown import DECODE
from pytest_infer.report.breakdown.words import NOBODY, parts_of

_MOST = 3


def in_words(found: Lasting) -> str:
    """Return the roles with their part of the change: "experts +5.40 ms of +5.60 a step"."""
    if not found.roles:
        return NOBODY
    roles = [(f"{one.role} ", one.after_s - one.before_s, "") for one in found.roles]
    per = " a step" if found.phase == DECODE else ""
    return parts_of(roles, found.after_s - found.before_s, most=_MOST, per=per)
