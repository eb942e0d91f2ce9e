"""`--infer-against` in a real git repository with the scripted engine: turns, pairs, whose code it is, all ends."""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_infer.ab import protocol
from pytest_infer.ab.baton import Waits
from pytest_infer.ab.passes import Windows
from pytest_infer.measure import disturbance
from pytest_infer.pytest_face import session as sessions
from pytest_infer.storage import sidecar

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

EACH_ONCE = "--infer-repeat-disturbed=0"
"""Whatever else the machine does meanwhile."""
FEW = ("--infer-min-pairs=4", "--infer-max-rounds=4", "--infer-no-profile", "--infer-gate=off", EACH_ONCE)


class Keep:
    """A plugin that keeps what the session knows at the end."""

    def pytest_sessionfinish(self, session):
        self.run = session.config.stash[sessions.KEY]


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
        # Without a verdict, for this process is larger than the other one, whose pytest runs only the suite.
        result = self.pytester.runpytest("--infer-gate=off", *args, plugins=[keep])
        return result, getattr(keep, "run", None)

    def events(self, side=None):
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [(who, what, int(at)) for who, what, at in lines if side in (None, who)]

    def turns(self):
        return "".join(who for who, what, _ in self.events() if what == "begin")

    def worktrees(self):
        return self.git("worktree", "list", "--porcelain").count("worktree ")


@pytest.fixture
def scratch(suite, tmp_path_factory, monkeypatch):
    """Return a function that makes a repository with a suite."""

    def make(*, virtual):
        pytester = suite(engine=ENGINE, virtual=virtual)
        log = tmp_path_factory.mktemp("log") / "events"
        monkeypatch.setenv("OURS", str(pytester.path))
        monkeypatch.setenv("LOG", str(log))
        # So that what is left behind can be seen.
        folder = tmp_path_factory.mktemp("temporary")
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr("tempfile.tempdir", None)
        # Most tests here are about turns of rounds; those about turns of a token say so.
        monkeypatch.setenv("PYTEST_ADDOPTS", f"{os.environ['PYTEST_ADDOPTS']} --infer-turns=round")
        pytester.path.joinpath(".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\n.cache\n")
        made = Repository(pytester, log)
        made.temporary = folder
        return made

    return make


@pytest.fixture
def repository(scratch):
    return scratch(virtual=False)


@pytest.fixture
def timeless(scratch):
    """A repository whose delays pass on the clock only: what is judged is exact, whatever else the machine does."""
    return scratch(virtual=True)


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
        assert before.first_run.trace.start_ns < after.first_run.trace.start_ns < before.rounds[0].trace.start_ns
    gone(repository)


def test_what_is_slower_in_one_commit_is_seen_in_every_pair(repository):
    repository.commit()
    repository.speed(delay=0.01)
    repository.commit()
    result, run = repository.run("--infer-against=HEAD~1", *FEW, "--benchmark-autosave")
    result.assert_outcomes(passed=2)
    for before, after in run.pairs.values():
        slow, quick = ([r.trace.stamps_ns[-1] - r.trace.start_ns for r in side.rounds] for side in (after, before))
        assert len(slow) == len(quick) == 4
        # A round of the base may be held up that long, but not each of them.
        assert min(slow) >= 30_000_000 > min(quick)
        assert before.output.text == after.output.text == "1 2 3"
        assert before.model.name == "scripted"
    assert run.against.rev == "HEAD~1"
    assert run.against.commit == repository.git("rev-parse", "HEAD~1")
    assert (run.against.dirty, run.against.sequential) == (False, False)
    # One run is saved, and it is ours.
    (saved,) = repository.path.glob(".benchmarks/*/*.json")
    rows = [row for row in json.loads(saved.read_text())["benchmarks"] if row["params"]["phase"] == "total"]
    assert [row["stats"]["rounds"] for row in rows] == [4, 4]
    assert all(row["stats"]["min"] >= 0.03 for row in rows)
    # Both sides' stamps lie beside it.
    arrays = sidecar.read(saved)
    for test, (before, _) in run.pairs.items():
        kept = [arrays[f"{test}|before|{number}|stamps_ns"] for number in range(4)]
        assert [stamps.tolist() for stamps in kept] == [
            [stamp - one.trace.start_ns for stamp in one.trace.stamps_ns] for one in before.rounds
        ]
    (suite,) = json.loads(saved.read_text())["pytest_infer"]["averages"]
    blocks = [row["extra_info"]["pytest_infer"] for row in rows]
    for side, told in ((blocks, suite["metrics"]), ([b["against"] for b in blocks], suite["against"])):
        totals = [one["metrics"]["total_s"]["value"] for one in side]
        assert told["total_s"] == {"mean": sum(totals) / 2, "stdev": statistics.stdev(totals), "prompts": 2}


def test_uncommitted_changes_are_ours_and_told(repository):
    repository.commit()
    repository.speed(delay=0.01)
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=2)
    assert run.against.dirty
    before, after = run.pairs["test_suite.py::test_prompt[first]"]
    assert min(r.counters.wall_s for r in after.rounds) >= 0.03 > min(r.counters.wall_s for r in before.rounds)


def test_a_file_of_the_ini_file_need_not_be_committed(repository):
    path = repository.path
    path.joinpath("pytest.ini").write_text("[pytest]\ninfer_prompts = data/own.toml\n")
    path.joinpath(".gitignore").write_text(path.joinpath(".gitignore").read_text() + "data/\n")
    repository.commit()
    path.joinpath("data").mkdir()
    path.joinpath("data/own.toml").write_text('[[prompt]]\nname = "own"\ntext = "one two"\nmax_new_tokens = 3\n')
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=1)
    assert all(run.pairs["test_suite.py::test_prompt[own]"])


def test_both_sides_have_a_profile_round(repository):
    repository.commit()
    _, run = repository.run("--infer-against=HEAD", "--infer-max-rounds=2", EACH_ONCE)
    for before, after in run.pairs.values():
        assert len(before.rounds) == len(after.rounds) == 2
        assert before.profile is not None
        assert after.profile is not None
    assert repository.turns() == ("AB" + "ABBA" + "AB") * 2


def test_pairs_go_on_until_they_are_settled(repository):
    repository.commit()
    asked = []

    class Settle:
        def pytest_collection_finish(self, session):
            def settled(prompt, before, after, config):
                asked.append((prompt.name, len(before), len(after)))
                assert config == {}
                return len(before) >= (6 if prompt.name == "first" else 3)

            session.config.stash[sessions.KEY].settled = settled

    keep = Keep()
    args = ("--infer-min-pairs=3", "--infer-max-rounds=9", "--infer-no-profile")
    repository.pytester.runpytest("--infer-against=HEAD", "--infer-gate=off", *args, plugins=[keep, Settle()])
    assert asked == [("first", 3, 3), ("first", 5, 5), ("first", 7, 7), ("second", 3, 3)]
    assert [len(after.rounds) for _, after in keep.run.pairs.values()] == [7, 3]


