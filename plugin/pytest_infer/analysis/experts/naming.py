"""Which experts may be called hot or cold: intervals of shares, tests against the fair share, tokens still needed."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_infer.analysis.experts.census import Counts

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ALPHA = 0.05
"""The chance of naming any expert of a layer hot although routing is uniform; likewise cold."""
POWER = 0.8
CONFIDENCE = 0.95


def wilson(hits: Counts, tokens: int, confidence: float = CONFIDENCE) -> tuple[Array, Array]:
    """Return the interval of each expert's tokens / all tokens (Wilson 1927); 0 and 1 where there was no token.

    A token selects an expert at most once: `hits` of `tokens` is a binomial count, whatever k is. Tokens of one text
    are alike, so true intervals are wider.
    """
    if tokens < 1:
        return np.zeros(len(hits)), np.ones(len(hits))
    z = float(special.ndtri(0.5 + confidence / 2))
    p = np.minimum(np.asarray(hits, dtype=np.float64) / tokens, 1.0)
    middle = (p + z * z / (2 * tokens)) / (1 + z * z / tokens)
    half = z / (1 + z * z / tokens) * np.sqrt(p * (1 - p) / tokens + z * z / (4 * tokens * tokens))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def holm(p: Array, alpha: float = ALPHA) -> Mask:
    """Return which hypotheses are rejected so that the chance of any false one is at most alpha (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    passed = p[order] <= alpha / np.arange(len(p), 0, -1)
    rejected = np.zeros(len(p), dtype=np.bool_)
    rejected[order] = np.cumprod(passed).astype(np.bool_)
    return rejected


def named(hits: Counts, tokens: int) -> tuple[Mask, Mask]:
    """Return which experts of a layer are hot and which cold, beyond what even routing gives by chance.

    Hot: P(X ≥ c) under the fair share q = Σc / (T·E), exact binomial, passes Holm over the E experts at 5 %. Cold: the
    lower tail, likewise.
    """
    total = float(hits.sum())
    if tokens < 1 or total == 0 or len(hits) < 2:
        none = np.zeros(len(hits), dtype=np.bool_)
        return none, none.copy()
    fair = min(1.0, total / (tokens * len(hits)))
    capped = np.minimum(hits, tokens).astype(np.float64)
    # bdtrc(k, n, p) = P(X > k); the count itself belongs to the tail.
    upper = np.where(capped > 0, special.bdtrc(capped - 1, tokens, fair), 1.0)
    return holm(upper), holm(np.asarray(special.bdtr(capped, tokens, fair)))


def tokens_needed(share: float, fair: float, experts: int) -> int | None:
    """Return how many tokens show that an expert is hotter than its fair share; None where it is not.

    `share` and `fair` are parts of the tokens. n = ((z √(q₀(1 − q₀)) + w √(q₁(1 − q₁))) / (q₁ − q₀))² (Fleiss, Levin &
    Paik 2003, chapter 2), with z of 5 % / E (Bonferroni) and w of a power of 80 %. The hottest of few tokens is hotter
    than it will stay, and tokens of a text are alike: read it as "at least".
    """
    if not 0 < fair < share <= 1:
        return None
    z_alpha, z_beta = float(special.ndtri(1 - ALPHA / experts)), float(special.ndtri(POWER))
    spread = z_alpha * math.sqrt(fair * (1 - fair)) + z_beta * math.sqrt(share * (1 - share))
    return math.ceil((spread / (share - fair)) ** 2)
