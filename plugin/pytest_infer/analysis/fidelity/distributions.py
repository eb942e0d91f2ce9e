"""What is known of each position's distribution of the next token, and how far two of them are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_infer.records.scores import LEAST

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_ROUNDING = 2.0**-24
"""Below this a mass that was kept as float32 may be nothing but rounding."""
NOBODY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """What is known of n distributions over tokens: the likeliest k of each, and the mass of all others together.

    `ids` and `logprobs` (natural logarithms) have shape (n, k); an id is -1, at -inf, where there is no such token.
    `rest` is a mass, shape (n,). `least` is the largest log-probability that a token without an id can have, shape
    (n,). With a column for each token of the vocabulary they are whole: then nothing is in the rest.
    """

    ids: Ids
    logprobs: Array
    rest: Array
    least: Array

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.ids)

    def first(self, positions: int) -> Distributions:
        """Return those of the first positions."""
        return Distributions(
            ids=self.ids[:positions],
            logprobs=self.logprobs[:positions],
            rest=self.rest[:positions],
            least=self.least[:positions],
        )


def whole(logits: Any) -> Distributions:
    """Return the distributions of logits or log-probabilities, shape (n, tokens of the vocabulary)."""
    given = np.asarray(logits, dtype=np.float64)
    top = given.max(axis=1, keepdims=True)
    logprobs = given - top - np.log(np.exp(given - top).sum(axis=1, keepdims=True))
    n, tokens = given.shape
    nothing = np.full(n, -np.inf)
    return Distributions(
        ids=np.broadcast_to(np.arange(tokens), given.shape), logprobs=logprobs, rest=np.zeros(n), least=nothing
    )


def top(ids: Any, logprobs: Any, rest: Any, chosen: Any, chosen_logprobs: Any) -> Distributions:
    """Return the distributions of which the likeliest tokens are known, and the one that came next.

    `ids` and `logprobs` have shape (n, k), the others (n,); `rest` is the mass of all tokens that are not in `ids`.
    """
    known, of = np.asarray(ids, dtype=np.int64), np.asarray(logprobs, dtype=np.float64)
    came, its = np.asarray(chosen, dtype=np.int64), np.asarray(chosen_logprobs, dtype=np.float64)
    inside = (known == came[:, None]).any(axis=1)
    left = np.asarray(rest, dtype=np.float64) - np.where(inside, 0.0, np.exp(its))
    return Distributions(
        ids=np.column_stack((known, np.where(inside, NOBODY, came))),
        logprobs=np.column_stack((of, np.where(inside, -np.inf, its))),
        rest=np.maximum(left, 0.0),
        least=of.min(axis=1),
    )


def divergence(reference: Distributions, candidate: Distributions) -> Array:
    """Return KL(reference ‖ candidate) = Σ p ln(p / q) of each position, nats, shape (n,): exact if both are whole.

    Else a lower bound. To lump tokens together never raises it: Σ p ln(p / q) ≥ P ln(P / Q) for the masses P and Q of
    any set (log-sum inequality: Cover & Thomas, Elements of Information Theory, theorem 2.7.1). Three kinds of sets are
    taken: each token that both sides know, by itself; those A that only the reference knows; all others. The
    candidate's mass x of A is not known, but x is at most its rest, and at most |A| times its least likely token that
    is known. What is lumped is convex in x with its minimum where A has the same part of both sides' lumps: the bound
    takes that x, or the largest possible one where that is less.
    """
    p, q, shared = _aligned(reference, candidate)
    only = np.where(shared, 0.0, p)
    a, size = only.sum(axis=1), (~shared & (reference.ids != NOBODY)).sum(axis=1)
    common = np.where(shared, q, 0.0).sum(axis=1)
    unshared = np.exp(candidate.logprobs).sum(axis=1) - common
    s = np.maximum(unshared, 0.0) + candidate.rest
    r = reference.rest
    total_p, total_q = p.sum(axis=1) + r, common + s
    a, r, s = a / total_p, r / total_p, s / total_q
    most = np.minimum(candidate.rest, size * np.exp(candidate.least)) / total_q
    s = np.where(a + r > 0, np.maximum(s, _ROUNDING), s)
    even = s * _ratio(a, a + r)
    x = np.minimum(even, np.maximum(most, _ROUNDING))
    terms = np.where(shared, _term(p / total_p[:, None], q / total_q[:, None]), 0.0).sum(axis=1)
    kl: Array = np.maximum(terms + _term(a, x) + _term(r, s - x), 0.0)
    return kl


def _aligned(reference: Distributions, candidate: Distributions) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return the reference's probabilities, the candidate's of the same tokens, and which of them both know."""
    p = np.exp(reference.logprobs)
    if reference.ids.shape == candidate.ids.shape and np.array_equal(reference.ids, candidate.ids):
        return p, np.exp(candidate.logprobs), reference.ids != NOBODY
    q, shared = np.zeros_like(p), np.zeros(p.shape, dtype=np.bool_)
    for row, (ours, theirs) in enumerate(zip(reference.ids, candidate.ids, strict=True)):
        _, here, there = np.intersect1d(ours, theirs, return_indices=True)
        keep = ours[here] != NOBODY
        shared[row, here[keep]] = True
        q[row, here[keep]] = np.exp(candidate.logprobs[row, there[keep]])
    return p, q, shared


def _ratio(part: Array, of: Array) -> Array:
    ratio: Array = np.divide(part, of, out=np.zeros_like(part), where=of > 0)
    return ratio


def _term(p: Array, q: Array) -> Array:
    """Return p ln(p / q), which is 0 where p is; NaN stays."""
    least = math.exp(LEAST)
    return np.where(p == 0, 0.0, p * (np.log(np.maximum(p, least)) - np.log(np.maximum(q, least))))


def likeliest(of: Distributions) -> Ids:
    """Return the likeliest token of each position, of several the one with the lowest id, as greedy decoding does.

    It is nobody where a position's logits were not finite.
    """
    best = of.logprobs == of.logprobs.max(axis=1, keepdims=True)
    lowest = np.where(best, of.ids, np.iinfo(np.int64).max).min(axis=1)
    return np.where(best.any(axis=1), lowest, NOBODY)


def without(of: Distributions, tokens: Ids) -> Array:
    """Return the largest log-probability of each position but that of the token given."""
    others: Array = np.where(of.ids == tokens[:, None], -np.inf, of.logprobs).max(axis=1)
    return others


def logprob(of: Distributions, tokens: Ids) -> Array:
    """Return the log-probability of a token of each position; of one that is not known the most that it can be."""
    found = of.ids == tokens[:, None]
    known = np.where(found, of.logprobs, -np.inf).max(axis=1)
    return np.where(found.any(axis=1), known, np.minimum(of.least, np.log(np.maximum(of.rest, _ROUNDING))))