def test_a_pair_with_a_disturbed_round_is_measured_again(repository, monkeypatch):
    monkeypatch.setattr(disturbance, "reasons", disturbance.reasons)  # back after our side, which runs in this process
    # Every round of the base's second generation and of our fifth: the pairs 0 and 3.
    repository.path.joinpath("conftest.py").write_text(
        repository.path.joinpath("conftest.py").read_text()
        + """
from pytest_infer.ab import protocol
from pytest_infer.measure import disturbance
COUNT = []
def reasons(counters, usable_cores):
    COUNT.append(1)
    return ("planted",) if len(COUNT) == {"A": 2, "B": 5}[SIDE] else ()
disturbance.reasons = reasons
"""
    )
    repository.commit()
    result, run = repository.run("--infer-against=HEAD", *FEW, "--infer-repeat-disturbed=3", "-k", "first", "-v")
    result.assert_outcomes(passed=1)
    assert repository.turns() == "AB" + "ABBAABBA" + "ABBA"
    ((before, after),) = run.pairs.values()
    assert not any(r.disturbed for r in (*before.rounds, *after.rounds))
    assert [bool(r.disturbed) for r in before.repeated] == [True, False]
    assert [bool(r.disturbed) for r in after.repeated] == [False, True]
    result.stdout.fnmatch_lines(["*2 rounds were disturbed and measured again*"])


PACKAGE_TEST = """
from package import work

def test_prompt(infer, prompt):
    assert infer(prompt).output.text == "1 2 3"
    work.note()
"""
WORK = """
import os
def note():
    with open(os.environ["LOG"] + ".files", "a") as file:
        file.write(__file__ + "\\n")
"""


def with_package(repository, where="."):
    folder = repository.path / where / "package"
    folder.mkdir(parents=True)
    folder.joinpath("__init__.py").write_text("")
    folder.joinpath("work.py").write_text(WORK)
    repository.path.joinpath("test_suite.py").write_text(PACKAGE_TEST)


def test_the_code_comes_from_the_worktree(repository, monkeypatch):
    with_package(repository, "src")
    repository.commit()
    # As an editable install with a .pth file has it: an absolute path among the last.
    monkeypatch.syspath_prepend(repository.path / "src")
    sys.path.append(sys.path.pop(0))
    result, _ = repository.run("--infer-against=HEAD", *FEW, "-k", "first")
    result.assert_outcomes(passed=1)
    base, ours = Path(f"{repository.log}.files").read_text().splitlines()
    assert ours == str(repository.path / "src/package/work.py")
    assert base.endswith("/base/src/package/work.py")
    assert not base.startswith(str(repository.path))


def test_the_other_checkouts_code_is_not_taken_for_the_commits(repository):
    with_package(repository, "src")
    conftest = repository.path / "conftest.py"
    source = repository.path / "src"
    conftest.write_text(f"import sys\nsys.path.insert(0, {str(source)!r})\n{conftest.read_text()}")
    repository.commit()
    result, run = repository.run("--infer-against=HEAD", *FEW)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.stderr.lines if "imported" in line]
    assert f"imported package from this checkout ({source}/package/__init__.py)" in line
    assert "--infer-against-python" in line
    assert repository.events() == []
    assert run.pairs == {}
    gone(repository)


def test_code_that_is_imported_late_is_checked_too(repository):
    with_package(repository, "src")
    test = PACKAGE_TEST.replace("from package import work\n", "").replace(
        "    assert infer", f"    import sys; sys.path.insert(0, {str(repository.path / 'src')!r})\n    assert infer"
    )
    test = test.replace("    assert", "    from package import work\n    assert", 1)
    repository.path.joinpath("test_suite.py").write_text(test)
    repository.commit()
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*imported package from this checkout*"])
    assert run.pairs == {}


def test_tests_that_one_side_lacks(repository):
    prompts = repository.path / "prompts.toml"
    ours = prompts.read_text()
    prompts.write_text(ours.replace('"second"', '"former"'))
    repository.commit()
    prompts.write_text(ours)
    result, run = repository.run("--infer-against=HEAD", *FEW, "--infer-rounds=2")
    result.assert_outcomes(passed=2)
    assert run.missing == ("test_suite.py::test_prompt[former]",)
    before, after = run.pairs["test_suite.py::test_prompt[second]"]
    assert before is None
    assert len(after.rounds) == 2
    assert len(run.pairs["test_suite.py::test_prompt[first]"][0].rounds) == 4


def test_one_test_by_its_name(repository):
    repository.commit()
    result, run = repository.run("--infer-against=HEAD", *FEW, "test_suite.py::test_prompt[second]")
    result.assert_outcomes(passed=1)
    assert list(run.pairs) == ["test_suite.py::test_prompt[second]"]
    assert run.missing == ()


@pytest.mark.parametrize("again", ["--lf", "--sw"])
def test_what_did_not_fail_the_last_time_is_left_out_and_not_missing(repository, again):
    repository.commit()
    repository.speed(before="assert prompt_tokens != 2")
    result, _ = repository.run(again, "--infer-rounds=1")
    result.assert_outcomes(passed=1, failed=1)
    repository.speed()
    result, run = repository.run("--infer-against=HEAD", *FEW, again)
    result.assert_outcomes(passed=1)
    assert list(run.pairs) == ["test_suite.py::test_prompt[second]"]
    assert run.missing == ()


def in_a_subfolder(repository):
    """Commit the suite in a folder below the ini file's, and return that folder."""
    folder = repository.path / "sub"
    folder.mkdir()
    for name in ("conftest.py", "speed.py", "test_suite.py", "prompts.toml"):
        repository.path.joinpath(name).rename(folder / name)
    repository.path.joinpath("pytest.ini").write_text("[pytest]\n")
    repository.commit()
    return folder


def test_from_a_subfolder(repository):
    folder = in_a_subfolder(repository)
    repository.pytester.chdir()
    os.chdir(folder)
    result, run = repository.run("--infer-against=HEAD", *FEW, str(folder / "test_suite.py"))
    result.assert_outcomes(passed=2)
    assert all(before is not None for before, _ in run.pairs.values())


def test_an_ini_file_that_one_side_lacks_moves_no_test(repository):
    folder = in_a_subfolder(repository)
    (folder / "pytest.ini").write_text("[pytest]\n")
    result, run = repository.run("--infer-against=HEAD", *FEW, "sub")
    result.assert_outcomes(passed=2)
    assert run.missing == ()
    assert all(before is not None for before, _ in run.pairs.values())


@pytest.mark.parametrize("how", ["typed", "variable"])
def test_a_file_of_arguments_is_for_both_sides(repository, monkeypatch, how):
    (repository.path / "args.txt").write_text("\n".join(["--infer-against=HEAD", "--infer-max-new-tokens=2", *FEW]))
    if how == "variable":
        monkeypatch.setenv("PYTEST_ADDOPTS", f"{os.environ['PYTEST_ADDOPTS']} @args.txt")
    repository.commit()
    # The other side is told what was read here, whatever its own file says.
    (repository.path / "args.txt").write_text("\n".join(["--infer-against=HEAD", "--infer-max-new-tokens=1", *FEW]))
    result, run = repository.run(*["@args.txt"] * (how == "typed"))
    result.assert_outcomes(passed=2)
    limits = [side.prompt.limits.max_new_tokens for pair in run.pairs.values() for side in pair]
    assert limits == [1] * 4


def test_the_worktrees_ini_file_saves_and_compares_nothing(repository):
    repository.path.joinpath("pytest.ini").write_text(
        "[pytest]\ninfer_against = HEAD\naddopts = --benchmark-autosave --benchmark-compare --lf --junitxml=out.xml -x "
        f"--benchmark-storage={repository.path}/kept --benchmark-compare-fail=min:1% --infer-resume\n"
    )
    repository.commit()
    repository.path.joinpath("pytest.ini").unlink()
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=2)
    assert len(run.pairs) == 2
    assert list(repository.path.glob("kept/**/*.json")) == []  # pytest-benchmark makes the folder at once


