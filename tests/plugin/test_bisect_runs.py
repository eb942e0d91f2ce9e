"""`pytest-infer bisect` as a person starts it: real runs of a scripted engine at the commits of a repository."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import scratch

COMMAND = (sys.executable, "-c", "from pytest_infer.cli.main import app; app()", "bisect")
FEW = ("--infer-turns=round", "--infer-warmup=0", "--infer-max-rounds=12")
RULE = "--rule=tpot:20%"


@pytest.fixture
def history(suite, tmp_path_factory, monkeypatch):
    pytester = suite(engine=scratch.CONFTEST, prompts=scratch.PROMPTS, virtual=True)
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("COLUMNS", "100")
    made = scratch.History(pytester.path)
    made.temporary = temporary
    return made


def start(folder, *arguments, **more):
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def bisect(folder, *arguments):
    with start(folder, *arguments) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out.splitlines(), err


def processes_in(folder):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder) in str((entry / "cwd").readlink()):
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_the_commit_is_named_and_nothing_is_left(history):
    made = [history.commit(f"change {number}", scratch.DECODE if number < 4 else scratch.SLOW) for number in range(7)]
    history.path.joinpath("script.py").write_text("DECODE = 99  # not committed\n")
    before = history.state()
    code, said, err = bisect(history.path, made[0], "main", RULE, "-k", "first", "--", *FEW)
    assert (code, err) == (0, ""), "\n".join(said) + err
    end = said.index(f"first bad commit: {made[4]}")
    assert said[end + 1] == "  change 4"
    assert said[end + 2].startswith("  A Name, 20")
    assert said[end + 3].startswith("  tpot:4")
    assert said[end + 3].endswith("regressed")
    assert said[end + 4].endswith("unchanged")
    assert "its parent" in said[end + 4]
    assert said[0].startswith(history.git("rev-parse", "--short", made[6]))
    assert said[1] == "following tpot:20% of first: 6 commits, about 3 steps"
    assert said[2].startswith("  bad from here on: beyond tpot:4")
    steps = said[3:end]
    assert 2 <= len(steps) <= 3
    assert all(line.endswith(" left") and "change" in line for line in steps)
    assert history.state() == before
    assert list(history.temporary.iterdir()) == []


def test_commits_without_a_suite_or_with_a_broken_one_and_a_merge(history):
    conftest = history.path.joinpath("conftest.py").read_text()
    suite = {name: history.path.joinpath(name).read_text() for name in ("test_suite.py", "prompts.toml")}
    for name in suite:
        history.path.joinpath(name).unlink()
    first = history.commit("no suite yet", scratch.DECODE)
    history.commit("conftest is broken", conftest="import nowhere\n")
    history.commit("mended", conftest=conftest)
    history.git("checkout", "-q", "-b", "side")
    slow = history.commit("slow, on a branch", scratch.SLOW)
    history.git("checkout", "-q", "main")
    for name, text in suite.items():
        history.path.joinpath(name).write_text(text)
    history.commit("the suite")
    history.git("merge", "-q", "--no-ff", "-m", "merge", "side")
    code, said, err = bisect(history.path, first, "HEAD", RULE, "--", *FEW, "test_suite.py")
    assert (code, err) == (0, ""), "\n".join(said) + err
    assert f"first bad commit: {slow}" in said


def test_a_repository_whose_suite_lies_in_a_subfolder_is_bisected_from_there(history, pytester):
    sub = history.path / "a sub;folder" / "bench"
    sub.mkdir(parents=True)
    for name in ("conftest.py", "test_suite.py", "prompts.toml"):
        history.path.joinpath(name).rename(sub / name)
    (sub.parent / "pytest.ini").write_text("[pytest]\npythonpath = .\ninfer_gate = tpot:20%\n")
    made = []
    for number in range(3):
        (sub.parent / "script.py").write_text(f"DECODE = {scratch.SLOW if number else scratch.DECODE}\n")
        made.append(history.commit(f"change {number}"))
    code, said, err = bisect(sub.parent, made[0], made[2], "--", *FEW)
    assert (code, err) == (0, ""), "\n".join(said) + err
    assert f"first bad commit: {made[1]}" in said
    assert said[-1] == f"  its parent is {history.git('rev-parse', '--short', made[0])} itself"


def test_where_nothing_got_worse_it_says_so_with_the_intervals(history):
    made = [history.commit(f"change {number}", scratch.DECODE) for number in range(3)]
    code, said, err = bisect(history.path, made[0], made[2], RULE, "--", *FEW)
    assert (code, err) == (11, ""), "\n".join(said) + err
    assert "nothing to find: " in said[1]
    assert [line.split("  ")[1] for line in said[2:]] == ["tpot:20% of first", "tpot:20% of second"]
    assert all(line.endswith("unchanged") for line in said[2:])


@pytest.mark.parametrize("broken", [True, False])
def test_a_bound_is_followed_only_where_good_keeps_it(history, broken):
    made = [history.commit("fast", scratch.DECODE), history.commit("slow", scratch.SLOW)]
    rule = "decode_throughput>=1e9" if broken else "decode_throughput>=60"
    code, said, err = bisect(history.path, *made, f"--rule={rule}", "-k", "first", "--", *FEW)
    assert (code, err) == (11 if broken else 0, ""), "\n".join(said) + err
    if broken:
        assert said[-2].endswith(" cannot be compared: GOOD does not keep that bound for certain")
        assert said[-1].startswith(f"  {rule} of first  ")
    else:
        assert said[1] == f"following {rule} of first: 1 commits, about 0 steps"
        assert f"first bad commit: {made[1]}" in said


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is left")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_and_says_how_to_go_on(history, number):
    # Between the ends there are only commits at which it stays, however late the signal comes.
    stays = "import time\n\nfor _ in range(6000):\n    time.sleep(0.1)\n"
    good = history.commit("good", scratch.DECODE)
    for change in range(5):
        history.commit(f"change {change}", script=f"{stays}DECODE = {scratch.SLOW}  # {change}\n")
    bad = history.commit("bad", scratch.SLOW)
    before = history.state()
    with start(history.path, good, bad, RULE, "-k", "first", "--", *FEW) as process:
        said = [process.stdout.readline() for _ in range(2)]
        assert said[1].startswith("following"), said
        until = time.monotonic() + 120
        while not processes_in(history.temporary):
            assert time.monotonic() < until, "no run of a commit began"
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, ""), out + err
    told = out.splitlines()[-2:]
    assert told[0].startswith("interrupted: the first bad commit is one of ")
    assert told[1].startswith("  pytest-infer bisect ")
    # The figure that is followed, by its own rule.
    assert " --rule=tpot:4" in told[1]
    assert told[1].endswith(f" -- {' '.join(FEW)} -k first 'test_suite.py::test_prompt[first]'"), told[1]
    assert processes_in(history.temporary) == []
    assert list(history.temporary.iterdir()) == []
    assert history.state() == before


def test_code_of_the_checkout_is_not_taken_for_a_commits(history, monkeypatch, tmp_path_factory):
    made = [history.commit(f"change {number}", scratch.DECODE) for number in range(2)]
    # An absolute path in a conftest file, as an import hook of an editable install would have it.
    conftest = history.path / "conftest.py"
    conftest.write_text(f"import sys\nsys.path.insert(0, {str(history.path)!r})\n" + conftest.read_text())
    made += [history.commit(f"change {number}", scratch.SLOW) for number in (2, 3)]
    code, said, err = bisect(history.path, made[2], made[3], RULE, "--", *FEW)
    assert (code, said) == (2, [])
    assert "imported script from this checkout (" in err
    assert err.count("\n") == 1
    assert list(history.temporary.iterdir()) == []


LATE = """
class Planned(Planned):
    def {where}(self, *given):
        sys.path.insert(0, {checkout!r})
        import late
        return super().{where}(*given)

