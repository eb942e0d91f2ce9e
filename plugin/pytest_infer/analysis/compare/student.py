"""Student's t without scipy, which has it too and takes longer to import than a whole comparison takes."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = 1e6
"""From so many degrees of freedom on, a few terms of 1 / df tell t from the normal distribution."""
_FARTHEST_NORMAL, _FARTHEST = 40.0, 1e150
"""Beyond this there is nothing that a float could hold, or a square of it."""
_FEW = 5
_TINY = 1e-300


@lru_cache(maxsize=64)  # who asks for one side's asks for the other's next
def tail(df: float, t: float) -> float:
    """Return P(T > t), to a relative error of 1e-9 wherever it is above 1e-12."""
    if t < 0:
        return 1 - tail(df, -t)
    if t > (_FARTHEST_NORMAL if df >= _NORMAL else _FARTHEST):
        return 0.0
    square = t * t
    if df >= _NORMAL:
        # The expansion of Cornish and Fisher (1938).
        first, second = (square + 1) / (4 * df), (13 * square**2 + 8 * square + 3) / (96 * df**2)
        return math.erfc(t * (1 - first + second) / math.sqrt(2)) / 2
    # Abramowitz & Stegun 26.5.27: half the regularised incomplete beta function.
    return _beta(df / 2, 0.5, df / (df + square), square / (df + square)) / 2


@lru_cache(maxsize=1024)
def quantile(df: float, p: float) -> float:
    """Return the t with P(T > t) = p, for p below one half: Newton's method on the logarithm of the tail."""
    z = -NormalDist().inv_cdf(p)
    t = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    if df >= _NORMAL:
        return t
    log_beta = _log_beta(df / 2, 0.5)
    if df < _FEW:  # the expansion is far off, but the tail is a power
        t = math.sqrt(df) * math.exp(-(math.log(p * df) + log_beta) / df)
    for _ in range(50):
        now = tail(df, t)
        density = math.exp(-log_beta - math.log(df) / 2 - (df + 1) / 2 * math.log1p(t * t / df))
        step = now * math.log(now / p) / density
        t += step
        if abs(step) < 1e-7 * t:  # the square of that is what it is still off
            break
    return t


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularised incomplete beta function of x; `rest` is 1 − x, which may be too small to subtract."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, rest, x)
    if x <= 0:
        return 0.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b)) / a
    # The continued fraction 8.17.22 of the NIST Digital Library, by the method of Lentz (1976).
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or _TINY)
    found = d
    for m in range(1, 10000):
        # Its even and its odd term, written out: a comparison spends a twentieth of its time here.
        place = a + 2 * m
        term = m * (b - m) * x / ((place - 1) * place)
        d = 1 / ((1 + term * d) or _TINY)
        c = (1 + term / c) or _TINY
        found *= c * d
        term = -(a + m) * (a + b + m) * x / (place * (place + 1))
        d = 1 / ((1 + term * d) or _TINY)
        c = (1 + term / c) or _TINY
        found *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * found