def refused(result, *parts):
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line.startswith("ERROR: pytest-infer:")]
    assert len(lines) == 1, result.stderr.str()
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("how", ["round", "token"])
def test_options_of_pytest_benchmark_that_do_nothing_do_nothing_on_either_side(repository, how):
    given = "--benchmark-cprofile=tottime --benchmark-cprofile-dump=dump/all --benchmark-min-rounds=50"
    repository.path.joinpath("pytest.ini").write_text(f"[pytest]\naddopts = {given} --benchmark-histogram=plots/all\n")
    repository.commit()
    # The commit's own ini file is not this checkout's.
    repository.path.joinpath("pytest.ini").write_text(f"[pytest]\naddopts = {given}\n")
    turns = (f"--infer-turns={how}", "--infer-launches=1", "--infer-time=1s", *FEW[:3])
    result, run = repository.run("--infer-against=HEAD", *turns, "--benchmark-autosave")
    result.assert_outcomes(passed=2)
    assert " ".join(result.outlines).count("no effect on") == 1
    assert [before is not None for before, _ in run.pairs.values()] == [True, True]
    (saved,) = repository.path.glob(".benchmarks/*/*.json")
    assert len(json.loads(saved.read_text())["benchmarks"]) == 6
    assert not [path for path in repository.path.iterdir() if path.name in ("dump", "plots")]
    gone(repository)


def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(repository):
    repository.commit()
    refused(repository.run("--infer-against=no-such-rev")[0], "--infer-against=no-such-rev", "git fetch", "self")
    refused(repository.run("--infer-against=--help")[0], "git finds no such commit")
    refused(repository.run("--infer-against=HEAD", "--benchmark-disable")[0], "--benchmark-disable")
    refused(repository.run("--infer-against=HEAD", "-n2")[0], "-n 0")
    refused(repository.run("--infer-against=HEAD", "--infer-resume", "--benchmark-autosave")[0], "--infer-resume")
    refused(repository.run("--infer-against=HEAD", "--infer-cold-load")[0], "leave out --infer-cold-load")
    refused(
        repository.run("--infer-against=HEAD", "--infer-min-pairs=5", "--infer-max-rounds=4")[0], "--infer-min-pairs"
    )
    assert repository.events() == []
    gone(repository)


def test_outside_git(suite):
    pytester = suite()
    refused(pytester.runpytest("--infer-against=HEAD"), "needs a git checkout", str(pytester.path))
    result = pytester.runpytest("--infer-against=self", "--infer-turns=round", *FEW)
    result.assert_outcomes(passed=2)


def test_a_suite_that_the_commit_lacks(repository):
    repository.path.joinpath("test_suite.py").rename(repository.path / "test_other.py")
    repository.commit()
    repository.path.joinpath("test_other.py").rename(repository.path / "test_suite.py")
    refused(repository.run("--infer-against=HEAD", "test_suite.py")[0], "has no test_suite.py")
    refused(repository.run("--infer-against=HEAD")[0], "has none of the tests")
    gone(repository)


def test_a_base_that_cannot_be_collected_shows_its_log(repository):
    speed = repository.path / "speed.py"
    good = speed.read_text()
    speed.write_text("import no_such_module_there\n")
    repository.commit()
    speed.write_text(good)
    result, _ = repository.run("--infer-against=HEAD", *FEW)
    refused(result, "the run of HEAD", "exit code 4")
    assert "no_such_module_there" in result.stderr.str()
    gone(repository)


def first_fails_in_the_base(repository):
    """Run a suite whose first test fails in the base and whose second one is measured; return what was printed."""
    repository.speed(before="assert prompt_tokens != 3, 'three are too many'")
    repository.commit()
    repository.speed()
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=1, failed=1)
    assert list(run.pairs) == ["test_suite.py::test_prompt[second]"]
    gone(repository)
    return result.stdout


def test_a_base_that_fails_in_one_test_goes_on_with_the_next(repository):
    said = first_fails_in_the_base(repository)
    said.fnmatch_lines(["*test_prompt?first? failed in call: *three are too many*HEAD*"])


RERUNS = """
from _pytest.runner import runtestprotocol

class Reruns:
    # As pytest-rerunfailures does once, whoever asked it to: an option, an ini file, or a marker.
    def pytest_runtest_protocol(self, item, nextitem):
        where = {"nodeid": item.nodeid, "location": item.location}
        item.ihook.pytest_runtest_logstart(**where)
        for failed in ("rerun", "failed"):
            item._initrequest()
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            for report in reports:
                report.outcome = failed if report.failed else report.outcome
                item.ihook.pytest_runtest_logreport(report=report)
            if all(report.passed for report in reports):
                break
        item.ihook.pytest_runtest_logfinish(**where)
        return True

def pytest_configure(config):
    config.pluginmanager.register(Reruns(), "rerunfailures")
"""


PLAIN = """
tried = []

def test_plain():
    tried.append(1)
    assert len(tried) > 1
"""


def test_a_test_of_a_comparison_is_not_repeated_and_its_first_failure_is_shown(repository):
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + RERUNS)
    said = first_fails_in_the_base(repository)
    said.fnmatch_lines(["*test_prompt?first? failed in call: *three are too many*HEAD*"])
    assert " already: a comparison cannot repeat " not in said.str()


def test_others_beside_it_are_repeated(repository):
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + RERUNS)
    repository.path.joinpath("test_plain.py").write_text(PLAIN)
    repository.commit()
    repository.speed(before="assert prompt_tokens != 3, 'three are too many'")
    result, _ = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*three are too many"])
    assert " already: a comparison cannot repeat " not in result.stdout.str()


def test_ours_that_fails_in_one_test_goes_on_with_the_next(repository):
    repository.commit()
    repository.speed(before="assert prompt_tokens != 3, 'three are too many'")
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=1, failed=1)
    assert list(run.pairs) == ["test_suite.py::test_prompt[second]"]
    assert len(run.pairs["test_suite.py::test_prompt[second]"][0].rounds) == 4


def test_a_skip_of_ours_is_skipped_there(repository):
    repository.commit()
    repository.path.joinpath("test_suite.py").write_text(
        "import pytest\ndef test_prompt(infer, prompt):\n    if prompt.name == 'first':\n        pytest.skip('no')\n"
        "    infer(prompt)\n"
    )
    result, run = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(passed=1, skipped=1)
    assert list(run.pairs) == ["test_suite.py::test_prompt[second]"]
    # One round of the other side tells whether it passes there.
    assert repository.turns() == "A" + "AB" + "ABBAABBA"


ENDS = """
import pytest

ENDS = {ends}

def test_prompt(infer, prompt):
    if ENDS.get(prompt.name) == "skip":
        pytest.skip("no")
    infer(prompt)
    if ENDS.get(prompt.name) == "xfail":
        pytest.xfail("slow")
"""


@pytest.mark.parametrize(
    "how",
    [
        (),
        ("--infer-turns=token", "--infer-launches=1", "--infer-time=0.1s"),
        ("--infer-against-sequential",),
    ],
)
def test_what_one_side_skips_itself_is_missing_or_new(repository, how):
    def written(**ends):
        repository.path.joinpath("test_suite.py").write_text(ENDS.format(ends=ends))

    names = ("theirs", "ours", "both", "left", "shared", "early", "late")
    prompts = "".join(f'[[prompt]]\nname = "{name}"\ntext = "so it goes"\nmax_new_tokens = 3\n' for name in names)
    repository.path.joinpath("prompts.toml").write_text(prompts)
    written(theirs="skip", both="skip", shared="xfail", early="skip", late="xfail")
    repository.commit()
    written(ours="skip", both="skip", left="xfail", shared="xfail", early="xfail", late="skip")
    result, run = repository.run("--infer-against=HEAD", *FEW, *how)
    result.assert_outcomes(passed=1, skipped=3, xfailed=3)
    assert run.missing == tuple(f"test_suite.py::test_prompt[{name}]" for name in ("ours", "left"))
    base, ours = run.pairs["test_suite.py::test_prompt[theirs]"]
    assert base is None
    assert ours.rounds