@pytest.fixture(scope="session")
def engine():
    return Planned()
"""
SLOW_END = """
@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish():
    time.sleep(3)
"""
TOKEN = ("--infer-launches=1", "--infer-time=1s", "--infer-rounds=1", "--infer-warmup=0", "--infer-max-rounds=2")


@pytest.mark.parametrize(
    ("late_in", "where", "end"),
    [("bad", "load", ""), ("good", "load", ""), ("bad", "generate", ""), ("bad", "load", SLOW_END)],
)
def test_code_that_a_measured_process_imports_late_is_not_taken_for_a_commits(history, late_in, where, end):
    # In turns of a token no engine is in the process that pytest was started as: only those that measure know.
    plain = "import sys\n" + history.path.joinpath("conftest.py").read_text()
    late = plain + LATE.format(where=where, checkout=str(history.path)) + end
    good = history.commit("good", scratch.DECODE, conftest=late if late_in == "good" else plain)
    bad = history.commit("bad", scratch.SLOW, conftest=late if late_in == "bad" else plain)
    module = history.path / "late.py"
    module.write_text("")
    code, said, err = bisect(history.path, good, bad, RULE, "-k", "first", "--", *TOKEN)
    assert (code, said) == (2, [])
    assert f"the run of {bad[:12]} imported late from this checkout ({module})" in err
    assert err.count("\n") == 1
    assert list(history.temporary.iterdir()) == []


def test_git_bisect_run_reads_the_exit_code(history):
    made = []
    for number in range(8):
        # One whose conftest file cannot be imported, and one whose suite cannot be read, are skipped.
        prompts = "no toml" if number == 3 else scratch.PROMPTS
        history.path.joinpath("prompts.toml").write_text(prompts)
        history.path.joinpath("more").mkdir(exist_ok=True)
        history.path.joinpath("more", "conftest.py").write_text("import nowhere" if number == 4 else "")
        made.append(history.commit(f"change {number}", scratch.DECODE if number < 6 else scratch.SLOW))
    command = (
        sys.executable,
        "-m",
        "pytest",
        "test_suite.py",
        "more",
        "--infer-gate=tpot<=15ms",
        "--infer-exit",
        "bisect",
    )
    history.git("bisect", "start", made[7], made[0])
    said = history.git("bisect", "run", *command, "--infer-rounds=2", "--infer-no-profile", "--infer-no-probe")
    assert f"{made[6]} is the first bad commit" in said
    history.git("bisect", "reset")


@pytest.mark.parametrize(("folder", "code"), [("bench", 125), ("bnech", 128)])
def test_a_folder_that_only_the_other_commit_has_is_the_commits_fault(history, folder, code):
    bench = history.path / "bench"
    bench.mkdir()
    for name in ("test_suite.py", "prompts.toml"):
        history.path.joinpath(name).rename(bench / name)
    history.commit("a suite", scratch.DECODE)
    history.git("mv", "bench", "benchmarks")
    history.commit("elsewhere")
    command = (sys.executable, "-m", "pytest", folder, "--infer-against=HEAD~1", "--infer-exit=bisect")
    done = subprocess.run(command, cwd=history.path, capture_output=True, text=True, check=False)
    assert (done.returncode, "file or directory not found" in done.stderr) == (code, True)


@pytest.mark.slow
def test_one_of_thirty_is_found(history):
    made = [history.commit(f"change {number}", scratch.DECODE if number < 19 else scratch.SLOW) for number in range(30)]
    code, said, err = bisect(history.path, made[0], made[29], RULE, "--", *FEW)
    assert (code, err) == (0, ""), "\n".join(said) + err
    assert f"first bad commit: {made[19]}" in said
