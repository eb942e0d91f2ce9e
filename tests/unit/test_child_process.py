"""How a side of a comparison ends when what it forked lives on, and why a test there did not pass."""

import contextlib
import errno
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest

from processes import runs
from pytest_infer.ab import child, child_process, launches, protocol
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


BEGUN = f"""
import os, time
from multiprocessing.connection import Connection
from pytest_infer.ab import protocol
channel = protocol.childs_end(Connection(int(os.environ[{CHILD!r}])))
channel.send(protocol.Begun())
"""


def test_a_side_that_hangs_in_a_test_that_was_left_is_not_waited_for(side, monkeypatch):
    monkeypatch.setattr(child_process, "ABANDON_TIMEOUT_S", 0)
    monkeypatch.setattr(child_process, "LOOK_S", 0.01)
    hanging = f"{BEGUN}time.sleep(600)"
    launch = Launch(serial=0, before=side(hanging), after=side(hanging, name="this checkout"))
    launch.begin("test_a")
    why = launch.abandon()
    # As long as the test has taken until now, which is a matter of the machine.
    assert re.fullmatch(r"test_a has not ended in HEAD within \d+ s", why)
    assert launch.broken
    with pytest.raises(AgainstError, match=f"^{why}$"):
        launch.before.begin("test_b")


def test_a_side_that_still_loads_its_model_has_longer(side, monkeypatch):
    monkeypatch.setattr(child_process, "ABANDON_TIMEOUT_S", 0)
    monkeypatch.setattr(child_process, "LOOK_S", 0.01)
    process = side(f"import time; time.sleep(0.5)\n{BEGUN}channel.send(protocol.Ended(nodeid='test_a'))")
    process.go("test_a")
    process.abandon()
    process.abandoned()
    assert not process.running
    assert not process.broken


def test_a_side_that_dies_while_it_is_asked_for_a_test_says_why_and_its_launch_is_dropped(side):
    dying, other = side(DYING), side("import time; time.sleep(600)", name="this checkout")
    made = launches.Launches(SimpleNamespace(settings=SimpleNamespace(launches=2)), None)
    spare = SimpleNamespace(broken=False)
    made._launches = [Launch(serial=0, before=dying, after=other), spare]
    with pytest.raises(AgainstError, match="killed by SIGKILL"):
        made.has("test_a")
    assert made._launches == [spare]
    assert other.gone


class Timeout:
    """A launch whose test is left by another exception than one of ours, as pytest-timeout's."""

    broken, after, left = False, None, 0

    def begin(self, nodeid):
        pytest.fail("Timeout (>1.0s) from pytest-timeout.")

    def abandon(self, *, loading):
        assert loading, "it is waited for what hangs in its load"
        self.left, self.broken = self.left + 1, True
        return "test_a has not ended in HEAD within 60 s"

    def close(self):
        self.closed = True


def test_what_is_left_by_a_limit_on_the_tests_time_is_given_up_at_once():
    notes = []
    session = SimpleNamespace(
        settings=SimpleNamespace(launches=2, against_python=None),
        live=SimpleNamespace(show=lambda line: None, clear=lambda: None),
        note=notes.append,
    )
    made = launches.Launches(session, SimpleNamespace(new=()))
    made._launches = [Timeout(), Timeout()]
    kept, dropped = made._launches
    with pytest.raises(pytest.fail.Exception):
        made.elsewhere("test_a", SimpleNamespace(name="a"), SimpleNamespace(), {})
    assert (kept.left, dropped.left) == (1, 1)
    assert dropped.closed
    assert set(notes) == {"! test_a has not ended in HEAD within 60 s"}


def test_a_group_of_which_only_zombies_are_left_is_nobody(side, monkeypatch):
    process = side("pass")
    process._process.wait(120)

    def refused(group, number):
        raise PermissionError  # as on macOS

    monkeypatch.setattr(os, "killpg", refused)
    process.close()
    assert process._group is None


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


@pytest.fixture
def full(monkeypatch):
    """Return a function that lets a call of the system be refused after it has worked so many times."""

    def refuse(module, name, works=0):
        left, real = iter(range(works)), getattr(module, name)

        def made(*args, **more):
            if next(left, None) is None:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*args, **more)

        monkeypatch.setattr(module, name, made)

    return refuse


@pytest.mark.parametrize(("module", "name"), [(child_process.tempfile, "TemporaryFile"), (child_process, "Pipe")])
def test_a_side_that_cannot_be_started_says_why(side, full, module, name):
    full(module, name)
    with pytest.raises(AgainstError, match=r"^the run of HEAD cannot be started: Too many open files$"):
        side("pass")


def test_a_launch_without_pipes_says_why_and_leaves_none_open(full):
    open_before = len(list(Path("/dev/fd").iterdir()))
    full(os, "pipe", works=1)
    with pytest.raises(AgainstError, match=r"^a launch cannot be started: Too many open files$"), pipes():
        pass
    assert len(list(Path("/dev/fd").iterdir())) == open_before


def test_half_a_character_is_refused_in_what_must_be_exact_and_replaced_in_what_is_read(side, tmp_path):
    process = side("import time; time.sleep(600)")
    with pytest.raises(AgainstError, match=r"^HEAD cannot be told of '/caf\\udce9': it is not UTF-8, rename it$"):
        process.greet(protocol.Hello(checkout="/caf\udce9"))
    sent = []
    told = child.Child(None, SimpleNamespace(send=lambda message: sent.append(msgspec.json.encode(message))))
    told.pytest_runtest_logreport(
        pytest.TestReport("a", ("a.py", 1, "a"), {}, "failed", "assert s == '\ud83d'", "call")
    )
    told.pytest_runtest_logfinish("a")
    assert msgspec.json.decode(sent[0])["why"] == "failed in call: assert s == '?'"


def test_an_outcome_that_only_a_plugin_knows_is_a_reason():
    side = child.Child(None, None)
    side.pytest_runtest_logreport(
        pytest.TestReport("a", ("a.py", 1, "a"), {}, "rerun", "three are too many", "call")  # as pytest-rerunfailures
    )
    assert side._why == "rerun in call: three are too many"
