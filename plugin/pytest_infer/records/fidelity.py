"""How far a test's predictions are from those of a reference that read the same text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """A token that a side went on with, the probability that it had given it, and its text where that is known.

    `p` is None where the logits were not finite.
    """

    id: int
    p: float | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The first position, counted from 0, at which a side goes on with another token than the reference did.

    `margin` is how much likelier the reference found its token than the best other one, nats; below 0 where it was
    not the likeliest, and None where its logits were not finite.
    """

    position: int
    reference: Picked
    candidate: Picked
    margin: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How far a candidate's distributions of the next token are from a reference's, at `positions` positions.

    `reference` names it, and `dtype` is that of its weights where it is known. `kl_mean` and `kl_p99` are mean and 99th
    percentile of KL(reference ‖ candidate), nats: over the whole vocabulary where `exact`, else lower bounds. `top1` is
    the part of the positions whose likeliest token is the same, percent, and `logprob_rms` the root mean square of the
    differences of the tokens' log-probabilities, nats. Of `of` generated positions these are the ones that both sides
    predicted from the same text, `length` of them in the first sequence, in which `split` is looked for.

    `experts_changed` is the part of (site, token) whose set of experts is another, percent, and `gate_shift` the
    largest change of a gate weight; None for the reason in `experts_absent`. `bound` says why divergences are only
    lower bounds where whole distributions should have been compared. `split` is None where both sides go on
    with the same tokens, as far as they are compared.
    """

    reference: str
    positions: int
    of: int
    length: int
    exact: bool
    kl_mean: float
    kl_p99: float
    top1: float
    logprob_rms: float
    split: Split | None = None
    experts_changed: float | None = None
    gate_shift: float | None = None
    experts_absent: str | None = None
    bound: str | None = None
    dtype: str | None = None
