"""The messages of a comparison: each arrives as it was sent, and only at the end it is meant for."""

from multiprocessing import Pipe
from pathlib import Path

import msgspec
import pytest

from pytest_infer.ab import protocol
from pytest_infer.records import PromptRecord


@pytest.fixture
def ends():
    ours, theirs = Pipe()
    parent, child = protocol.parents_end(ours), protocol.childs_end(theirs)
    yield parent, child
    parent.close()
    child.close()


@pytest.fixture
def record():
    data = Path(__file__).parents[1].joinpath("data", "record-1.json").read_bytes()
    return msgspec.json.decode(data, type=PromptRecord)


def test_what_the_parent_says(ends):
    parent, child = ends
    for message in (
        protocol.Hello(planned=("a::b[ü]",), checkout="/main", worktree="/tree"),
        protocol.Go(nodeid="a::b[c]"),
        protocol.WarmUp(),
        protocol.Time(),
        protocol.RunProfile(experts=True),
        protocol.Finish(keep=(0, 2)),
        protocol.Abandon(),
    ):
        parent.send(message)
        assert child.receive() == message


def test_what_the_child_says(ends, record):
    parent, child = ends
    for message in (
        protocol.OtherProtocol(protocol=7),
        protocol.Ready(new=("a",), missing=(), foreign={"module": "/file"}),
        protocol.Begun(),
        protocol.Warmed(),
        protocol.TimedRound(round=record.rounds[0]),
        protocol.Instrumented(),
        protocol.Ended(nodeid="a", why=None),
    ):
        child.send(message)
        assert parent.receive() == message
    child.send(protocol.FinishedTest(record=record, foreign={}))
    finished = parent.receive()
    assert finished.record == record, "every field of a record survives, stamps and all"


def test_a_message_of_the_wrong_side_or_of_none_is_told(ends):
    parent, child = ends
    child.send(protocol.Begun())
    parent.send(protocol.Ended(nodeid="a"))
    assert isinstance(parent.receive(), protocol.Begun)
    with pytest.raises(msgspec.DecodeError):
        child.receive()


def test_the_end_of_one_side_is_seen_by_the_other(ends):
    parent, child = ends
    assert not parent.waits(0)
    child.close()
    assert parent.waits(1)
    with pytest.raises(EOFError):
        parent.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        parent.send(protocol.Time())


def test_the_first_message_is_read_whatever_else_another_version_puts_into_it():
    raw = b'{"type": "Hello", "protocol": 99, "planned": [], "more": 1}'
    assert msgspec.json.decode(raw, type=protocol.FromParent).protocol == 99
