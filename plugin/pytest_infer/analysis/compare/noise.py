"""The noise of paired rounds where nothing differs: what a machine can and cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from pytest_infer.analysis.compare.stats import ROBUST
from pytest_infer.analysis.compare.verdicts import CONFIDENCE

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.stats import Array

POWER = 0.95
_EFFICIENCY = 3 / math.pi
"""Of the signed-rank test beside the t test under normal noise (Hollander, Wolfe & Chicken 2014, section 3.11)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseFloor:
    """The spread of one figure between pairs of rounds or between launches, a share, and what it lets through.

    `of` says which: "pair" or "launch". `detectable` maps a number of them to the smallest change that is found with
    the given power. `bias` is the middle ratio of the two sides less 1: two processes of the same code are not quite
    equally fast. Of pairs it is the offset of one launch, which more pairs leave as it is; of launches it is nearly 0.
    """

    spread: float
    bias: float
    detectable: dict[int, float]
    of: str = "pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFloor:
    """The noise of one figure of one prompt, from rounds of the same code on both sides."""

    name: str
    label: str
    floor: NoiseFloor


def floor(
    before: Sequence[float], after: Sequence[float], pairs: Sequence[int] = (10, 30, 100), power: float = POWER
) -> NoiseFloor:
    """Return the noise of paired rounds of equal code; at least two pairs, all values above 0.

    The spread is 1.4826 × the median absolute deviation of the log-ratios (Rousseeuw & Croux 1993), so that a few wild
    rounds do not count. Detectable: (z(1 − alpha/2) + z(power)) · spread / √(0.955 n), the sample-size formula of a
    one-sample test (Chow et al. 2017, section 3.1) at the signed-rank test's efficiency.
    """
    logs = np.log(np.asarray(after, dtype=np.float64)) - np.log(np.asarray(before, dtype=np.float64))
    centre = float(np.median(logs))
    spread = ROBUST * float(np.median(np.abs(logs - centre)))
    z = float(special.ndtri(0.5 + CONFIDENCE / 2) + special.ndtri(power))
    detectable = {n: math.expm1(z * spread / math.sqrt(_EFFICIENCY * n)) for n in pairs}
    return NoiseFloor(spread=spread, bias=math.expm1(centre), detectable=detectable)


def floor_of_launches(ratios: Array, launches: Sequence[int] = (4, 8, 16), power: float = POWER) -> NoiseFloor:
    """Return the noise of launches of equal code; at least two log-ratios, one a launch.

    Detectable: (t(1 − alpha/2, n − 1) + z(power)) · s / √n, as for pairs but with Student's t, as launches are few.
    """
    spread = float(np.std(ratios, ddof=1))
    z = float(special.ndtri(power))
    detectable = {
        n: math.expm1((float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) + z) * spread / math.sqrt(n))
        for n in launches
    }
    return NoiseFloor(spread=spread, bias=math.expm1(float(np.mean(ratios))), detectable=detectable, of="launch")
