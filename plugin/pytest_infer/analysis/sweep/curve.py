"""TTFT against the length of the prompt and TPOT against the depth of the context, with least-squares fits."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_infer.analysis import alike
from pytest_infer.analysis.sweep import axes
from pytest_infer.storage.runs import Row

CONFIDENCE = 0.95
FEWEST_SPARE = 2
"""A fit is made with at least so many points more than it has coefficients."""

Array = npt.NDArray[np.float64]


class Attention(StrEnum):
    """Whether the quadratic part of TTFT outgrows the linear one."""

    DOMINATES = "within the measured lengths"
    BEYOND = "beyond the measured lengths"
    NOT_SHOWN = "not shown by the measured lengths"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """An estimate and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One prompt length. `ttft_s` and `tpot_s` are medians over the rounds.

    `depth` is the mean number of positions that a decode step attends to: prompt + n / 2 for n generated tokens.
    """

    tokens: int
    ttft_s: float
    depth: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFit:
    """TTFT = constant + linear·n + quadratic·n², in seconds and tokens.

    `crossing` is the length from which the quadratic part is larger than the linear one, None where one of them does
    not show; without a quadratic part `attention` is not shown.
    `share` is `share_at` the longest length, `worst` the largest deviation of a point from the fit, by the point.
    """

    constant: Coefficient
    linear: Coefficient
    quadratic: Coefficient
    attention: Attention
    share: float
    worst: float
    crossing: Coefficient | None = None

    def share_at(self, tokens: float) -> float:
        """Return the quadratic part of TTFT at a length; a part that the fit has below 0 took no time."""
        return _share_at((self.constant, self.linear, self.quadratic), tokens)


def _share_at(fitted: Sequence[Coefficient], tokens: float) -> float:
    """Return what the last part of a fit is of all, as a share of those above 0."""
    parts = [max(0.0, one.value) * tokens**power for power, one in enumerate(fitted)]
    return parts[-1] / sum(parts) if any(parts) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFit:
    """TPOT = constant + per_token·depth, in seconds and tokens; `worst` as for prefill."""

    constant: Coefficient
    per_token: Coefficient
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The points of one prompt and configuration, by length, and the fits; None where there are too few points."""

    prompt: str
    config: dict[str, str]
    points: tuple[Point, ...]
    prefill: PrefillFit | None
    decode: DecodeFit | None


