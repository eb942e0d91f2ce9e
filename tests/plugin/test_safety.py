"""What ends a run badly, and what must be left of it: the table of storage.md, row by row."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from pytest_infer.storage.journal import Journal, read

FOUR = """
[defaults]
max_new_tokens = 3
[[prompt]]
name = "one"
text = "a"
[[prompt]]
name = "two"
text = "a b"
[[prompt]]
name = "three"
text = "a b c"
[[prompt]]
name = "four"
text = "a b c d"
"""

COUNTED = """
import os
import pathlib

generate = Scripted.generate
Scripted.delays = [0.0] * 3

def counted(self, prompt_ids, limits, clock):
    with open("calls.txt", "a") as file:
        file.write(f"{len(prompt_ids)}\\n")
    number = len(pathlib.Path("calls.txt").read_text().splitlines())
    trouble(len(prompt_ids), number)
    return generate(self, prompt_ids, limits, clock)

Scripted.generate = counted

"""
"""An engine that notes each generation in a file, by the prompt's length, and then calls `trouble`."""

HARMLESS = COUNTED + "def trouble(tokens, number):\n    pass\n"
KILLED = COUNTED + "def trouble(tokens, number):\n    if tokens == 4:\n        os.kill(os.getpid(), 9)\n"
LOADS = """
load = Scripted.load

def noted(self):
    open("loaded", "w").close()
    return load(self)

Scripted.load = noted
"""


def said(result):
    return f"{result.stdout}\n{result.stderr}"


def run_files(pytester):
    return sorted(pytester.path.glob(".benchmarks/*/*.json"))


def saved(pytester, number=-1):
    return json.loads(run_files(pytester)[number].read_text())


def prompts_of(run):
    return [row["params"]["prompt"] for row in run["benchmarks"] if row["params"]["phase"] == "total"]


def blocks_of(run):
    rows = [row for row in run["benchmarks"] if row["params"]["phase"] == "total"]
    return {row["params"]["prompt"]: row["extra_info"]["pytest_infer"] for row in rows}


def journals(pytester):
    return sorted(pytester.path.glob(".benchmarks/.journal/*.jsonl"))


def calls(pytester):
    """Return how often each prompt ran, by its length, since the last look."""
    path = pytester.path / "calls.txt"
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return {int(n): lines.count(n) for n in sorted(set(lines))}


def assert_no_traceback_of_ours(result):
    text = said(result)
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text
    assert "pytest_infer/" not in text


def refused(result, *parts):
    text = said(result)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert_no_traceback_of_ours(result)
    (line,) = [line for line in text.splitlines() if line.startswith("ERROR: pytest-infer: ")]
    for part in parts:
        assert part in line


# Ctrl-C


@pytest.mark.parametrize("args", [(), ("--benchmark-autosave",), ("--benchmark-json=run.json",)])
def test_an_interrupt_in_the_first_round_of_the_first_prompt(suite, args):
    pytester = suite(engine="def generate(*args):\n    raise KeyboardInterrupt\nScripted.generate = generate\n")
    result = pytester.runpytest_subprocess(*args)
    assert result.ret == pytest.ExitCode.INTERRUPTED, said(result)
    assert_no_traceback_of_ours(result)
    assert run_files(pytester) == []


def test_an_interrupt_before_anything_was_measured_names_what_was_not(suite):
    pytester = suite(engine="def generate(*args):\n    raise KeyboardInterrupt\nScripted.generate = generate\n")
    result = pytester.runpytest_subprocess("--benchmark-autosave")
    line = " ".join(result.stdout.str().split()).partition("not measured: ")[2]
    assert "[first]" in line
    assert "[second]" in line


