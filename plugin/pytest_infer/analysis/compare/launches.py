"""The change between two sides in turns of a token: which ratios tell it, and launches as a random effect."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from pytest_infer.analysis.compare import neighbours, undisturbed
from pytest_infer.analysis.compare.neighbours import Observations, Passes
from pytest_infer.analysis.compare.stats import ROBUST, Student
from pytest_infer.analysis.compare.undisturbed import LEAST
from pytest_infer.records import Turns

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.stats import Array
    from pytest_infer.records import TokenTrace

RESTLESS = 4.0
"""A launch whose passes scatter this many times as much as the median launch's is left out."""

FIRST, STEP, STEPS = "first", "step", "steps"
"""What turns tell of: the time to the first token, a decode step by the medians of turns, and steps by their sums,
only where these tell another change."""

_FOLLOW = {
    "ttft_s": (FIRST, 1),
    "prefill_s": (FIRST, 1),
    "prefill_throughput": (FIRST, -1),
    "total_prefill_throughput": (FIRST, -1),
    "decode_s": (STEPS, 1),
    "tpot_s": (STEPS, 1),
    "itl_p50_s": (STEP, 1),
    "decode_throughput": (STEPS, -1),
    "total_decode_throughput": (STEPS, -1),
}
"""Metrics by what they change with, and whether they rise or fall with it."""
_WHOLE = {"total_s": 1, "overall_throughput": -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByLaunch:
    """A metric's change in each of some launches, log-ratios, by their `numbers` in the run; there was time to measure
    it in `ran`."""

    values: Array
    numbers: tuple[int, ...]
    ran: int

    @classmethod
    def first(cls, values: Array, turns: Turns | None = None) -> ByLaunch:
        """Return that of the first launches of a test, or of a run."""
        count = len(values)
        return cls(values=values, numbers=_serials(turns, range(count)), ran=count)


def _serials(turns: Turns | None, places: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers in the run of the launches at some places of a test's."""
    known = () if turns is None else turns.launches
    return tuple(known[place] for place in places) if len(known) > max(places, default=0) else tuple(places)


def parts(key: str) -> tuple[str, ...]:
    """Return the metrics by which turns tell a metric: itself, or both parts of a total."""
    return ("ttft_s", "tpot_s") if key in _WHOLE else (key,)


def told(key: str, turns: Turns, first_share: float | None) -> ByLaunch | None:
    """Return a metric's change in each launch; None for a metric that turns tell nothing of.

    `first_share` is the share of the time to the first token in the total: it weighs both parts of the total's change.
    """
    if key in _FOLLOW:
        name, sign = _name(_FOLLOW[key][0], turns), _FOLLOW[key][1]
        if name not in turns.ratios:
            return None
        calm_ = _calm_places(turns, name)
        return ByLaunch(values=sign * _means_of(turns, name, calm_), numbers=_serials(turns, calm_), ran=_ran(turns))
    if key not in _WHOLE or first_share is None or FIRST not in turns.ratios:
        return None
    steps = _name(STEPS, turns)
    if first_share < 1 and steps not in turns.ratios:
        # There are steps, and turns do not tell of them: a single one, or parts of the text (see `beside_parts`).
        return None
    names = [name for name in (FIRST, steps) if name in turns.ratios]
    calm_ = _calm_places(turns, *names)
    first, *step = (_means_of(turns, name, calm_) for name in names)
    whole = np.log(first_share * np.exp(first) + (1 - first_share) * np.exp(step[0] if step else 0.0))
    return ByLaunch(values=np.asarray(_WHOLE[key] * whole), numbers=_serials(turns, calm_), ran=_ran(turns))


def _means_of(turns: Turns, name: str, places: Sequence[int]) -> Array:
    return means([turns.ratios[name][place] for place in places])


def _name(name: str, turns: Turns) -> str:
    """Return the ratio to take for one: sums of steps are only there where they differ from the medians."""
    return STEP if name == STEPS and STEPS not in turns.ratios else name


def earlier(key: str, turns: Turns) -> Spread | None:
    """Return how far launches lay apart in earlier runs, for a metric that one ratio tells; None where unknown.

    Whole rounds lie apart otherwise: where they take the place of turns, earlier turns say nothing.
    """
    name = _name(_FOLLOW[key][0], turns) if key in _FOLLOW else None
    found = turns.earlier.get(name) if name in turns.ratios else None
    return None if found is None else Spread(variance=found[0], df=found[1])


def of_whole(before: Sequence[float], after: Sequence[float], rounds: int) -> Array | None:
    """Return a figure's change in each launch, log-ratios, by the whole rounds of it: `rounds` a launch, one after the
    other.

    None where they are not so many in at least two launches, or one is not above 0.
    """
    if not rounds or len(before) != len(after) or len(before) % rounds or len(before) < 2 * rounds:
        return None
    if min((*before, *after)) <= 0:
        return None
    logs = np.log(np.asarray(after, dtype=np.float64)) - np.log(np.asarray(before, dtype=np.float64))
    return np.asarray(logs.reshape(-1, rounds).mean(axis=1))


def _calm_places(turns: Turns, *names: str) -> tuple[int, ...]:
    """Return the places of the launches that were not restless and say something of these ratios."""
    # Sums of steps are restless by a single disturbed step.
    left_out = {place for name, values in turns.ratios.items() if name != STEPS for place in restless(values)}
    left_out |= {place for name in names for place, values in enumerate(turns.ratios[name]) if not values}
    total = max(map(len, turns.ratios.values()), default=0)
    return tuple(place for place in range(total) if place not in left_out)


def _ran(turns: Turns) -> int:
    return sum(any(values) for values in itertools.zip_longest(*turns.ratios.values()))


def calm(turns: Turns, name: str) -> list[tuple[float, ...]]:
    """Return the observations of a ratio without those of restless launches."""
    return [turns.ratios[name][place] for place in _calm_places(turns, name)]


_OTHERWISE = 0.995
"""Sums of steps tell another change than medians, and whole rounds than parts of the text, where that is known with
this confidence. They scatter more: unchanged code that seems so is rarely accused by them."""
_BESIDE_WAITS = 0.999
"""So do those that hold turns in which something waited, where the others tell a change more exactly: the code may make
itself wait, but mostly something else came and went."""
_NARROWER = 0.5
"""Undisturbed turns count alone where their interval is less than so many times as wide as that of all turns, if not by
how little they scatter: waits come in bursts, which spoil whole passes, and hardly show in the scatter of all turns."""
_WORTH, _SHARE = 0.003, 0.1
"""A smaller difference, or a smaller share of the change, is not worth their wider interval."""


def beside_parts(whole: Sequence[Sequence[tuple[TokenTrace, TokenTrace]]], turns: Turns) -> tuple[float, float] | None:
    """Return by how much a step changed in whole rounds and in the parts of the text that passes were of, log-ratios,
    where what is between the parts changed otherwise. None where that may be chance, or fewer than two launches tell.

    `whole` are the pairs of whole rounds of the first launches, each both sides', base first.
    """
    if STEP not in turns.ratios or min(_step_ns(one) for pairs in whole for pair in pairs for one in pair) <= 0:
        return None
    both = [(pairs, told) for pairs, told in zip(whole, turns.ratios[_name(STEPS, turns)], strict=False) if told]
    parts = means([told for _, told in both])
    rounds = np.asarray([np.mean([math.log(_step_ns(b) / _step_ns(a)) for a, b in pairs]) for pairs, _ in both])
    differ = _otherwise(rounds, parts, _BESIDE_WAITS if STEP in turns.undisturbed else _OTHERWISE)
    return (float(np.mean(rounds)), float(np.mean(parts))) if differ else None


def _otherwise(one: Array, other: Array, confidence: float) -> bool:
    """Return whether two means of each launch tell different changes beyond doubt."""
    known = estimate(one - other)
    if known is None or abs(known.mid) < max(_WORTH, _SHARE * abs(float(np.mean(other)))):
        return False
    low, high = known.interval(confidence)
    return low > 0 or high < 0


def _step_ns(trace: TokenTrace) -> float:
    return (trace.stamps_ns[-1] - trace.stamps_ns[0]) / max(1, sum(trace.tick_sizes) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The variance of a launch's mean, log-ratios squared, and the degrees of freedom that it is known with."""

    variance: float
    df: float


def restless(launches: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Return the numbers of launches that scatter far more than the others: something was wrong with them.

    It looks at how far a launch's own observations lie apart, never at where they lie.
    """
    scatters = [_scatter(values) for values in launches]
    known = [scatter for scatter in scatters if scatter is not None]
    if len(known) < 3:
        return ()
    limit = RESTLESS * float(np.median(known))
    return tuple(n for n, scatter in enumerate(scatters) if scatter is not None and scatter > limit)


def _scatter(values: Sequence[float]) -> float | None:
    if len(values) < 3:
        return None
    return ROBUST * float(np.median(np.abs(np.asarray(values) - np.median(values))))


LITTLE = 0.15
"""So much of the variance between launches may come from the scatter within them; fewer would not narrow an interval
by more than 8 %."""
_KNOWN = 3
"""So many observations of a launch tell its scatter."""
_FEW = 4
"""Of more observations than these the median counts, not the mean."""


def limited(turns: Turns) -> bool:
    """Return whether the launches are what an interval is as wide as: more passes in the same ones narrow it no more.

    The variance of the launches' means holds that of their own scatter, s² / n. Only widths are looked at.
    """
    return bool(turns.ratios) and all(_limited(calm(turns, name)) for name in turns.ratios)


def _limited(launches: Sequence[Sequence[float]]) -> bool:
    if len(launches) < 2 or min(map(len, launches)) < _KNOWN:
        return False
    # The median of many is known worse than their mean, by the factor of normal samples.
    within = float(np.mean([np.var(v, ddof=1) / len(v) * (math.pi / 2 if len(v) > _FEW else 1) for v in launches]))
    return within <= LITTLE * float(np.var(means(launches), ddof=1))


def means(launches: Sequence[Sequence[float]]) -> Array:
    """Return each launch's mean; the middle of many, where a disturbed pass would pull it away."""
    return np.asarray([float(np.median(values) if len(values) > _FEW else np.mean(values)) for values in launches])


def own_spread(values: Array) -> Spread | None:
    """Return the variance of one test's launch means, by themselves; None below two."""
    return Spread(variance=float(np.var(values, ddof=1)), df=len(values) - 1) if len(values) > 1 else None


def spread(by_prompt: Sequence[ByLaunch]) -> Spread | None:
    """Return the variance of a launch's mean, pooled over prompts that were measured in the same launches.

    A launch may shift all of its prompts alike; then they tell together no more of the variance than one. With the mean
    square correlation rho² of the prompts' deviations, the mean of P sample variances has (L − 1) P /
    (1 + (P − 1) rho²) degrees of freedom, as the correlation of two sample variances is rho² under normality.
    """
    usable = [one for one in by_prompt if len(one.values) > 1]
    if not usable:
        return None
    own = [found for one in usable if (found := own_spread(one.values)) is not None]
    df = sum(one.df for one in own) / (1 + (len(usable) - 1) * _mean_square_correlation(usable))
    return Spread(variance=float(np.mean([one.variance for one in own])), df=df)


_ODD = (0.01, 0.95)
"""A spread outside these quantiles of what earlier runs let expect (F distribution) is this run's own. The lower one is
narrower: few launches have a small spread by chance."""


def with_earlier(own: Spread | None, before: Spread | None) -> Spread | None:
    """Return the spread of this run pooled with that of earlier ones, weighted by their degrees of freedom.

    It is never less than this run's: a machine that is busier than it was scatters more. A run whose launches lie
    further apart, or closer, than chance allows after the earlier ones (F test of two variances) is on a machine of
    another mood: then only its own counts.
    """
    if own is None or before is None:
        return before if own is None else own
    low, high = (before.variance * float(special.fdtri(own.df, before.df, odd)) for odd in _ODD)
    if not low <= own.variance <= high:
        return own
    df = own.df + before.df
    pooled = (own.variance * own.df + before.variance * before.df) / df
    return Spread(variance=max(pooled, own.variance), df=df)


def told_by(turns: Turns) -> dict[str, tuple[float, float]]:
    """Return what a test tells later runs, by ratio: the variance of a launch's mean, and its degrees of freedom."""
    own = {name: own_spread(means(calm(turns, name))) for name in turns.ratios}
    return {name: (one.variance, one.df) for name, one in own.items() if one is not None}


def _mean_square_correlation(prompts: Sequence[ByLaunch]) -> float:
    """Return rho² over all pairs of prompts, less what L shared launches show by chance: 1 / (L − 1).

    1, which is careful, where no two prompts share three launches that were calm in both, or one has no spread at all.
    """
    found = [one for pair in itertools.combinations(prompts, 2) if (one := _square_correlation(*pair)) is not None]
    return min(1.0, max(0.0, float(np.mean(found)))) if found else 1.0


def _square_correlation(one: ByLaunch, other: ByLaunch) -> float | None:
    shared = sorted(set(one.numbers) & set(other.numbers))
    if len(shared) < 3:
        return None
    a, b = (each.values[[each.numbers.index(number) for number in shared]] for each in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = float((a**2).sum() * (b**2).sum())
    chance = 1 / (len(shared) - 1)
    return (float((a * b).sum()) ** 2 / size - chance) / (1 - chance) if size else 1.0


def estimate(launch_means: Array, known: Spread | None = None) -> Student | None:
    """Return the change from the launches' means; its error is that of launches, which no further round makes less.

    `known` is the spread pooled over prompts: it takes the place of this prompt's own, as for a
    few launches that alone is known badly. None where neither tells it.
    """
    count = len(launch_means)
    own = spread([ByLaunch.first(launch_means)]) if known is None else known
    if not count or own is None:
        return None
    return Student(float(np.mean(launch_means)), math.sqrt(own.variance / count), own.df)


def ratios(
    launches: Sequence[tuple[Passes, Passes]], every: int, *, waits_tell: bool = True
) -> tuple[dict[str, Observations], dict[str, float]]:
    """Return the observations of each launch, log-ratios, of the `first` token and of a decode `step`; and of those of
    undisturbed turns alone, the share of turns that these are, unless waits tell nothing.

    A launch is its passes of one token and its whole ones; one without any, as there was no time for it, has no
    observation. What a prompt does not have (a second token) is left out. Undisturbed turns count alone where
    they tell a change clearly more exactly, unless the code may be what waits.
    Sums of `steps` are told where they changed otherwise than a typical one beyond doubt: a few of them changed, or
    those of a part of the text, or those that waited.
    """
    first, whole = ([launch[number] for launch in launches] for number in (0, 1))
    found = {FIRST: neighbours.first_tokens(first), STEP: neighbours.steps(whole, every)}
    found = {name: told for name, told in found.items() if any(told)}
    shares = {}
    if waits_tell:
        alone = {FIRST: undisturbed.first_tokens(first), STEP: undisturbed.steps(whole, every)}
        for name, told in alone.items():
            if name in found and told is not None and _clearer(told, found[name]):
                found[name], shares[name] = told.observations, told.share
    if STEP in found:
        calm_ = undisturbed.sums(whole, every) if STEP in shares else ()
        sums = [(calm_, _OTHERWISE)] if sum(map(bool, calm_)) >= LEAST else []
        sums.append((neighbours.sums(whole, every), _BESIDE_WAITS if STEP in shares else _OTHERWISE))
        other = next((told for told, confidence in sums if _told_otherwise(told, found[STEP], confidence)), None)
        if other is not None:
            found[STEPS] = other
        steps = found[STEP] if other is None else other
        if FIRST in shares and sum(map(all, zip(found[FIRST], steps, strict=True))) < LEAST:
            # The total is told by launches that have both.
            found[FIRST] = neighbours.first_tokens(first)
            del shares[FIRST]
    return found, shares


def _told_otherwise(sums: Observations, steps: Observations, confidence: float) -> bool:
    both = [one for one in zip(sums, steps, strict=True) if all(one)]
    return _otherwise(means([of_all for of_all, _ in both]), means([typical for _, typical in both]), confidence)


def _clearer(alone: undisturbed.Alone, every: Observations) -> bool:
    """Return whether undisturbed turns tell a change clearly more exactly than all."""
    return alone.clearer or _width(alone.observations) < _NARROWER * _width(every)


def _width(launches: Observations) -> float:
    """Return how wide an interval of the change is by these launches alone, a log-ratio; infinite where none tells."""
    left_out = restless(launches)
    known = estimate(means([values for place, values in enumerate(launches) if values and place not in left_out]))
    if known is None:
        return math.inf
    low, high = known.interval(0.99)
    return high - low