def curves(rows: Iterable[Row]) -> tuple[Curve, ...]:
    """Return the curves that rows with a length are points of, those of at least two points."""
    return tuple(of_points(group, [point(row) for row in group]) for group in groups(rows))


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows of each curve, at least two, the shortest prompt first, named as people call the curve."""
    shown = [(axes.without(row.test, row.config), row) for row in rows if row.curve and "ttft_s" in row.metrics]
    title = alike.titles({test: row.name for test, row in shown})
    found: dict[tuple[object, ...], list[Row]] = {}
    for test, row in shown:
        rest = {axis: value for axis, value in row.config.items() if axis != "prompt-tokens"}
        found.setdefault((test, row.name, *rest.items()), []).append(replace(row, name=title[test]))
    return [sorted(group, key=_tokens) for group in found.values() if len(group) > 1]


def of_points(rows: Sequence[Row], points: Sequence[Point]) -> Curve:
    """Return the curve of rows whose points these are, with its fits."""
    config = {axis: value for axis, value in rows[0].config.items() if axis != "prompt-tokens"}
    depths = [(p.depth, p.tpot_s) for p in points if p.depth is not None and p.tpot_s is not None]
    return Curve(
        prompt=rows[0].name,
        config=config,
        points=tuple(points),
        prefill=prefill_fit([p.tokens for p in points], [p.ttft_s for p in points]),
        decode=decode_fit([depth for depth, _ in depths], [tpot for _, tpot in depths]),
    )


def _tokens(row: Row) -> int:
    return row.curve.value if row.curve is not None else 0


def point(row: Row) -> Point:
    """Return the point that a row is."""
    tpot, generated = row.metrics.get("tpot_s"), row.metrics.get("generated_tokens")
    tokens = _tokens(row)
    steps = generated.numbers[0] if generated is not None and generated.numbers else None
    return Point(
        tokens=tokens,
        ttft_s=statistics.median(row.metrics["ttft_s"].numbers),
        depth=None if steps is None or tpot is None else tokens + steps / 2,
        tpot_s=None if tpot is None else statistics.median(tpot.numbers),
    )


def weights(x: Sequence[float], y: Sequence[float], degree: int) -> Array:
    """Return how each point's time enters each coefficient of a fit to these times: coefficients by points.

    The fit is that of relative errors, so the times `y` are also the weights; it is linear in times that are added.
    """
    scale = float(max(x))
    inverse = 1 / np.asarray(y, dtype=np.float64)
    design = (np.asarray(x, dtype=np.float64)[:, None] / scale) ** np.arange(degree + 1) * inverse[:, None]
    return np.asarray(np.linalg.pinv(design) * inverse / (scale ** np.arange(degree + 1))[:, None])


@dataclass(frozen=True, slots=True)
class _Fitted:
    coefficients: Array
    covariance: Array
    t: float
    worst: float

    def coefficient(self, number: int) -> Coefficient:
        value, half = float(self.coefficients[number]), self.t * float(np.sqrt(self.covariance[number, number]))
        return Coefficient(value=value, low=value - half, high=value + half)


def _fit(x: Sequence[float], y: Sequence[float], degree: int) -> _Fitted | None:
    """Fit a polynomial by least squares of relative errors: times vary in proportion to themselves.

    The intervals are Student's t on what is left after the fit, so they hold how badly the form itself fits too.
    """
    spare = len(x) - degree - 1
    if spare < FEWEST_SPARE or len(set(x)) <= degree or min(y) <= 0:
        return None
    # Lengths by the longest, times by themselves: the columns are then of one size.
    scale = float(max(x))
    powers = np.arange(degree + 1)
    design = (np.asarray(x, dtype=np.float64)[:, None] / scale) ** powers / np.asarray(y, dtype=np.float64)[:, None]
    solved, *_ = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)
    left = 1 - design @ solved
    covariance = np.linalg.inv(design.T @ design) * float(left @ left) / spare
    by = scale**powers
    t = float(special.stdtrit(spare, 0.5 + CONFIDENCE / 2))
    return _Fitted(solved / by, covariance / np.outer(by, by), t, float(np.abs(left).max()))


def prefill_fit(tokens: Sequence[float], ttft_s: Sequence[float]) -> PrefillFit | None:
    """Fit TTFT to the length of the prompt; None below five lengths.

    Weights multiply each token alone, attention each pair of tokens: the first is linear and the second quadratic in
    the length (Kaplan et al. 2020, section 2.1). The crossing is the ratio of the two coefficients, its interval by
    Fieller's theorem (1954); it is told where the interval of the quadratic coefficient, and that of the linear one,
    lie above 0.
    """
    fitted = _fit(tokens, ttft_s, 2)
    if fitted is None:
        return None
    constant, linear, quadratic = (fitted.coefficient(n) for n in range(3))
    longest = max(tokens)
    crossing, attention = None, Attention.NOT_SHOWN
    if quadratic.low > 0:
        crossing = _fieller(fitted) if linear.low > 0 else None
        attention = Attention.DOMINATES if linear.value <= quadratic.value * longest else Attention.BEYOND
    return PrefillFit(
        constant=constant,
        linear=linear,
        quadratic=quadratic,
        attention=attention,
        share=_share_at((constant, linear, quadratic), longest),
        worst=fitted.worst,
        crossing=crossing,
    )


def _fieller(fitted: _Fitted) -> Coefficient:
    """Return linear / quadratic with its interval; the quadratic coefficient's own must exclude 0, so it is finite."""
    linear, quadratic = float(fitted.coefficients[1]), float(fitted.coefficients[2])
    v11, v12, v22 = (float(fitted.covariance[i, j]) for i, j in ((1, 1), (1, 2), (2, 2)))
    ratio, t = linear / quadratic, fitted.t
    if not v22:
        return Coefficient(value=ratio, low=ratio, high=ratio)
    g = t**2 * v22 / quadratic**2
    middle = (ratio - g * v12 / v22) / (1 - g)
    spread = v11 - 2 * ratio * v12 + ratio**2 * v22 - g * (v11 - v12**2 / v22)
    half = t / (quadratic * (1 - g)) * float(np.sqrt(max(0.0, spread)))
    return Coefficient(value=ratio, low=middle - half, high=middle + half)


def decode_fit(depth: Sequence[float], tpot_s: Sequence[float]) -> DecodeFit | None:
    """Fit TPOT to the depth of the context, of which a step reads every key and value; None below four depths."""
    fitted = _fit(depth, tpot_s, 1)
    if fitted is None:
        return None
    return DecodeFit(constant=fitted.coefficient(0), per_token=fitted.coefficient(1), worst=fitted.worst)