@pytest.mark.parametrize("when", ["warm-up", "third round", "profile"])
def test_an_interrupt_in_the_second_prompt_keeps_the_first(suite, when):
    # A prompt: 1 warm-up, 3 rounds, 1 profile round.
    number = 5 + {"warm-up": 1, "third round": 4, "profile": 5}[when]
    trouble = f"def trouble(tokens, number):\n    if number == {number}:\n        raise KeyboardInterrupt\n"
    pytester = suite(engine=COUNTED + trouble, prompts=FOUR)
    result = pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=3")
    assert result.ret == pytest.ExitCode.INTERRUPTED, said(result)
    assert_no_traceback_of_ours(result)
    run = saved(pytester)
    assert prompts_of(run) == ["one"]
    assert {row["params"]["phase"] for row in run["benchmarks"]} == {"total", "ttft", "tpot"}
    missing = [f"test_suite.py::test_prompt[{name}]" for name in ("two", "three", "four")]
    assert run["pytest_infer"]["unmeasured"] == missing
    text = " ".join(said(result).split())
    assert f"not measured: {', '.join(missing)}" in text


def test_an_interrupt_of_a_real_signal(suite):
    # A shell that starts this run in the background has it ignore SIGINT, and children inherit that.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    trouble = "def trouble(tokens, number):\n    if tokens == 2:\n        os.kill(os.getpid(), 2)\n"
    pytester = suite(engine=COUNTED + heard + trouble, prompts=FOUR)
    result = pytester.runpytest_subprocess("--benchmark-autosave")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert prompts_of(saved(pytester)) == ["one"]


@pytest.mark.parametrize(
    ("body", "outcomes"), [("pytest.skip('not now')", {"skipped": 1}), ("pytest.fail('no')", {"failed": 1})]
)
def test_a_test_that_ends_before_it_measures_loses_nothing(suite, body, outcomes):
    test = f"""
    import pytest

    def test_prompt(infer, prompt):
        if prompt.name == "first":
            {body}
        infer(prompt)
    """
    pytester = suite(test=textwrap.dedent(test))
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=1, **outcomes)
    assert "INTERNALERROR" not in said(result)
    run = saved(pytester)
    assert prompts_of(run) == ["second"]
    assert run["pytest_infer"]["unmeasured"] == ["test_suite.py::test_prompt[first]"]


def test_an_engine_that_fails_in_one_prompt_loses_nothing(suite):
    trouble = "def trouble(tokens, number):\n    if tokens == 2:\n        raise RuntimeError('out of memory')\n"
    pytester = suite(engine=COUNTED + trouble, prompts=FOUR)
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=3, failed=1)
    assert prompts_of(saved(pytester)) == ["one", "three", "four"]


# SIGKILL and --infer-resume


@pytest.fixture
def killed(suite):
    """A suite of four prompts whose first run was killed in the fourth; the engine is then mended."""
    pytester = suite(engine=KILLED, prompts=FOUR)
    result = pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2")
    assert result.ret == -9
    assert calls(pytester) == {1: 4, 2: 4, 3: 4, 4: 1}
    suite(engine=HARMLESS, prompts=FOUR)
    return pytester


def test_a_killed_run_leaves_a_line_a_finished_prompt(killed):
    (path,) = journals(killed)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["nodeid"] for line in lines] == [
        f"test_suite.py::test_prompt[{name}]" for name in ("one", "two", "three")
    ]
    assert run_files(killed) == []


def test_resume_takes_exactly_the_finished_prompts(killed):
    before = [json.loads(line)["record"] for line in journals(killed)[0].read_text().splitlines()]
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    result.assert_outcomes(passed=4)
    assert "outside of git nobody knows whether what was finished is of the same code" in " ".join(said(result).split())
    assert calls(killed) == {4: 4}
    run = saved(killed)
    assert prompts_of(run) == ["one", "two", "three", "four"]
    resumed = {name: block["rounds"]["resumed"] for name, block in blocks_of(run).items()}
    assert resumed == {"one": True, "two": True, "three": True, "four": False}
    assert journals(killed) == [], "their prompts are in the run file now"
    traces = [r["trace"] for r in before[0]["rounds"]]
    stamped = [(t["stamps_ns"][-1] - t["start_ns"]) / 1e9 for t in traces]
    assert blocks_of(run)["one"]["metrics"]["total_s"]["rounds"] == stamped
    assert run["pytest_infer"]["unmeasured"] == []


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_a_run_that_a_failure_ends_leaves_what_was_finished(suite, option):
    run = ("--benchmark-autosave", "--infer-rounds=2")
    pytester = suite(engine=COUNTED + "def trouble(tokens, number):\n    assert tokens != 3\n", prompts=FOUR)
    pytester.runpytest_subprocess(*run, option).assert_outcomes(passed=2, failed=1)
    pytester.runpytest_subprocess(*run, option, "--infer-resume").assert_outcomes(passed=2, failed=1)
    assert calls(pytester) == {1: 4, 2: 4, 3: 2}
    suite(engine=HARMLESS, prompts=FOUR)
    pytester.runpytest_subprocess(*run, "--infer-resume").assert_outcomes(passed=4)
    assert calls(pytester) == {3: 4, 4: 4}
    assert journals(pytester) == []


