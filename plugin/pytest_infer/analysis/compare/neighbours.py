"""What passes in turns of a token say of a change: ratios of neighbouring turns, and sums of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pytest_infer.records import Pass

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.stats import Array

Passes = Sequence[tuple[Pass, Pass]]
"""Passes of a launch, both sides' halves, base first; of every two that follow each other either side begins one."""
Observations = tuple[tuple[float, ...], ...]
"""Log-ratios, this checkout's over the base's, by launch: one for every two passes, or for as few as have
enough undisturbed turns."""


def first_tokens(launches: Sequence[Passes]) -> Observations:
    """Return the change of the time to first token."""
    return tuple(tuple(observations([first_token_ratio(*one) for one in passes])) for passes in launches)


def steps(launches: Sequence[Passes], every: int) -> Observations:
    """Return the change of a typical decode step, of the whole of all passes."""
    return tuple(weighed([(_steps_ns(a), step_ratio(a, b, every)) for a, b in passes]) for passes in launches)


def sums(launches: Sequence[Passes], every: int) -> Observations:
    """Return the change of all decode steps together."""
    return tuple(weighed([(_steps_ns(a), steps_ratio(a, b, every)) for a, b in passes]) for passes in launches)


def step_ratio(before: Pass, after: Pass, every: int = 1) -> float | None:
    """Return the change of a decode step within one pass: log(b / a) of neighbouring turns, their median where one side
    came first and where the other did, and the mean of these two medians.

    Turns are chunks of `every` ticks; A comes first in every other one, as in A | B B | A. What a side finds of the
    other's making in the caches depends on who came first, so there are two medians. A disturbed turn spoils one of
    many ratios, of quads log((b1 + b2) / (a1 + a2)) one of half as many. None for fewer than two chunks of a side.
    """
    a, b = chunks(before, every), chunks(after, every)
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


def chunks(one: Pass, every: int) -> Array:
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


def weighed(told: Sequence[tuple[float, float | None]]) -> tuple[float, ...]:
    """Return the same of steps: the change of both passes' steps together, as each may be of another part of the text.
    `told` is what the base's steps took in each pass, and their ratio."""
    return tuple(
        together([(v, r), (w, q)])
        for (v, r), (w, q) in zip(told[::2], told[1::2], strict=False)
        if r is not None and q is not None
    )


def together(told: Sequence[tuple[float, float]]) -> float:
    """Return the change of all steps together: of the log-ratios r of what took w in the base, log(Σ we^r / Σ w)."""
    return math.log(sum(w * math.exp(r) for w, r in told) / sum(w for w, _ in told))


def _steps_ns(one: Pass) -> float:
    return one.stamps_ns[-1] - one.stamps_ns[0]
