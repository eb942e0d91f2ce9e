"""Which rounds are kept, and when another one is due."""

from types import SimpleNamespace

import pytest

from pytest_infer.ab import one_prompt
from pytest_infer.ab.launch import Launch
from pytest_infer.ab.one_prompt import OnePrompt
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


class Side:
    """A process that says which of its rounds were disturbed: those marked in the script, then none."""

    def __init__(self, script):
        self._script = iter(script)

    def time(self, cores):
        return SimpleNamespace(disturbed=("planted",) if next(self._script, ".") == "x" else ())


@pytest.mark.parametrize(
    ("scripts", "each", "repeat", "counts"),
    [
        # A launch may take all that may be repeated, and what one leaves is the next one's.
        (["xxxxxx"] * 8, 1, 3, [4, 1, 1, 1, 1, 1, 1, 1]),
        (["x", ".", ".", "x", ".", ".", ".", "xxxx"], 1, 3, [2, 1, 1, 2, 1, 1, 1, 2]),
        (["."] * 7 + ["xxx"], 1, 3, [1] * 7 + [4]),
        ([".x", "xx", "x"], 2, 3, [3, 4, 2]),
        (["x", "x"], 1, 0, [1, 1]),
        (["", ""], 3, 3, [3, 3]),
    ],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_launches_share_what_may_be_repeated(scripts, each, repeat, counts, side):
    used = [Launch(**{"serial": 0, "before": Side(""), "after": Side(""), side: Side(script)}) for script in scripts]
    session = SimpleNamespace(settings=None, live=SimpleNamespace(show=len))
    prompt = OnePrompt(session, None, SimpleNamespace(name="a prompt"), None, {})
    prompt._whole_rounds(used, each, repeat)
    assert [len(launch.pairs) for launch in used] == counts
    assert all(len(launch.kept(each)) == each for launch in used)
    # One more pair of each, as for engines that take no turns of a token: what was repeated counts.
    prompt._whole_rounds(used, each + 1, 0)
    assert [len(launch.pairs) for launch in used] == [max(each + 1, count) for count in counts]


@pytest.mark.parametrize(
    ("pair_s", "scripts", "counts"),
    [
        (4, [".", ".", ".", ".", "."], [1, 1, 1, 1, 1]),  # as planned: 20 s of 60
        (5.5, [".", ".", ".", ".", "."], [1, 1, 1, 1, 0]),
        (9, [".", ".", ".", ".", "."], [1, 1, 1, 0, 0]),  # three at least
        (3, ["x", "x", "x", ".", "."], [2, 2, 1, 1, 1]),  # each launch comes before one is repeated
        (4, ["x", "x", ".", ".", "."], [1, 1, 1, 1, 1]),
    ],
)
def test_whole_rounds_that_take_longer_than_planned_leave_the_passes_their_time(monkeypatch, pair_s, scripts, counts):
    clock = [0.0]
    monkeypatch.setattr(one_prompt.time, "monotonic", lambda: clock[0])

    class Slow(Side):
        def time(self, cores):
            clock[0] += pair_s
            return super().time(cores)

    session = SimpleNamespace(settings=None, live=SimpleNamespace(show=len))
    prompt = OnePrompt(session, None, SimpleNamespace(name="a prompt"), None, {})
    used = [Launch(serial=0, before=Slow(script), after=Side("")) for script in scripts]
    prompt._whole_rounds(used, 1, 3, 20.0)
    assert [len(launch.pairs) for launch in used] == counts
