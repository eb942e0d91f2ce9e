"""How far each configuration of a sweep is from the one whose tokens it followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_infer.analysis.fidelity import closeness
from pytest_infer.analysis.sweep.axes import label
from pytest_infer.storage.runs import Row

_DISTINCT = 2.0
"""Means over some hundred positions that differ by less than this factor are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Mean KL from `reference`, nats, and the positions whose likeliest token is the same, percent.

    Both are over the positions of all prompts together. `kl` is a lower bound unless `exact`; up to `rounding` it is
    what another order of the same sums brings in the finest dtype of the sweep. `followed` are the configurations whose
    tokens its prompts were measured on, itself where others followed it: several where a prompt has several lengths, or
    prompts begin with one configuration each. Those of another model are others.
    """

    reference: str
    kl: float
    top1: float
    exact: bool
    rounding: float
    followed: frozenset[str]

    def comparable(self, other: Distance) -> bool:
        """Return whether both are distances from the same."""
        return self.followed == other.followed

    def worse(self, other: Distance) -> bool:
        """Return whether this is further away than another, by more than rounding."""
        return self.kl > max(other.kl, self.rounding)

    def distinct(self, other: Distance) -> bool:
        """Return whether the two can be told apart."""
        return max(self.kl, other.kl) > _DISTINCT * max(min(self.kl, other.kl), self.rounding)


def of(configurations: Sequence[Sequence[Row]]) -> list[Distance | None]:
    """Return the distance of each configuration, given with its rows: 0 for one that others followed.

    None where it is not known; of all if none followed another, or each followed the other side of a comparison.
    """
    found = [[r.fidelity for r in rows if r.fidelity is not None and r.against is None] for rows in configurations]
    if not any(found):
        return [None] * len(found)
    rounding = min(closeness.bound(row.model) for rows in configurations for row in rows)
    asked = {one.reference for known in found for one in known}
    distances: list[Distance | None] = []
    for rows, known in zip(configurations, found, strict=True):
        own = frozenset(label(row.config) for row in rows) & asked
        positions = sum(one.positions for one in known)
        if positions:
            distances.append(
                Distance(
                    reference=", ".join(dict.fromkeys(one.reference for one in known)),
                    followed=own.union(one.reference for one in known),
                    kl=sum(one.positions * one.kl_mean for one in known) / positions,
                    top1=sum(one.positions * one.top1 for one in known) / positions,
                    exact=all(one.exact for one in known),
                    rounding=rounding,
                )
            )
        else:
            itself = Distance(reference="itself", followed=own, kl=0.0, top1=100.0, exact=True, rounding=rounding)
            distances.append(itself if own else None)
    return distances
