"""`--infer-against` as a gate, in a scratch repository with its own engine: what is named, passes, is refused."""

import json
import os
import subprocess
import sys

import pytest
from scratch import PROMPTS, History

ENGINE = """
import script

class Planned(Scripted):
    def generate(self, prompt_ids, limits, clock):
        self.delays = list(script.DELAYS)
        return super().generate(prompt_ids, limits, clock)

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

@pytest.fixture(scope="session")
def engine():
    return Planned()
"""
EVEN = [0.01] * 6
SLOW_DECODE = [0.01] + [0.0108] * 5
RULES = "--infer-gate=output:exact,ttft:3%,tpot:3%"


class Repository(History):
    def __init__(self, pytester):
        super().__init__(pytester.path)
        self.pytester = pytester

    def commit(self, delays=None, prompts=None):
        if delays is not None:
            (self.path / "script.py").write_text(f"DELAYS = {delays}\n")
        if prompts is not None:
            (self.path / "prompts.toml").write_text(prompts)
        return super().commit()

    def run(self, *options):
        # In a process of its own: this one is full of the outer run's modules.
        own = ("--infer-turns=round", "--infer-no-profile", "--infer-repeat-disturbed=0")
        return self.pytester.runpytest_subprocess("--infer-against=HEAD~1", *own, *options)


@pytest.fixture
def repository(suite):
    made = Repository(suite(engine=ENGINE, prompts=PROMPTS, virtual=True))
    made.commit(EVEN)
    return made


def test_a_slower_decode_is_caught_and_prefill_is_not_blamed(repository):
    repository.commit(SLOW_DECODE)
    result = repository.run(RULES, "--benchmark-autosave")
    assert result.ret == 1
    assert result.parseoutcomes()["failed"] == 2
    result.stdout.fnmatch_lines(["*the gate failed, against HEAD~1*", "  tpot:3%*→*regressed (threshold 3 %)"])
    failures = [line for line in result.outlines if line.startswith("FAILED")]
    assert len(failures) == 2
    assert all("tpot:3%" in line and "ttft" not in line for line in failures)
    (run,) = repository.path.glob(".benchmarks/*/*.json")
    stored = json.loads(run.read_text())
    assert stored["pytest_infer"]["gate"]["result"] == "regressed"
    row = stored["benchmarks"][0]["extra_info"]["pytest_infer"]
    assert row["against"]["rev"] == "HEAD~1"
    assert len(row["against"]["metrics"]["tpot_s"]["rounds"]) == len(row["metrics"]["tpot_s"]["rounds"])


def test_a_commit_that_changes_nothing_passes(repository):
    repository.commit()
    result = repository.run(RULES)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["gate against HEAD~1 (*): passed"])


FAILS = """
def test_prompt(infer, prompt):
    assert prompt.name != "third", "it fails"
    infer(prompt)
"""
INTERRUPTED = FAILS.replace("assert", "if not (").replace(', "it fails"', "):\n        raise KeyboardInterrupt")


@pytest.mark.parametrize(
    ("test", "options", "ended"),
    [
        pytest.param(INTERRUPTED, (), 2, id="interrupt"),
        pytest.param(FAILS, ("-x", "--infer-turns=token", "--infer-launches=3", "--infer-time=2s"), 1, id="launches"),
    ],
)
def test_what_was_measured_before_an_early_end_is_kept_with_its_other_side_and_judged(repository, test, options, ended):
    more = "".join(f'\n[[prompt]]\nname = "{name}"\ntext = "so it goes"\n' for name in ("third", "fourth"))
    repository.commit(prompts=PROMPTS + more)
    (repository.path / "test_suite.py").write_text(test)
    repository.commit(SLOW_DECODE)
    result = repository.run(RULES, "--benchmark-autosave", *options)
    assert result.ret == ended
    result.stdout.fnmatch_lines(["*tpot:3%*regressed*", "*the run ended before it was measured*"])
    (run,) = repository.path.glob(".benchmarks/*/*.json")
    stored = json.loads(run.read_text())
    assert stored["pytest_infer"]["gate"]["result"] == "regressed"
    judged = {j["prompt"]: j["verdict"] for j in stored["pytest_infer"]["gate"]["judgements"] if j["rule"] is None}
    assert [name for name, verdict in judged.items() if verdict == "incomparable"] == [
        f"test_suite.py::test_prompt[{name}]" for name in ("third", "fourth")[ended == 1 :]
    ]
    blocks = {row["params"]["prompt"]: row["extra_info"]["pytest_infer"] for row in reversed(stored["benchmarks"])}
    assert sorted(blocks) == ["first", "second"]
    assert all(len(block["against"]["metrics"]["tpot_s"]["rounds"]) > 1 for block in blocks.values())


STOPPED = """
def test_prompt(infer, prompt):
    if prompt.name == "second":
        raise KeyboardInterrupt
    infer(prompt)
"""


def test_an_interrupted_comparison_leaves_nothing_that_a_plain_run_could_take(repository):
    (repository.path / "test_suite.py").write_text(STOPPED)
    repository.commit(EVEN)
    repository.commit(SLOW_DECODE)
    assert repository.run("--benchmark-autosave").ret == 2
    assert not [*repository.path.glob(".benchmarks/.journal/*.jsonl")]


SKIPS = """
import pytest

def test_prompt(infer, prompt):
    if prompt.name == "second":
        pytest.skip("no")
    infer(prompt)
    assert {passes} or prompt.name != "third"
"""


