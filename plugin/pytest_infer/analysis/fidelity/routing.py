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

    def but(self, last: int) -> Routed:
        """Return it without so many tokens at the end."""
        kept = [[site[: max(len(site) - last, 0)] for site in of] for of in (self.chosen, self.weights or ())]
        return Routed(chosen=kept[0], weights=None if self.weights is None else kept[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Of all (site, token) the part whose set of experts changed, percent, and the largest change of a gate weight.

    An expert that only one side chose had no weight on the other. None where the weights are not known.
    """

    changed: float
    weight: float | None


def moved(reference: Routed, candidate: Routed) -> Moved | None:
    """Return how far a candidate's choices are from a reference's; None where their sites are not the same.

    Only tokens that both sides saw count: the first ones of the longer.
    """
    if len(reference.chosen) != len(candidate.chosen) or not reference.chosen:
        return None
    if [np.shape(site)[1:] for site in reference.chosen] != [np.shape(site)[1:] for site in candidate.chosen]:
        return None
    changed = seen = 0
    for ours, theirs in zip(reference.chosen, candidate.chosen, strict=True):
        a, b = _common(ours, theirs)
        seen += len(a)
        changed += int((np.sort(a, axis=1) != np.sort(b, axis=1)).any(axis=1).sum())
    if not seen:
        return None
    return Moved(changed=100 * changed / seen, weight=_largest(reference, candidate))


def _common(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return the rows of the tokens that both sides saw; ids are signed, so that they can be compared."""
    a, b = np.asarray(ours), np.asarray(theirs)
    tokens = min(len(a), len(b))
    kind = np.float64 if a.dtype.kind == "f" else np.int64
    return a[:tokens].astype(kind), b[:tokens].astype(kind)


def _largest(reference: Routed, candidate: Routed) -> float | None:
    if reference.weights is None or candidate.weights is None:
        return None
    sites = zip(
        map(_common, reference.chosen, candidate.chosen),
        map(_common, reference.weights, candidate.weights),
        strict=True,
    )
    return max(_weight(a, ours, b, theirs) for (a, b), (ours, theirs) in sites)


def _weight(a: Any, ours: Any, b: Any, theirs: Any) -> float:
    """Return the largest change of a weight, of experts that either side chose."""
    same = a[:, :, None] == b[:, None, :]
    across = np.where(same, np.abs(ours[:, :, None] - theirs[:, None, :]), 0.0)
    left = np.where(same.any(axis=2), 0.0, np.abs(ours))
    come = np.where(same.any(axis=1), 0.0, np.abs(theirs))
    return max((float(part.max()) for part in (across, left, come) if part.size), default=0.0)
