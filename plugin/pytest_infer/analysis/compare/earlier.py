"""Earlier runs that a comparison may learn from: which they are, and how far runs of the same code lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_infer.analysis.compare import fingerprint, possible, stats
from pytest_infer.analysis.compare.verdicts import Evidence
from pytest_infer.metrics import Metric
from pytest_infer.storage.runs import Row, Run

HISTORY = 10
"""So many comparable runs, the newest, tell the run-to-run spread."""

SEARCHED = 40
"""Among so many, the newest, they are looked for: to read all of a long history takes seconds."""

ENOUGH_HISTORY = 5
"""Below so many the spread is assumed, which can show a change but never that there is none."""

ASSUMED_SPREAD = 0.05
"""Standard deviation from run to run where history does not tell it: the largest in docs/statistics.md's table."""


def comparable_history(row: Row, runs: Sequence[Run]) -> tuple[Row, ...]:
    """Return the newest rows of the same test that do not differ from `row` in what matters, oldest first.

    Runs that failed their gate or that test are left out, and so is what cannot be read or cannot have been measured.
    """
    found: list[Row] = []
    for run in reversed(runs[-SEARCHED:]):
        if len(found) == HISTORY:
            break
        if run.regressed or not run.readable:
            continue
        other = next((one for one in run.rows if one.test == row.test), None)
        if other is not None and possible.impossible(other) is None and not fingerprint.differences(other, row):
            found.append(other)
    return tuple(reversed(found))


def number(row: Row, metric: Metric) -> float | None:
    """Return a row's figure where it has a logarithm."""
    found = row.metrics.get(metric.key)
    value = None if found is None else found.value
    return float(value) if isinstance(value, int | float) and value > 0 else None


def spread(
    values: Sequence[float], old: float, new: float, evidence: list[Evidence]
) -> tuple[list[Evidence], str | None]:
    """Return the `evidence` of rounds with what earlier runs tell of the spread from run to run, and what is in doubt.

    `values` are the figure in those runs, `old` and `new` in the two that are compared.

    Where they are too few the worst is assumed, which can show a change but never that there is none.
    """
    if len(values) >= ENOUGH_HISTORY:
        estimate = stats.predicted(values, new)
        if estimate is not None:
            doubt = f"runs differ by {100 * estimate.se:.2g} % (sd of {len(values)}) with nothing changed"
            return [*evidence, Evidence(estimate=estimate)], f"{doubt}: use --infer-against"
    doubt = f"{len(values)} comparable runs, and {ENOUGH_HISTORY} tell the spread from run to run: use --infer-against"
    if not evidence:
        return [], doubt
    assumed = stats.Student(math.log(new / old), ASSUMED_SPREAD * math.sqrt(2), 1e9)
    return [*evidence, Evidence(estimate=assumed, conclusive=False)], doubt
