"""Drift of expert usage between two runs: the total-variation distance of each layer's selections."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pytest_infer.analysis import alike
from pytest_infer.analysis.compare import fingerprint
from pytest_infer.storage.runs import Run
from pytest_infer.storage.schema import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """An expert whose share of its layer's selections changed; shares are between 0 and 1."""

    expert: int
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDrift:
    """How far one layer's selections moved: 0 is the same use of every expert, 1 none in common.

    `moved` are the experts that moved most, at most three.
    """

    layer: int
    site: str
    distance: float
    moved: tuple[Moved, ...]


def shares(usage: Usage) -> list[list[float]]:
    """Return each site's share of selections per expert, prefill and decode together; each sums to 1, or is all 0.

    Nothing where they were not recorded, or contradict themselves.
    """
    held = usage.counts
    if held is None or not usage.adds_up or [*map(len, held.prefill)] != [*map(len, held.decode)]:
        return []
    found = []
    for prefill, decode in zip(held.prefill, held.decode, strict=True):
        counts = [a + b for a, b in zip(prefill, decode, strict=True)]
        total = sum(counts) or 1
        found.append([count / total for count in counts])
    return found


def between(before: Usage, after: Usage) -> tuple[LayerDrift, ...] | None:
    """Return the drift of each layer, the most moved first; None where it was not recorded or the layers differ.

    TV(p, q) = ½ Σ |p − q| (Levin & Peres 2017, proposition 4.2): the share of selections that went elsewhere. A layer
    that only one side selected in says nothing and is left out.
    """
    a, b = shares(before), shares(after)
    if not a or not len(a) == len(b) == len(after.sites):
        return None
    if [s.name for s in before.sites] != [s.name for s in after.sites]:
        return None
    if any(len(p) != len(q) for p, q in zip(a, b, strict=True)):
        return None
    known = [(site, p, q) for site, p, q in zip(after.sites, a, b, strict=True) if any(p) == any(q)]
    layers = [_layer(site.layer, site.name, p, q) for site, p, q in known]
    return tuple(sorted(layers, key=lambda layer: (-layer.distance, layer.layer))) or None


def of_runs(
    before: Run, after: Run, keyword: str | None = None, allowed: Collection[str] = ()
) -> dict[str, tuple[LayerDrift, ...]]:
    """Return how far the experts' shares of each test that both runs recorded them for have moved.

    A test of another text or other limits is left out, unless that is `allowed`. Tests go by their prompts' names, or
    by their own where several have one prompt.
    """
    found = {}
    titles = alike.titles({row.test: row.name for row in after.rows})
    for row in after.rows:
        old = before.row(row.test)
        if old is None or (keyword is not None and keyword not in row.test):
            continue
        if fingerprint.other_work(old, row, allowed) is None:
            layers = between(old.experts, row.experts)
            if layers is not None:
                found[titles[row.test]] = layers
    return found


def _layer(layer: int, site: str, p: Sequence[float], q: Sequence[float]) -> LayerDrift:
    apart = [abs(a - b) for a, b in zip(p, q, strict=True)]
    most = sorted(range(len(apart)), key=lambda expert: -apart[expert])[:3]
    moved = tuple(Moved(expert=e, before=p[e], after=q[e]) for e in most if p[e] != q[e])
    return LayerDrift(layer=layer, site=site, distance=sum(apart) / 2, moved=moved)
