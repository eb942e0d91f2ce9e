"""How a side of a comparison ends when what it forked lives on, and why a test there did not pass."""

import contextlib
import os
import sys

import psutil
import pytest

from processes import runs
from pytest_infer.ab import child, protocol
from pytest_infer.ab.baton import ENVIRONMENT
from pytest_infer.ab.child_process import ChildProcess, Command
from pytest_infer.ab.launch import Launch, pipes
from pytest_infer.errors import AgainstError
from pytest_infer.pytest_face.options import CHILD

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no comparison on Windows")

DYING = """
import os, sys, time
fork = os.fork() or time.sleep(600)
with open("fork", "w") as file:
    file.write(str(fork))
os.kill(os.getpid(), 9)
"""
AWAITING_ITS_TURN = f"""
import os
os.read(int(os.environ[{ENVIRONMENT!r}].split(",")[0]), 1)
"""


@pytest.fixture
def side(tmp_path):
    """`side(program)` is a side that runs it, and is called HEAD; `side.fork()` is what a dying one forked."""
    with contextlib.ExitStack() as until:

        def made(program, ends=None, name="HEAD"):
            command = Command(
                name=name, arguments=[sys.executable, "-c", program], cwd=tmp_path, environment=os.environ
            )
            process = ChildProcess(command, ends)
            until.callback(process.close)
            return process

        made.fork = lambda: psutil.Process(int((tmp_path / "fork").read_text(encoding="utf-8")))
        yield made


def test_a_side_that_dies_before_what_it_forked_is_told_and_both_end(side):
    process = side(DYING)
    with pytest.raises(AgainstError, match=r"^the run of HEAD was killed by SIGKILL"):
        process.ready()
    fork = side.fork()
    assert runs(fork)
    with pytest.raises(AgainstError, match=r"^the run of HEAD was killed by SIGKILL"):
        process.begin("test_a")
    process.close()
    assert not runs(fork)


def test_what_a_side_says_before_it_dies_is_heard(side):
    says = f"""
from multiprocessing.connection import Connection
from pytest_infer.ab import protocol
channel = protocol.childs_end(Connection(int(os.environ[{CHILD!r}])))
channel.send(protocol.Begun(vocabulary=7))
"""
    process = side(DYING.replace("fork =", f"{says}fork ="))
    process._process.wait(120)
    assert process.begin("test_a").vocabulary == 7
    with pytest.raises(AgainstError, match="killed by SIGKILL"):
        process.time()


@pytest.mark.parametrize("dying", ["before", "after"])
def test_a_side_that_waits_for_a_turn_of_one_that_died_ends_too(side, dying):
    other = {"before": "after", "after": "before"}[dying]
    with pipes() as ends:
        both = {dying: side(DYING, ends[0]), other: side(AWAITING_ITS_TURN, ends[1], "this checkout")}
    launch = Launch(serial=0, **both)
    with pytest.raises(AgainstError, match=r"^the run of HEAD was killed by SIGKILL"):
        launch.take_turns(protocol.TakeTurns(number=0, begins=False, every=1, cores=()))
    # Nor is either asked for anything any more.
    assert both["before"].broken
    assert both["after"].broken
    assert both[other].gone
    fork = side.fork()
    launch.close()
    assert not runs(fork)


def test_an_outcome_that_only_a_plugin_knows_is_a_reason():
    side = child.Child(None, None)
    side.pytest_runtest_logreport(
        pytest.TestReport("a", ("a.py", 1, "a"), {}, "rerun", "three are too many", "call")  # as pytest-rerunfailures
    )
    assert side._why == "rerun in call: three are too many"
