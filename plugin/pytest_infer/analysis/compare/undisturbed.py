"""Which turns of a token something else disturbed, by the kernel's count of waits, and what the others say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pytest_infer.analysis.compare import neighbours
from pytest_infer.analysis.compare.neighbours import Observations, Passes
from pytest_infer.analysis.compare.stats import ROBUST
from pytest_infer.records import Pass

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_infer.analysis.compare.stats import Array

WAITED = 0.1
"""A turn is disturbed if its side's threads waited for cores for more than this share of it, together. Ratios of turns
that waited for 5 to 15 % scattered hardly more than of those that waited for less, of those that waited for longer at
least fourteen times as much."""
_CLEARLY = 0.9
"""The others alone tell the change more exactly with less than so many times the error of all."""
_APART = 0.1
"""Where one side waited in so many more of its turns, as a share of all, its code may be why: all turns count. That may
be chance, as waits come in bursts; but to allow for chance would leave out what a slower side waits for."""
_OFTEN = 2.0
"""So it is with first tokens where one side waited so many times as often: no sums beside them tell what that costs."""
_BEYOND = 4.0
"""So many standard errors apart, turns in which both sides waited tell another change than those in which neither did:
more than of independent ones, as waits come in bursts."""
_LEAST_TURNS = 4
"""An observation is of at least so many turns, and so is the middle of those that waited: fewer tell theirs badly."""
LEAST = 3
"""At least so many launches, and half of those that had passes, must have enough of them, and some at each place of the
text."""


class Alone(NamedTuple):
    """What undisturbed turns say: the change in each launch, the share of turns that they are, and whether by their
    scatter they tell the middle of their ratios clearly more exactly than all turns do."""

    observations: Observations
    share: float
    clearer: bool


def first_tokens(launches: Sequence[Passes]) -> Alone | None:
    """Return the change of the time to first token as `steps` does, an observation for each undisturbed pass."""
    return _told([[_Turns.of_first_token(one) for one in passes] for passes in launches], places=1, least=1)


def steps(launches: Sequence[Passes], every: int) -> Alone | None:
    """Return the change of a typical step by those neighbouring turns alone in which neither side waited long for a
    core. A launch that has too few says nothing: no observations.

    None where nothing counts the waits, or none was long, and where the code may be what waits: one side waited more
    often, or it changed otherwise in turns that did.
    """
    turns = [[_Turns.of_steps(one, every) for one in passes] for passes in launches]
    return _told(turns, places=2, least=_LEAST_TURNS)


def sums(launches: Sequence[Passes], every: int) -> Observations:
    """Return the change of all undisturbed steps together, an observation for every two passes that both have some."""
    turns = [[_Turns.of_steps(one, every) for one in passes] for passes in launches]
    worth = _first_is_worth([one for of_launch in turns for one in of_launch if one is not None]) or 0.0
    told = [[(0.0, None) if one is None else one.together_undisturbed(worth) for one in passes] for passes in turns]
    return tuple(neighbours.weighed(of_launch) for of_launch in told)


def count(passes: Passes, every: int) -> int:
    """Return for how many turns of some passes it is known that neither side waited long for a core."""
    turns = [_Turns.of_steps(one, every) for one in passes]
    return sum(int(one.undisturbed.sum()) for one in turns if one is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turns:
    """Turns that are compared: what the base took, nanoseconds, a log-ratio each, whether this checkout came first, and
    whether either side waited long for a core."""

    base_ns: Array
    ratios: Array
    ours_first: npt.NDArray[np.bool_]
    base_waited: npt.NDArray[np.bool_]
    ours_waited: npt.NDArray[np.bool_]

    @classmethod
    def of_steps(cls, halves: tuple[Pass, Pass], every: int) -> _Turns | None:
        """Return the turns of a pass without that of its first token; None where the waits of some are not known."""
        took = [neighbours.chunks(one, every) for one in halves]
        count = min(map(len, took)) // 2 * 2
        return cls._of(halves, [one[:count] for one in took], slice(1, count + 1))

    @classmethod
    def of_first_token(cls, halves: tuple[Pass, Pass]) -> _Turns | None:
        """Return the one turn of the first token."""
        return cls._of(halves, [np.asarray([float(one.stamps_ns[0] - one.start_ns)]) for one in halves], slice(0, 1))

    @classmethod
    def _of(cls, halves: tuple[Pass, Pass], took: Sequence[Array], which: slice) -> _Turns | None:
        waits = [np.asarray(one.waited_ns[which], dtype=np.float64) for one in halves]
        if any(len(wait) != len(times) for wait, times in zip(waits, took, strict=True)):
            return None
        base_waited, ours_waited = (wait > WAITED * times for wait, times in zip(waits, took, strict=True))
        return cls(
            base_ns=took[0],
            ratios=np.log(took[1]) - np.log(took[0]),
            # Who begins a pass comes first in its turn of the first token, and then in every other one.
            ours_first=(np.arange(len(took[0])) + which.start) % 2 == (0 if halves[1].begins else 1),
            base_waited=base_waited,
            ours_waited=ours_waited,
        )

    @classmethod
    def together(cls, turns: Sequence[_Turns]) -> _Turns:
        """Return the turns of all passes."""
        return cls(**{name: np.concatenate([getattr(one, name) for one in turns]) for name in cls.__slots__})

    @property
    def undisturbed(self) -> npt.NDArray[np.bool_]:
        """Return whether neither side waited, by turn."""
        return np.asarray(~(self.base_waited | self.ours_waited))

    @property
    def first_is_worth(self) -> float | None:
        """Return half of what coming first makes of an undisturbed ratio; None where one side alone does."""
        theirs, ours = (self.ratios[self.undisturbed & (self.ours_first == place)] for place in (False, True))
        return float(np.median(ours) - np.median(theirs)) / 2 if min(len(theirs), len(ours)) else None

    def levelled(self, worth: float) -> Array:
        """Return the ratios as if nobody came first."""
        return np.where(self.ours_first, self.ratios - worth, self.ratios + worth)

    def together_undisturbed(self, worth: float) -> tuple[float, float | None]:
        """Return what the base's turns would have taken, all undisturbed, and the change of those that were; None where
        there is none. (What disturbed ones took would weigh a part of the text by how much it was disturbed.)"""
        alone = self.undisturbed
        if not alone.any():
            return 0.0, None
        took = self.base_ns[alone]
        told = neighbours.together(list(zip(took, self.levelled(worth)[alone], strict=True)))
        return float(took.mean()) * len(alone), told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Undisturbed:
    """The undisturbed turns of a pass: at which place of a cycle, the median of what they took, and their ratios."""

    place: int
    base_ns: float
    ratios: Array


def _told(by_launch: Sequence[Sequence[_Turns | None]], *, places: int, least: int) -> Alone | None:
    """Return what undisturbed turns say, an observation of at least so many of them.

    A cycle has passes in so many places, which may be of other parts of the text. Some have few such turns, or none. So
    what coming first is worth, and how the change of a place differs from that of the whole text, is what all launches
    say together; an observation is how far the middle of a launch's turns lies from that.
    """
    known = [[one for one in turns if one is not None] for turns in by_launch]
    flat = [one for turns in known for one in turns]
    if not flat or len(flat) < sum(map(len, by_launch)):
        return None
    every = _Turns.together(flat)
    worth = _first_is_worth([every] if places == 1 else flat)
    if worth is None or not _counts(every, worth):
        return None
    fewer, more = sorted((int(every.base_waited.sum()), int(every.ours_waited.sum())))
    if places == 1 and more > _OFTEN * fewer:
        return None
    alone = [_undisturbed(turns, worth, places) for turns in known]
    needed = max(LEAST, sum(map(bool, known)) / 2)
    levels = []
    for place in range(places):
        there = [one for launch in alone for one in launch if one.place == place]
        # What few launches say of a place is in all observations alike, and in no spread of theirs.
        if sum(any(one.place == place for one in launch) for launch in alone) < needed:
            return None
        levels.append((float(np.median([one.base_ns for one in there])), _middle([one.ratios for one in there])))
    whole = neighbours.together(levels)
    found = tuple(
        tuple(whole + _middle([one.ratios - levels[one.place][1] for one in group]) for group in _groups(launch, least))
        for launch in alone
    )
    if sum(map(bool, found)) < needed:
        return None
    ratios = every.levelled(worth)
    clearer = _error(ratios[every.undisturbed]) < _CLEARLY * _error(ratios)
    return Alone(found, share=float(every.undisturbed.mean()), clearer=clearer)


def _first_is_worth(turns: Sequence[_Turns]) -> float | None:
    """Return what coming first is worth in the middle one of those that tell it."""
    worths = [worth for one in turns if (worth := one.first_is_worth) is not None]
    return float(np.median(worths)) if worths else None


def _counts(turns: _Turns, worth: float) -> bool:
    """Return whether some turns were disturbed and some were not, and the code is not what waits."""
    alone, both = turns.undisturbed, turns.base_waited & turns.ours_waited
    if alone.all() or not alone.any() or abs(float(turns.base_waited.mean() - turns.ours_waited.mean())) > _APART:
        return False
    if both.sum() < _LEAST_TURNS:
        return True
    ratios = turns.levelled(worth)
    waited, change = float(np.median(ratios[both])), float(np.median(ratios[alone]))
    beyond = abs(waited - change) > _BEYOND * math.hypot(_error(ratios[both]), _error(ratios[alone]))
    # What waits for something else shrinks a change at most.
    return not (beyond and not min(0.0, change) <= waited <= max(0.0, change))


def _error(ratios: Array) -> float:
    """Return the standard error of the median of ratios, by their median deviation: √(π / 2) of that of a mean."""
    scatter = ROBUST * float(np.median(np.abs(ratios - np.median(ratios))))
    return math.sqrt(math.pi / 2 / len(ratios)) * scatter


def _middle(ratios: Sequence[Array]) -> float:
    """Return the median of the ratios of several passes: of a few turns each, a pass's own is easily pulled away."""
    return float(np.median(np.concatenate(ratios)))


def _undisturbed(launch: Sequence[_Turns], worth: float, places: int) -> list[_Undisturbed]:
    return [
        _Undisturbed(
            place=number % places,
            base_ns=float(np.median(one.base_ns[one.undisturbed])),
            ratios=one.levelled(worth)[one.undisturbed],
        )
        for number, one in enumerate(launch)
        if one.undisturbed.any()
    ]


def _groups(passes: Sequence[_Undisturbed], least: int) -> list[list[_Undisturbed]]:
    """Return neighbouring passes that have enough turns together; what is left over goes to the last ones."""
    groups: list[list[_Undisturbed]] = [[]]
    for one in passes:
        if _turns(groups[-1]) >= least:
            groups.append([])
        groups[-1].append(one)
    if _turns(groups[-1]) < least:
        rest = groups.pop()
        if groups:
            groups[-1] += rest
    return groups


def _turns(group: Sequence[_Undisturbed]) -> int:
    return sum(len(one.ratios) for one in group)
