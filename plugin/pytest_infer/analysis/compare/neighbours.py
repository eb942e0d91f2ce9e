"""What passes in turns of a token say of a change: ratios of neighbouring turns, their sums, and which turns count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_infer.records import Pass

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_infer.analysis.compare.stats import Array

Passes = Sequence[tuple[Pass, Pass]]
"""Passes of a launch, both sides' halves, base first; of every two that follow each other either side begins one."""
Observations = tuple[tuple[float, ...], ...]
"""Log-ratios, this checkout's over the base's, one for every two passes, by launch."""

WAITED = 0.05
"""A turn is calm if its side's threads waited for cores no longer than this share of it, together."""
_APART = 0.1
"""Where one side waited in so many more of its turns, as a share of all, its code may be why: all turns count."""
_LEAST_TURNS = 6
"""An observation is of at least so many calm turns: few of them tell their middle badly."""
_LEAST_LAUNCHES = 3
"""Calm turns count if at least so many launches have enough, and half of them all."""
ROBUST = 1.4826
"""Of a normal distribution, standard deviation / median absolute deviation (Rousseeuw & Croux 1993)."""


def first_tokens(launches: Sequence[Passes]) -> Observations:
    """Return the change of the time to first token."""
    return tuple(tuple(observations([first_token_ratio(*one) for one in passes])) for passes in launches)


def steps(launches: Sequence[Passes], every: int) -> Observations:
    """Return the change of a typical decode step, of the whole of all passes."""
    return tuple(_weighed([(_steps_ns(a), step_ratio(a, b, every)) for a, b in passes]) for passes in launches)


def sums(launches: Sequence[Passes], every: int) -> Observations:
    """Return the change of all decode steps together."""
    return tuple(_weighed([(_steps_ns(a), steps_ratio(a, b, every)) for a, b in passes]) for passes in launches)


def calm_first_tokens(launches: Sequence[Passes]) -> tuple[Observations, float] | None:
    """Return the change of the time to first token as `calm_steps` does, of each pass in which neither side waited."""
    turns = [[_Turns.of_first_tokens(one) for one in passes] for passes in launches]
    return _calm(turns, passes=1, least=1)


