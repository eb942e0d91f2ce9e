"""What a launch's two processes wait for while they start."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pytest_infer.ab import launches, protocol
from pytest_infer.errors import AgainstError


@pytest.fixture
def started(monkeypatch):
    """Starts a launch of scripted processes and returns what happened, in order, or the loop that started it."""

    def start(*, new=(), fails=False, loop=False):
        order = []
        ours = SimpleNamespace(
            greet=lambda hello: order.append(("ours told", hello.planned)),
            ready=lambda: order.append("ours ready") or protocol.Ready(new=new, missing=(), foreign={}),
            close=lambda: order.append("ours closed"),
        )

        def base(planned, ends):
            order.append("base ready")
            if fails:
                raise AgainstError("it does not start")
            return SimpleNamespace(close=lambda: order.append("base closed"))

        commit = SimpleNamespace(start_own=lambda ends: ours, start=base)
        session = SimpleNamespace(settings=SimpleNamespace(launches=1), keeper=SimpleNamespace(planned=("a", "b")))
        made = launches.Launches(session, commit)
        if fails or new:
            with pytest.raises(AgainstError):
                made.start()
        else:
            made.start()
        return made if loop else order

    monkeypatch.setattr(launches, "pipes", lambda: nullcontext((None, None)))
    return start


def test_both_sides_collect_at_the_same_time(started):
    # Whoever waits for one side before it tells the other what is planned lets a core idle for seconds.
    assert started() == [("ours told", ("a", "b")), "base ready", "ours ready"]


def test_one_that_follows_a_launch_that_died_has_a_number_of_its_own(started):
    loop = started(loop=True)
    loop.start()
    first, second = loop._launches
    loop._launches = [first]
    loop.start()
    assert (first.serial, second.serial, loop._launches[1].serial) == (0, 1, 2)


def test_none_is_left_where_one_side_cannot_start(started):
    assert started(fails=True)[-1] == "ours closed"
    assert sorted(started(new=("b",))[-2:]) == ["base closed", "ours closed"]