def test_resume_loads_no_model_when_everything_is_there(killed, suite):
    killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "-k", "not four", "--infer-resume")
    assert calls(killed) == {}


def test_a_killed_run_is_mentioned_to_whoever_does_not_resume(killed):
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2")
    result.assert_outcomes(passed=4)
    assert calls(killed) == {1: 4, 2: 4, 3: 4, 4: 4}
    assert "an interrupted run left 3 prompts; --infer-resume" in " ".join(said(result).split())
    assert not any(block["rounds"]["resumed"] for block in blocks_of(saved(killed)).values())


@pytest.mark.parametrize(
    "other",
    [
        "--infer-rounds=3",
        "--infer-warmup=0",
        "--infer-dtype=float16",
        "--infer-ignore-eos",
        "--infer-max-new-tokens=2",
        "--infer-no-profile",
        "--infer-experts=off",
        "--infer-threads=1",
        "--infer-text",
    ],
)
def test_resume_does_not_take_what_other_options_measured(killed, other):
    # Options that an engine cannot learn of are refused: this one is given them.
    conftest = killed.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("def engine():", "def engine(infer_load):"))
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume", other)
    result.assert_outcomes(passed=4)
    assert set(calls(killed)) == {1, 2, 3, 4}
    assert not any(block["rounds"]["resumed"] for block in blocks_of(saved(killed)).values())


def test_resume_does_not_take_a_prompt_that_changed(killed):
    path = killed.path / "prompts.toml"
    path.write_text(path.read_text().replace('text = "a b"\n', 'text = "x y"\n'))
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    result.assert_outcomes(passed=4)
    assert calls(killed) == {2: 4, 4: 4}


def test_resume_of_a_part_keeps_what_it_did_not_take(killed):
    killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume", "-k", "one")
    assert calls(killed) == {}
    killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume", "-k", "two")
    assert calls(killed) == {}, "the first resume threw away what an interrupted run had measured of other prompts"


@pytest.mark.parametrize("changed", [False, True], ids=["same", "changed"])
def test_resume_takes_nothing_when_the_code_changed(suite, changed):
    pytester = suite(engine=KILLED, prompts=FOUR)
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    pytester.path.joinpath("code_under_test.py").write_text("x = 1\n")

    def git(*args):
        subprocess.run(["git", *identity, *args], cwd=pytester.path, env=env, check=True, stdout=subprocess.DEVNULL)

    git("init", "-q")
    git("add", "code_under_test.py")
    git("commit", "-q", "-m", "one")
    assert pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2").ret == -9
    calls(pytester)
    # The engine's file is not tracked, so it may change without being code.
    suite(engine=HARMLESS, prompts=FOUR)
    if changed:
        pytester.path.joinpath("code_under_test.py").write_text("x = 2\n")
    pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    assert calls(pytester) == ({1: 4, 2: 4, 3: 4, 4: 4} if changed else {4: 4})


def test_a_run_that_was_killed_twice_goes_on_from_both(suite, killed):
    # Killed again in the fourth prompt, after resuming three: nothing of them may be lost.
    suite(engine=KILLED, prompts=FOUR)
    assert killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume").ret == -9
    calls(killed)
    suite(engine=HARMLESS, prompts=FOUR)
    killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume").assert_outcomes(passed=4)
    assert calls(killed) == {4: 4}


