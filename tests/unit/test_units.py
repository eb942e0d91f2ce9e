"""Figures as people read them, a table of cases for each unit, and sizes and bandwidths as they write them."""

import math

import pytest

from pytest_infer.errors import OptionError
from pytest_infer.units import _SCALED, NONE, Unit, column, nats, parse_bandwidth, parse_size, show, significant


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (0.01234, "0.0123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234, "1234"),
        (12345.6, "12346"),
        (-1.234, "-1.23"),
        (-0.0456, "-0.0456"),
        (1e-7, "0.000000100"),
        (9.999, "10.0"),
        (0.9999, "1.00"),
        (99.96, "100"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_significant_digits(value, shown):
    assert significant(value) == shown


def test_nats_that_are_no_number_are_told_as_such():
    assert [nats(value) for value in (0.0, 2.1e-6, math.nan, math.inf)] == ["0", "2.1e-6", "nan", "inf"]


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (2.17, Unit.SECONDS, "2.17 s"),
        (0.0201, Unit.SECONDS, "20.1 ms"),
        (0.00043, Unit.SECONDS, "430 µs"),
        (5e-8, Unit.SECONDS, "50.0 ns"),
        (-8.3e-10, Unit.SECONDS, "-830 ps"),
        (1e-14, Unit.SECONDS, "0 s"),
        (0.99996, Unit.SECONDS, "1.00 s"),
        (0, Unit.SECONDS, "0 s"),
        (61, Unit.SECONDS, "61.0 s"),
        (1, Unit.BYTES, "1 B"),
        (1023, Unit.BYTES, "1023 B"),
        (1023.9, Unit.BYTES, "1.00 KiB"),
        (1000, Unit.BYTES, "1000 B"),
        (1536, Unit.BYTES, "1.50 KiB"),
        (300 * 2**20, Unit.BYTES, "300 MiB"),
        (int(14.5 * 2**30), Unit.BYTES, "14.5 GiB"),
        (2**41, Unit.BYTES, "2.00 TiB"),
        (0, Unit.BYTES, "0 B"),
        (-(2**20), Unit.BYTES, "-1.00 MiB"),
        (14.94, Unit.TOKENS_PER_SECOND, "14.9 tok/s"),
        (99.8, Unit.PERCENT, "99.8 %"),
        (2.22e9, Unit.HERTZ, "2.22 GHz"),
        (800e6, Unit.HERTZ, "800 MHz"),
        (1234, Unit.COUNT, "1,234"),
        (1234.5, Unit.COUNT, "1,234.5"),
        (60, Unit.TOKENS, "60"),
        (1.5, Unit.CORES, "1.50 cores"),
        (1.234, Unit.RATIO, "1.23"),
        (1.234, Unit.NATS, "1.23"),
        (0.4123, Unit.NATS, "0.412"),
        (0.00204, Unit.NATS, "0.0020"),
        # Distances span ten orders of magnitude.
        (0.000204, Unit.NATS, "2.0e-4"),
        (9.97e-13, Unit.NATS, "1.0e-12"),
        (0.0, Unit.NATS, "0"),
        ("L2E5 L0E1", Unit.TEXT, "L2E5 L0E1"),
        (None, Unit.SECONDS, NONE),
        (None, Unit.TEXT, NONE),
    ],
)
def test_figures_for_people(value, unit, shown):
    assert show(value, unit) == shown


@pytest.mark.parametrize("unit", [u for u in Unit if u not in (Unit.TEXT, Unit.NATS)])
@pytest.mark.parametrize("value", [1, 0.5, 1e-9, 1e12, 999.99, 0.99949, -3])
def test_no_exponent_ever(unit, value):
    assert "e+" not in show(value, unit)
    assert "e-" not in show(value, unit)


@pytest.mark.parametrize(
    ("scale", "name", "unit"),
    [(scale, name, unit) for unit, scales in _SCALED.items() for scale, name in scales],
)
@pytest.mark.parametrize("of", [0.9994, 0.9996, 1.0])
def test_a_figure_alone_and_in_a_column_have_one_unit(scale, name, unit, of):
    value = of * scale
    (figure, shown), (column_unit, _) = show(value, unit).split(), column([value], unit)
    assert shown == column_unit or figure == "0"
    assert (shown == name) is (of >= 0.9995)


@pytest.mark.parametrize("unit", Unit)
def test_every_unit_shows_a_figure(unit):
    assert show("x" if unit is Unit.TEXT else 2.5, unit)


@pytest.mark.parametrize(
    ("values", "unit", "name", "figures"),
    [
        ([0.001, 0.002, 3.0], Unit.SECONDS, "ms", ["1.00", "2.00", "3000"]),
        ([2.0, 4.0], Unit.SECONDS, "s", ["2.00", "4.00"]),
        ([5e-6], Unit.SECONDS, "µs", ["5.00"]),
        ([None, 0.25, None], Unit.SECONDS, "ms", [NONE, "250", NONE]),
        ([0, 0.002], Unit.SECONDS, "ms", ["0", "2.00"]),
        ([-0.002, 0.003], Unit.SECONDS, "ms", ["-2.00", "3.00"]),
        ([2**20, 3 * 2**20, 2**31], Unit.BYTES, "MiB", ["1.00", "3.00", "2048"]),
        ([12, 100], Unit.BYTES, "B", ["12.0", "100"]),
        ([2.2e9, 1.1e9], Unit.HERTZ, "GHz", ["2.20", "1.10"]),
        ([14.94, 1234.5], Unit.TOKENS_PER_SECOND, "tok/s", ["14.9", "1234"]),
        ([99.84, None], Unit.PERCENT, "%", ["99.8", NONE]),
        ([None, None], Unit.SECONDS, "s", [NONE, NONE]),
        ([0, 0], Unit.BYTES, "B", ["0", "0"]),
        ([], Unit.SECONDS, "s", []),
    ],
)
def test_one_unit_for_a_column(values, unit, name, figures):
    assert column(values, unit) == (name, figures)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GiB", 8 * 2**30),
        ("24GB", 24 * 10**9),
        (" 1.5 MiB ", 3 * 2**19),
        ("512KiB", 2**19),
        ("2kB", 2000),
        ("1TiB", 2**40),
        ("0B", 0),
        (".5GB", 5 * 10**8),
    ],
)
def test_sizes(text, value):
    assert parse_size(text, "--x") == value


@pytest.mark.parametrize("text", ["", "8", "8G", "8 gigs", "-1GiB", "1GiB/s", "GiB", "8iB", "1e9B", "8GiB 2"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match=r"^--x '.*': write a number with its unit, for example 8GiB"):
        parse_size(text, "--x")


@pytest.mark.parametrize(("text", "value"), [("40GB/s", 4e10), ("1.2TB/s", 1.2e12), ("1GiB/s", 2.0**30), (None, None)])
def test_bandwidths(text, value):
    assert parse_bandwidth(text, "--x") == value


@pytest.mark.parametrize("text", ["40GB", "0GB/s", "40Gb/s", "fast"])
def test_what_is_no_bandwidth(text):
    with pytest.raises(OptionError, match="40GB/s"):
        parse_bandwidth(text, "--x")
