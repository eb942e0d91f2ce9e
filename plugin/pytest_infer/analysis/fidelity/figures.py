"""The figures of fidelity: how far a candidate's predictions of the same text are from a reference's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_infer.analysis.fidelity import distributions
from pytest_infer.analysis.fidelity.distributions import Array, Distributions, Ids
from pytest_infer.records.scores import LEAST


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side's predictions of a text of n tokens: of each the distributions that it came from, and its own part.

    `logprobs` are those of the tokens that came, nats, shape (n,).
    """

    tokens: Ids
    logprobs: Array
    of: Distributions

    def first(self, positions: int) -> Side:
        """Return those of the first positions."""
        return Side(tokens=self.tokens[:positions], logprobs=self.logprobs[:positions], of=self.of.first(positions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The first position at which a candidate would go on with another token than the reference did.

    `position` counts from 0. `reference` and `candidate` are the tokens' ids, with the log-probability that their own
    side gave them; `margin` is how much likelier the reference found its token than the best other one, nats: below 0
    where it was not the likeliest. They are NaN where the logits were not finite.
    """

    position: int
    reference: int
    candidate: int
    reference_logprob: float
    candidate_logprob: float
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """What is told of each position that both sides predicted from the same text: of each an entry.

    `exact`: both sides' distributions were known whole; else `kl` holds lower bounds.
    """

    kl: Array
    agree: Array
    shift: Array
    exact: bool

    @property
    def kl_mean(self) -> float:
        """Return the mean of KL(reference ‖ candidate), nats."""
        return float(self.kl.mean())

    @property
    def kl_p99(self) -> float:
        """Return the 99th percentile of it, linear between order statistics, nats."""
        return float(np.percentile(self.kl, 99))

    @property
    def top1(self) -> float:
        """Return the part of the positions whose likeliest token is the same, percent."""
        return 100 * float(self.agree.mean())

    @property
    def logprob_rms(self) -> float:
        """Return the root mean square of the differences of the tokens' log-probabilities, nats."""
        return math.sqrt(float((self.shift**2).mean()))


def common(reference: Side, candidate: Side) -> int:
    """Return how many positions both sides predicted from the same text: up to the first that differs, and that one."""
    shorter = min(len(reference.tokens), len(candidate.tokens))
    differ = np.flatnonzero(reference.tokens[:shorter] != candidate.tokens[:shorter])
    return int(differ[0]) + 1 if len(differ) else shorter


def positions(reference: Side, candidate: Side) -> Positions | None:
    """Return what is told of each common position; None where there is none.

    Where the two went on differently at the last of them, it is the reference's token whose probabilities are compared.
    """
    n = common(reference, candidate)
    if n == 0:
        return None
    p, q = reference.of.first(n), candidate.of.first(n)
    tokens = reference.tokens[:n]
    same = candidate.tokens[:n] == tokens
    theirs = np.where(same, candidate.logprobs[:n], distributions.logprob(q, tokens))
    best, other = distributions.likeliest(p), distributions.likeliest(q)
    return Positions(
        kl=distributions.divergence(p, q),
        agree=((best == other) & (best != distributions.NOBODY)).astype(np.float64),
        shift=theirs - reference.logprobs[:n],
        exact=not (p.rest.any() or q.rest.any()),
    )


def joined(parts: Sequence[Positions]) -> Positions:
    """Return the positions of several texts as one: those of a batch, or of a suite's prompts."""
    return Positions(
        kl=np.concatenate([part.kl for part in parts]),
        agree=np.concatenate([part.agree for part in parts]),
        shift=np.concatenate([part.shift for part in parts]),
        exact=all(part.exact for part in parts),
    )


def split(reference: Side, candidate: Side, *, free: Ids | None = None) -> Split | None:
    """Return where a candidate leaves the reference's text; None where it does not.

    `free` is what a candidate that was fed the reference's tokens generates without. Where that is not known, it
    leaves where its likeliest token is another, at positions where the reference took its own likeliest.
    """
    n = common(reference, candidate)
    theirs = candidate.tokens[:n]
    if free is not None:
        n = min(n, len(free))
        theirs = free[:n]
    elif np.array_equal(theirs, reference.tokens[:n]):
        best, other = (distributions.likeliest(side.of.first(n)) for side in (reference, candidate))
        theirs = np.where((best == theirs) & (other != distributions.NOBODY), other, theirs)
    differ = np.flatnonzero(theirs != reference.tokens[:n])
    if not len(differ):
        return None
    at = int(differ[0])
    p, q = reference.of.first(at + 1), candidate.of.first(at + 1)
    took = float(reference.logprobs[at])
    # A model may rule out all tokens but its own.
    second = np.maximum(distributions.without(p, reference.tokens[: at + 1])[at], LEAST)
    return Split(
        position=at,
        reference=int(reference.tokens[at]),
        candidate=int(theirs[at]),
        reference_logprob=took,
        candidate_logprob=float(distributions.logprob(q, theirs[: at + 1])[at]),
        margin=took - float(second),
    )