KILLED_AFTER_A_LINE = """
from pytest_infer.storage import journal

append = journal.Journal.append

def appended(self, entry):
    append(self, entry)
    os.kill(os.getpid(), 9)

journal.Journal.append = appended
"""
SECOND_INTERRUPTIONS = {
    "a run without resuming, stopped": (
        COUNTED + "def trouble(tokens, number):\n    if tokens == 2:\n        raise KeyboardInterrupt\n",
        (),
    ),
    "a resuming run, killed": (HARMLESS + KILLED_AFTER_A_LINE, ("--infer-resume",)),
    "a part of the suite, killed": (HARMLESS + KILLED_AFTER_A_LINE, ("-k", "two")),
    "other options, killed": (HARMLESS + KILLED_AFTER_A_LINE, ("--infer-warmup=0",)),
}


@pytest.mark.parametrize(("engine", "options"), SECOND_INTERRUPTIONS.values(), ids=SECOND_INTERRUPTIONS)
def test_a_second_interruption_does_not_hide_the_first(suite, killed, engine, options):
    suite(engine=engine, prompts=FOUR)
    second = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", *options)
    assert second.ret in (-9, pytest.ExitCode.INTERRUPTED)
    assert len(journals(killed)) == 2
    calls(killed)
    suite(engine=HARMLESS, prompts=FOUR)
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    result.assert_outcomes(passed=4)
    assert calls(killed) == {4: 4}
    assert prompts_of(saved(killed)) == ["one", "two", "three", "four"]


def test_journals_that_are_used_up_are_removed_and_others_stay(suite, killed):
    suite(engine=KILLED, prompts=FOUR)
    for options in ((), ("--infer-resume",), ("--infer-warmup=0",)):
        killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", *options)
    assert len(journals(killed)) == 4
    suite(engine=HARMLESS, prompts=FOUR)
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    result.assert_outcomes(passed=4)
    assert len(journals(killed)) == 1, "what other options measured may be resumed with them"
    assert "--infer-resume: 3 prompts of interrupted runs are of other tests, options" in " ".join(said(result).split())
    calls(killed)
    again = killed.runpytest_subprocess(
        "--benchmark-autosave", "--infer-rounds=2", "--infer-warmup=0", "--infer-resume"
    )
    again.assert_outcomes(passed=4)
    assert calls(killed) == {4: 3}
    assert journals(killed) == []
    assert "of interrupted runs are of other" not in said(again)


def test_the_journal_of_a_run_that_goes_on_is_left_alone(suite, killed):
    alive = Journal(killed.path / ".benchmarks")
    (dead,) = journals(killed)
    alive.append(read(dead).entries[0])
    result = killed.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    result.assert_outcomes(passed=4)
    assert journals(killed) == [alive.path]
    alive.discard()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 15)", "os._exit(3)"], ids=["SIGTERM", "os._exit"])
def test_other_sudden_ends_are_resumed_like_a_kill(suite, end):
    pytester = suite(engine=KILLED.replace("os.kill(os.getpid(), 9)", end), prompts=FOUR)
    assert pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2").ret not in (0, 1, 2)
    assert calls(pytester) == {1: 4, 2: 4, 3: 4, 4: 1}
    suite(engine=HARMLESS, prompts=FOUR)
    result = pytester.runpytest_subprocess("--benchmark-autosave", "--infer-rounds=2", "--infer-resume")
    result.assert_outcomes(passed=4)
    assert calls(pytester) == {4: 4}
    assert prompts_of(saved(pytester)) == ["one", "two", "three", "four"]


def test_a_journal_that_cannot_be_written_is_said_and_the_run_is_saved(suite):
    pytester = suite()
    pytester.mkdir(".benchmarks").joinpath(".journal").write_text("a file in the way")
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=2)
    assert "! the journal cannot be written: " in said(result)
    assert prompts_of(saved(pytester)) == ["first", "second"]