def test_an_early_end_tells_a_test_that_failed_as_such_and_of_one_that_skipped_itself_nothing(repository):
    test = repository.path / "test_suite.py"
    test.write_text(SKIPS.format(passes=True))
    repository.commit(prompts=f'{PROMPTS}\n[[prompt]]\nname = "third"\ntext = "so it goes"\n')
    test.write_text(SKIPS.format(passes=False))
    repository.commit()
    result = repository.run(RULES, "--benchmark-autosave", "-x")
    result.assert_outcomes(passed=1, skipped=1, failed=1)
    (run,) = repository.path.glob(".benchmarks/*/*.json")
    gate = json.loads(run.read_text())["pytest_infer"]["gate"]
    assert gate["result"] == "regressed"
    told = {j["prompt"]: (j["verdict"], j["reason"]) for j in gate["judgements"] if j["rule"] is None}
    assert told == {"test_suite.py::test_prompt[third]": ("missing", "failed in this run")}


TOKEN = ("--infer-turns=token", "--infer-launches=3", "--infer-time=5s")


@pytest.mark.parametrize(
    ("delays", "failing"), [(EVEN, None), (SLOW_DECODE, "tpot:3%"), ([0.0108, *EVEN[1:]], "ttft:3%")]
)
def test_turns_of_a_token_blame_the_phase_that_is_slower(repository, delays, failing):
    repository.commit(delays)
    result = repository.run(RULES, *TOKEN)
    failures = [line for line in result.outlines if line.startswith("FAILED")]
    assert result.ret == (1 if failing else 0)
    assert len(failures) == (2 if failing else 0)
    assert all(failing in line and line.count(":3%") == 1 for line in failures)


def test_other_output_is_incomparable_until_it_is_accepted(repository):
    repository.commit([*EVEN[:5]])
    result = repository.run("--infer-gate=ttft:3%", "--infer-max-rounds=4", "--infer-min-pairs=4")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*incomparable: differ: output *"])
    accepted = repository.run(
        "--infer-gate=ttft:3%", "--infer-allow-different=output", "--infer-max-rounds=4", "--infer-min-pairs=4"
    )
    assert accepted.ret == 10


def test_a_renamed_prompt_is_missing(repository):
    repository.commit(prompts=PROMPTS.replace('"second"', '"renamed"'))
    result = repository.run(RULES, "--infer-max-rounds=4", "--infer-min-pairs=4")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*second*missing*"])


def test_few_pairs_are_inconclusive_never_passed(repository):
    repository.commit()
    result = repository.run(RULES, "--infer-max-rounds=6", "--infer-min-pairs=6")
    assert result.ret == 10
    result.stdout.fnmatch_lines(["*inconclusive: more pairs of rounds are needed*"])


def test_against_itself_the_noise_floor_is_told(repository):
    for options, of in [(("--infer-turns=round",), "*10 pairs*30 pairs*"), (TOKEN, "*4 launches*8 launches*")]:
        result = repository.pytester.runpytest_subprocess(
            "--infer-against=self", "--infer-no-profile", "-k", "first", *options
        )
        assert result.ret == 0
        result.stdout.fnmatch_lines(["noise floor: this checkout against itself", of, "first*TTFT*%*"])


def test_one_after_the_other_there_are_no_pairs_to_tell_noise_by(repository):
    options = ("--infer-against=self", "--infer-against-sequential", "--infer-no-profile", "-k", "first")
    result = repository.pytester.runpytest_subprocess(*options, "--infer-max-rounds=4", "--infer-min-pairs=4")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*one after the other there are no pairs to tell noise by*"])
    result.stdout.no_fnmatch_line("noise floor:*")


def test_a_detached_head_and_a_dirty_tree_are_measured_as_they_are(repository):
    repository.commit()
    repository.git("checkout", "-q", "--detach")
    (repository.path / "script.py").write_text(f"DELAYS = {SLOW_DECODE}\n")
    result = repository.run(RULES, "-k", "first")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*tpot:3%*regressed*"])


def test_a_shallow_clone_says_what_to_fetch(repository, tmp_path, monkeypatch):
    repository.commit()
    shallow = tmp_path / "shallow"
    repository.git("clone", "-q", "--depth=1", f"file://{repository.path}", str(shallow))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--infer-against=HEAD~1", "-p", "no:cacheprovider"],
        cwd=shallow,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "git fetch" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.strip()]) == 1


CORES = """
import os
import pathlib

import script

class Wide(Scripted):
    delays = [0.001] * 6

    def load(self):
        made = super().load()
        return dataclasses.replace(made, threads=script.THREADS)

    def generate(self, prompt_ids, limits, clock):
        with open(os.environ["SEEN"], "a") as seen:
            print(script.THREADS, len(os.sched_getaffinity(0)), file=seen)
        return super().generate(prompt_ids, limits, clock)

@pytest.fixture(scope="session")
def engine():
    return Wide()
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are chosen on Linux only")
@pytest.mark.parametrize("turns", ["token", "round"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (1, 1)])
def test_no_side_runs_on_fewer_cores_than_it_has_threads(suite, monkeypatch, tmp_path, turns, before, after):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    made = Repository(suite(engine=f"import dataclasses\n{CORES}", prompts=PROMPTS))
    for threads in (before, after):
        (made.path / "script.py").write_text(f"THREADS = {threads}\n")
        made.commit()
    result = made.run(
        f"--infer-turns={turns}", "--infer-launches=1", "--infer-time=1s", "--infer-gate=off", "-k", "first"
    )
    assert result.ret == 0
    seen = [tuple(map(int, line.split())) for line in (tmp_path / "seen").read_text().splitlines()]
    assert {threads for threads, _ in seen} == {before, after}
    narrow = [cores for threads, cores in seen if cores < threads]
    assert narrow == []
    # One thread on each side is pinned, or each would stay on a core of its own.
    assert (1 in {cores for _, cores in seen}) == (before == after == 1)
