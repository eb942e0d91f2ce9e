"""Sweeps and curves on both sides of a comparison: what each process loads, what is judged, drawn, stored, refused."""

import json
import os
import subprocess

import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app

ENGINE = '''
import contextlib
import itertools
import os
import pathlib
import random

import slow
from pytest_infer.engines.base import Engine
from pytest_infer.records import ModelInfo, StopReason

SIDE = "ours" if pathlib.Path(slow.__file__).parent == pathlib.Path(os.environ["OURS"]) else "base"


def log(line):
    with open(os.environ["LOG"], "a") as file:
        print(SIDE, os.getpid(), line, file=file)


def launch():
    """Return the number of this process among those of its side, which start one after another."""
    for number in itertools.count():
        with contextlib.suppress(FileExistsError):
            open(f"{os.environ['LOG']}.{SIDE}.{number}", "x").close()
            return number


RANDOM = random.Random(f"{SIDE} {launch()}")  # the same noise whenever the test is run


class Scripted(Engine):
    """Lets time pass on the clock only: a prefill by tokens, a step by the depth, each with a noise of 0.3 %."""

    alive = False

    def __init__(self, options):
        self.options = options
        self.loaded = False

    def load(self):
        assert not Scripted.alive, "two models at once"
        log(f"load {self.options.model} {self.options.dtype}")
        if self.options.dtype == slow.BROKEN:
            raise ValueError("the weights are torn")
        Scripted.alive = self.loaded = True
        return self.describe()

    def describe(self):
        return ModelInfo(name="scripted", engine="scripted", dtype=self.options.dtype, threads=self.options.threads)

    def adapt(self, options):
        self.options = options
        return self.describe()

    def context_length(self):
        return 1000

    def encode(self, prompt):
        return list(range(1, len(prompt.text.split()) + 1))

    def decode(self, token_ids):
        return "text"

    def generate(self, prompt_ids, limits, clock):
        log(f"run {len(prompt_ids)} threads={self.options.threads} dtype={self.options.dtype}")
        self.now = clock._start_ns
        clock._now = lambda: self.now
        size, size_from = len(prompt_ids), 100 if len(prompt_ids) > 3 else 0
        for number in range(limits.max_new_tokens):
            first, step = 1e6 * size * (1 + size / 500), 1e6 * (1 + size / 200 + slow.SLOW * max(0, size - size_from))
            one = (step if number else first) / (self.options.threads or 1)
            self.now += round(one * RANDOM.lognormvariate(0, 0.003))
            clock.tick([number + 1])
        return StopReason.LENGTH

    def close(self):
        if self.loaded:
            Scripted.alive = self.loaded = False
            log("close")
'''

SUITE = """
[defaults]
max_new_tokens = 8

[[prompt]]
name = "first"
text = "one two three"

[[prompt]]
name = "second"
text = "four five"
"""

TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
QUICK = (
    "--infer-turns=round", "--infer-engine=scripted", "--infer-warmup=0", "--infer-no-profile", "--infer-min-pairs=16",
    "--infer-max-rounds=16", "-k", "first",
)  # fmt: skip
# No time for a second cycle of passes, however fast the machine is: as much noise is drawn each time.
TOKEN = ("--infer-turns=token", "--infer-threads=1", "--infer-launches=2", "--infer-time=1ms", "--infer-rounds=2")
TURNS = pytest.mark.parametrize("turns", [("--infer-turns=round",), TOKEN], ids=["round", "token"])


