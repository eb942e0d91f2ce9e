"""How much of one configuration another is, over the prompts that both measured, with an interval that holds drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from pytest_infer.analysis.compare import stats
from pytest_infer.analysis.sweep import axes

CONFIDENCE = 0.95
MEMORY_BYTES = 20 << 20
"""What libraries take when they are first used stays taken, so peaks of one process are known to so many bytes."""

Key = tuple[str, ...]
Samples = Mapping[Key, tuple[float, ...]]
"""The rounds' values of each workload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure of one configuration by that of another, with its interval; None where too few rounds tell none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def distinct(self) -> bool:
        """Whether the interval excludes "the same"; a ratio without an interval says nothing."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def ratio_of(before: Samples, after: Samples, drift: Sequence[float] = ()) -> Ratio | None:
    """Return `after` by `before` over the workloads that both have; None where there is none.

    `drift` are ratios that the same work showed between two measurements as far apart as these. The interval is
    Student's t on logarithms; docs/sweeps.md says which errors it holds. It is left out where a side has a single
    round, and is the ratio itself for figures without noise.
    """
    keys = [key for key in before if key in after]
    if not keys:
        return None
    mids = [mean_log(after[key]) - mean_log(before[key]) for key in keys]
    mid = fmean(mids)
    estimates = [estimate for key in keys if (estimate := stats.welch(before[key], after[key])) is not None]
    if len(estimates) < len(keys):
        return Ratio(value=math.exp(mid))
    noisy = [estimate for estimate in estimates if isinstance(estimate, stats.Student)]
    se, df = _within(noisy, len(keys))
    if len(keys) >= axes.FEWEST_WORKLOADS and math.sqrt(variance(mids) / len(keys)) > se:
        se, df = math.sqrt(variance(mids) / len(keys)), len(keys) - 1
    if drift:
        drifted = fmean(math.log(ratio) ** 2 for ratio in drift)
        both = se**2 + drifted
        df = both**2 / (se**4 / df + drifted**2 / len(drift)) if both else df
        se = math.sqrt(both)
    low, high = stats.Student(mid, se, df).interval(CONFIDENCE)
    return Ratio(value=math.exp(mid), low=math.exp(low), high=math.exp(high))


def of_memory(ratio: Ratio | None, before: Samples) -> Ratio | None:
    """Return a ratio of memory whose interval holds what does not belong to the configurations."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return ratio
    share = MEMORY_BYTES / math.exp(fmean(map(mean_log, before.values())))
    return Ratio(value=ratio.value, low=max(0.0, ratio.low - share), high=ratio.high + share)


def mean_log(values: Sequence[float]) -> float:
    """Return the mean of the logarithms of rounds' values."""
    return fmean(math.log(value) for value in values)


def _within(estimates: Sequence[stats.Student], workloads: int) -> tuple[float, float]:
    """Return the error of the mean over the workloads that comes from rounds, and its degrees of freedom."""
    variances = [estimate.se**2 for estimate in estimates]
    total = sum(variances)
    if not total:
        return 0.0, 1.0
    parts = sum(v**2 / estimate.df for v, estimate in zip(variances, estimates, strict=True))
    return math.sqrt(total) / workloads, total**2 / parts
