"""A text token by token: what each side gave every token of it, and what it would rather have had."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_infer.analysis.fidelity import distributions, figures, measured
from pytest_infer.analysis.fidelity.distributions import Array
from pytest_infer.analysis.fidelity.figures import Side
from pytest_infer.analysis.fidelity.measured import Told
from pytest_infer.records import Picked

TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of the reference's text: what both sides gave it, KL(reference ‖ candidate) there, and both sides' top 5.

    `shift` is ln(candidate's probability / reference's). `agree`: the likeliest token of both is the same. Where logits
    were not finite, these are not known.
    """

    reference: Picked
    candidate_p: float | None
    shift: float | None
    kl: float | None
    agree: bool
    top_reference: tuple[Picked, ...]
    top_candidate: tuple[Picked, ...]


def of(reference: Told, candidate: Told, exact: Array | None = None) -> tuple[Token, ...]:
    """Return the tokens of the first sequence that both sides predicted from the same text.

    `exact` is KL at each position, where it is known; else it is a lower bound.
    """
    both = [measured.sides(told.scores)[:1] for told in (reference, candidate)]
    if not all(both):
        return ()
    (ours,), (theirs,) = both
    found = figures.positions(ours, theirs)
    if found is None:
        return ()
    n = len(found.kl)
    kl = exact if exact is not None and len(exact) == n else found.kl
    pieces = {**candidate.pieces, **reference.pieces}
    tops = [_tops(side.first(n), pieces) for side in (ours, theirs)]
    return tuple(
        Token(
            reference=measured.picked(int(ours.tokens[at]), float(ours.logprobs[at]), pieces),
            candidate_p=_known(np.exp(ours.logprobs[at] + found.shift[at])),
            shift=_known(found.shift[at]),
            kl=_known(kl[at]),
            agree=bool(found.agree[at]),
            top_reference=tops[0][at],
            top_candidate=tops[1][at],
        )
        for at in range(n)
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _tops(side: Side, pieces: Mapping[int, str]) -> Sequence[tuple[Picked, ...]]:
    order = np.argsort(-side.of.logprobs, axis=1, kind="stable")[:, :TOP]
    ids, logprobs = (np.take_along_axis(of, order, axis=1) for of in (side.of.ids, side.of.logprobs))
    return [
        tuple(
            measured.picked(int(token), float(logprob), pieces)
            for token, logprob in zip(row, those, strict=True)
            if token != distributions.NOBODY and math.isfinite(logprob)
        )
        for row, those in zip(ids, logprobs, strict=True)
    ]