class Repository:
    def __init__(self, pytester, log):
        self.pytester, self.path, self._log = pytester, pytester.path, log
        self.git("init", "-q", "-b", "main")

    def git(self, *args):
        who = ("-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *who, *args], cwd=self.path, capture_output=True, text=True, check=True).stdout

    def commit(self, slow=0.0, broken="nothing"):
        (self.path / "slow.py").write_text(f"SLOW, BROKEN = {slow}, {broken!r}\n")
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a commit")

    def run(self, *options):
        for file in self._log.parent.iterdir():
            file.unlink()
        return self.pytester.runpytest("--infer-against=HEAD~1", *QUICK, *options)

    @property
    def log(self):
        return [line.split(maxsplit=2) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def loads(self, side):
        return [what for who, _, what in self.log if who == side and what.startswith("load")]

    @property
    def file(self):
        return max(self.path.glob(".benchmarks/*/*.json"))

    @property
    def stored(self):
        rows = json.loads(self.file.read_text())["benchmarks"]
        return {row["name"]: row["extra_info"]["pytest_infer"] for row in rows if row["params"]["phase"] == "total"}


@pytest.fixture
def repository(pytester, tmp_path_factory, monkeypatch):
    log = tmp_path_factory.mktemp("log") / "events"
    monkeypatch.setenv("OURS", str(pytester.path))
    monkeypatch.setenv("LOG", str(log))
    pytester.makepyfile(scripted_engine=ENGINE, test_suite=TEST)
    pytester.path.joinpath("prompts.toml").write_text(SUITE, encoding="utf-8")
    info = pytester.mkdir("scripted-1.0.dist-info")
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[pytest_infer.engines]\nscripted = scripted_engine:Scripted\n")
    (pytester.path / ".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\n*.html\n")
    pytester.syspathinsert()
    made = Repository(pytester, log)
    made.commit()
    return made


def cli(repository, *args):
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, [*args, "--storage", str(repository.path / ".benchmarks")])
    assert done.exit_code == 0, done.output
    return done.stdout


@TURNS
def test_a_curve_on_both_sides_finds_from_which_length_on_a_step_is_slower(repository, turns, monkeypatch, tmp_path):
    # A step of n tokens takes 1 + n/200 + (n − 100)/1000 in place of 1 + n/200: +2 % at 128 tokens, +12 % at 512.
    repository.commit(slow=0.001)
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    rules = "--infer-gate=tpot[*=512]:3%,ttft:90%"
    result = repository.run(
        *turns, "--infer-launches=3", "--infer-curve=8,32,128,256,512", rules, "--benchmark-autosave", "-v"
    )
    result.stdout.fnmatch_lines(
        [
            "by prompt length, HEAD~1 (*) and this checkout: first",
            "TPOT by depth of the context, tokens",
            "*○ HEAD~1 (*), fit ·   ● this checkout, fit ─   ◉ both",
            "*a position*+* % [[]*",
            "prefill: no length shows a change*",
            "decode: slower from 128 tokens on: +1* % [[]*at 512",
        ]
    )
    # The rule of one length judges that one alone.
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["first prompt-tokens=512", "*tpot[[][*]=512[]]:3%*", "*regressed (threshold 3 %)"])
    blocks = repository.stored
    assert [block["curve"]["value"] for block in blocks.values()] == [8, 32, 128, 256, 512]
    assert all(block["against"]["differ"] == [] for block in blocks.values())
    assert "decode: slower from" in summary.read_text(encoding="utf-8")
    # What the end of the run said can be said again, in every format.
    assert "decode: slower from" in cli(repository, "show")
    markdown = cli(repository, "show", "--format=markdown")
    assert "| prompt tokens | TTFT before, ms | after | change |" in markdown
    told = json.loads(cli(repository, "show", "--format=json"))["sides"]
    (one,) = told["curves"]
    assert [len(one[side]["points"]) for side in ("before", "after")] == [5, 5]
    assert one["figures"][1]["finding"]["claims"][0]["worse"]
    page = repository.path / "report.html"
    cli(repository, "report", "-o", str(page))
    assert "TPOT by context depth on both sides" in page.read_text(encoding="utf-8")


@TURNS
def test_each_configuration_is_loaded_once_in_each_process_and_closed_before_the_next(repository, turns):
    repository.commit(slow=0.1)
    sweep = ("--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    result = repository.run(*turns, *sweep, "--infer-gate=output:exact", "--benchmark-autosave")
    result.assert_outcomes(passed=4)
    processes = {(side, process) for side, process, _ in repository.log}
    assert sorted(side for side, _ in processes) == (
        ["base", "ours"] if turns != TOKEN else ["base"] * 2 + ["ours"] * 2
    )
    for side, process in processes:
        own = [what for who, pid, what in repository.log if (who, pid) == (side, process)]
        changes = [what for what in own if not what.startswith("run")]
        assert changes == ["load reference-moe float32", "close", "load reference-moe bfloat16", "close"]
        # Threads are set in each process, configuration by configuration.
        ran = dict.fromkeys(what for what in own if what.startswith("run"))
        assert list(ran) == [f"run 3 threads={n} dtype={kind}" for kind in ("float32", "bfloat16") for n in (1, 2)]
    result.stdout.fnmatch_lines(["this checkout against HEAD~1 (*), by configuration", "TPOT: *"])
    assert all("drift" not in block for block in repository.stored.values())


def test_a_configuration_is_told_where_it_changed(repository):
    repository.commit(slow=0.1)
    result = repository.run("--infer-sweep=threads=1,2", "--infer-gate=tpot[first-threads=2]:3%")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["TPOT: slower with every configuration, threads=1: +* %*threads=2:*"])
    result.stdout.fnmatch_lines(["first threads=2", "*regressed*"])
    result.stdout.no_fnmatch_line("first threads=1")


