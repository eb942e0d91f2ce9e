"""Fidelity of what was measured: of a record that followed a reference, and of any two sides' scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_infer.analysis.fidelity import distributions, figures, routing
from pytest_infer.analysis.fidelity.figures import Positions, Side
from pytest_infer.analysis.fidelity.routing import Moved, Routed
from pytest_infer.records import ExpertUsage, Fidelity, Picked, PromptRecord, Scores, Split
from pytest_infer.records.scores import LEAST


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a side told of a text: its scores, its routers' choices if they were kept, and how its tokens read.

    `free` are the tokens that it generates when nothing is given to it, where they are not those of the scores.
    """

    scores: Scores
    routed: Routed | str = "router choices were not recorded"
    pieces: Mapping[int, str]
    free: Sequence[int] | None = None


def sides(scores: Scores) -> list[Side]:
    """Return the predictions of each sequence; positions whose logits were not finite are NaN.

    No probability is above 1, whatever a file says.
    """
    if not scores.width:
        return []
    shape = (scores.sequences, scores.positions)
    tokens = np.frombuffer(scores.tokens, dtype="<i4").reshape(shape).astype(np.int64)
    chosen, rest = (_logarithms(held).reshape(shape) for held in (scores.chosen, scores.rest))
    wide = (*shape, scores.width)
    ids = np.frombuffer(scores.top_ids, dtype="<i4").reshape(wide)
    top = _logarithms(scores.top).reshape(wide)
    return [
        Side(
            tokens=tokens[n],
            logprobs=np.maximum(chosen[n], LEAST),
            of=distributions.top(ids[n], top[n], np.exp(rest[n]), tokens[n], chosen[n]),
        )
        for n in range(scores.sequences)
    ]


def _logarithms(held: bytes) -> distributions.Array:
    found: distributions.Array = np.minimum(np.frombuffer(held, dtype="<f4").astype(np.float64), 0.0)
    return found


def of_record(record: PromptRecord) -> Fidelity | None:
    """Return how far a record is from the reference whose tokens it followed; None where it followed none."""
    reference, profile = record.reference, record.profile
    if reference is None or reference.scores is None or profile is None or profile.scores is None:
        return None
    exact = None if reference.kl is None else np.frombuffer(reference.kl, dtype="<f8")
    found = between(
        Told(scores=reference.scores, routed=routed(reference.experts), pieces=record.pieces),
        Told(scores=profile.scores, routed=routed(profile.experts), pieces=record.pieces, free=reference.free),
        reference.name,
        exact,
    )
    return None if found is None else replace(found, bound=reference.kl_absent, dtype=reference.dtype)


def between(reference: Told, candidate: Told, name: str, exact: distributions.Array | None = None) -> Fidelity | None:
    """Return how far a candidate is from a reference; None where no position of both had the same text before it.

    `exact` is KL(reference ‖ candidate) of each position of the first sequence, nats, where it is known.
    """
    pairs = list(zip(sides(reference.scores), sides(candidate.scores), strict=False))
    found = [one for a, b in pairs if (one := _finite(figures.positions(a, b))) is not None]
    if not found:
        return None
    whole = figures.joined(found)
    if exact is not None and len(pairs) == 1 and len(exact) == len(whole.kl):
        whole = replace(whole, kl=exact, exact=True)
    length = figures.common(*pairs[0])
    moved = _moved(reference, candidate, length)
    return Fidelity(
        reference=name,
        positions=len(whole.kl),
        of=reference.scores.sequences * reference.scores.positions,
        length=length,
        exact=whole.exact,
        kl_mean=whole.kl_mean,
        kl_p99=whole.kl_p99,
        top1=whole.top1,
        logprob_rms=whole.logprob_rms,
        split=_split(*pairs[0], candidate.free, {**reference.pieces, **candidate.pieces}),
        experts_changed=None if isinstance(moved, str) else moved.changed,
        gate_shift=None if isinstance(moved, str) else moved.weight,
        experts_absent=moved if isinstance(moved, str) else None,
    )


def _finite(found: Positions | None) -> Positions | None:
    """Return the positions whose logits were finite on both sides; None where there are none."""
    if found is None:
        return None
    keep = np.isfinite(found.kl) & np.isfinite(found.shift)
    return replace(found, kl=found.kl[keep], agree=found.agree[keep], shift=found.shift[keep]) if keep.any() else None


def routed(usage: ExpertUsage | None) -> Routed | str:
    """Return the choices that a trace holds, or why there are none."""
    if usage is None or usage.trace is None:
        return "router choices were not recorded token by token"
    tokens = usage.prefill_tokens + usage.decode_tokens
    chosen = [
        np.frombuffer(trace, dtype="<u1" if len(trace) == tokens * site.k else "<u2").reshape(-1, site.k)
        for site, trace in zip(usage.sites, usage.trace, strict=True)
    ]
    if usage.trace_weights is None:
        return Routed(chosen=chosen)
    weights = [
        np.frombuffer(held, dtype="<f4").reshape(-1, site.k)
        for site, held in zip(usage.sites, usage.trace_weights, strict=True)
    ]
    return Routed(chosen=chosen, weights=weights)


def _moved(reference: Told, candidate: Told, length: int) -> Moved | str:
    """Return how far the choices moved of the tokens that led to `length` positions: after them come other texts."""
    if isinstance(candidate.routed, str) or isinstance(reference.routed, str):
        return candidate.routed if isinstance(candidate.routed, str) else f"of the reference: {reference.routed}"
    ours, theirs = (
        routed.but(told.scores.positions - length)
        for routed, told in ((reference.routed, reference), (candidate.routed, candidate))
    )
    return routing.moved(ours, theirs) or "the two sides have other MoE layers"


def _split(reference: Side, candidate: Side, free: Sequence[int] | None, pieces: Mapping[int, str]) -> Split | None:
    gone = figures.split(reference, candidate, free=None if free is None else np.asarray(free, dtype=np.int64))
    if gone is None:
        return None
    ours, theirs = (
        picked(token, logprob, pieces)
        for token, logprob in (
            (gone.reference, gone.reference_logprob),
            (gone.candidate, gone.candidate_logprob),
        )
    )
    margin = None if math.isnan(gone.margin) else gone.margin
    return Split(position=gone.position, reference=ours, candidate=theirs, margin=margin)


def picked(token: int, logprob: float, pieces: Mapping[int, str]) -> Picked:
    """Return a token with the probability that a side gave it, which is not known where logits were not finite."""
    return Picked(id=token, p=None if math.isnan(logprob) else math.exp(logprob), text=pieces.get(token))
