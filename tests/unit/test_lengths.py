"""The lengths of a curve, and prompts that are cut or repeated to them."""

import pytest

from pytest_infer.errors import OptionError
from pytest_infer.pytest_face.prompt_tokens import resized
from pytest_infer.pytest_face.sweep.lengths import Lengths


@pytest.mark.parametrize(
    ("given", "most", "lengths"),
    [
        ("default", 100, (16, 32, 64, 100)),
        ("16..context", 128, (16, 32, 64, 128)),
        ("10..45", 1000, (10, 20, 40, 45)),
        ("10..40", 1000, (10, 20, 40)),
        ("64, 16,100", 50, (16, 64, 100)),
        ("default", 9, (9,)),
    ],
)
def test_lengths(given, most, lengths):
    assert Lengths.parse(given, "here").up_to(most) == lengths


SAME_OR_ENDLESS = ("16,016", "9" * 5000, f"1..{'9' * 5000}", f"{'9' * 5000}..context", "\u0661")


WRONG = ("", "x", "16..", "..16", "16..x", "16..16", "0..16", "1,1", "-1", "1.5", "16,,32")


@pytest.mark.parametrize("given", [*WRONG, *SAME_OR_ENDLESS], ids=lambda given: given[:10])
def test_wrong_lengths(given):
    with pytest.raises(OptionError, match="here"):
        Lengths.parse(given, "here")


def test_only_an_open_range_needs_the_context():
    found = [Lengths.parse(given, "").needs_context for given in ("default", "16..context", "16..64", "16")]
    assert found == [True, True, False, False]


@pytest.mark.parametrize(
    ("ids", "tokens", "made"),
    [
        ([1, 2, 3], 2, [1, 2]),
        ([1, 2, 3], 3, [1, 2, 3]),
        ([1, 2, 3], 6, [1, 2, 3, 2, 3, 2]),  # the first id, which may be BOS, once
        ([7], 3, [7, 7, 7]),
        ([7, 8], 1, [7]),
    ],
)
def test_a_prompt_of_so_many_tokens(ids, tokens, made):
    assert resized(ids, tokens) == made
