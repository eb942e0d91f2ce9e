"""Load tests in a run: parametrized, refused in a line, measured in repetitions, stored, shown, compared and gated."""

import json

import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.metrics import load
from pytest_infer.storage import runs, sidecar

# The generator's own process is another test's: what it would have sent is simulated here.
SERVED = """
import os
import sys
from dataclasses import replace

sys.path.insert(0, {tests!r})

import queueing
from pytest_infer.engines.base import Served
from pytest_infer.measure.load import environment, generator
from pytest_infer.measure.load.environment import Installed


def sent(installed, sending, seed, system):
    open("salts", "a").write(f"{{sending.salt}}\\n")
    open("sent", "a").write(f"{{sending.level.name}} {{sending.requests}} {{seed}} {{sending.served.url}}\\n")
    slower = float(os.environ.get("SLOWER", "1"))
    before = system.begin()
    found = queueing.simulated(sending.level.value or 9.0, 0.05 * slower, sending.requests, seed)
    return replace(found, counters=system.end(before))


generator.repetition = sent
environment.installed = lambda: Installed(folder=environment.folder(), version="0.8.1")
Scripted.served = lambda self: Served(url="http://127.0.0.1:1")
"""
LOAD = """
def test_load(infer_under_load, load_level):
    record = infer_under_load(load_level)
    assert len(record.under_load.repetitions) == 3
"""
LEVELS = ("--infer-load=rate=2,4,8", "--infer-rounds=3", "--infer-slo=latency=1s")


@pytest.fixture
def served(suite, request):
    """Return a function that makes a suite whose engine is served, and whose requests are simulated."""

    def make(**more):
        tests = str(request.config.rootpath / "tests")
        return suite(**{"engine": SERVED.format(tests=tests), "test": LOAD, **more})

    return make


def stored(pytester):
    return sorted(pytester.path.glob(".benchmarks/*/*.json"))