def test_both_sides_sweep_what_this_run_does_whatever_an_ini_file_says(repository):
    repository.pytester.makeini("[pytest]\ninfer_sweep = cache=on,off\naddopts = --infer-curve=8,16")
    repository.commit()
    repository.pytester.makeini("[pytest]\ninfer_sweep = threads=1,2\n")
    repository.commit()
    result = repository.run("--infer-gate=output:exact")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*missing*")
    # Nor does the other side sweep where this one does not.
    repository.pytester.makeini("[pytest]\n")
    repository.git("commit", "-qam", "none")
    result = repository.run("--infer-gate=output:exact")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["gate against HEAD~1 (*): passed"])


def test_a_model_that_is_not_committed_is_swept_on_both_sides(repository):
    folder = repository.path / "mine"
    folder.mkdir()
    (repository.path / ".gitignore").write_text("mine\n__pycache__\n.pytest_cache\n.benchmarks\n")
    repository.commit()
    repository.commit()
    result = repository.run("--infer-sweep=model=mine,smollm2", "--infer-gate=output:exact")
    result.assert_outcomes(passed=2)
    assert repository.loads("base") == [f"load {folder} auto", "load smollm2 auto"]
    assert repository.loads("ours") == ["load mine auto", "load smollm2 auto"]


def test_what_cannot_be_run_on_either_side_is_not_missing(repository):
    repository.commit()
    result = repository.run("--infer-sweep=compile=on,off", "--infer-sweep=cache=on,off", "--infer-gate=output:exact")
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["not run: compile=on cache=off: compile needs the KV cache", "gate against * passed"])


def test_what_only_the_other_side_can_run_is_missing(repository):
    engine = repository.path / "scripted_engine.py"
    engine.write_text(engine.read_text().replace("return 1000", "return 20"))
    repository.commit()
    result = repository.run("--infer-curve=4,8,32", "--infer-gate=output:exact")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["not run: prompt-tokens=32: *", "*test_prompt[[]first-prompt-tokens=32[]]", "*missing"]
    )


@TURNS
def test_a_load_that_fails_on_one_side_costs_no_other_configuration(repository, turns):
    repository.commit(broken="bfloat16")
    repository.commit()
    result = repository.run(*turns, "--infer-sweep=dtype=float32,bfloat16,float16", "--infer-gate=output:exact")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*the weights are torn*HEAD~1*"])


def test_an_axis_that_an_engine_cannot_change_is_one_line_before_anything_is_loaded(repository):
    engine = repository.path / "scripted_engine.py"
    engine.write_text(engine.read_text().replace("    def adapt(", "    def adapt_not("))
    repository.commit()
    result = repository.run("--infer-sweep=threads=1,2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.stderr.lines if line.startswith("ERROR: ")]
    assert "this engine cannot change threads" in line
    assert repository.log == []


def test_one_after_the_other(repository):
    repository.commit(slow=0.1)
    result = repository.run(
        "--infer-against-sequential", "--infer-sweep=dtype=float32,bfloat16", "--infer-gate=output:exact"
    )
    result.assert_outcomes(passed=2)
    assert repository.loads("ours") == ["load reference-moe float32", "load reference-moe bfloat16"]
    assert repository.loads("base") == repository.loads("ours") * 2
    result.stdout.fnmatch_lines(["this checkout against HEAD~1 (*), by configuration"])


def test_noise_against_itself_is_told_of_each_configuration(repository):
    result = repository.pytester.runpytest("--infer-against=self", *QUICK, "--infer-sweep=threads=1,2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["noise floor: *", "first threads=1*TTFT*", "first threads=2*TTFT*"])
    assert os.environ["OURS"] == str(repository.path)
