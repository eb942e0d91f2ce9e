"""Whether two kinds of text use other experts, or only other samples of the same use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.experts import naming
from pytest_infer.analysis.experts.census import Census, Phase, counts
from pytest_infer.analysis.experts.overlap import PromptGroup, Suite

Array = npt.NDArray[np.float64]

SEED = 20261
DRAWS = 199
DRAWS_A_PAIR = 20
"""So many draws for each pair there is: Holm asks the clearest of n for a p of 5 % / n, which 20 n draws just reach."""
MOST_DRAWN = 60_000_000
"""So many draws, times the experts of all layers, are some ten seconds: beyond, pairs are not compared one by one."""
OTHERS = "all others"
_CELLS = 1_000_000
"""Of a table of draws that is worked on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDifference:
    """How far apart two groups' use of experts is: total variation, averaged over the layers, beside its null.

    `distance` is the share of selections that goes to other experts: 0 the same use, 1 nothing in common. `null` is its
    mean if there were no difference, `p` the part of the null that is as far. `by` says how the null was made:
    "prompts" dealt to the groups at random, or, where these are too few for a verdict over so many pairs, "tokens"
    drawn from the use of both together. `differs` is the verdict at 5 % after Holm over all pairs.
    """

    first: str
    second: str
    distance: float
    null: float
    p: float
    by: str
    differs: bool


def distance(of: Suite, a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> Array:
    """Return ½ Σ |p − q| of each layer, averaged over the layers (Levin & Peres 2017, proposition 4.2).

    `a` and `b` are counts along the last axis; what stands before it is kept. A layer without selections on a side is
    left out; NaN where that is every layer.
    """
    found = []
    for x, y in zip(of.layers(a), of.layers(b), strict=True):
        left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            p = left / left.sum(axis=-1, keepdims=True)
            q = right / right.sum(axis=-1, keepdims=True)
        found.append(np.abs(p - q).sum(axis=-1) / 2)
    every = np.stack(found)
    known = ~np.isnan(every)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, every, 0).sum(axis=0) / known.sum(axis=0))


def share_changes(before: Census, after: Census, phase: Phase) -> list[list[float]]:
    """Return by how much each slot's share of its site's selections changed; 0 where a side selected nothing there."""
    found = []
    for old, new in zip(counts(before, phase), counts(after, phase), strict=True):
        sums = old.sum(), new.sum()
        found.append((new / sums[1] - old / sums[0] if all(sums) else np.zeros(len(new))).tolist())
    return found


def between(of: Suite, groups: Sequence[PromptGroup]) -> tuple[UsageDifference, ...]:
    """Return the difference of every pair of groups, largest excess over the null first.

    Where all pairs would be too much work, which grows with the fourth power of the groups, it is that of each group
    and all others together. Prompts that are in both say nothing about a difference and are left out; a pair that has
    no others, or no selections, is left out too. There are at least DRAWS, of a fixed seed, and more where there are
    many pairs.
    """
    both = list(itertools.combinations(groups, 2))
    if len(both) * max(DRAWS, DRAWS_A_PAIR * len(both)) * of.bounds[-1] > MOST_DRAWN:
        every = {n for group in groups for n in group.members}
        both = [(a, PromptGroup(name=OTHERS, members=tuple(sorted(every.difference(a.members))))) for a in groups]
    pairs = [(a, b, sides) for a, b in both if all(sides := _apart(of, a, b))]
    found = [_pair(of, a, b, sides, len(pairs)) for a, b, sides in pairs]
    differs = naming.holm(np.array([pair.p for pair in found])) if found else ()
    judged = [replace(pair, differs=bool(verdict)) for pair, verdict in zip(found, differs, strict=True)]
    return tuple(sorted(judged, key=lambda x: (x.null - x.distance, x.first, x.second)))


def _apart(of: Suite, a: PromptGroup, b: PromptGroup) -> tuple[list[int], list[int]]:
    """Return the prompts that only the one group has, and those that only the other has, with selections."""
    shared = {*a.members} & {*b.members}
    used = {n for n, tokens in enumerate(of.tokens) if tokens and of.table[n].any()}
    first, second = ([n for n in side.members if n in used - shared] for side in (a, b))
    return first, second