def test_an_interrupted_run_can_be_resumed_too(suite):
    trouble = "def trouble(tokens, number):\n    if tokens == 3:\n        raise KeyboardInterrupt\n"
    pytester = suite(engine=COUNTED + trouble, prompts=FOUR)
    assert pytester.runpytest_subprocess("--benchmark-autosave").ret == pytest.ExitCode.INTERRUPTED
    calls(pytester)
    suite(engine=HARMLESS, prompts=FOUR)
    pytester.runpytest_subprocess("--benchmark-autosave", "--infer-resume").assert_outcomes(passed=4)
    assert set(calls(pytester)) == {3, 4}
    assert prompts_of(saved(pytester)) == ["one", "two", "three", "four"]


def test_a_finished_run_leaves_no_journal(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    assert journals(pytester) == []


# a test that fails after it was measured


WRONG = """
def test_prompt(infer, prompt):
    record = infer(prompt)
    assert prompt.name != "first", "the output is wrong"
"""


def test_a_measurement_whose_test_failed_is_no_baseline(suite):
    pytester = suite(test=WRONG)
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=1, failed=1)
    run = saved(pytester)
    assert prompts_of(run) == ["second"]
    assert len(run["benchmarks"]) == 3, "no row of the failed test, of any phase"
    failed = run["pytest_infer"]["failed"]
    assert list(failed) == ["test_suite.py::test_prompt[first]"]
    assert failed["test_suite.py::test_prompt[first]"]["output"]["text"] == "1 2 3"
    assert run["pytest_infer"]["unmeasured"] == []
    text = " ".join(said(result).split())
    assert "! test_suite.py::test_prompt[first] did not pass after it was measured" in text
    assert "test_prompt[second] did not pass" not in text


FAILS_AT_TEARDOWN = """
import pytest

@pytest.fixture
def checked(prompt):
    yield
    assert prompt.name != "first", "found wrong at teardown"

def test_prompt(infer, prompt, checked):
    infer(prompt)
"""
FAILS_AS_EXPECTED = """
import pytest

def test_prompt(infer, prompt, request):
    if prompt.name == "first":
        request.applymarker(pytest.mark.xfail(reason="known to be wrong"))
    infer(prompt)
    assert prompt.name != "first", "the output is wrong"
"""


SKIPS_LATE = """
import pytest

def test_prompt(infer, prompt):
    infer(prompt)
    if prompt.name == "first":
        pytest.skip("not worth a figure")
"""
MEASURES_IN_A_FIXTURE = """
import pytest

@pytest.fixture
def record(infer, prompt):
    record = infer(prompt)
    assert prompt.name != "first", "found wrong at setup"
    return record

def test_prompt(record):
    pass
"""
PASSES_UNEXPECTEDLY = """
import pytest

def test_prompt(infer, prompt, request):
    if prompt.name == "first":
        request.applymarker(pytest.mark.xfail(reason="was wrong once", strict=True))
    infer(prompt)
"""


@pytest.mark.parametrize(
    ("test", "outcomes"),
    [
        (FAILS_AT_TEARDOWN, {"passed": 2, "errors": 1}),
        (FAILS_AS_EXPECTED, {"passed": 1, "xfailed": 1}),
        (SKIPS_LATE, {"passed": 1, "skipped": 1}),
        (MEASURES_IN_A_FIXTURE, {"passed": 1, "errors": 1}),
        (PASSES_UNEXPECTEDLY, {"passed": 1, "failed": 1}),
    ],
    ids=["teardown", "xfail", "skip", "setup", "strict xpass"],
)
def test_a_measurement_whose_test_failed_in_another_way_is_no_baseline(suite, test, outcomes):
    pytester = suite(test=test)
    pytester.runpytest("--benchmark-autosave").assert_outcomes(**outcomes)
    run = saved(pytester)
    assert prompts_of(run) == ["second"]
    assert len(run["benchmarks"]) == 3, "no row of the failed test, of any phase"
    assert list(run["pytest_infer"]["failed"]) == ["test_suite.py::test_prompt[first]"]


