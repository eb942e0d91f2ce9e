"""How much the hot experts of one text serve another: overlap between prompts, tags or groups, on held-out prompts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.experts import skew
from pytest_infer.analysis.experts.census import Census, Phase, counts, sites_of, tokens
from pytest_infer.records import ExpertSite

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptGroup:
    """A named part of the suite: the numbers of its prompts; one prompt may be in several groups."""

    name: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Suite:
    """The selections of all prompts in one phase, layers side by side.

    `table` has a row a prompt and a column for each expert with weights, layer after layer; layer i has the columns
    `bounds[i]` to `bounds[i + 1]`.
    """

    sites: tuple[ExpertSite, ...]
    table: npt.NDArray[np.int64]
    bounds: tuple[int, ...]
    tokens: tuple[int, ...]

    def layers(self, table: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
        """Return the parts of a table of such columns, one a layer."""
        return np.split(table, self.bounds[1:-1], axis=-1)


def suite(censuses: Sequence[Census], phase: Phase) -> Suite:
    """Return the selections of prompts of one model side by side; raise StorageError where their sites differ."""
    sites = sites_of(censuses)
    rows = [
        np.concatenate([row[: site.experts] for site, row in zip(sites, counts(census, phase), strict=True)])
        for census in censuses
    ]
    bounds = np.cumsum([0, *(site.experts for site in sites)])
    return Suite(
        sites=sites,
        table=np.stack(rows),
        bounds=tuple(int(b) for b in bounds),
        tokens=tuple(tokens(census, phase) for census in censuses),
    )


def hot_by_budget(of: Suite, row: npt.NDArray[np.int64], part: float = skew.HOT_SHARE) -> Mask:
    """Return each layer's most used experts, the same part of every layer; equals by number, never-used ones last."""
    found = [_top(layer, skew.budget(len(layer), part)) for layer in of.layers(row)]
    return np.concatenate(found)


def _top(layer: npt.NDArray[np.generic], most: int) -> Mask:
    chosen = np.zeros(len(layer), dtype=np.bool_)
    chosen[np.argsort(-np.asarray(layer, dtype=np.int64), kind="stable")[:most]] = True
    return chosen


def served(hot: Mask, row: npt.NDArray[np.int64]) -> float | None:
    """Return the share of a text's selections that a set of experts serves; None where nothing was selected."""
    total = int(row.sum())
    return float(row[hot].sum()) / total if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How a hot set serves other texts: `matrix[a][b]` is the share of b's selections that a's hot set serves.

    Prompts that are in both are left out of a; within a group each prompt is served by the others. `itself[b]` is b's
    own hot set on b: what planning on the text that is scored would promise. `rest[b]` is the hot set of every prompt
    that is not in b. `even` is what any set of that size serves when routing is even. None: no prompts, no selections.
    """

    names: tuple[str, ...]
    matrix: tuple[tuple[float | None, ...], ...]
    itself: tuple[float | None, ...]
    rest: tuple[float | None, ...]
    even: float

    def by_others(self, number: int) -> tuple[float, float, float] | None:
        """Return what the hot sets of the others serve of one: the least, the median, the most; None without others."""
        found = [x for n, row in enumerate(self.matrix) if n != number and (x := row[number]) is not None]
        return (min(found), statistics.median(found), max(found)) if found else None


def overlap(of: Suite, groups: Sequence[PromptGroup], part: float = skew.HOT_SHARE) -> Overlap:
    """Return how much the hottest `part` of each layer's experts in one group serves the others."""
    members = [frozenset(group.members) for group in groups]
    everyone = frozenset(range(len(of.table)))

    def held_out(a: frozenset[int], b: frozenset[int]) -> float | None:
        if a == b:
            return _within(of, a, part)
        return _serves(of, a - b, b, part)

    sizes = np.diff(of.bounds)
    return Overlap(
        names=tuple(group.name for group in groups),
        matrix=tuple(tuple(held_out(a, b) for b in members) for a in members),
        itself=tuple(_serves(of, b, b, part) for b in members),
        rest=tuple(_serves(of, everyone - b, b, part) for b in members),
        even=float(np.mean([skew.budget(int(n), part) / int(n) for n in sizes])),
    )


def _sum(of: Suite, members: frozenset[int]) -> npt.NDArray[np.int64]:
    return np.asarray(of.table[sorted(members)].sum(axis=0))


def _serves(of: Suite, planned: frozenset[int], scored: frozenset[int], part: float) -> float | None:
    row = _sum(of, planned)
    return served(hot_by_budget(of, row, part), _sum(of, scored)) if row.any() else None


def _within(of: Suite, members: frozenset[int], part: float) -> float | None:
    """Return how the prompts of a group serve each other: each by all the others; None for a single one."""
    found = [
        (value, int(of.table[b].sum()))
        for b in sorted(members)
        if (value := _serves(of, members - {b}, frozenset({b}), part)) is not None
    ]
    total = sum(weight for _, weight in found)
    return sum(value * weight for value, weight in found) / total if total else None
