"""Whether disturbed rounds show in the times of a test: most disturbances are too short to matter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeVar

from pytest_infer.records import WarningKind

HARMLESS = 0.02
"""What times differ by without anybody calling it a change."""
WANTED = 0.05
"""The change that a gate looks for by default."""


def shows(totals: Sequence[float], disturbed: Collection[int]) -> bool:
    """Return whether disturbed rounds, by their numbers, show in the totals of all rounds that count.

    Where two rounds or more were not disturbed: whether a disturbed one took longer than all of these by more than they
    differ among themselves, and by more than 2 %. Where fewer were: whether the rounds scatter so much that twice the
    standard error of their mean is above 5 %. A single round has nothing that it could show in.
    """
    marked = [total for number, total in enumerate(totals) if number in disturbed]
    calm = [total for number, total in enumerate(totals) if number not in disturbed]
    if not marked or len(totals) < 2:
        return False
    if len(calm) > 1:
        return max(marked) > max(calm) + max(max(calm) - min(calm), HARMLESS * max(calm))
    return 2 * statistics.stdev(totals) > WANTED * statistics.fmean(totals) * math.sqrt(len(totals))


def unseen(totals: Sequence[float], disturbed: Collection[int]) -> bool:
    """Return whether the only round was disturbed, so that nothing tells by how much."""
    return len(totals) == 1 and bool(disturbed)


class _Warning(Protocol):
    @property
    def kind(self) -> str: ...


W = TypeVar("W", bound=_Warning)


def apart(
    warnings: Iterable[W], totals: Sequence[float], disturbed: Collection[int]
) -> tuple[tuple[W, ...], tuple[W, ...]]:
    """Return the warnings that a reader must know, and those of disturbed rounds that do not show."""
    found = tuple(warnings)
    if shows(totals, disturbed):
        return found, ()
    quiet = tuple(warning for warning in found if warning.kind == WarningKind.DISTURBED)
    return tuple(warning for warning in found if warning.kind != WarningKind.DISTURBED), quiet
