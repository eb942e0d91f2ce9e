"""A plan of which experts to keep on the GPU: one budget in full, a sweep of budgets, all strategies, held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_infer.analysis.experts import census
from pytest_infer.analysis.experts.census import Census, Phase
from pytest_infer.analysis.placement import caching, heldout, speed, strategies
from pytest_infer.analysis.placement.caching import Distances
from pytest_infer.analysis.placement.heldout import HeldOut
from pytest_infer.analysis.placement.sizes import Sizes
from pytest_infer.analysis.placement.speed import Bandwidths, Speed
from pytest_infer.analysis.placement.strategies import Experts, Placed, Served, Strategy
from pytest_infer.analysis.reached import Reached
from pytest_infer.errors import OptionError

RANDOM = "random"
COMPARED = (Strategy.FREQUENCY, Strategy.PER_LAYER, Strategy.FIRST_LAYERS, Strategy.WHOLE_LAYERS)
SWEEP = tuple(range(10, 101, 10))
"""Budgets of the sweep, in percent of the bytes of all experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The GPU's memory in bytes and what is taken from it before the experts; `dense` is 0 where that stays out."""

    total: int
    dense: int
    kv_cache: int
    reserve: int

    @property
    def left(self) -> int:
        """Return what is left for experts, which may be less than nothing."""
        return self.total - self.dense - self.kv_cache - self.reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """What a budget of bytes for experts gives. `held` experts lie on the GPU in the placement by frequency.

    `in_sample` and `held_out` are shares by the strategy's name, `random` among them. `expected` is what a token
    reads, by the held-out share where there is one; `speed` follows from it, and `slowest` and `fastest` are the lowest
    and the highest rates that the range of held-out shares leaves. `lru` is the share that a cache of `slots` experts a
    layer hits, None without a trace. `bound` is the share that no placement can exceed in-sample.
    """

    budget: int
    held: int
    in_sample: Mapping[str, float | None]
    held_out: Mapping[str, HeldOut | None]
    bound: float | None
    expected: Served | None
    speed: Speed | None
    slots: int
    lru: float | None
    lfu: float | None = None
    slowest: Speed | None = None
    fastest: Speed | None = None

    def likely(self, name: str) -> float | None:
        """Return the held-out share of a strategy, or the one in-sample where nothing could be held out."""
        held_out = self.held_out[name]
        return self.in_sample[name] if held_out is None else held_out.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """All of it: the census planned from, the sizes, the sweep, and the budget asked for with its placements.

    `placed` is that by frequency, `whole` that by whole layers, which `whole_speed` is predicted for.
    """

    phase: Phase
    prompts: int
    census: Census
    sizes: Sizes
    experts: Experts
    bandwidths: Bandwidths
    dense_on_gpu: bool
    sweep: tuple[BudgetRow, ...]
    memory: Memory | None = None
    chosen: BudgetRow | None = None
    placed: Placed | None = None
    whole: Placed | None = None
    whole_speed: Speed | None = None
    traced: int = 0
    reached: Reached | None = None

    @property
    def everything_fits(self) -> bool:
        """Return whether all experts fit into the budget asked for."""
        return self.chosen is not None and self.chosen.budget >= self.experts.total

    def likely(self) -> tuple[float, float] | None:
        """Return between which rates an engine decodes that comes as near to the limit as the run did, tokens/s.

        From the slowest of the held-out shares at the least that the run reached, to the fastest at the most.
        """
        row = self.chosen
        slowest, fastest = (None, None) if row is None else (row.slowest or row.speed, row.fastest or row.speed)
        if self.reached is None or slowest is None or fastest is None:
            return None
        if slowest.in_turns is None or fastest.in_turns is None:
            return None
        return self.reached.low * slowest.in_turns, self.reached.high * fastest.in_turns

    @property
    def held_ratio(self) -> float:
        """Return the part of all experts that lie on the GPU, rounded up to a millionth.

        Whoever multiplies it by all experts and cuts off gets their number.
        """
        held = 0 if self.chosen is None else self.chosen.held
        return math.ceil(held / len(self.experts.bytes) * 1e6) / 1e6

    def on_gpu(self) -> list[tuple[int, int]]:
        """Return (layer, expert) of what the placement by frequency keeps on the GPU, the most selected first."""
        if self.placed is None:
            return []
        sites, of = self.census.sites, self.experts
        found = [
            (sites[of.site[n]].layer, int(of.expert[n]), self._selected(int(of.site[n]), int(of.expert[n])))
            for n in self.placed.nonzero()[0].tolist()
        ]
        return [(layer, expert) for layer, expert, _ in sorted(found, key=lambda one: (-one[2], one[0], one[1]))]

    def _selected(self, site: int, expert: int) -> int:
        prefill, decode = int(self.census.prefill[site][expert]), int(self.census.decode[site][expert])
        return {Phase.PREFILL: prefill, Phase.DECODE: decode, Phase.BOTH: prefill + decode}[self.phase]

    def layers_on_cpu(self) -> list[int]:
        """Return the layers that the split by whole layers leaves on the CPU, in order."""
        if self.whole is None:
            return []
        outside = {self.census.sites[site].layer for site in self.experts.site[~self.whole].tolist()}
        return sorted(outside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The selections of one prompt's tokens at every site; the first `prefill_tokens` of them are the prompt's."""

    traces: Sequence[caching.Trace]
    prefill_tokens: int


class _Planner:
    """What all budgets of one plan have in common."""

    def __init__(
        self,
        prompts: Sequence[Census],
        sizes: Sizes,
        phase: Phase,
        bandwidths: Bandwidths,
        traces: Sequence[Traced],
        *,
        dense_on_gpu: bool,
    ) -> None:
        self.census = census.merged(prompts)
        self.sites = self.census.sites
        self.experts = strategies.experts(self.sites, sizes.experts)
        self.phase, self.sizes, self.bandwidths, self.dense_on_gpu = phase, sizes, bandwidths, dense_on_gpu
        self.read = strategies.reads(self.census, phase)
        self.tokens = census.tokens(self.census, phase)
        self.pairs = heldout.halves(prompts, phase)
        self.traces = traces
        self.distances = self._distances()

    def _distances(self) -> tuple[Distances, ...]:
        found: tuple[Distances, ...] = ()
        for one in self.traces:
            here = caching.distances(one.traces, [site.experts for site in self.sites], one.prefill_tokens)
            found = tuple(a + b for a, b in zip(found, here, strict=True)) if found else here
        return found

    def place(self, strategy: Strategy, budget: int) -> Placed:
        return strategies.place(strategy, self.experts, self.read, budget)

    def row(self, budget: int) -> BudgetRow:
        placed = {strategy: self.place(strategy, budget) for strategy in COMPARED}
        served = {s.value: strategies.serve(self.experts, p, self.read, self.tokens) for s, p in placed.items()}
        held_out = {s.value: heldout.score(s, self.experts, self.pairs, budget) for s in COMPARED}
        held_out[RANDOM] = heldout.random_score(self.experts, self.pairs, budget)
        drawn = strategies.random_share(self.experts, self.read, budget)
        in_sample = {name: None if one is None else one.share for name, one in served.items()}
        best, outside = served[Strategy.FREQUENCY.value], held_out[Strategy.FREQUENCY.value]
        expected = best if best is None or outside is None else best.at(outside.mean)
        slots = budget // sum(self.sizes.experts)
        shares = [] if outside is None else [outside.low, outside.mean, outside.high]
        rated = [] if best is None or self.phase is not Phase.DECODE else [self.speed(best.at(s)) for s in shares]
        slowest, fastest = speed.ends(rated)
        return BudgetRow(
            budget=budget,
            held=int(placed[Strategy.FREQUENCY].sum()),
            in_sample={**in_sample, RANDOM: None if drawn is None else drawn[0]},
            held_out=held_out,
            bound=strategies.bound(self.experts, self.read, budget),
            expected=expected,
            speed=self.speed(expected) if expected is not None and self.phase is Phase.DECODE else None,
            slots=slots,
            lru=self.lru(slots),
            slowest=slowest,
            fastest=fastest,
        )

    def speed_of(self, placed: Placed) -> Speed | None:
        served = strategies.serve(self.experts, placed, self.read, self.tokens)
        return None if served is None or self.phase is not Phase.DECODE else self.speed(served)

    def speed(self, served: Served) -> Speed:
        return speed.predict(served, self.sizes.read, self.bandwidths, dense_on_gpu=self.dense_on_gpu)

    def lru(self, slots: int) -> float | None:
        return caching.rates(self.sites, self.distances, self.phase, [slots] * len(self.sites)) if self.traces else None

    def lfu(self, slots: int) -> float | None:
        hits = reads = 0
        for one in self.traces:
            found = caching.lfu(one.traces, [s.experts for s in self.sites], slots, one.prefill_tokens)
            h, r = (_of_phase(part, self.phase) for part in found)
            hits, reads = hits + h, reads + r
        return hits / reads if reads else None


def plan(
    prompts: Sequence[Census],
    sizes: Sizes,
    *,
    phase: Phase = Phase.DECODE,
    memory: Memory | None = None,
    bandwidths: Bandwidths | None = None,
    dense_on_gpu: bool = True,
    traces: Sequence[Traced] = (),
    reached: Reached | None = None,
) -> PlacementPlan:
    """Return the plan for the censuses of several prompts, one each, within a GPU's memory.

    Raises:
        OptionError: nothing was selected in this phase.
        StorageError: the censuses are not of one model.
    """
    common = _Planner(prompts, sizes, phase, bandwidths or Bandwidths(), traces, dense_on_gpu=dense_on_gpu)
    if not common.read.any():
        raise OptionError(f"no expert was selected in {phase.value}: take another --phase, or longer answers")
    total = common.experts.total
    budget = None if memory is None else max(0, min(memory.left, total))
    chosen = None if budget is None else common.row(budget)
    if chosen is not None and traces:
        chosen = replace(chosen, lfu=common.lfu(chosen.slots))
    whole = None if budget is None else common.place(Strategy.WHOLE_LAYERS, budget)
    return PlacementPlan(
        phase=phase,
        prompts=len(prompts),
        census=common.census,
        sizes=sizes,
        experts=common.experts,
        bandwidths=common.bandwidths,
        dense_on_gpu=dense_on_gpu,
        sweep=tuple(common.row(total * percent // 100) for percent in SWEEP),
        memory=memory,
        chosen=chosen,
        placed=None if budget is None else common.place(Strategy.FREQUENCY, budget),
        whole=whole,
        whole_speed=None if whole is None else common.speed_of(whole),
        traced=len(traces),
        reached=reached,
    )


def _of_phase(both: caching.Ints, phase: Phase) -> int:
    return int(both.sum()) if phase is Phase.BOTH else int(both[int(phase is Phase.DECODE)])
