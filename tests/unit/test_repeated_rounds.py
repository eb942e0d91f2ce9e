"""Which rounds are kept, and when another one is due."""

import pytest

from pytest_infer.measure.rounds import needs_more, rounds_to_keep


@pytest.mark.parametrize(
    ("disturbed", "wanted", "kept"),
    [
        ("....", 4, (0, 1, 2, 3)),
        (".x..", 3, (0, 2, 3)),
        ("x..x.", 3, (1, 2, 4)),
        ("xxx.x", 3, (0, 1, 3)),
        ("xx", 3, (0, 1)),
        ("", 3, ()),
    ],
)
def test_undisturbed_rounds_are_kept_in_order_and_filled_up(disturbed, wanted, kept):
    assert rounds_to_keep([d == "x" for d in disturbed], wanted) == kept


@pytest.mark.parametrize(
    ("disturbed", "more"), [("", True), ("..", True), ("...", False), ("x..", True), ("x...", False), ("xx..x", False)]
)
def test_a_round_is_repeated_until_enough_are_undisturbed_or_the_limit_is_reached(disturbed, more):
    assert needs_more([d == "x" for d in disturbed], 3, 2) is more


def test_nothing_is_repeated_without_leave():
    assert not needs_more([True, True, True], 3, 0)