def test_a_test_that_skips_before_it_measures_is_unmeasured_and_not_failed(suite):
    pytester = suite(test=SKIPS_LATE.replace("    infer(prompt)\n", "") + "    infer(prompt)\n")
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=1, skipped=1)
    whole = saved(pytester)["pytest_infer"]
    assert whole["failed"] == {}
    assert whole["unmeasured"] == ["test_suite.py::test_prompt[first]"]


def test_a_run_whose_every_test_failed_leaves_no_row(suite):
    pytester = suite(test="def test_prompt(infer, prompt):\n    infer(prompt)\n    raise AssertionError('wrong')\n")
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(failed=2)
    assert "INTERNALERROR" not in said(result)
    for path in run_files(pytester):
        assert json.loads(path.read_text())["benchmarks"] == []


def test_a_failed_measurement_is_not_resumed_as_a_good_one(suite):
    # The first prompt's test fails, then the run is killed: its record must not come back as a valid baseline.
    test = """
    import os

    def test_prompt(infer, prompt):
        infer(prompt)
        assert prompt.name != "first", "the output is wrong"
        os.kill(os.getpid(), 9)
    """
    pytester = suite(test=textwrap.dedent(test), engine=HARMLESS)
    assert pytester.runpytest_subprocess("--benchmark-autosave").ret == -9
    calls(pytester)
    pytester.makepyfile(test_suite=WRONG)
    pytester.runpytest_subprocess("--benchmark-autosave", "--infer-resume").assert_outcomes(passed=1, failed=1)
    run = saved(pytester)
    assert prompts_of(run) == ["second"]
    assert list(run["pytest_infer"]["failed"]) == ["test_suite.py::test_prompt[first]"]


# storage


@pytest.mark.parametrize("below", ["", "/below"])
def test_storage_that_cannot_be_written_is_refused_before_the_model_is_loaded(suite, below):
    pytester = suite(engine=LOADS)
    pytester.path.joinpath("store").write_text("a file")
    result = pytester.runpytest_subprocess("--benchmark-autosave", f"--benchmark-storage=store{below}")
    assert not pytester.path.joinpath("loaded").exists()
    refused(result, "results cannot be saved", "--benchmark-storage")
    assert pytester.path.joinpath("store").read_text() == "a file"


