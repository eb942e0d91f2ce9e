"""Sizes and bandwidths as they are typed."""

import pytest

from pytest_infer.cli import quantities
from pytest_infer.errors import OptionError


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
    assert quantities.size(text, "--x") == value


@pytest.mark.parametrize("text", ["", "8", "8G", "8 gigs", "-1GiB", "1GiB/s", "GiB", "8iB", "1e9B", "8GiB 2"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match=r"^--x '.*': write a number with its unit, for example 8GiB"):
        quantities.size(text, "--x")


@pytest.mark.parametrize(("text", "value"), [("40GB/s", 4e10), ("1.2TB/s", 1.2e12), ("1GiB/s", 2.0**30), (None, None)])
def test_bandwidths(text, value):
    assert quantities.bandwidth(text, "--x") == value


@pytest.mark.parametrize("text", ["40GB", "0GB/s", "40Gb/s", "fast"])
def test_what_is_no_bandwidth(text):
    with pytest.raises(OptionError, match="40GB/s"):
        quantities.bandwidth(text, "--x")
