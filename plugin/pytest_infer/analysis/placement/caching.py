"""What a cache of experts in each layer would hit, from the selections of every token in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.experts.census import Phase
from pytest_infer.records import ExpertSite

Trace = npt.NDArray[np.integer]
"""The slots that each token selected at one site, in order of position; shape (tokens, k)."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """How far back each read of a site's experts was, prefill and decode apart; both of shape (experts + 1,).

    Element d counts the reads of an expert since which d others were read: a cache of more than d slots hits. The last
    element counts first reads, which no cache hits.
    """

    prefill: Ints
    decode: Ints

    def __add__(self, other: Distances) -> Distances:
        return Distances(prefill=self.prefill + other.prefill, decode=self.decode + other.decode)

    def of(self, phase: Phase) -> Ints:
        """Return the counts of a phase."""
        if phase is Phase.BOTH:
            return self.prefill + self.decode
        return self.prefill if phase is Phase.PREFILL else self.decode


def distances(traces: Sequence[Trace], experts: Sequence[int], prefill_tokens: int) -> tuple[Distances, ...]:
    """Return the stack distances of every site of one prompt, whose first `prefill_tokens` tokens are the prompt.

    One pass gives the hit rate of every size of an LRU cache, since a smaller one always holds part of what a larger
    one holds (Mattson et al. 1970). A token's selections are judged together, against what the cache held before it:
    an engine looks all of them up at once. Within a token the last one counts as the most recent. The cache starts
    empty, the prompt warms it as if its tokens came one by one, and slots beyond `experts` are no reads.
    """
    found: list[Distances | None] = [None] * len(traces)
    for members, held, stacked in _alike(traces, experts):
        for number, both in zip(members, _passed(stacked, held, prefill_tokens), strict=True):
            found[number] = both
    return tuple(both for both in found if both is not None)


def _alike(traces: Sequence[Trace], experts: Sequence[int]) -> Iterator[tuple[list[int], int, Ints]]:
    """Yield sites of one shape together: a step is then a few operations for all of them.

    Their numbers, how many experts each has, and their traces as one array of shape (tokens, sites, k).
    """
    shapes: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for number, (trace, held) in enumerate(zip(traces, experts, strict=True)):
        shapes.setdefault((trace.shape, held), []).append(number)
    for (_, held), members in shapes.items():
        yield members, held, np.stack([traces[number] for number in members], axis=1).astype(np.int64)


def _passed(stacked: Ints, experts: int, prefill_tokens: int) -> list[Distances]:
    """Return the distances of each site of `stacked`, of shape (tokens, sites, k)."""
    times, sites, k = stacked.shape
    rows = np.arange(sites)[:, None]
    # One column more takes what slots without weights write.
    last = np.full((sites, experts + 1), -1, dtype=np.int64)
    counted = np.zeros((2, sites, experts + 2), dtype=np.int64)
    ranks = np.arange(k, dtype=np.int64)
    for time in range(times):
        ids = np.minimum(stacked[time], experts)
        before = np.take_along_axis(last, ids, axis=1)
        depth = (last[:, None, :experts] > before[:, :, None]).sum(axis=2)
        depth[before < 0] = experts
        depth[ids == experts] = experts + 1
        np.add.at(counted[int(time >= prefill_tokens)], (np.broadcast_to(rows, depth.shape), depth), 1)
        for rank in ranks:  # in order: of a slot that is selected twice, the later one is the last
            last[rows[:, 0], ids[:, rank]] = time * k + rank
        last[:, experts] = -1
    return [Distances(prefill=counted[0, s, :-1], decode=counted[1, s, :-1]) for s in range(sites)]


def lfu(traces: Sequence[Trace], experts: Sequence[int], slots: int, prefill_tokens: int) -> tuple[Ints, Ints]:
    """Return the hits of an LFU cache of `slots` experts in each layer, and the reads; both [prefill, decode].

    Evicted is what was read least often since the start, cached or not, and of equals the one longest ago; never what
    the token at hand reads, unless it alone needs more than `slots`. Judged as in `distances`.
    """
    hits, reads = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    for _, held, stacked in _alike(traces, experts):
        times, sites, k = stacked.shape
        rows = np.arange(sites)[:, None]
        cached = np.zeros((sites, held + 1), dtype=np.bool_)
        # How often an expert was read, and among equals when last: one number to order by.
        rank = np.zeros((sites, held + 1), dtype=np.int64)
        once = times * k
        for time in range(times):
            ids = np.minimum(stacked[time], held)
            phase = int(time >= prefill_tokens)
            hits[phase] += int(cached[rows, ids].sum())
            reads[phase] += int((ids < held).sum())
            for one in range(k):
                here = rows[:, 0], ids[:, one]
                rank[here] = (rank[here] // once + 1) * once + time * k + one
            cached[rows, ids] = True
            cached[:, held] = False
            keep = np.where(cached, rank, -1)
            # What the token reads goes before all else.
            keep[rows, ids] += once * (once + 1)
            keep[:, held] = -1
            cached[:] = False
            best = np.argsort(-keep, axis=1)[:, :slots]
            cached[rows, best] = keep[rows, best] >= 0
    return hits, reads


def rates(
    sites: Sequence[ExpertSite], counted: Sequence[Distances], phase: Phase, slots: Sequence[int]
) -> float | None:
    """Return the share of reads that LRU caches of `slots[i]` experts at site i hit; None where nothing was read."""
    hits = reads = 0
    for site, one, held in zip(sites, counted, slots, strict=True):
        row = one.of(phase)
        hits += int(row[: min(held, site.experts)].sum())
        reads += int(row.sum())
    return hits / reads if reads else None
