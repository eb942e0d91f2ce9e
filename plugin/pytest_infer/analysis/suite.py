"""A suite as a whole: means and standard deviations over its prompts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_infer.metrics import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """The mean of the prompts' values, and their sample standard deviation; None for fewer than two prompts."""

    mean: float
    stdev: float | None
    prompts: int


def averages(suite: Iterable[Mapping[str, Summary]], keys: Iterable[str]) -> dict[str, Average]:
    """Return the average of each metric over the prompts that have it; a metric that none has is left out."""
    rows = list(suite)
    found: dict[str, Average] = {}
    for key in keys:
        values = [float(v) for row in rows if isinstance(v := row[key].value, int | float)]
        if values:
            stdev = statistics.stdev(values) if len(values) > 1 else None
            found[key] = Average(mean=statistics.fmean(values), stdev=stdev, prompts=len(values))
    return found