def test_each_level_is_a_test_in_repetitions(served):
    pytester = served()
    result = pytester.runpytest(*LEVELS, "--benchmark-autosave", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_load[[]rate=2:poisson[]] PASSED*"])
    sent = pytester.path.joinpath("sent").read_text().splitlines()
    assert sent[:3] == [f"rate=2:poisson 64 {seed} http://127.0.0.1:1" for seed in (1, 2, 3)]
    assert len(sent) == 9
    salts = pytester.path.joinpath("salts").read_text().splitlines()
    assert len(set(salts)) == 3, "a server may remember the prompts of the level before"
    (path,) = stored(pytester)
    rows = json.loads(path.read_text())["benchmarks"]
    assert [row["group"] for row in rows] == ["load: total"] * 3
    assert [row["stats"]["rounds"] for row in rows] == [3] * 3
    block = rows[0]["extra_info"]["pytest_infer"]
    assert block["under_load"]["level"] == {"kind": "rate", "value": 2.0, "arrivals": "poisson"}
    assert block["under_load"]["requests"] == [64, 64, 64]
    rounds = block["metrics"]["level_s_per_token"]["rounds"]
    assert (min(rounds), max(rounds)) == (rows[0]["stats"]["min"], rows[0]["stats"]["max"])
    assert block["metrics"]["level_misses"]["value"] == 0
    of_the_server = {key for key in (*block["metrics"], *block["absent"]) if not key.startswith("level_")}
    assert of_the_server == set(load.COUNTED)


def test_a_level_is_a_line_and_prompts_have_their_table(served):
    pytester = served(test=LOAD + "\ndef test_prompt(infer, prompt):\n    infer(prompt)\n")
    pytester.path.joinpath("sent").touch()
    result = pytester.runpytest(*LEVELS)
    result.assert_outcomes(passed=5)
    lines = result.stdout.lines
    found = [line for line in lines if line.startswith("rate=")]
    assert len(found) == 3
    assert any(line.startswith("the server, a repetition: CPU ") for line in lines)
    assert any(line.startswith("knee at ") for line in lines)
    assert any(line.startswith("first ") for line in lines)
    assert not any(line.startswith("mean ") and "rate" in line for line in lines)


def test_stamps_of_every_request_lie_beside_the_run(served):
    pytester = served()
    pytester.runpytest("--infer-load=rate=2", "--infer-rounds=3", "--benchmark-autosave").assert_outcomes(passed=1)
    (path,) = stored(pytester)
    arrays = sidecar.read(path)
    stamps = arrays["test_suite.py::test_load[rate=2:poisson]|0|requests"]
    assert stamps.shape == (64, 5)
    assert stamps.min() == 0
    assert (arrays["test_suite.py::test_load[rate=2:poisson]|2|request_tokens"] == [8, 4]).all()


def test_what_is_stored_is_shown_compared_gated_and_reported(served, monkeypatch):
    pytester = served()
    pytester.runpytest(*LEVELS, "--benchmark-autosave").assert_outcomes(passed=3)
    monkeypatch.setenv("SLOWER", "1.5")
    pytester.runpytest(*LEVELS, "--benchmark-autosave").assert_outcomes(passed=3)
    monkeypatch.chdir(pytester.path)

    def run(*arguments, ends=0):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == ends, result.output
        return result.stdout

    assert sum(line.startswith("rate=") for line in run("show").splitlines()) == 3
    assert "| rate=2:poisson |" in run("show", "--format=markdown")
    told = json.loads(run("show", "--format=json"))
    assert [len(curve["points"]) for curve in told["load"]] == [3]
    judged = json.loads(run("compare", "--format=json"))
    text = json.dumps(judged)
    assert "level_latency_p50_s" in text
    assert "rate=8:poisson" in run("gate", "--rule=level_latency_p50:5%", "--against=latest~1", ends=1)
    run("history", "--change-points", "--metric=level_throughput")
    run("report", "latest", "--output=report.html")
    page = pytester.path.joinpath("report.html").read_text()
    assert '<section id="load"' in page
    assert "By rate, poisson" in page
    assert runs.rows(stored(pytester)[0])[0].under_load.generator == "guidellm 0.8.1"


def test_levels_that_are_not_asked_for_are_not_missing(served):
    pytester = served()
    pytester.runpytest("--infer-load=rate=2,4", "--infer-rounds=3", "--benchmark-autosave").assert_outcomes(passed=2)
    result = pytester.runpytest("--infer-load=rate=4", "--infer-rounds=3", "--infer-gate=level_misses:5%")
    assert result.parseoutcomes() == {"passed": 1}
    result.stdout.no_fnmatch_line("*rate=2*missing*")


@pytest.mark.parametrize("gone", ["test_load", "test_prompt"])
def test_the_last_test_of_its_kind_that_is_gone_is_missing(served, gone):
    pytester, options = served(), ("--infer-load=rate=4", "--infer-rounds=3")
    pytester.makepyfile(test_load=LOAD, test_prompt="def test_own(infer):\n    infer('one')\n", test_suite="")
    pytester.runpytest(*options, "--benchmark-autosave").assert_outcomes(passed=2)
    pytester.path.joinpath(f"{gone}.py").unlink()
    result = pytester.runpytest(*options, "--infer-gate=output:exact")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["1 test missing"])


def test_without_levels_the_test_is_skipped(served):
    result = served().runpytest("-rs")
    result.assert_outcomes(skipped=1)
    assert "a load test: --infer-load says at which levels" in result.stdout.str()


def test_rules_are_about_levels_as_about_prompts(served):
    pytester = served(test=f"{LOAD}\ndef test_prompt(infer, prompt):\n    infer(prompt)\n")
    misspelt = pytester.runpytest("--infer-gate=total[fisrt]<=10s")
    misspelt.stderr.fnmatch_lines(["*total[[]fisrt]*is about no prompt of this run; near it: first*"])
    misspelt = pytester.runpytest(*LEVELS, "--infer-gate=total[rate=3*]<=10s")
    misspelt.stderr.fnmatch_lines(["*total[[]rate=3*is about no prompt of this run; near it: first, rate=2*"])
    pytester.runpytest(*LEVELS, "--infer-gate=level_latency_p50[rate=2*]<=9s").assert_outcomes(passed=5)
    pytester.makeini("[pytest]\ninfer_gate =\n    level_latency_p50[rate=2*]<=9s\n    total[first]<=9s\n")
    pytester.runpytest("--infer-rounds=2").assert_outcomes(passed=2, skipped=1)
    pytester.makeini("[pytest]\ninfer_gate = total[fisrt]<=9s\n")
    pytester.runpytest().stderr.fnmatch_lines(["*total[[]fisrt]*is about no prompt of this run; near it: first*"])