def test_a_skip_in_a_later_launch_of_the_other_side_makes_no_test_new(repository):
    test, once = repository.path / "test_suite.py", repository.temporary / "began"
    skips = f"    once = Path({str(once)!r})\n    once.exists() and pytest.skip('no')\n    once.touch()\n"
    test.write_text(
        f"import pytest\nfrom pathlib import Path\ndef test_prompt(infer, prompt):\n{skips}    infer(prompt)\n"
    )
    repository.commit()
    test.write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    few = ("--infer-turns=token", "--infer-launches=2", "--infer-time=1s", "-k", "first")
    result, run = repository.run("--infer-against=HEAD", *FEW, *few)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*was skipped in call: no (in HEAD*"])
    assert not run.pairs


def test_a_base_that_dies_loses_nothing_that_was_measured(repository):
    repository.speed(before="import os; prompt_tokens == 2 and os._exit(77)")
    repository.commit()
    repository.speed()
    result, run = repository.run("--infer-against=HEAD", *FEW, "--benchmark-autosave")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*the run of HEAD*ended early, with exit code 77*"])
    assert list(run.pairs) == ["test_suite.py::test_prompt[first]"]
    (saved,) = repository.path.glob(".benchmarks/*/*.json")
    assert "test_prompt[first]" in saved.read_text()
    gone(repository)


def interpreter(repository, setup=""):
    """Return a program that is Python with an import path of its own, and `setup` done first."""
    folder = repository.temporary / "python"
    folder.mkdir()
    folder.joinpath("sitecustomize.py").write_text(setup)
    program = folder / "python"
    path = f"{folder}:{Path(sessions.__file__).parents[2]}"
    program.write_text(
        f'#!/bin/sh\necho "[$PYTHONPATH]" >> {folder}/path\nPYTHONPATH={path} exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return program


def test_an_interpreter_of_its_own_gets_no_import_path(repository, monkeypatch):
    repository.commit()
    monkeypatch.setenv("PYTHONPATH", str(repository.path))
    program = interpreter(repository)
    result, run = repository.run("--infer-against=HEAD", f"--infer-against-python={program}", *FEW)
    result.assert_outcomes(passed=2)
    assert all(before is not None for before, _ in run.pairs.values())
    assert program.with_name("path").read_text() == "[]\n"
    for none in ("no/such", "~nobody-here/python"):
        line = f"there is no program {none}"
        refused(repository.run("--infer-against=HEAD", f"--infer-against-python={none}")[0], line)


def test_another_version_of_the_harness_is_refused(repository):
    repository.commit()
    program = interpreter(repository, "from pytest_infer.ab import protocol\nprotocol.PROTOCOL = 99\n")
    result, _ = repository.run("--infer-against=HEAD", f"--infer-against-python={program}", *FEW)
    refused(result, f"another version of pytest-infer (protocol 99, not {protocol.PROTOCOL})")
    gone(repository)


def test_a_base_that_does_not_start_in_time(repository, monkeypatch):
    good = repository.path.joinpath("speed.py").read_text()
    repository.path.joinpath("speed.py").write_text("import time; print('waiting', flush=True); time.sleep(600)\n")
    repository.commit()
    repository.path.joinpath("speed.py").write_text(good)
    monkeypatch.setattr("pytest_infer.ab.child_process.START_TIMEOUT_S", 3)
    result, _ = repository.run("--infer-against=HEAD", "-s", *FEW)
    refused(result, "HEAD", "has not collected its tests within 3 s")
    assert children(repository) == []
    gone(repository)


def test_self_is_this_checkout_with_its_changes(repository, monkeypatch):
    repository.commit()
    repository.speed(delay=0.002)
    monkeypatch.setenv("SELF", "1")
    result, run = repository.run("--infer-against=self", *FEW)
    result.assert_outcomes(passed=2)
    assert run.against.rev == "self"
    assert run.against.commit == repository.git("rev-parse", "HEAD")
    assert run.against.dirty
    for pair in run.pairs.values():
        assert all(r.counters.wall_s >= 0.006 for record in pair for r in record.rounds)
    gone(repository)


def test_self_needs_no_commit_yet_but_a_folder_for_temporary_files(repository, monkeypatch):
    monkeypatch.setenv("SELF", "1")
    result, run = repository.run("--infer-against=self", *FEW)
    result.assert_outcomes(passed=2)
    assert run.against.commit == ""
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        line = "no temporary folder: No space left on device; name another one with TMPDIR"
        refused(repository.run("--infer-against=self", *FEW)[0], line)
    gone(repository)


def test_one_after_the_other(repository):
    repository.commit()
    args = ("--infer-against=HEAD", "--infer-against-sequential", "--infer-max-rounds=5", "--infer-no-profile")
    # What else runs here would add rounds.
    args = (*args, "--infer-repeat-disturbed=0")
    result, run = repository.run(*args)
    result.assert_outcomes(passed=2)
    assert run.against.sequential
    loads = [(who, what) for who, what, _ in repository.events() if what in ("load", "close")]
    assert loads == [(who, what) for who in "ABA" for what in ("load", "close")]
    # A warm-up each time; of five, three and then two.
    assert repository.turns() == "AAAA" * 2 + "BBBBBB" * 2 + "AAA" * 2
    for before, after in run.pairs.values():
        assert len(before.rounds) == len(after.rounds) == 5
        assert before.first_run is not None
        assert after.first_run is not None
    gone(repository)


def test_one_after_the_other_with_a_base_that_dies_in_the_end(repository):
    repository.speed(before="import os; len(open(os.environ['LOG']).read().split('load')) > 3 and os._exit(9)")
    repository.commit()
    repository.speed()
    args = ("--infer-against=HEAD", "--infer-against-sequential", "--infer-max-rounds=2", "--benchmark-autosave")
    result, run = repository.run(*args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["! the run of HEAD*exit code 9*"])
    assert run.pairs == {}
    assert len(list(repository.path.glob(".benchmarks/*/*.json"))) == 1
    gone(repository)


def started(repository, *args):
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--infer-against=HEAD", *args],
        cwd=repository.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    until(lambda: len(repository.events("B")) > 6, "no round of ours")
    return process


def until(true, what):
    end = time.monotonic() + 180
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def children(repository):
    """Return the processes that run in a worktree of ours."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            where = str((folder / "cwd").readlink())
        except OSError:
            continue
        if where.startswith(str(repository.temporary)):
            found.append(int(folder.name))
    return found


def noting(log, what):
    """Return code for `before` that adds a line to a file."""
    return f"with open({str(log)!r}, 'a') as file:\n        print({what}, file=file)"


def test_both_sides_have_the_same_chances(repository):
    # With autogroups (sched(7)) a session of its own would get half of the machine, whatever else runs in the other.
    log = repository.log.with_suffix(".chances")
    seen = "import os\n    " + noting(
        log, "os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))"
    )
    repository.speed(before=seen)
    repository.commit()
    result, _ = repository.run("--infer-against=HEAD", "--infer-max-rounds=2", "--infer-min-pairs=2")
    result.assert_outcomes(passed=2)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 4
    assert len(set(lines)) == 1


def test_a_tracer_in_this_process_is_in_no_round(repository):
    log = repository.log.with_suffix(".traced")
    repository.speed(before="import sys\n    " + noting(log, "sys.gettrace() is None"))
    repository.commit()
    before = sys.gettrace()
    sys.settrace(lambda *_: None)
    try:
        result, _ = repository.run("--infer-against=HEAD", "--infer-max-rounds=2", "--infer-min-pairs=2")
        assert sys.gettrace() is not None
    finally:
        sys.settrace(before)
    result.assert_outcomes(passed=2)
    assert set(log.read_text(encoding="utf-8").split()) == {"True"}


TOKEN = ("--infer-turns=token", "--infer-launches=2", "--infer-time=1s", "--infer-rounds=2", "--infer-no-profile")


def judged(repository, *args):
    keep = Keep()
    result = repository.pytester.runpytest("--infer-against=HEAD", *TOKEN, *args, plugins=[keep])
    return result, keep.run


def test_turns_of_a_token_find_a_slower_step(timeless):
    timeless.speed(delay=0.002)
    timeless.commit()
    timeless.speed(delay=0.04)  # so much that no disturbance hides it
    rules = "--infer-gate=output:exact,tpot:20%"
    # So few are measured whatever the time.
    result, run = judged(timeless, "--infer-launches=3", "--infer-time=5s", rules, "--benchmark-autosave")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*tpot:20%*", "*regressed (threshold 20 %)*"])
    for test, (before, after) in run.pairs.items():
        # Each launch had a whole round, and the tokens are those of either side.
        assert len(before.rounds) == len(after.rounds) == 3
        assert before.output == after.output
        turns = run.turns[test]
        assert {name: len(launches) for name, launches in turns.ratios.items()} == {"first": 3, "step": 3}
        assert all(statistics.median(launch) > 1 for launch in turns.ratios["step"])
    (saved,) = timeless.path.glob(".benchmarks/*/*.json")
    blocks = [row["extra_info"]["pytest_infer"] for row in json.loads(saved.read_text())["benchmarks"]]
    assert [len(b["against"]["turns"]["ratios"]["step"]) for b in blocks if b["phase"] == "total"] == [3, 3]
    # This process loaded no model: both sides are others, as old as each other.
    assert [what for _, what, _ in timeless.events()].count("load") == 6
    gone(timeless)


SPANS = """
import contextlib

timed_wait, whole = Scripted.wait, Scripted.generate

def wait(self, delay):
    with self.clock.span("experts", layer=1):
        timed_wait(self, delay)
    with self.clock.span("head"):
        timed_wait(self, 0.004)

def with_clock(self, prompt_ids, limits, clock):
    self.clock = clock
    return whole(self, prompt_ids, limits, clock)

Scripted.wait, Scripted.generate = wait, with_clock
"""


def spanning(repository):
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + SPANS)


MOST = r"\+\d\S* ms( of \+\d|, all of it|, the rest)"
"""Of nearly the whole change the words depend on the last digit."""


def test_the_part_of_a_step_that_became_slower_is_named(timeless):
    spanning(timeless)
    timeless.speed(delay=0.002)
    timeless.commit()
    timeless.speed(delay=0.04)
    launches = ("--infer-launches=4", "--infer-time=120s", "--benchmark-autosave")
    result, run = judged(timeless, *launches, "--infer-gate=tpot:20%")
    result.assert_outcomes(failed=2)
    # Lines may be wrapped anywhere.
    shown = " ".join(result.stdout.str().split())
    headline = rf"decode \d+ % slower \[[^]]*\], all 2 prompts: experts {MOST}"
    for told in (headline, rf"where: experts {MOST}", r"experts: \d\S* ms → \d\S* ms a step, \+\d\S* ms \["):
        assert re.search(told, shown), (told, shown)
    for turns in run.turns.values():
        assert {one.role for one in turns.parts["decode"]} == {"experts", "head", "generation loop"}
        assert {len(one.before_ns) for one in turns.parts["decode"]} == {4}
    (saved,) = timeless.path.glob(".benchmarks/*/*.json")
    stored = json.loads(saved.read_text())
    (j, _) = (j for j in stored["pytest_infer"]["gate"]["judgements"] if j["metric"] == "tpot_s")
    (named,) = (one for one in j["carried"]["roles"] if one["named"])
    assert (named["role"], named["layers"]) == ("experts", "")
    step, part = (one["after_s"] - one["before_s"] for one in (j["carried"], named))
    assert part == pytest.approx(step, rel=0.02)
    (block, _) = (b for b in totals(stored))
    # Our own side's steps are those of the observed passes.
    assert block["breakdown"]["decode"]["parts"][0]["role"] == "experts"
    assert ": experts +" in stored["pytest_infer"]["gate"]["headline"]
    gone(timeless)


def totals(stored):
    blocks = (row["extra_info"]["pytest_infer"] for row in stored["benchmarks"])
    return [block for block in blocks if block["phase"] == "total"]


def test_unchanged_steps_are_taken_apart_only_where_that_is_asked_for(timeless):
    spanning(timeless)
    timeless.speed(delay=0.004)
    timeless.commit()
    result, run = judged(timeless, "--infer-gate=tpot:90%", "--infer-breakdown=off")
    result.assert_outcomes(passed=2)
    assert all(turns.parts == {} for turns in run.turns.values())
    result, run = judged(timeless, "--infer-gate=tpot:90%", "--infer-breakdown=on", "--infer-time=60s")
    result.assert_outcomes(passed=2)
    assert [set(turns.parts) for turns in run.turns.values()] == [{"prefill", "decode", "tokenise"}] * 2
    result.stdout.no_fnmatch_line("*where: *")


def test_a_side_that_cannot_be_taken_apart_loses_nothing(timeless):
    spanning(timeless)
    broken = """
def spans(self, clock):
    if SIDE == "B":
        raise RuntimeError("no spans today")
    return contextlib.nullcontext()

Scripted.spans = spans
"""
    conftest = timeless.path / "conftest.py"
    conftest.write_text(conftest.read_text() + broken)
    timeless.speed(delay=0.002)
    timeless.commit()
    timeless.speed(delay=0.04)
    result, run = judged(timeless, "--infer-launches=3", "--infer-time=3s", "--infer-gate=tpot:20%")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["first: steps were not taken apart: *", "*regressed (threshold 20 %)*"])
    assert all(set(turns.parts) == {"tokenise"} and len(turns.ratios["step"]) == 3 for turns in run.turns.values())
    gone(timeless)


def test_turns_of_a_token_tell_equal_code_from_none(timeless):
    timeless.speed(delay=0.002)
    timeless.commit()
    result, run = judged(timeless, "--infer-gate=output:exact,tpot:90%,peak_rss:90%")
    result.assert_outcomes(passed=2)
    found = run.turns.popitem()[1]
    assert {name: len(launches) for name, launches in found.ratios.items()} == {"first": 2, "step": 2}
    assert found.earlier == {}
    # One launch tells nothing of how far launches differ; the run before does.
    result, run = judged(timeless, "--infer-gate=output:exact,tpot:90%", "--infer-launches=1")
    result.assert_outcomes(passed=2)
    assert set(run.turns.popitem()[1].earlier) == {"first", "step"}
    result.stdout.no_fnmatch_line("*one launch does not tell*")


DISTURBED = """
from pytest_infer.measure import disturbance
disturbance.reasons = lambda counters, usable_cores: ("planted",)
"""


def test_launches_share_what_disturbed_pairs_may_be_repeated(repository, monkeypatch):
    monkeypatch.setattr(disturbance, "reasons", disturbance.reasons)  # the conftest file is loaded in this process too
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + DISTURBED)
    repository.commit()
    # Three launches are measured whatever the time.
    few = ("--infer-launches=3", "--infer-rounds=3", "--infer-repeat-disturbed=3", "-k", "first")
    result, run = judged(repository, "--infer-gate=off", *few)
    result.assert_outcomes(passed=1)
    ((before, after),) = run.pairs.values()
    assert [len(one.rounds) for one in (before, after)] == [3, 3]
    assert [len(one.repeated) for one in (before, after)] == [3, 3]


@pytest.mark.parametrize("added", ["", DISTURBED])
def test_an_engine_that_takes_no_turns_of_a_token(repository, monkeypatch, added):
    monkeypatch.setattr(disturbance, "reasons", disturbance.reasons)
    conftest = repository.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\nScripted.takes_turns = lambda self: False\n" + added)
    repository.commit()
    most = ("--infer-time=60s", "--infer-max-rounds=10")
    result, run = judged(repository, "--infer-gate=off", "--infer-repeat-disturbed=3", *most)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["first: this engine takes no turns of a token: whole rounds were compared"])
    assert len(run.pairs) == 2
    for test, (before, after) in run.pairs.items():
        turns = run.turns[test]
        assert turns.ratios == {}
        # As many as with turns of a round, in each launch as many as in the other.
        assert len(before.rounds) == len(after.rounds) == 2 * turns.rounds == 10


@pytest.mark.parametrize(
    ("slip", "line"),
    [
        # Only in a pass of one token; in what the record is made of.
        ("begin = Scripted.generate\nScripted.generate = lambda *given: begin(*given) if given[2].max_new_tokens > 1 "
         "else 1 // 0", "*ZeroDivisionError*(in HEAD*"),
        ("Scripted.varied = lambda self: True", "*Engine.varied gives a bool, neither a text nor None (in HEAD*"),
    ],
)  # fmt: skip
def test_a_slip_of_an_engine_is_told_before_much_is_measured(repository, slip, line):
    conftest = repository.path / "conftest.py"
    plain = conftest.read_text()
    conftest.write_text(f"{plain}\n{slip}\n")
    repository.commit()
    conftest.write_text(plain)
    result, run = judged(repository, "--infer-gate=off")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines([line])
    assert run.pairs == {}
    # One launch was started; its rounds are a warm-up, a whole one and a short one, on either side.
    assert [what for _, what, _ in repository.events()].count("load") == 2
    assert len(repository.turns()) <= 2 * 2 * 3
    gone(repository)


@pytest.mark.parametrize("takes", [1, None])
def test_whether_an_engine_takes_turns_may_be_told_by_what_is_true(repository, takes):
    conftest = repository.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\nScripted.takes_turns = lambda self: {takes}\n")
    repository.commit()
    result, run = judged(repository, "--infer-gate=off", "-kfirst")
    result.assert_outcomes(passed=1)
    (turns,) = run.turns.values()
    assert bool(turns.ratios) is bool(takes)


@pytest.mark.parametrize("turns", ["round", "token"])
def test_what_fails_beside_the_timed_rounds_is_told_with_its_side(repository, turns):
    slips = "Scripted.decode = lambda self, token_ids: None\nScripted.keep_scores = lambda self, **how: 1 // 0"
    conftest = repository.path / "conftest.py"
    conftest.write_text(f"{conftest.read_text()}\n{slips}\n")
    repository.commit()
    few = ("--infer-launches=1", "--infer-time=1s", "--infer-max-rounds=2", "--infer-min-pairs=2", EACH_ONCE)
    result, run = repository.run("--infer-against=HEAD", f"--infer-turns={turns}", *few, "-kfirst")
    result.assert_outcomes(passed=1)
    profiled = "the profile round failed: ZeroDivisionError: integer division or modulo by zero"
    decoded = "Engine.decode failed: TypeError: "
    told = [line.removeprefix("! test_suite.py::test_prompt[first]: ") for line in run.notes if line.startswith("! ")]
    for side in ("HEAD", "this checkout") if turns == "token" else ("HEAD",):
        for what in (profiled, decoded):
            (line,) = [line for line in told if line.startswith(what) and f"(in {side}" in line]
            assert "; what was timed is kept" in line


def test_an_engine_that_does_not_follow_what_it_is_given_is_told(repository):
    conftest, speed = (repository.path / name for name in ("conftest.py", "speed.py"))
    conftest.write_text(f"{conftest.read_text()}{FOLLOWS}\nScripted.follow = lambda self, token_ids: None\n")
    conftest.write_text(conftest.read_text().replace("self.starts(clock)", "pass"))
    for shift in (0, 1):
        speed.write_text(f"{SPEED.format(delay=0.0, before='pass')}\nSHIFT = {shift}\n")
        if not shift:
            repository.commit()
    result, _ = judged(repository, "--infer-gate=off", "-kfirst")
    result.assert_outcomes(failed=1)
    left = "*was given 3 tokens by Engine.follow and left them at number 1: *follows return False (in this checkout)"
    result.stdout.fnmatch_lines([left])


AT_ONCE = """
def generate(self, prompt_ids, limits, clock):
    self.starts(clock)
    for made in range(0, limits.max_new_tokens, speed.AT_ONCE):
        self.wait(0.01 + 0.002 * speed.AT_ONCE)
        clock.tick(list(range(made, min(made + speed.AT_ONCE, limits.max_new_tokens))))
    return StopReason.LENGTH

Scripted.generate = generate
"""


def test_several_tokens_at_once_against_one_are_no_slower_step(timeless):
    # 14 ms for two tokens against 12 ms for one: as speculative decoding has it.
    conftest, speed = (timeless.path / name for name in ("conftest.py", "speed.py"))
    conftest.write_text(conftest.read_text() + AT_ONCE)
    speed.write_text("AT_ONCE = 1\n")
    timeless.commit()
    speed.write_text("AT_ONCE = 2\n")
    result, run = judged(timeless, "--infer-gate=tpot:10%", "--infer-max-new-tokens=9", "--infer-launches=3")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["first: the sides return tokens in other portions: whole rounds *"])
    result.stdout.fnmatch_lines(["*tpot:10%*12.0 ms → 8.00 ms*"])
    assert all(turns.ratios == {} for turns in run.turns.values())


def test_a_prompt_that_is_slow_is_measured_in_fewer_launches(timeless):
    timeless.speed(delay=0.05)
    timeless.commit()
    result, run = judged(timeless, "--infer-launches=5", "--infer-gate=off", "-k", "first")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["--infer-time 1s is too short to measure each prompt in 5 launches*"])
    assert [what for _, what, _ in timeless.events()].count("load") == 6
    assert len(run.turns.popitem()[1].ratios["step"]) == 3


FOLLOWS = """
def follow(self, token_ids):
    self.given = token_ids

def written(self, prompt_ids, limits, clock):
    self.starts(clock)
    note(f"behind-{len(prompt_ids) - self.prompt}-{limits.max_new_tokens}")
    free = range(1 + speed.SHIFT, 25 + speed.SHIFT)
    tokens = self.given if self.given is not None else free
    for token in tokens[: limits.max_new_tokens]:
        with clock.span("experts"):
            self.wait(0.1 + (speed.before(token) or 0))
        clock.tick([token])
    return StopReason.LENGTH

def encode(self, prompt):
    ids = plain_encode(self, prompt)
    self.prompt = len(ids)
    return ids

plain_encode = Scripted.encode
Scripted.given, Scripted.encode, Scripted.follow, Scripted.generate = None, encode, follow, written
"""
LATE = "return 0.2 if prompt_tokens > 12 else 0"


@pytest.mark.parametrize("shift", [0, 1])
def test_a_generation_that_does_not_fit_is_measured_in_parts_by_all_launches(timeless, shift):
    # With a shift the two sides generate different tokens, and both follow the base's.
    conftest, speed = (timeless.path / name for name in ("conftest.py", "speed.py"))
    conftest.write_text(conftest.read_text() + FOLLOWS)
    speed.write_text(speed.read_text() + "SHIFT = 0\n")
    timeless.commit()
    timeless.speed(before=LATE)
    speed.write_text(speed.read_text() + f"SHIFT = {shift}\n")
    few = ("--infer-launches=5", "--infer-rounds=3", "--infer-time=50s", "--infer-max-new-tokens=24")
    result, run = judged(timeless, "--infer-gate=tpot:20%", *few)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["--infer-time 50s is too short to measure each prompt whole: *"])
    asked = {tuple(map(int, what.split("-")[1:])) for _, what, _ in timeless.events() if what.startswith("behind")}
    # Whole rounds, warm-up, first tokens.
    assert asked >= {(0, 24), (0, 4), (0, 1)}
    for test, (before, after) in run.pairs.items():
        assert [len(one.rounds) for one in (before, after)] == [3, 3]
        assert {one.trace.token_ids for side in (before, after) for one in side.rounds} == {tuple(range(1, 25))}
        turns = run.turns[test]
        launches = len(turns.ratios["step"])
        assert 3 <= launches <= 5
        # Launches without whole rounds take their steps apart, too.
        assert {len(one.before_ns) for one in turns.parts["decode"]} == {launches}
        assert turns.strayed == 0
        assert 9 <= turns.tokens < 24
        assert asked >= {(skip, turns.tokens) for skip in Windows.over(24, turns.tokens).skips}
        # The first 12 tokens are not slower, the others three times so: twice as long together, in every launch.
        assert [launch[0] for launch in turns.ratios["step"]] == pytest.approx([math.log(2)] * launches, abs=0.01)
    gone(timeless)


def changed_steps(repository, before, *args):
    """A comparison after this code before each token made some slower, the judgements of the first test, and turns."""
    conftest, speed = (repository.path / name for name in ("conftest.py", "speed.py"))
    conftest.write_text(conftest.read_text() + FOLLOWS)
    speed.write_text(speed.read_text() + "SHIFT = 0\n")
    repository.commit()
    repository.speed(before=before)
    speed.write_text(speed.read_text() + "SHIFT = 0\n")
    rules = "--infer-gate=tpot:20%,itl_p50:20%"
    result, run = judged(repository, rules, "--benchmark-autosave", "--infer-max-new-tokens=24", *args)
    (saved,) = repository.path.glob(".benchmarks/*/*.json")
    judged_by = json.loads(saved.read_text())["pytest_infer"]["gate"]["judgements"]
    verdicts = {j["metric"]: j["verdict"] for j in judged_by if "first" in j["test"]}
    return result, verdicts, run.turns["test_suite.py::test_prompt[first]"]


def test_a_change_of_a_few_steps_is_one_of_tpot_and_none_of_the_typical_step(timeless):
    slow = "return 0.6 if prompt_tokens % 6 == 0 else 0"
    result, verdicts, turns = changed_steps(timeless, slow, "--infer-launches=4", "--infer-time=200s", "-kfirst")
    result.stdout.fnmatch_lines(["first: not all steps changed alike: TPOT and decode count their sum, *"])
    assert verdicts["tpot_s"] == "regressed"
    assert verdicts["itl_p50_s"] != "regressed"
    mean = {name: statistics.fmean(map(statistics.fmean, turns.ratios[name])) for name in ("step", "steps")}
    # Four of 23 steps, of 100 ms each, are 600 ms slower.
    assert mean == pytest.approx({"step": 0.0, "steps": math.log((23 + 24) / 23)}, abs=0.01)
    gone(timeless)


def test_a_change_between_the_parts_that_are_measured_is_seen_by_whole_rounds(timeless):
    # Of windows of nine tokens in 24 the middle of the text, the tokens 11 to 13, is in none.
    slow = "return 20 if prompt_tokens == 12 else 0"
    times = ("--infer-launches=4", "--infer-rounds=3", "--infer-time=20s", "-kfirst")
    result, verdicts, turns = changed_steps(timeless, slow, *times)
    result.stdout.fnmatch_lines(["! first: a step changed by +* % in whole rounds, by * % in the two *"])
    assert turns.tokens is not None
    assert set(turns.ratios) == {"first"}
    # The steps that were taken apart say nothing of it.
    assert "where:" not in result.stdout.str()
    assert verdicts["tpot_s"] == "regressed"
    gone(timeless)


BESIDE = """
from pytest_infer.ab.baton import Waits

taken = [False]

def waited(self):
    self.turns_ns.append(5_000_000_000 * taken[0])

def slowed(self, prompt_ids, limits, clock):
    self.starts(clock)
    for token in range(1, 1 + limits.max_new_tokens):
        # Three turns of eight on either side, of which two are neighbours.
        taken[0] = (token + (SIDE == "A")) % 8 in (2, 3, 4)
        self.wait(0.004 + 0.02 * taken[0] + (speed.before(token) or 0))
        clock.tick([token])
    return StopReason.LENGTH

Waits.end, Scripted.generate = waited, slowed
"""


def test_beside_other_work_turns_that_waited_for_no_core_are_compared(timeless, monkeypatch):
    monkeypatch.setattr(Waits, "end", Waits.end)  # the conftest file is loaded in this process too
    conftest = timeless.path / "conftest.py"
    conftest.write_text(conftest.read_text() + BESIDE)
    timeless.commit()
    timeless.speed(before="return 0.002")
    few = ("--infer-launches=3", "--infer-time=5s", "--infer-max-new-tokens=25", "-kfirst")
    result, run = judged(timeless, "--infer-gate=tpot:5%", "--benchmark-autosave", *few)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["something else took cores now and then: *"])
    (turns,) = run.turns.values()
    assert turns.undisturbed == {"step": 0.5}
    assert statistics.fmean(map(statistics.fmean, turns.ratios["step"])) == pytest.approx(math.log(1.5), abs=0.01)
    (saved,) = timeless.path.glob(".benchmarks/*/*.json")
    blocks = [row["extra_info"]["pytest_infer"] for row in json.loads(saved.read_text())["benchmarks"]]
    assert [b["against"]["turns"]["undisturbed"] for b in blocks if b["phase"] == "total"] == [turns.undisturbed]


def test_a_test_that_the_other_side_lacks_is_measured_alone(repository):
    repository.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "first"\ntext = "a b c"\n')
    repository.commit()
    repository.path.joinpath("prompts.toml").write_text(
        '[[prompt]]\nname = "first"\ntext = "a b c"\n[[prompt]]\nname = "more"\ntext = "a b"\n'
    )
    result, run = judged(repository, "--infer-gate=off")
    result.assert_outcomes(passed=2)
    before, after = run.pairs["test_suite.py::test_prompt[more]"]
    assert before is None
    assert len(after.rounds) == 2


@pytest.mark.parametrize("ours", [False, True])
def test_a_side_that_dies_in_a_pass_is_one_line(repository, ours):
    # In its turn, while the other side is stopped: that one is woken, and ends.
    dying = "import os, signal, sys\n    sys.argv.append('x')\n    sys.argv.count('x') < 9 or os.kill(os.getpid(), 9)"
    repository.speed(before="pass" if ours else dying)
    repository.commit()
    repository.speed(before=dying if ours else "pass")
    result, _ = judged(repository, "--infer-gate=off")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["*the run of this checkout*killed by SIGKILL*" if ours else "*HEAD*killed by SIGKILL*"]
    )
    gone(repository)


class Watch:
    """A plugin that keeps why each test failed, and how many of the processes that were noted live after it."""

    def __init__(self, log):
        self._log = log
        self.why, self.alive = {}, []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.why[report.nodeid.partition("[")[2][:-1]] = report.longreprtext

    def pytest_runtest_logfinish(self):
        self.alive.append(len(self.living()))

    def living(self):
        noted = self._log.read_text(encoding="utf-8").split() if self._log.exists() else ()
        return {number for number in noted if Path(f"/proc/{number}").exists()}


THREE = "".join(
    f'[[prompt]]\nname = "{name}"\ntext = "{text}"\n'
    for name, text in [("first", "a b c"), ("second", "a b"), ("third", "a b c d")]
)


def dying(repository, ours, when, *args):
    """Run three prompts of which a side dies in one when it may; return the result, what was watched, and the run."""
    log = repository.log.with_suffix(".processes")
    seen = "import os\n    " + noting(log, "os.getpid()")
    dies = seen + f"\n    {when} and os._exit(77)"
    repository.path.joinpath("prompts.toml").write_text(THREE)
    repository.speed(before=seen if ours else dies)
    repository.commit()
    repository.speed(before=dies if ours else seen)
    keep, watch = Keep(), Watch(log)
    result = repository.pytester.runpytest(
        "--infer-against=HEAD", *TOKEN, "--infer-gate=off", *args, plugins=[keep, watch]
    )
    assert watch.living() == set()
    assert children(repository) == []
    gone(repository)
    return result, watch, keep.run


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize(
    ("when", "launches", "failed"),
    [
        # In the first launch, before there are others; in the only one, in its first round and in a pass.
        ("prompt_tokens == 3", 2, ["first", "second", "third"]),
        ("prompt_tokens == 2", 1, ["second", "third"]),
        ("prompt_tokens == 2 and sys._getframe(3).f_code.co_name == 'in_turns'", 1, ["second", "third"]),
    ],
)
def test_where_no_launch_is_left_later_tests_say_why(repository, ours, when, launches, failed):
    when = when.replace("sys.", "__import__('sys').")
    result, watch, run = dying(repository, ours, when, f"--infer-launches={launches}")
    result.assert_outcomes(passed=3 - len(failed), failed=len(failed))
    assert list(watch.why) == failed
    (why,) = set(watch.why.values())
    assert f"the run of {'this checkout' if ours else 'HEAD'}" in why
    assert "ended early, with exit code 77" in why
    assert len(run.pairs) == 3 - len(failed)


@pytest.mark.parametrize("ours", [False, True])
def test_a_launch_that_breaks_costs_one_prompt_and_another_takes_its_place(repository, ours):
    once = repository.log.with_suffix(".once")
    when = f"prompt_tokens == 2 and not os.path.exists({str(once)!r}) and open({str(once)!r}, 'w')"
    result, watch, run = dying(repository, ours, when)
    result.assert_outcomes(passed=2, failed=1)
    assert list(watch.why) == ["second"]
    assert "ended early, with exit code 77" in watch.why["second"]
    # Its partner ended with it; the other launch was asked no more, and went on.
    assert watch.alive == [4, 2, 4]
    assert [name.partition("[")[2] for name in run.pairs] == ["first]", "third]"]
    assert all(len(turns.ratios["step"]) == 2 for turns in run.turns.values())


@pytest.mark.parametrize("ours", [False, True])
def test_what_one_side_cannot_load_is_told_while_the_other_loads(repository, ours):
    path = repository.path
    load = "Scripted.load = lambda self: time.sleep(600) if (SIDE == 'B') is not {ours} else 1 // 0"
    path.joinpath("conftest.py").write_text(f"{path.joinpath('conftest.py').read_text()}\n{load.format(ours=ours)}\n")
    repository.commit()
    keep, watch = Keep(), Watch(repository.log)
    begun = time.monotonic()
    repository.pytester.runpytest("--infer-against=HEAD", *TOKEN, "--infer-gate=off", "-x", plugins=[keep, watch])
    assert time.monotonic() - begun < 300
    assert list(watch.why) == ["first"]
    assert (
        f"ZeroDivisionError: integer division or modulo by zero (in {'this' if ours else 'HEAD'}" in watch.why["first"]
    )
    assert children(repository) == []
    gone(repository)


RAISES = """
def raising(self, prompt_ids, limits, clock):
    for token in range(1, 1 + min(3, limits.max_new_tokens)):
        if token > speed.GOOD and len(prompt_ids) == 2 and type(clock).__name__ == "TurnClock":
            raise ValueError(f"no token {token}")
        clock.tick([token])
    return StopReason.LENGTH

Scripted.generate = raising
Scripted.load = lambda self: ModelInfo(name="scripted", engine="scripted", threads=speed.THREADS)
"""


@pytest.mark.parametrize(("base", "ours", "threads"), [(0, 9, 1), (9, 1, 1), (2, 1, 1), (1, 9, 2), (9, 0, 2)])
def test_a_side_that_raises_in_a_turn_costs_one_prompt_and_no_launch(repository, base, ours, threads):
    # With two threads the other side is stopped meanwhile. The pass of one token of the first launch is as it should.
    path = repository.path
    path.joinpath("conftest.py").write_text(path.joinpath("conftest.py").read_text() + RAISES)
    path.joinpath("prompts.toml").write_text(THREE)
    for good in (base, ours):
        path.joinpath("speed.py").write_text(f"GOOD, THREADS = {good}, {threads}\n")
        if good is base:
            repository.commit()
    keep, watch = Keep(), Watch(repository.log)
    result = repository.pytester.runpytest("--infer-against=HEAD", *TOKEN, "--infer-gate=off", plugins=[keep, watch])
    result.assert_outcomes(passed=2, failed=1)
    side, good = ("HEAD (", base) if base < 9 else ("this checkout", ours)
    said = f"test_suite.py::test_prompt[second] failed in call: ValueError: no token {good + 1} (in {side}"
    assert list(watch.why) == ["second"]
    assert watch.why["second"].startswith(said)
    assert "\n" not in watch.why["second"]
    assert [name.partition("[")[2] for name in keep.run.pairs] == ["first]", "third]"]
    assert all(len(turns.ratios["step"]) == 2 for turns in keep.run.turns.values())
    result.stdout.no_fnmatch_line("! *")
    gone(repository)


SLOW = ("--infer-min-pairs=1000", "--infer-no-profile")


def test_a_base_that_is_killed_for_its_memory_says_what_to_do(repository):
    repository.speed(before="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    repository.commit()
    repository.speed()
    result, _ = repository.run("--infer-against=HEAD", *FEW)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*the run of HEAD*was killed by SIGKILL: if memory ran out, add --infer-against-seq*"])


@pytest.mark.parametrize("delay", [0.0, 600])
def test_ctrl_c_ends_the_other_side_and_removes_its_files(repository, delay):
    repository.speed(
        before=f"import os, time; prompt_tokens == 3 and 'pytest-infer' in os.getcwd() and time.sleep({delay})"
    )
    repository.commit()
    repository.speed(delay=0.01)
    process = (started if not delay else started_slow)(repository, *SLOW, "--benchmark-autosave")
    assert children(repository)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in output
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert children(repository) == []
    gone(repository)


def started_slow(repository, *args):
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--infer-against=HEAD", *args],
        cwd=repository.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    until(lambda: repository.turns() == "A", "no round of theirs")
    return process


def test_a_parent_that_is_killed_takes_the_other_side_with_it(repository):
    repository.speed(delay=0.01)
    repository.commit()
    process = started(repository, *SLOW)
    assert children(repository)
    process.kill()
    process.communicate(timeout=120)
    until(lambda: children(repository) == [], "the child lives on")