def calm_steps(launches: Sequence[Passes], every: int) -> tuple[Observations, float] | None:
    """Return the change of a typical step by those neighbouring turns alone in which neither side waited for a core,
    and the share of turns that these are. An observation is of as many passes, two by two, as have some; a launch that
    has too few says nothing: no observations.

    None where nothing counts the waits, where all turns tell it as well, by how far their ratios lie apart, and where
    one side waited more often than the other: then its own code may be why.
    """
    turns = [[_Turns.of_steps(one, every) for one in passes] for passes in launches]
    return _calm(turns, passes=2, least=_LEAST_TURNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turns:
    """The turns of a pass that are compared: what the base took, nanoseconds, a log-ratio each, whether this checkout
    came first, and whether either side waited for a core."""

    base_ns: Array
    ratios: Array
    ours_first: npt.NDArray[np.bool_]
    base_waited: npt.NDArray[np.bool_]
    ours_waited: npt.NDArray[np.bool_]

    @classmethod
    def of_steps(cls, halves: tuple[Pass, Pass], every: int) -> _Turns | None:
        """Return the turns of several tokens, without the first; None where the waits of some are not known."""
        took = [_chunks(one, every) for one in halves]
        count = min(map(len, took)) // 2 * 2
        return cls._of(halves, [one[:count] for one in took], slice(1, count + 1))

    @classmethod
    def of_first_tokens(cls, halves: tuple[Pass, Pass]) -> _Turns | None:
        """Return the one turn of the first token."""
        return cls._of(halves, [np.asarray([float(one.stamps_ns[0] - one.start_ns)]) for one in halves], slice(0, 1))

    @classmethod
    def _of(cls, halves: tuple[Pass, Pass], took: Sequence[Array], which: slice) -> _Turns | None:
        waits = [np.asarray(one.waited_ns[which], dtype=np.float64) for one in halves]
        if any(len(wait) != len(times) for wait, times in zip(waits, took, strict=True)):
            return None
        waited = [wait > WAITED * times for wait, times in zip(waits, took, strict=True)]
        # Who begins a pass comes first in its turn of the first token, and then in every other one.
        ours_first = (np.arange(len(took[0])) + which.start) % 2 == (0 if halves[1].begins else 1)
        base, ours = waited
        ratios = np.log(took[1]) - np.log(took[0])
        return cls(base_ns=took[0], ratios=ratios, ours_first=ours_first, base_waited=base, ours_waited=ours)

    @property
    def calm(self) -> npt.NDArray[np.bool_]:
        """Return whether neither side waited, by turn."""
        return np.asarray(~(self.base_waited | self.ours_waited))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Typical:
    """The calm turns of a pass: how many, what the base took for them, nanoseconds, and their median log-ratio."""

    count: int
    base_ns: float
    ratio: float


def _calm(
    by_launch: Sequence[Sequence[_Turns | None]], *, passes: int, least: int
) -> tuple[Observations, float] | None:
    """Return what calm turns say, in observations of a multiple of so many passes with at least so many calm turns."""
    known = [[one for one in turns if one is not None] for turns in by_launch]
    flat = [one for turns in known for one in turns]
    if not flat or any(len(kept) < len(turns) for kept, turns in zip(known, by_launch, strict=True)):
        return None
    ratios, ours_first, base, ours = (
        np.concatenate([getattr(one, name) for one in flat])
        for name in ("ratios", "ours_first", "base_waited", "ours_waited")
    )
    calm = ~(base | ours)
    if calm.all() or not calm.any() or abs(float(base.mean() - ours.mean())) > _APART:
        return None
    if not _error(ratios[calm], ours_first[calm]) < _error(ratios, ours_first):
        return None
    found = tuple(_grouped(_typical(turns), passes, least) for turns in known)
    enough = sum(map(bool, found)) >= max(_LEAST_LAUNCHES, len(found) / 2)
    return (found, float(calm.mean())) if enough else None


def _typical(launch: Sequence[_Turns]) -> list[_Typical | None]:
    """Return the calm turns of each pass, None of one that has none.

    Some passes have few, so what coming first is worth is taken off each ratio as the whole launch tells it.
    """
    ratios, first, calm = (
        np.concatenate([getattr(one, name) for one in launch]) for name in ("ratios", "ours_first", "calm")
    )
    places = [ratios[calm & (first == place)] for place in (False, True)]
    if not min(map(len, places)):
        return [None] * len(launch)
    theirs, own = (float(np.median(place)) for place in places)
    half = (own - theirs) / 2
    found: list[_Typical | None] = []
    for one in launch:
        level = np.where(one.ours_first, one.ratios - half, one.ratios + half)[one.calm]
        found.append(
            _Typical(count=len(level), base_ns=float(one.base_ns[one.calm].sum()), ratio=float(np.median(level)))
            if len(level)
            else None
        )
    return found


def _grouped(told: Sequence[_Typical | None], passes: int, least: int) -> tuple[float, ...]:
    """Return the change of neighbouring passes together, of as many as have enough calm turns; what is left over goes
    to the last ones."""
    groups: list[list[_Typical]] = [[]]
    for start in range(0, len(told) - passes + 1, passes):
        if sum(one.count for one in groups[-1]) >= least:
            groups.append([])
        groups[-1] += [one for one in told[start : start + passes] if one is not None]
    if sum(one.count for one in groups[-1]) < least:
        rest = groups.pop()
        if groups:
            groups[-1] += rest
    return tuple(_together([(one.base_ns, one.ratio) for one in group]) for group in groups)


def _error(ratios: Array, ours_first: npt.NDArray[np.bool_]) -> float:
    """Return how exactly ratios tell their middle: their scatter, by the median deviation, over √n.

    Ratios lie apart by who came first, whom the other's making in the caches serves: each is held against the median of
    its own place.
    """
    apart = [np.abs(own - np.median(own)) for place in (False, True) if len(own := ratios[ours_first == place])]
    return ROBUST * float(np.median(np.concatenate(apart))) / math.sqrt(len(ratios))


def step_ratio(before: Pass, after: Pass, every: int = 1) -> float | None:
    """Return the change of a decode step within one pass: log(b / a) of neighbouring turns, their median where one side
    came first and where the other did, and the mean of these two medians.

    Turns are chunks of `every` ticks; A comes first in every other one, as in A | B B | A. What a side finds of the
    other's making in the caches depends on who came first, so there are two medians. A disturbed turn spoils one of
    many ratios, of quads log((b1 + b2) / (a1 + a2)) one of half as many. None for fewer than two chunks of a side.
    """
    a, b = _chunks(before, every), _chunks(after, every)
    count = min(len(a), len(b)) // 2 * 2
    if not count:
        return None
    ratios = np.log(b[:count]) - np.log(a[:count])
    return float(np.median(ratios[::2]) + np.median(ratios[1::2])) / 2


def steps_ratio(before: Pass, after: Pass, every: int = 1) -> float | None:
    """Return the change of all decode steps within one pass together: the log-ratio of their sums, of as many ticks of
    either side. Medians see nothing of what changes in less than half of the steps. None as `step_ratio`."""
    last = min(len(before.stamps_ns), len(after.stamps_ns)) - 1
    a, b = (one.stamps_ns[last] - one.stamps_ns[0] for one in (before, after))
    return math.log(b / a) if min(a, b) > 0 and last >= 2 * every else None


def _chunks(one: Pass, every: int) -> Array:
    """Return how long each whole chunk took, nanoseconds."""
    gaps = np.diff(np.asarray(one.stamps_ns, dtype=np.float64))
    whole = len(gaps) // every
    return np.asarray(gaps[: whole * every].reshape(whole, every).sum(axis=1))


def first_token_ratio(before: Pass, after: Pass) -> float:
    """Return the change of the time to first token within one pass."""
    return math.log((after.stamps_ns[0] - after.start_ns) / (before.stamps_ns[0] - before.start_ns))


def observations(ratios: Sequence[float]) -> list[float]:
    """Return the means of neighbouring passes, of which either side began one.

    Who begins gains or loses nearly 1 % over a whole pass, so a single one is no observation.
    """
    return [(one + other) / 2 for one, other in zip(ratios[::2], ratios[1::2], strict=False)]


def _weighed(told: Sequence[tuple[float, float | None]]) -> tuple[float, ...]:
    """Return the same of steps: the change of both passes' steps together, as each may be of another part of the text.
    `told` is what the base's steps took in each pass, and their ratio."""
    return tuple(
        _together([(v, r), (w, q)])
        for (v, r), (w, q) in zip(told[::2], told[1::2], strict=False)
        if r is not None and q is not None
    )


def _together(told: Sequence[tuple[float, float]]) -> float:
    """Return the change of all steps together: of the log-ratios r of what took w in the base, log(Σ we^r / Σ w)."""
    return math.log(sum(w * math.exp(r) for w, r in told) / sum(w for w, _ in told))


def _steps_ns(one: Pass) -> float:
    return one.stamps_ns[-1] - one.stamps_ns[0]