def test_rules_of_the_ini_file_about_levels_wait_for_them_and_so_do_those_about_prompts(served):
    pytester = served(test=f"{LOAD}\ndef test_prompt(infer, prompt):\n    infer(prompt)\n")
    pytester.makeini("[pytest]\ninfer_gate =\n    total>=0\n    level_latency_p50>=0\n")
    total, level = "total>=0", "level_latency_p50>=0"
    for options, judged, by in (
        (("--infer-rounds=2",), 2, [total]),
        ((*LEVELS, "-k", "test_load"), 3, [level]),
        (LEVELS, 5, [total, level]),
    ):
        result = pytester.runpytest("--benchmark-autosave", *options)
        assert result.ret == 0
        result.stdout.fnmatch_lines([f"{judged} unchanged"])
        newest = json.loads(max(pytester.path.glob(".benchmarks/*/*.json")).read_text())
        assert newest["pytest_infer"]["gate"]["rules"] == by
        assert CliRunner().invoke(app, ["gate", "latest", f"--storage={pytester.path / '.benchmarks'}"]).exit_code == 0
    # One that was typed passes nothing, and nor do those that are all about others.
    assert pytester.runpytest("--infer-gate=total>=0,level_latency_p50>=0", "--infer-rounds=2").ret == 10
    pytester.makeini("[pytest]\ninfer_gate = level_latency_p50>=0\n")
    assert pytester.runpytest("--infer-rounds=2").ret == 11


MARKS = ("skipif(True, reason='not here')", "xfail(run=False, reason='it hangs')")


@pytest.mark.parametrize("other", [LOAD, *(f"@pytest.mark.{mark}\ndef test_other(infer):\n    0\n" for mark in MARKS)])
def test_a_test_that_cannot_run_spoils_no_baseline(served, other):
    pytester = served(test=f"import pytest\n{other}\ndef test_prompt(infer, prompt):\n    infer(prompt)\n")
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=2")
    result = pytester.runpytest("--benchmark-autosave", "--infer-rounds=2", "--infer-gate=total:1000%")
    result.stdout.fnmatch_lines(["gate against 0001: *"])
    result.stdout.no_fnmatch_line("not measured: *")
    assert [runs.read(path).unmeasured for path in stored(pytester)] == [(), ()]


def test_a_finished_level_is_taken_from_the_journal(served):
    pytester = served(
        test=LOAD.replace("== 3", "== 3\n    if load_level.value == 4:\n        import os\n        os._exit(9)")
    )
    pytester.runpytest(*LEVELS, "--benchmark-autosave")
    assert len(pytester.path.joinpath("sent").read_text().splitlines()) == 6
    pytester.makepyfile(test_suite=LOAD)
    pytester.runpytest(*LEVELS, "--benchmark-autosave", "--infer-resume").assert_outcomes(passed=3)
    assert len(pytester.path.joinpath("sent").read_text().splitlines()) == 9


NOT_INSTALLED = "*load tests send their requests with guidellm, in an environment of its own that is not installed: *"


