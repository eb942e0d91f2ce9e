"""`--infer-against` in a real git repository with the scripted engine: turns, pairs, whose code it is, and every end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_infer import session as sessions

ENGINE = """
import os
import pathlib

import speed

_HERE = pathlib.Path(__file__).parent
SIDE = "B" if str(_HERE) == os.environ["OURS"] else "A"
if os.environ.get("SELF"):
    SIDE = os.environ.get("SIDE", "A")
    os.environ["SIDE"] = "A"

def note(what):
    with open(os.environ["LOG"], "a") as file:
        file.write(f"{SIDE} {what} {time.perf_counter_ns()}\\n")

plain_generate = Scripted.generate

def load(self):
    note("load")
    return ModelInfo(name="scripted", engine="scripted", dtype="float32", device="cpu")

def generate(self, prompt_ids, limits, clock):
    note("begin")
    speed.before(len(prompt_ids))
    self.delays = [speed.DELAY] * 3
    done = plain_generate(self, prompt_ids, limits, clock)
    note("end")
    return done

def close(self):
    note("close")

@pytest.fixture(scope="session")
def engine():
    made = Scripted()
    yield made
    made.close()

Scripted.load, Scripted.generate, Scripted.close = load, generate, close
"""
SPEED = "DELAY = {delay}\n\n\ndef before(prompt_tokens):\n    {before}\n"

FEW = ("--infer-min-pairs=4", "--infer-max-rounds=4", "--infer-no-profile")


class Keep:
    """A plugin that keeps what the session knows at the end."""

    def pytest_sessionfinish(self, session):
        self.run = sessions.of(session.config)


class Repository:
    def __init__(self, pytester, log):
        self.pytester, self.path, self.log = pytester, pytester.path, log
        self.git("init", "-q", "-b", "main")
        self.speed()

    def git(self, *args):
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *args], cwd=self.path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def speed(self, delay=0.0, before="pass"):
        self.path.joinpath("speed.py").write_text(SPEED.format(delay=delay, before=before))

    def commit(self):
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a commit")
        return self.git("rev-parse", "HEAD")

    def run(self, *args):
        """Run in this process; return the result, and the session's state with `.pairs`."""
        keep = Keep()
        result = self.pytester.runpytest(*args, plugins=[keep])
        return result, getattr(keep, "run", None)

    def events(self, side=None):
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [(who, what, int(at)) for who, what, at in lines if side in (None, who)]

    def turns(self):
        return "".join(who for who, what, _ in self.events() if what == "begin")

    def worktrees(self):
        return self.git("worktree", "list", "--porcelain").count("worktree ")


@pytest.fixture
def repository(suite, tmp_path, tmp_path_factory, monkeypatch):
    pytester = suite(engine=ENGINE)
    log = tmp_path_factory.mktemp("log") / "events"
    monkeypatch.setenv("OURS", str(pytester.path))
    monkeypatch.setenv("LOG", str(log))
    # So that what is left behind can be seen.
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    pytester.path.joinpath(".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\n")
    made = Repository(pytester, log)
    made.temporary = folder
    return made


def gone(repository):
    assert repository.worktrees() == 1
    assert list(repository.temporary.glob("pytest-infer-*")) == []


def test_the_sides_take_turns_and_never_run_at_once(repository):
    repository.commit()
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=2)
    # A warm-up of each, then four pairs; for either prompt.
    assert repository.turns() == "AB" + "ABBAABBA" + "AB" + "ABBAABBA"
    begun = [(who, what) for who, what, _ in repository.events() if what in ("begin", "end")]
    assert all(a == (b[0], "begin") and b[1] == "end" for a, b in zip(begun[::2], begun[1::2], strict=True))
    assert [what for _, what, _ in repository.events()].count("load") == 2
    assert list(run.pairs) == ["test_suite.py::test_prompt[first]", "test_suite.py::test_prompt[second]"]
    for before, after in run.pairs.values():
        assert len(before.rounds) == len(after.rounds) == 4
    gone(repository)
