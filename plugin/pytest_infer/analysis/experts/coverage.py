"""The coverage curve of a whole model: how much the most used part of each layer's experts serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_infer.analysis.experts import skew
from pytest_infer.analysis.experts.usage import SiteUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Shares of selections, 0 to 1, that a part of a layer's experts serves: of the layers the mean and the ends."""

    part: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def over_layers(usages: Sequence[SiteUsage]) -> Coverage | None:
    """Return the curve at every number of experts of the largest layer, linear between a layer's own numbers.

    None where no layer selected an expert with weights.
    """
    own = [usage.counts[: usage.site.experts] for usage in usages]
    own = [counts for counts in own if counts.sum()]
    if not own:
        return None
    part = np.linspace(0, 1, max(len(counts) for counts in own) + 1)
    table = np.stack(
        [np.interp(part, np.linspace(0, 1, len(c) + 1), np.concatenate([[0.0], skew.curve(c)])) for c in own]
    )
    return Coverage(
        part=tuple(part.tolist()),
        mean=tuple(table.mean(axis=0).tolist()),
        low=tuple(table.min(axis=0).tolist()),
        high=tuple(table.max(axis=0).tolist()),
    )
