"""Seconds, bytes, rates, shares and counts as people read them, and sizes and bandwidths as they write them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from enum import StrEnum

from pytest_infer.errors import OptionError

NONE = "—"
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kKMGT]?)(i?)B(/s)?\s*")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


class Unit(StrEnum):
    """A metric's unit; the value is its name in the JSON and the docs."""

    SECONDS = "s"
    BYTES = "B"
    TOKENS = "tokens"
    TOKENS_PER_SECOND = "tok/s"
    REQUESTS_PER_SECOND = "req/s"
    PERCENT = "%"
    CORES = "cores"
    HERTZ = "Hz"
    JOULES = "J"
    WATTS = "W"
    COUNT = "count"
    RATIO = "ratio"
    NATS = "nats"
    TEXT = "text"


_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"), (1e-12, "ps"))
_SIZES: tuple[tuple[float, str], ...] = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DURATIONS = ((86400, "days"), (3600, "h"), (60, "min"))
_FREQUENCIES = ((1e9, "GHz"), (1e6, "MHz"), (1e3, "kHz"))
_BANDWIDTHS = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"))
_FLOPS = ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"))
_EDGE = 0.9995
"""So much of a unit is one: it would print as 1000 of the smaller one."""


def significant(value: float, digits: int = 3) -> str:
    """Return the value with this many significant digits and never an exponent: 0.0123, 1.23, 12.3, 123, 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    # Rounded first: 9.999 is 10.0, not 10.00.
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def percent_up(share: float) -> str:
    """Return a share as a bound that holds it: rounded up to a tenth of a percent, above ten to a whole one."""
    step = 10 if share < 0.1 else 1
    return f"{math.ceil(100 * share * step - 1e-6) / step:g} %"


def _scale(value: float, scales: tuple[tuple[float, str], ...], smallest: str) -> tuple[str, float]:
    return next(((name, scale) for scale, name in scales if abs(value) >= scale * _EDGE), (smallest, 1.0))


def _scaled(value: float, scales: tuple[tuple[float, str], ...], smallest: str) -> str:
    name, scale = _scale(value, scales, smallest)
    return f"{significant(value / scale)} {name}"


def seconds(value: float) -> str:
    """Return a time: `2.17 s`, `20.1 ms`, `430 µs`; below a picosecond, which no fit tells from nothing, `0 s`."""
    return _scaled(value if abs(value) >= _TIMES[-1][0] * _EDGE else 0.0, _TIMES, "s")


def duration(value: float) -> str:
    """Return seconds as people say how long ago something was: `40 s`, `12 min`, `3 h`, `2 days`."""
    for scale, name in _DURATIONS:
        if value >= 2 * scale:
            return f"{value / scale:.0f} {name}"
    return f"{value:.0f} s"


def size(value: float) -> str:
    """Return a number of bytes in binary units: `14.5 GiB`."""
    return _scaled(value, _SIZES, "B") if abs(value) >= 2**10 * _EDGE else f"{value:.0f} B"


def rate(value: float) -> str:
    """Return tokens per second: `14.9 tok/s`."""
    return f"{significant(value)} tok/s"


def nats(value: float) -> str:
    """Return a difference of logarithms of probabilities: `0.412`, `0.0021`; a small one as `2.1e-6`."""
    if not 0 < abs(value) < 0.001:
        return significant(value, 3 if abs(value) >= 0.1 else 2)
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def percent(value: float) -> str:
    """Return a percentage that is already times 100: `99.8 %`."""
    return f"{significant(value)} %"


def hertz(value: float) -> str:
    """Return a frequency: `2.22 GHz`."""
    return _scaled(value, _FREQUENCIES, "Hz")


def bandwidth(value: float) -> str:
    """Return bytes per second in the decimal units of memory makers: `41.2 GB/s`."""
    return _scaled(value, _BANDWIDTHS, "B/s")


def flops(value: float) -> str:
    """Return floating-point operations per second: `180 GFLOP/s`."""
    return _scaled(value, _FLOPS, "FLOP/s")


def count(value: float) -> str:
    """Return a whole number with thin grouping: `1,234`; averages keep one decimal."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def plural(number: int, what: str) -> str:
    """Return so many of something: `1 test`, `3 tests`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


_FORMATS: dict[Unit, Callable[[float], str]] = {
    Unit.SECONDS: seconds,
    Unit.BYTES: size,
    Unit.TOKENS: count,
    Unit.TOKENS_PER_SECOND: rate,
    Unit.REQUESTS_PER_SECOND: lambda value: f"{significant(value)} req/s",
    Unit.PERCENT: percent,
    Unit.CORES: lambda value: f"{significant(value)} cores",
    Unit.HERTZ: hertz,
    Unit.JOULES: lambda value: f"{significant(value)} J",
    Unit.WATTS: lambda value: f"{significant(value)} W",
    Unit.COUNT: count,
    Unit.RATIO: significant,
    Unit.NATS: nats,
}


_SCALED = {
    Unit.SECONDS: _TIMES,
    Unit.BYTES: _SIZES,
    Unit.HERTZ: _FREQUENCIES,
}


def scale_of(values: Sequence[float | None], unit: Unit) -> tuple[str, float]:
    """Return the unit that suits a set of values (that of their median), and how much of the base unit it is."""
    known = [abs(value) for value in values if value]
    if not known or unit not in _SCALED:
        return unit.value, 1.0
    return _scale(statistics.median_low(known), _SCALED[unit], unit.value)


def column(values: Sequence[float | None], unit: Unit) -> tuple[str, list[str]]:
    """Return the unit that suits a column of values (that of their median), and the values in it."""
    name, scale = scale_of(values, unit)
    return name, [NONE if value is None else significant(value / scale) for value in values]


def show(value: float | str | None, unit: Unit) -> str:
    """Return a value for people; a dash for one that is absent."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else _FORMATS[unit](value)


def parse_size(text: str, option: str) -> int:
    """Return bytes: GiB is 1024³, GB 1000³ (IEC 80000-13); raise OptionError for anything else."""
    return round(_parsed(text, option, "8GiB, 24GB, 512MiB", rate=False))


def parse_bandwidth(text: str | None, option: str) -> float | None:
    """Return bytes per second, None for None; raise OptionError for what is no bandwidth, or is 0."""
    return None if text is None else _parsed(text, option, "40GB/s, 1.2TB/s, 12GiB/s", rate=True)


def _parsed(text: str, option: str, examples: str, *, rate: bool) -> float:
    found = _WRITTEN.fullmatch(text)
    if found is not None and bool(found[4]) is rate and (found[2] or not found[3]):
        value: float = float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]
        # 0 is a size (no reserve), but no bandwidth.
        if value or not rate:
            return value
    raise OptionError(f"{option} {text!r}: write a number with its unit, for example {examples}")
