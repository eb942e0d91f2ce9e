"""One value with its source, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Quality(StrEnum):
    """How a value was obtained; a bound is the least that it can be."""

    EXACT = "exact"
    BOUND = "lower bound"
    SAMPLED = "sampled"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value and its source, or the reason why there is none: absent is never 0."""

    value: int | float | None
    source: str
    quality: Quality = Quality.EXACT
    reason: str | None = None


def absent(reason: str, source: str = "none") -> Reading:
    """Return a reading without a value, for the reason given."""
    return Reading(value=None, source=source, reason=reason)


NOT_READ = absent("this version of pytest-infer did not read it")
"""What older run files and journals lack."""
