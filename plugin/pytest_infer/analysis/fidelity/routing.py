"""How far routers' choices moved between two sides that read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """What routers chose: of each site the slots of each token, and the gate weights that they got.

    Shapes (tokens, k); `weights` is None where they were not recorded.
    """

    chosen: Sequence[Any]
    weights: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Of so many (site, token) the part whose set of experts changed, percent, and the largest change of a gate weight.

    An expert that only one side chose had no weight on the other. None where the weights are not known.
    """

    of: int
    changed: float
    weight: float | None


def moved(reference: Routed, candidate: Routed) -> Moved | None:
    """Return how far a candidate's choices are from a reference's; None where their sites are not the same.

    Only tokens that both sides saw count: the first ones of the longer.
    """
    if len(reference.chosen) != len(candidate.chosen) or not reference.chosen:
        return None
    changed, most, seen, weighed = 0, 0.0, 0, True
    for site, (ours, theirs) in enumerate(zip(reference.chosen, candidate.chosen, strict=True)):
        a, b = np.asarray(ours, dtype=np.int64), np.asarray(theirs, dtype=np.int64)
        tokens = min(len(a), len(b))
        if a.shape[1:] != b.shape[1:]:
            return None
        seen += tokens
        a, b = a[:tokens], b[:tokens]
        changed += int((np.sort(a, axis=1) != np.sort(b, axis=1)).any(axis=1).sum())
        if reference.weights is None or candidate.weights is None:
            weighed = False
            continue
        ours, theirs = (np.asarray(w[site], dtype=np.float64)[:tokens] for w in (reference.weights, candidate.weights))
        most = max(most, _weight(a, ours, b, theirs))
    if not seen:
        return None
    return Moved(of=seen, changed=100 * changed / seen, weight=most if weighed else None)


def _weight(a: Any, ours: Any, b: Any, theirs: Any) -> float:
    """Return the largest change of a weight, of experts that either side chose."""
    same = a[:, :, None] == b[:, None, :]
    across = np.where(same, np.abs(ours[:, :, None] - theirs[:, None, :]), 0.0)
    left = np.where(same.any(axis=2), 0.0, np.abs(ours))
    come = np.where(same.any(axis=1), 0.0, np.abs(theirs))
    return max((float(part.max()) for part in (across, left, come) if part.size), default=0.0)