def _pair(of: Suite, a: PromptGroup, b: PromptGroup, sides: tuple[list[int], list[int]], pairs: int) -> UsageDifference:
    first, second = sides
    seen = float(distance(of, of.table[first].sum(axis=0), of.table[second].sum(axis=0)))
    ways = math.comb(len(first) + len(second), len(first))
    # Of equal sides each split comes twice, the sides exchanged: the smallest p that there can be.
    least = (2 if len(first) == len(second) else 1) / ways
    if least <= naming.ALPHA / pairs:
        # Where there are few ways, draws hit those of the smallest p too often to reach what Holm asks for.
        most = max(DRAWS, 2 * DRAWS_A_PAIR * pairs)
        exact = ways <= 4 * most
        by, null = "prompts", _dealt(of, first, second, None if exact else most)
    else:
        by, null, exact = "tokens", _drawn(of, first, second, max(DRAWS, DRAWS_A_PAIR * pairs)), False
    as_far = int((null >= seen - 1e-12).sum())
    # The split that was seen is one of the draws, unless all of them were tried (Phipson & Smyth 2010).
    p = as_far / len(null) if exact else (as_far + 1) / (len(null) + 1)
    return UsageDifference(
        first=a.name, second=b.name, distance=seen, null=float(null.mean()), p=p, by=by, differs=False
    )


def _dealt(of: Suite, first: Sequence[int], second: Sequence[int], draws: int | None) -> Array:
    """Return the distances when the prompts are dealt to the two groups anew: every way, or so many at random."""
    both = np.array([*first, *second])
    sides = np.array(list(_splits(len(both), len(first), draws)), dtype=np.float64)
    table = of.table[both].astype(np.float64)
    parts = np.array_split(sides, _parts(of, len(sides)))
    return np.concatenate([distance(of, part @ table, (1 - part) @ table) for part in parts])


def _parts(of: Suite, draws: int) -> int:
    """Return in how many parts to work on so many draws, each a row of the table's width."""
    return 1 + draws * of.bounds[-1] // _CELLS


def _splits(prompts: int, first: int, draws: int | None) -> Iterator[npt.NDArray[np.int64]]:
    """Yield which prompts go to the first group, as 0 and 1: every way, or so many at random."""
    if draws is None:
        ways: Iterator[Sequence[int]] = itertools.combinations(range(prompts), first)
    else:
        rng = np.random.default_rng(SEED)
        ways = (rng.permutation(prompts)[:first].tolist() for _ in range(draws))
    for way in ways:
        side = np.zeros(prompts, dtype=np.int64)
        side[list(way)] = 1
        yield side


def _drawn(of: Suite, first: Sequence[int], second: Sequence[int], draws: int) -> Array:
    """Return the distances of samples as large as the two, both from the use of both together.

    Each token chooses each expert independently with the part of all tokens that chose it: a parametric bootstrap
    (Efron & Tibshirani 1993, section 6.5). Shares are of the selections that there are, as every token makes as many:
    by a total that varies they would scatter less than they do. Tokens of one text are alike, so this null is too
    narrow: a prompt of its own is told apart from another one, whatever their groups.
    """
    rng = np.random.default_rng(SEED)
    left, right = (sum(of.tokens[n] for n in side) for side in (first, second))
    q = np.minimum(of.table[[*first, *second]].sum(axis=0) / (left + right), 1.0)
    totals = np.array([layer.sum() for layer in of.layers(q)])
    whole = np.repeat(totals, np.diff(of.bounds))
    asked = whole > 0

    def sample(tokens: int, times: int) -> Array:
        # A column at a time, as numpy then prepares for each probability once.
        drawn = rng.binomial(tokens, q[asked, None], size=(np.count_nonzero(asked), times))
        return np.asarray(drawn / (tokens * whole[asked, None]))

    times = [len(part) for part in np.array_split(range(draws), _parts(of, draws))]
    sums = [np.abs(sample(left, n) - sample(right, n)).sum(axis=0) for n in times]
    return np.concatenate(sums) / 2 / np.count_nonzero(totals)
