"""Which experts to keep on the GPU: placements within a budget of bytes, and what each of them serves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.experts.census import Census, Phase, counts
from pytest_infer.records import ExpertSite

Ints = npt.NDArray[np.int64]
Placed = npt.NDArray[np.bool_]
"""One truth value an expert, in the order of `Experts`: is it on the GPU?"""

DRAWS = 400
SEED = 20260101


class Strategy(StrEnum):
    """How experts are chosen for the GPU; the value is what tables and JSON call it."""

    FREQUENCY = "frequency"
    PER_LAYER = "per layer"
    FIRST_LAYERS = "first layers"
    WHOLE_LAYERS = "whole layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Every expert with weights, one number each, by site and then by its number there: shape (experts,)."""

    site: Ints
    expert: Ints
    bytes: Ints

    @property
    def total(self) -> int:
        """Return the bytes of all of them."""
        return int(self.bytes.sum())

    @property
    def equal(self) -> bool:
        """Return whether all have the same size."""
        return bool((self.bytes == self.bytes[0]).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a placement serves: `share` of the bytes of expert reads, and what a token then reads on each side.

    `share` is between 0 and 1, and with experts of one size also the share of selections. `gpu` and `cpu` have the
    bytes of each site for one token with batch size 1, where each selected expert is read once; a prefill reads an
    expert once for many tokens, so there only the share means something.
    """

    share: float
    gpu: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def gpu_bytes(self) -> float:
        """Return what a token reads on the GPU, all sites together."""
        return sum(self.gpu)

    @property
    def cpu_bytes(self) -> float:
        """Return the same of the CPU."""
        return sum(self.cpu)

    def at(self, share: float) -> Served:
        """Return the same reads with another share served: what is too many moves to the other side, of each site."""
        less = share < self.share
        rest = share / self.share if less else (1 - share) / (1 - self.share) if self.share < 1 else 1.0
        kept = tuple(rest * one for one in (self.gpu if less else self.cpu))
        other = tuple(g + c - one for g, c, one in zip(self.gpu, self.cpu, kept, strict=True))
        return Served(share=share, gpu=kept if less else other, cpu=other if less else kept)


def experts(sites: Sequence[ExpertSite], expert_bytes: Sequence[int]) -> Experts:
    """Return the experts of the sites; slots without weights are left out."""
    numbers = [np.arange(site.experts, dtype=np.int64) for site in sites]
    return Experts(
        site=np.repeat(np.arange(len(sites), dtype=np.int64), [len(n) for n in numbers]),
        expert=np.concatenate(numbers),
        bytes=np.repeat(np.asarray(expert_bytes, dtype=np.int64), [len(n) for n in numbers]),
    )


def reads(census: Census, phase: Phase) -> Ints:
    """Return how often each expert was selected in a phase, in the order of `Experts`."""
    found = [row[: site.experts] for site, row in zip(census.sites, counts(census, phase), strict=True)]
    return np.concatenate(found)


def place(strategy: Strategy, of: Experts, read: Ints, budget: int) -> Placed:
    """Return which experts a strategy puts into `budget` bytes, from how often each was selected."""
    return _STRATEGIES[strategy](of, read, budget)


def _frequency(of: Experts, read: Ints, budget: int) -> Placed:
    """Take the most selected first, over all layers.

    A selection costs its expert's bytes, so what an expert saves for each byte it holds is how often it is selected.
    Dantzig's greedy order for the knapsack problem, best possible when all have one size (Kellerer et al. 2004, 2.1).
    """
    return _fill(of, _hottest(read), budget)


def _per_layer(of: Experts, read: Ints, budget: int) -> Placed:
    """Give each layer the same share of the budget for its most selected; what one leaves over goes to the next."""
    chosen = np.zeros(len(read), dtype=np.bool_)
    ends = np.flatnonzero(np.diff(of.site, append=-1)) + 1
    sites, spent, start = len(ends), 0, 0
    for site, end in enumerate(ends.tolist()):
        here, start = np.arange(start, end), end
        # In whole numbers: shares of a budget that is a multiple of an expert must not lose one to rounding.
        allowed = budget * (site + 1) // sites - spent
        order = here[_hottest(read[here])]
        taken = order[np.cumsum(of.bytes[order]) <= allowed]
        chosen[taken] = True
        spent += int(of.bytes[taken].sum())
    return chosen


def _first_layers(of: Experts, read: Ints, budget: int) -> Placed:
    """Fill the layers from the first on, experts by number: what needs no measurement."""
    return _fill(of, np.arange(len(read)), budget, skip=False)


def _whole_layers(of: Experts, read: Ints, budget: int) -> Placed:
    """Take whole layers, those first whose experts are selected most often on average."""
    sites = int(of.site[-1]) + 1
    held = np.bincount(of.site, weights=of.bytes, minlength=sites)
    saved = np.bincount(of.site, weights=of.bytes * read, minlength=sites)
    chosen = np.zeros(len(read), dtype=np.bool_)
    left = budget
    # From the last on where layers are equal, as --n-cpu-moe keeps the first ones on the CPU.
    for site in sorted(range(sites), key=lambda s: (saved[s] / held[s], s), reverse=True):
        if held[site] <= left:
            chosen[of.site == site] = True
            left -= int(held[site])
    return chosen


_STRATEGIES: dict[Strategy, Callable[[Experts, Ints, int], Placed]] = {
    Strategy.FREQUENCY: _frequency,
    Strategy.PER_LAYER: _per_layer,
    Strategy.FIRST_LAYERS: _first_layers,
    Strategy.WHOLE_LAYERS: _whole_layers,
}


def _hottest(read: Ints) -> npt.NDArray[np.intp]:
    return np.argsort(-read, kind="stable")


def _fill(of: Experts, order: npt.NDArray[np.intp], budget: int, *, skip: bool = True) -> Placed:
    """Take experts in an order while they fit; with `skip` those that do not are passed over for smaller ones."""
    chosen = np.zeros(len(order), dtype=np.bool_)
    sizes = of.bytes[order]
    fits = int(np.searchsorted(np.cumsum(sizes), budget, side="right"))
    chosen[order[:fits]] = True
    left = budget - int(sizes[:fits].sum())
    if skip and fits < len(order) and int(sizes[fits:].min()) <= left:
        for number, size in zip(order[fits:].tolist(), sizes[fits:].tolist(), strict=True):
            if size <= left:
                chosen[number] = True
                left -= size
    return chosen


def serve(of: Experts, placed: Placed, read: Ints, tokens: int) -> Served | None:
    """Return what a placement serves of these selections of so many tokens; None where there are none."""
    cost = of.bytes * read
    total = int(cost.sum())
    if not total or not tokens:
        return None
    gpu, cpu = (np.bincount(of.site, weights=np.where(side, cost, 0)) / tokens for side in (placed, ~placed))
    return Served(share=int(cost[placed].sum()) / total, gpu=tuple(gpu.tolist()), cpu=tuple(cpu.tolist()))


def bound(of: Experts, read: Ints, budget: int) -> float | None:
    """Return the share that no placement within the budget can exceed: the last expert may be taken in part.

    The fractional knapsack bound of Dantzig 1957. The greedy placement reaches it to within one expert.
    """
    order = _hottest(read)
    sizes = of.bytes[order]
    cost = sizes * read[order]
    if not cost.sum():
        return None
    fits = int(np.searchsorted(np.cumsum(sizes), budget, side="right"))
    best = float(cost[:fits].sum())
    if fits < len(order):
        best += (budget - int(sizes[:fits].sum())) * int(read[order[fits]])
    return best / float(cost.sum())


def random_share(of: Experts, read: Ints, budget: int) -> tuple[float, float] | None:
    """Return mean and standard deviation of the share that a random placement serves; None where nothing was read.

    Exact where all experts have one size: the sum of n out of N values drawn without replacement has the mean n·v̄ and
    the variance n (1 − n/N) s² (Cochran 1977, theorem 2.2). Else from draws with a fixed seed, filled like the others.
    """
    cost = (of.bytes * read).astype(np.float64)
    total = float(cost.sum())
    if not total:
        return None
    everything = len(cost)
    if of.equal:
        n = min(everything, budget // int(of.bytes[0]))
        spread = math.sqrt(max(0.0, n * (1 - n / everything)) * float(cost.var(ddof=1))) if everything > 1 else 0.0
        return n / everything, spread / total
    draws = np.random.default_rng(SEED)
    shares = [float(cost[_fill(of, draws.permutation(everything), budget)].sum()) / total for _ in range(DRAWS)]
    return float(np.mean(shares)), float(np.std(shares, ddof=1))