def test_storage_that_cannot_be_written_does_not_matter_to_a_run_that_saves_nothing(suite):
    pytester = suite()
    pytester.path.joinpath("store").write_text("a file")
    pytester.runpytest("--benchmark-storage=store").assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no/such/folder/run.json", ": no/such/folder is no folder"),
        ("bench", " bench is a folder: name a file in it"),
        ("file/run.json", ": file is no folder"),
        ("circle", " circle: Too many levels of symbolic links; choose another file"),
        ("/proc/run.json", " /proc/run.json: nothing can be written there; choose another file"),
    ],
)
def test_a_json_file_that_cannot_be_written_is_refused_before_the_model_is_loaded(suite, name, why):
    pytester = suite(engine=LOADS)
    pytester.mkdir("bench")
    pytester.path.joinpath("file").touch()
    pytester.path.joinpath("circle").symlink_to("circle")
    result = pytester.runpytest_subprocess("--benchmark-autosave", f"--benchmark-json={name}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, said(result)
    assert f"ERROR: pytest-infer: --benchmark-json{why}" in result.errlines
    assert not pytester.path.joinpath("loaded").exists()


def test_a_json_file_alone_is_saved_with_its_sidecar(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-json=run.json").assert_outcomes(passed=2)
    run = json.loads(pytester.path.joinpath("run.json").read_text())
    assert prompts_of(run) == ["first", "second"]
    assert pytester.path.joinpath("run.npz").is_file()


def test_run_numbers_go_on_past_9999(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    (first,) = run_files(pytester)
    first.rename(first.with_name("9999_" + first.name.partition("_")[2]))
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    assert {path.name.partition("_")[0] for path in run_files(pytester)} == {"9999", "10000"}


def test_a_run_that_takes_a_number_just_taken_gets_the_next(suite):
    # Two runs that looked for the next number at the same moment: both believe it is 1.
    pytester = suite(
        engine="from pytest_infer.storage import files\nfiles.next_number = lambda folder: 1\n", prompts=FOUR
    )
    for name in ("one", "two"):
        result = pytester.runpytest_subprocess("--benchmark-save=same", "--infer-rounds=1", "-k", name)
        result.assert_outcomes(passed=1, deselected=3)
    assert [path.name for path in run_files(pytester)] == ["0001_same.json", "0002_same.json"]
    assert [prompts_of(saved(pytester, number)) for number in (0, 1)] == [["one"], ["two"]]
    assert [path.stem for path in sorted(pytester.path.glob(".benchmarks/*/*.npz"))] == ["0001_same", "0002_same"]


def test_two_runs_that_save_in_the_same_second_are_both_kept(suite):
    pytester = suite(prompts=FOUR)
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-save=same", "--infer-rounds=1"]
    runs = [
        subprocess.Popen([*command, "-k", name], cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name in ("one", "two", "three")
    ]
    outputs = [run.communicate(timeout=120)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], outputs
    files = run_files(pytester)
    assert len(files) == 3
    assert sorted(prompts_of(json.loads(path.read_text()))[0] for path in files) == ["one", "three", "two"]
    assert len(list(pytester.path.glob(".benchmarks/*/*.npz"))) == 3
    assert not list(pytester.path.glob(".benchmarks/*/.*"))


def test_no_nan_even_when_the_engine_and_the_test_give_some(suite):
    pytester = suite(
        engine="""
        import math
        load = Scripted.load

        def strange(self):
            import dataclasses
            return dataclasses.replace(load(self), parameter_bytes=None, generation={"temperature": math.nan})

        Scripted.load = strange
        """
    )
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    (path,) = run_files(pytester)

    def refuse(name):
        raise AssertionError(f"{name} in the file")

    json.loads(path.read_text(), parse_constant=refuse)


# other ways to run


def test_xdist_is_refused_test_by_test(suite):
    pytester = suite(engine=LOADS)
    result = pytester.runpytest_subprocess("-n", "2", timeout=120)
    assert result.ret not in (0, pytest.ExitCode.INTERNAL_ERROR)
    text = said(result)
    assert "INTERNALERROR" not in text
    result.assert_outcomes(errors=2)
    assert text.count("\nbenchmarks are refused under pytest-xdist") == 2
    assert "use -n 0" in text
    assert not pytester.path.joinpath("loaded").exists()


def test_xdist_leaves_other_tests_alone(suite):
    pytester = suite(test="def test_it(system_sampler):\n    pass\n")
    pytester.runpytest_subprocess("-n", "2", timeout=120).assert_outcomes(passed=1)


def test_no_xdist_processes_is_no_xdist(suite):
    suite().runpytest_subprocess("-n", "0").assert_outcomes(passed=2)


@pytest.mark.parametrize("given", [(), ("--infer-warmup=1",)])
def test_a_wrong_key_is_no_crash_of_a_worker(suite, given):
    pytester = suite(test="def test_prompt(infer, prompt):\n    infer(prompt)\n\ndef test_other():\n    pass\n")
    pytester.makeini("[pytest]\ninfer_rounds = none\n")
    result = pytester.runpytest_subprocess("-n", "2", *given)
    assert "INTERNALERROR" not in said(result)
    assert "pytest-infer: infer_rounds takes a whole number, not 'none'" in said(result)
    if given:
        assert result.ret == pytest.ExitCode.USAGE_ERROR
    else:
        result.assert_outcomes(passed=1, errors=1)


def test_disabled_runs_each_prompt_once_and_says_so(suite):
    pytester = suite(engine=HARMLESS)
    result = pytester.runpytest("--benchmark-disable", "--benchmark-autosave")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert calls(pytester) == {2: 1, 3: 1}
    text = " ".join(said(result).split())
    assert "benchmarks are disabled: each prompt ran once; nothing was recorded, nothing was gated" in text
    assert "not measured" not in text
    assert run_files(pytester) == []
    assert journals(pytester) == []


def test_disabled_still_gives_the_test_its_record(suite):
    pytester = suite(test="def test_it(infer, prompt):\n    assert infer(prompt).output.text == '1 2 3'\n")
    pytester.runpytest("--benchmark-disable").assert_outcomes(passed=2)


def test_skipping_benchmarks_measures_nothing(suite):
    pytester = suite(engine=HARMLESS + LOADS)
    result = pytester.runpytest("--benchmark-skip")
    result.assert_outcomes(skipped=2)
    assert calls(pytester) == {}
    assert not pytester.path.joinpath("loaded").exists()
    assert "not measured" not in said(result)


def test_skipping_benchmarks_checks_no_model(pytester):
    pytester.makepyfile("def test_it(infer):\n    infer('one')\n")
    pytester.runpytest("--benchmark-skip", "--infer-engine=x").assert_outcomes(skipped=1)


def test_only_benchmarks_runs_ours(suite):
    pytester = suite(test="def test_prompt(infer, prompt):\n    infer(prompt)\n\ndef test_other():\n    pass\n")
    pytester.runpytest("--benchmark-only").assert_outcomes(passed=2, skipped=1)


SWAPPED = """
import pytest

class Faster:
    pass

@pytest.fixture
def benchmark():
    return Faster()
"""


@pytest.mark.parametrize("where", ["conftest", "module", "plugin"])
def test_a_swapped_benchmark_fixture_is_one_line(suite, where):
    pytester = suite(engine=LOADS)
    test, conftest = pytester.path / "test_suite.py", pytester.path / "conftest.py"
    if where == "conftest":
        conftest.write_text(conftest.read_text() + SWAPPED)
    elif where == "module":
        test.write_text(SWAPPED + test.read_text())
    else:
        # Registered after pytest-benchmark, so that its fixture is the one that tests get.
        pytester.makepyfile(faster_plugin=SWAPPED)
        pytester.syspathinsert()
        conftest.write_text(
            conftest.read_text()
            + "\ndef pytest_configure(config):\n"
            + "    import faster_plugin\n    config.pluginmanager.register(faster_plugin)\n"
        )
    result = pytester.runpytest("-k", "first")
    text = said(result)
    assert result.ret not in (0, pytest.ExitCode.INTERNAL_ERROR), text
    assert "INTERNALERROR" not in text
    lines = [line for line in text.splitlines() if "the `benchmark` fixture is " in line]
    assert len(lines) == 1, text
    assert "not pytest-benchmark's; disable the plugin that replaces it" in lines[0]
    assert not pytester.path.joinpath("loaded").exists()


def test_pytest_benchmark_switched_off_is_one_line(suite):
    result = suite().runpytest_subprocess("-p", "no:benchmark")
    assert result.ret == pytest.ExitCode.USAGE_ERROR, said(result)
    assert_no_traceback_of_ours(result)
    assert "leave out -p no:benchmark" in said(result)


def test_pytest_benchmark_switched_off_does_not_matter_to_a_suite_that_measures_nothing(pytester):
    pytester.makepyfile("def test_it():\n    pass\n\ndef test_failing():\n    assert False\n")
    result = pytester.runpytest_subprocess("-p", "no:benchmark")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
    assert_no_traceback_of_ours(result)


def test_a_failing_native_gate_still_shows_our_summary(suite):
    pytester = suite(engine="Scripted.delays = [0.01] * 3", virtual=True)
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    pytester.path.joinpath("conftest.py").write_text(
        pytester.path.joinpath("conftest.py").read_text().replace("[0.01] * 3", "[0.05] * 3")
    )
    result = pytester.runpytest_subprocess("--benchmark-compare", "--benchmark-compare-fail=median:50%")
    assert result.ret not in (0, pytest.ExitCode.INTERNAL_ERROR)
    assert "= inference =" in result.stdout.str()
