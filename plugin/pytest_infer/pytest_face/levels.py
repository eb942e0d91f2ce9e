"""The levels of a load test and its objectives, as they are written on the command line or in the ini file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from pytest_infer.errors import OptionError, alternatives
from pytest_infer.pytest_face.sweep.lengths import whole
from pytest_infer.records import Arrivals, Level, LevelKind, Objectives

MOST_STREAMS = 10_000
_OBJECTIVES = {"ttft": "ttft_s", "tpot": "tpot_s", "latency": "latency_s"}
_TIME = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s|min)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def parse(lines: Iterable[str], where: str) -> tuple[Level, ...]:
    """Return the levels in their order: `concurrency=1,2`, `rate=0.5,1:poisson`, `throughput`, `replay`; a kind a line.

    Raises OptionError, naming the option `where`, for what is no level, and for one that stands there twice.
    """
    found: list[Level] = []
    for line in lines:
        kind, equals, values = (part.strip() for part in line.partition("="))
        if kind not in tuple(LevelKind):
            raise OptionError(f"{where}: {alternatives('kind of load', kind, LevelKind)}")
        found += _of_kind(LevelKind(kind), values if equals else None, where)
    twice = next((level.name for number, level in enumerate(found) if level in found[:number]), None)
    if twice is not None:
        raise OptionError(f"{where}: {twice} stands there twice")
    return tuple(found)


def _of_kind(kind: LevelKind, values: str | None, where: str) -> list[Level]:
    if kind is LevelKind.THROUGHPUT:
        if values is not None:
            raise OptionError(f"{where}: throughput sends all requests at once and takes no value, not {values!r}")
        return [Level(kind=kind)]
    if kind is LevelKind.REPLAY:
        scales = ("1" if values is None else values).split(",")
        return [Level(kind=kind, value=_above(scale, where, "replay takes a scale of its time")) for scale in scales]
    if not values:
        example = "concurrency=1,2,4" if kind is LevelKind.CONCURRENCY else "rate=0.5,1,2"
        raise OptionError(f"{where}: {kind.value} takes numbers, as in {example}")
    if kind is LevelKind.CONCURRENCY:
        return [Level(kind=kind, value=float(_streams(value, where))) for value in values.split(",")]
    rates, _, spaced = (part.strip() for part in values.partition(":"))
    arrivals = spaced or Arrivals.POISSON.value
    if arrivals not in tuple(Arrivals):
        raise OptionError(f"{where}: {alternatives('spacing of a rate', arrivals, Arrivals)}")
    return [
        Level(kind=kind, value=_above(rate, where, "rate takes requests per second"), arrivals=Arrivals(arrivals))
        for rate in rates.split(",")
    ]


def _streams(text: str, where: str) -> int:
    number = whole(text.strip())
    if number is None or number > MOST_STREAMS:
        raise OptionError(f"{where}: concurrency takes whole numbers from 1 to {MOST_STREAMS}, not {text!r}")
    return number


def _above(text: str, where: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise OptionError(f"{where}: {what} above 0, not {text!r}")
    return number


def objectives(text: str | None, where: str) -> Objectives:
    """Return the objectives of `ttft=500ms,tpot=50ms,latency=10s`; raise OptionError for what is none."""
    found: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in _OBJECTIVES:
            raise OptionError(f"{where}: {alternatives('objective', key, _OBJECTIVES)}")
        if _OBJECTIVES[key] in found:
            raise OptionError(f"{where}: {key} stands there twice")
        time = _TIME.fullmatch(value)
        seconds = 0.0 if time is None else float(time[1]) * _SECONDS[time[2]]
        if not seconds:
            raise OptionError(f"{where}: {key} takes a time above 0 with its unit, as 500ms or 2s, not {value!r}")
        found[_OBJECTIVES[key]] = seconds
    return Objectives(**found)
