"""Which cores a measuring process has between what it is asked for: all of them, whatever it was pinned to before."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest

from pytest_infer.ab import child
from pytest_infer.ab.loop import Task
from pytest_infer.ab.protocol import Abandon, Finish, RunProfile, TakeTurns, Time, WarmUp
from pytest_infer.ab.settling import pin
from pytest_infer.records import Pass

CORES = os.sched_getaffinity(0) if sys.platform == "linux" else set()
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs cores to choose from, on Linux")
ONE = (min(CORES, default=0),)
TIME, TURNS = Time(cores=ONE), TakeTurns(number=1, begins=True, every=1, cores=ONE)
PROFILE, FINISH = RunProfile(experts=False), Finish(keep=(0,))


class TornError(Exception):
    """What goes wrong in an engine."""


class Runner:
    """Notes the cores that it ran on, and ends one kind of round early; a pass in turns pins itself."""

    engine = SimpleNamespace(
        takes_turns=lambda: True, follows=lambda: None, continues=lambda: False, synchronize=lambda: None
    )
    limits = SimpleNamespace(sequences=1)

    def __init__(self, cores, torn):
        self._cores, self._torn, self.ran = cores, torn, []

    def _run(self, what):
        self.ran.append((what, self._cores()))
        if what == self._torn:
            raise TornError

    def timed(self, follow=None):
        self._run("whole")
        return SimpleNamespace(trace=None)

    def in_turns(self, turns, tokens, follow=None, observed=None, behind=()):
        turns._settle(1)
        self._run("turns")
        return Pass(start_ns=0, stamps_ns=(1,), tick_sizes=(1,), token_ids=(1,))

    def kept_apart(self, expected, **how):
        self._run("profile")
        return None, "nothing was looked at"


class Parent:
    """Asks for these things and hangs up; notes the child's cores whenever it is told or asked something."""

    def __init__(self, asked, cores):
        self._asked, self._cores, self.saw = list(asked), cores, []

    def send(self, message):
        self.saw.append((type(message).__name__, self._cores()))

    def receive(self):
        self.saw.append(("asked", self._cores()))
        if not self._asked:
            raise EOFError
        return self._asked.pop(0)


@pytest.fixture
def cores():
    """Return a function that tells the cores of this thread and of another one, as a set if they are the same."""
    over, started = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (started.set(), over.wait()))
    thread.start()
    started.wait()
    yield lambda: [os.sched_getaffinity(0), os.sched_getaffinity(thread.native_id)]
    over.set()
    thread.join()
    pin(tuple(CORES))


@pytest.mark.parametrize(
    ("asked", "torn", "ended"),
    [
        ([WarmUp(), TIME, TIME, PROFILE, FINISH], None, None),
        ([TIME, TURNS, PROFILE, TURNS, FINISH], None, None),
        ([TIME, Abandon()], None, pytest.skip.Exception),
        ([TIME, TURNS], None, pytest.exit.Exception),
        ([TIME, TIME], "whole", TornError),
        ([TURNS, TURNS], "turns", TornError),
        ([TIME, PROFILE], "profile", TornError),
        ([TIME, Finish(keep=(7,))], None, IndexError),
    ],
)
def test_all_cores_are_there_after_each_thing_and_after_all(cores, asked, torn, ended):
    parent, runner = Parent(asked, cores), Runner(cores, torn)
    side = child.Child(None, parent)
    side._baton = SimpleNamespace(begin=lambda *_: None, end=lambda: None)
    task = Task(nodeid="a test", prompt=None, plan=None, runner=runner, watch=None, threads=1)
    try:
        side.measure(task)
        how = None
    except BaseException as error:  # noqa: BLE001 - pytest skips and exits by them
        how = type(error)
    assert how is ended
    whole, one = [CORES, CORES], set(ONE)
    pinned = {"whole": [one, one], "turns": [one, CORES], "profile": whole}
    warmed = [("whole", whole)] * (asked[0] == WarmUp())
    assert runner.ran[: len(warmed)] == warmed
    assert runner.ran[len(warmed) :]
    assert all(where == pinned[what] for what, where in runner.ran[len(warmed) :])
    assert [what for what, where in parent.saw if where != whole] == []
    assert cores() == whole
