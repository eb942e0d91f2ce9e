"""Placements scored on prompts that they were not planned from."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_infer.analysis.experts.census import Census, Phase, tokens
from pytest_infer.analysis.placement import strategies
from pytest_infer.analysis.placement.strategies import SEED, Experts, Ints, Served, Strategy

SPLITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The share served on the other half of the prompts, over all splits and both directions; all between 0 and 1."""

    mean: float
    low: float
    high: float
    scores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """What one side of a split selected: the experts' selections, summed, and the tokens that made them."""

    read: Ints
    tokens: int


def halves(prompts: Sequence[Census], phase: Phase, splits: int = SPLITS) -> list[tuple[Half, Half]]:
    """Return pairs of what to plan from and what to score on, each split in both directions; [] below two prompts.

    All ways to halve the prompts where these are few, else `splits` of them by a fixed seed. A pair in which either
    half selected nothing in this phase is left out.
    """
    parts = [strategies.reads(part, phase) for part in prompts]
    times = [tokens(part, phase) for part in prompts]

    def half(chosen: Sequence[int]) -> Half:
        read = np.stack([parts[n] for n in chosen]).sum(axis=0)
        return Half(read=read, tokens=sum(times[n] for n in chosen))

    found = []
    for one in _splits(len(prompts), splits):
        a, b = half(one), half([n for n in range(len(prompts)) if n not in one])
        if a.read.any() and b.read.any():
            found += [(a, b), (b, a)]
    return found


def _splits(prompts: int, most: int) -> Iterator[tuple[int, ...]]:
    if prompts < 2:
        return
    size = prompts // 2
    if math.comb(prompts, size) <= 2 * most:
        for one in itertools.combinations(range(prompts), size):
            # Of an even number each split comes twice, once as its complement.
            if prompts % 2 or 0 in one:
                yield one
        return
    draws, seen = random.Random(SEED), set[tuple[int, ...]]()  # noqa: S311 - which prompts, not a secret
    while len(seen) < most:
        one = tuple(sorted(draws.sample(range(prompts), size)))
        other = tuple(n for n in range(prompts) if n not in one)
        if one not in seen and other not in seen:
            seen.add(one)
            yield one


def score(strategy: Strategy, of: Experts, pairs: Sequence[tuple[Half, Half]], budget: int) -> HeldOut | None:
    """Return how a strategy within a budget does on halves that it was not planned from; None without any."""
    found = [_served(strategy, of, plan, test, budget) for plan, test in pairs]
    return summarized([served.share for served in found if served is not None])


def random_score(of: Experts, pairs: Sequence[tuple[Half, Half]], budget: int) -> HeldOut | None:
    """Return the share that random placements serve on the same halves: its mean, and two standard deviations of draws.

    No draw is made where the experts have one size: then both are exact.
    """
    found = [share for _, test in pairs if (share := strategies.random_share(of, test.read, budget)) is not None]
    if not found:
        return None
    mean = sum(share for share, _ in found) / len(found)
    spread = math.sqrt(sum(deviation**2 for _, deviation in found) / len(found))
    return HeldOut(mean=mean, low=max(0.0, mean - 2 * spread), high=min(1.0, mean + 2 * spread), scores=len(found))


def _served(strategy: Strategy, of: Experts, plan: Half, test: Half, budget: int) -> Served | None:
    return strategies.serve(of, strategies.place(strategy, of, plan.read, budget), test.read, test.tokens)


def summarized(shares: Sequence[float]) -> HeldOut | None:
    """Return mean and range of the scores; None where there are none."""
    if not shares:
        return None
    return HeldOut(mean=sum(shares) / len(shares), low=min(shares), high=max(shares), scores=len(shares))
