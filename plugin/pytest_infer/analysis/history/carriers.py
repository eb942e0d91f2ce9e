"""Which roles carried a change point, from the steps that the runs on both sides of it took apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_infer.analysis.breakdown.stored import Taken
from pytest_infer.metrics import Direction, Metric
from pytest_infer.metrics.breakdown import PHASES, PhaseParts

if TYPE_CHECKING:
    from pytest_infer.analysis.breakdown.lasting import Lasting

MOST_RUNS = 40
"""So many runs of a side, the nearest to the change, tell what a step took there: a mean of more is hardly closer."""


def carried(
    taken: Taken, test: str, metric: Metric, change: float, sides: tuple[Sequence[Path], Sequence[Path]]
) -> Lasting | None:
    """Return what carried a change of a test's metric between the runs of two sides, which are files, oldest first.

    None where the metric is not a step's, where too few runs took it apart, or where the steps taken apart did not
    change the same way.
    """
    phase = None if metric.fact is None else PHASES.get(metric.fact)
    if phase is None:
        return None
    # Imported late: it needs what only a change point needs.
    from pytest_infer.analysis.breakdown.lasting import lasting  # noqa: PLC0415

    def steps(nearest_first: Iterable[Path]) -> list[PhaseParts]:
        found = (taken.of_run(path).get(test, {}).get(phase) for path in nearest_first)
        return list(islice((parts for parts in found if parts is not None), MOST_RUNS))

    found = lasting(phase, steps(reversed(sides[0])), steps(sides[1]))
    if found is None:
        return None
    longer = (change > 0) == (metric.direction is Direction.LOWER)
    return found if longer == (found.after_s > found.before_s) else None
