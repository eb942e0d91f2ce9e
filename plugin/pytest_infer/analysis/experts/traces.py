"""What only a trace tells: reuse from token to token, pairs chosen together, distinct experts and bytes a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_infer.analysis.experts.census import Census, Counts, Phase, tokens
from pytest_infer.analysis.experts.census import counts as counts_of
from pytest_infer.records import ExpertSite

Trace = npt.NDArray[Any]
"""The slots that each token selected in one layer, in order of position; whole numbers, shape (tokens, k)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """The part of a token's experts that the token before had chosen too, and that by chance."""

    measured: float
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Two experts of a layer that `times` tokens chose both; `lift` is that over what independent choices give."""

    first: int
    second: int
    times: int
    lift: float


def of_phase(trace: Trace, prefill_tokens: int, phase: Phase) -> Trace:
    """Return the rows of a phase: the first `prefill_tokens` are the prompt."""
    if phase is Phase.BOTH:
        return trace
    return trace[:prefill_tokens] if phase is Phase.PREFILL else trace[prefill_tokens:]


def joined(parts: Sequence[Trace]) -> Trace:
    """Return the traces of several texts as one, for figures that do not ask what came before what."""
    return np.concatenate(parts)


def chosen(trace: Trace, slots: int) -> npt.NDArray[np.bool_]:
    """Return which slots each token chose; shape (tokens, slots). A selection that reached none is beyond the last."""
    found = np.zeros((len(trace), slots + 1), dtype=np.bool_)
    np.put_along_axis(found, np.minimum(trace.astype(np.int64), slots), values=True, axis=1)
    return found[:, :slots]


def reuse(trace: Trace, slots: int) -> Reuse | None:
    """Return mean |S_t ∩ S_{t−1}| / k beside chance, Σ q² / k with q the part of tokens that chose an expert.

    Two independent tokens share Σ q² experts on average: linearity of expectation. None below two tokens.
    """
    if len(trace) < 2:
        return None
    x = chosen(trace, slots)
    k = trace.shape[1]
    q = x.mean(axis=0)
    both = (x[1:] & x[:-1]).sum(axis=1)
    return Reuse(measured=float(both.mean()) / k, chance=float((q * q).sum()) / k)


def together(trace: Trace, slots: int, most: int = 3, least: int = 5) -> list[Together]:
    """Return the pairs of a layer's experts with the highest lift, of those chosen together at least so often.

    Lift = P(a, b) / P(a)P(b) (Brin, Motwani, Ullman & Tsur 1997), over the same for uniform choice of k distinct ones,
    E(k − 1) / (k(E − 1)): 1 is chance.
    """
    k = trace.shape[1]
    if k < 2 or not len(trace):
        return []
    x = chosen(trace, slots).astype(np.float64)
    pairs, own = x.T @ x, x.sum(axis=0)
    apart = slots * (k - 1) / (k * (slots - 1))
    a, b = np.nonzero(np.triu(pairs >= least, 1))
    lift = pairs[a, b] * len(trace) / (own[a] * own[b]) / apart
    order = np.lexsort((b, a, -pairs[a, b], -lift))[:most]
    return [
        Together(first=int(a[n]), second=int(b[n]), times=int(pairs[a[n], b[n]]), lift=float(lift[n])) for n in order
    ]


def distinct_uniform(experts: int, k: float, batch: int) -> float:
    """Return how many distinct experts a step of `batch` tokens runs under uniform routing: E(1 − (1 − k/E)^B)."""
    return experts * (1 - (1 - k / experts) ** batch)


def distinct_expected(hits: Counts, tokens_: int, batch: int) -> float:
    """Return the same for tokens drawn independently from measured use: Σ 1 − (1 − q)^B, q = hits / tokens.

    Tokens of a batch are rarely independent.
    """
    q = np.minimum(hits / max(1, tokens_), 1.0)
    return float((1 - (1 - q) ** batch).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """Expert weights that a step of `batch` tokens reads: from measured use, and under uniform routing; shared ones in.

    Dense weights and the KV cache come on top.
    """

    batch: int
    measured: float
    uniform: float


def step_bytes(census: Census, phase: Phase, batch: int) -> StepBytes | None:
    """Return Σ distinct experts · expert_bytes + shared bytes; None where the sizes are not known or no token ran."""
    t = tokens(census, phase)
    if t == 0 or any(site.expert_bytes is None for site in census.sites):
        return None
    measured = uniform = 0.0
    for site, row in zip(census.sites, counts_of(census, phase), strict=True):
        size, own = site.expert_bytes or 0, row[: site.experts]
        shared = site.shared_bytes or 0
        every = site.experts if site.computes_all else 0
        measured += max(every, distinct_expected(own, t, batch)) * size + shared
        uniform += max(every, distinct_uniform(site.experts, _per_token(site, own, t), batch)) * size + shared
    return StepBytes(batch=batch, measured=measured, uniform=uniform)


def _per_token(site: ExpertSite, own: Counts, tokens_: int) -> float:
    """Return how many experts with weights a token selects on average: k, less what goes to weightless slots."""
    return min(float(own.sum()) / tokens_, site.experts)