@pytest.mark.parametrize(
    ("more", "arguments", "said"),
    [
        ({"engine": "Scripted.served = None"}, LEVELS, NOT_INSTALLED),
        ({"prompts": None}, LEVELS, "*a load test sends the prompts of a suite: put a prompts.toml beside it*"),
        ({}, ["--infer-load=rate=fast"], "*--infer-load: rate takes requests per second above 0, not 'fast'"),
        ({}, ["--infer-load=rate=1", "--infer-slo=ttft=5"], "*--infer-slo: ttft takes a time above 0 with its unit*"),
        ({}, ["--infer-load=replay"], "*--infer-load: replay needs infer_load_data trace=FILE, and a trace no other*"),
        ({}, ["--infer-load=rate=1", "--infer-against=HEAD"], "*--infer-load measures one server: leave out *"),
        ({}, [*LEVELS, "--infer-sweep=batch=1,2"], "*--infer-sweep: *test_load[[]rate=2:poisson[]] is a load test*"),
        ({}, [*LEVELS, "--infer-curve=16,32"], "*--infer-curve: *test_load[[]rate=2:poisson[]] is a load test*"),
        ({}, [*LEVELS, "--infer-cache=off"], "*--infer-cache=off: a load test cannot ask that of a server: take bust*"),
        (
            {},
            [*LEVELS, "--infer-load-data=prompt_tokens=5,output_tokens=5"],
            "*add tokenizer=FOLDER, which holds its tokenizer.json*",
        ),
        (
            {},
            [*LEVELS, f"--infer-load-data=prompt_tokens=5,output_tokens=5,tokenizer={'x' * 300}"],
            "*add tokenizer=FOLDER, which holds its tokenizer.json; xxx*",
        ),
        (
            {},
            ["--infer-load=replay", "--infer-load-data=trace=gone.jsonl"],
            "*--infer-load-data: */gone.jsonl: No such file or directory",
        ),
        (
            {},
            ["--infer-load=replay", "--infer-load-data=trace=~nobody-here/t.jsonl"],
            "*--infer-load-data: */~nobody-here/t.jsonl: No such file or directory",
        ),
        (
            {},
            [*LEVELS, "--infer-load-data=prompt_tokens=5,output_tokens=5,tokenizer=~nobody-here"],
            "*tokenizer.json; ~nobody-here does not",
        ),
        (
            {},
            ["--infer-load=replay", "--infer-load-data=trace=prompts.toml"],
            "*--infer-load-data: */prompts.toml, line 2: *",
        ),
        (
            {},
            ["--infer-load=rate=1", "--infer-load-requests=2"],
            "*--infer-load-requests: of rate=1:poisson the first and the last 1 are left out: send 3 or more, not 2",
        ),
    ],
    ids=[
        *("not installed", "no prompts", "levels", "objectives", "no trace", "against", "sweep", "curve", "cache"),
        *("no tokenizer", "a tokenizer too long for a name", "no trace file", "no home of a trace"),
        *("no home of a tokenizer", "damaged trace", "too few requests"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_a_line_before_anything_is(served, more, arguments, said):
    pytester = served(**more)
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])
    assert not pytester.path.joinpath("sent").exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "    found = [dataclasses.replace(r, status='failed', error='429') for r in found.requests]",
            "rate=2:poisson, repetition 1: no request was answered: 429",
        ),
        ("    found = list(found.requests)[:2]", "send more (--infer-load-requests)"),
    ],
    ids=["all failed", "too few"],
)
def test_a_level_without_answers_fails_its_test_in_a_line(served, lines, said):
    pytester = served()
    conftest = pytester.path / "conftest.py"
    more = f"""
import dataclasses

def nothing(installed, sending, seed, system):
    found = sent(installed, sending, seed, system)
{lines}
    return queueing.Repetition(requests=tuple(found), seed=seed)


generator.repetition = nothing
"""
    conftest.write_text(conftest.read_text() + more)
    result = pytester.runpytest(*LEVELS, "--benchmark-autosave", "-x")
    result.assert_outcomes(failed=1)
    assert said in " ".join(result.stdout.str().split())
    assert not stored(pytester)


BREAKS = """
import dataclasses


def breaks(installed, sending, seed, system):
    found = sent(installed, sending, seed, system)
    return found if seed < 3 else dataclasses.replace(found, requests=())


generator.repetition = breaks
"""
ONE_LEVEL = ("--infer-load=rate=2", "--infer-rounds=3", "--benchmark-autosave")


def test_repetitions_before_one_that_fails_are_kept_and_fail_their_test(served):
    pytester = served()
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + BREAKS)
    result = pytester.runpytest(*ONE_LEVEL)
    result.assert_outcomes(failed=1)
    assert "repetition 3: no request was answered" in " ".join(result.stdout.str().split())
    (path,) = stored(pytester)
    (block,) = json.loads(path.read_text())["pytest_infer"]["failed"].values()
    assert block["under_load"]["requests"] == [64, 64]
    # Nothing is compared with it.
    assert not runs.rows(path)


def test_what_is_left_of_a_level_that_failed_is_not_resumed(served):
    pytester = served()
    conftest = pytester.path / "conftest.py"
    whole = conftest.read_text()
    killed = "\n\ndef pytest_runtest_logreport(report):\n    if report.failed:\n        os._exit(9)\n"
    conftest.write_text(whole + BREAKS + killed)
    pytester.runpytest_subprocess(*ONE_LEVEL)
    conftest.write_text(whole)
    pytester.runpytest_subprocess(*ONE_LEVEL, "--infer-resume").assert_outcomes(passed=1)
    assert len(pytester.path.joinpath("sent").read_text().splitlines()) == 6


def test_an_engine_that_serves_nobody_is_refused(served):
    pytester = served()
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\nScripted.served = lambda self: None\n")
    result = pytester.runpytest(*LEVELS, "-x")
    assert "this engine's model is not served: --infer-server URL" in result.stdout.str()


def test_an_installed_engine_that_never_serves_is_refused_before_it_loads(served, installs):
    pytester = served()
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\ndel engine, Scripted.served\n")
    installs("class Told(Scripted):\n    def __init__(self, options):\n        super().__init__()")
    result = pytester.runpytest("--infer-engine=told", *LEVELS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*this engine's model is not served: --infer-server URL"])
