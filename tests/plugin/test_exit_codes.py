"""How a run ends, in processes of its own: pytest's codes before the gate's, and what git bisect is told instead."""

import json
import signal
import subprocess
import sys

import pytest

PASSES, FAILS, NOTHING = "--infer-gate=ttft<=10s", "--infer-gate=ttft<=1us", "--infer-gate=total:20%"
UNSURE = "--infer-gate=ttft<=10ms"
BISECT = "--infer-exit=bisect"
NOISY = """
class Scripted(Scripted):
    def generate(self, prompt_ids, limits, clock):
        self.delays = [(0.008, 0.012)[self.calls % 2]] * 3
        return super().generate(prompt_ids, limits, clock)

@pytest.fixture(scope="session")
def engine():
    return Scripted()
"""
"""Its bound of 10 ms lies within the interval of its rounds."""
OPTIONS = ("--infer-rounds=4", "--infer-no-profile", "--infer-no-probe", "-p", "no:cacheprovider")
MEASURES = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
ALSO_FAILS = MEASURES + "\ndef test_other():\n    assert False\n"
NO_TEST = "import pytest\npytestmark = pytest.mark.skip\n\n" + MEASURES
EXITS = "import pytest\n\n" + MEASURES + "\ndef test_end():\n    pytest.exit('enough', {code})\n"
INTERNAL = "\ndef pytest_runtest_logreport(report):\n    raise RuntimeError('of a plugin')\n"
OF_ANOTHER = "\n@pytest.hookimpl(trylast=True)\ndef pytest_sessionfinish(session):\n    session.exitstatus = {code}\n"
LATE = "\n@pytest.hookimpl(trylast=True)\ndef pytest_sessionfinish():\n    raise {error}\n"


@pytest.fixture
def ends(suite):
    """Return a function that runs a suite in a process of its own and returns how it ended."""

    def run(*options, test=MEASURES, conftest="", engine=NOISY, **more):
        pytester = suite(engine=engine, test=test, virtual=True, **more)
        path = pytester.path / "conftest.py"
        path.write_text(path.read_text() + conftest)
        run.result = pytester.runpytest_subprocess(*OPTIONS, *options)
        return run.result.ret

    return run


def said(ends):
    return ends.result.stdout.str() + ends.result.stderr.str()


@pytest.mark.parametrize(
    ("given", "plain", "bisect"),
    [
        pytest.param({"rule": PASSES}, 0, 0, id="passed"),
        pytest.param({"rule": FAILS}, 1, 1, id="regressed"),
        pytest.param({"rule": UNSURE}, 10, 125, id="inconclusive"),
        pytest.param({"rule": NOTHING}, 11, 125, id="nothing to compare"),
        pytest.param({"rule": PASSES, "test": NO_TEST}, 11, 125, id="all are skipped"),
        pytest.param({"rule": PASSES, "options": ("--benchmark-disable",)}, 11, 125, id="disabled"),
        pytest.param({"rule": PASSES, "options": ("--benchmark-skip",)}, 11, 125, id="skipped"),
        pytest.param({"rule": PASSES, "test": EXITS.format(code=0)}, 11, 125, id="an early end that calls itself good"),
        pytest.param({"rule": PASSES, "options": ("--collect-only",)}, 0, 125, id="only collected"),
        pytest.param({"rule": UNSURE, "test": ALSO_FAILS}, 1, 125, id="a test fails too"),
        pytest.param({"rule": PASSES, "test": ALSO_FAILS}, 1, 125, id="a test fails"),
        pytest.param({"rule": FAILS, "test": ALSO_FAILS}, 1, 1, id="regressed, and a test fails"),
        pytest.param({"rule": PASSES, "test": ALSO_FAILS, "options": ("-x",)}, 1, 125, id="-x"),
        pytest.param({"rule": UNSURE, "test": "import nowhere"}, 2, 125, id="cannot be collected"),
        pytest.param({"rule": UNSURE, "conftest": INTERNAL}, 3, 125, id="internal error"),
        pytest.param({"rule": UNSURE, "options": ("-k", "none")}, 5, 125, id="no test"),
        pytest.param({"rule": UNSURE, "test": EXITS.format(code=7)}, 7, 125, id="an early end of another's"),
        pytest.param({"rule": UNSURE, "conftest": OF_ANOTHER.format(code=6)}, 6, 125, id="another plugin's code"),
        pytest.param(
            {"rule": UNSURE, "conftest": LATE.format(error="RuntimeError")}, 1, 125, id="a plugin's late crash"
        ),
        pytest.param({"rule": PASSES, "conftest": "\nimport nowhere\n"}, 4, 125, id="conftest cannot be imported"),
        pytest.param({"rule": PASSES, "prompts": "no toml"}, 2, 125, id="the suite cannot be read"),
        pytest.param({"rule": "--infer-gate=nothing:5%"}, 4, 128, id="wrong rule"),
        pytest.param({"rule": PASSES, "options": ("--infer-rounds=none",)}, 4, 128, id="wrong value"),
        pytest.param({"rule": PASSES, "options": ("--no-such-option",)}, 4, 128, id="unknown option"),
        pytest.param({"rule": PASSES, "options": ("nowhere",)}, 4, 128, id="no such folder"),
        pytest.param({"rule": "--infer-against=nowhere"}, 4, 128, id="no such commit"),
    ],
)
def test_each_end(ends, given, plain, bisect):
    given = dict(given)
    arguments = (given.pop("rule"), *given.pop("options", ()))
    assert ends(*arguments, **given) == plain, said(ends)
    assert ends(*arguments, BISECT, **given) == bisect, said(ends)


STAYS = """
import time

def test_prompt(infer, prompt):
    print("here")
    # Not in one sleep: a signal that comes just before it would be told of after it.
    for _ in range(6000):
        time.sleep(0.1)
"""


@pytest.mark.parametrize(("more", "code"), [((), 2), ((BISECT,), 130)])
def test_an_interrupt(suite, more, code):
    pytester = suite(test=STAYS)
    command = [sys.executable, "-m", "pytest", "-s", UNSURE, *OPTIONS, *more]
    with subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "here" in line:
                break
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(120) == code


def test_bisect_without_a_gate_is_wrong_usage(ends):
    assert ends(BISECT) == 128
    assert "--infer-exit=bisect tells what a gate found: add --infer-against=REV, or --infer-gate" in said(ends)


def test_a_path_too_long_for_the_system_is_wrong_usage(ends):
    assert ends(BISECT, PASSES, "x" * 300) == 128, said(ends)


def test_the_ini_file_says_it_too(ends, pytester):
    pytester.makeini("[pytest]\ninfer_exit = bisect\ninfer_gate = ttft<=10ms\n")
    assert ends() == 125
    pytester.makeini("[pytest]\ninfer_inconclusive = pass\ninfer_gate = ttft<=10ms\n")
    assert ends() == 0


def test_help_is_for_people(ends):
    assert ends(BISECT, PASSES, "--help") == 0
    assert "--infer-exit" in said(ends)


# what is inconclusive


def test_the_summary_says_what_an_inconclusive_verdict_means(ends):
    assert ends(UNSURE) == 10
    assert "inconclusive: exit 10 (--infer-inconclusive=pass lets it pass)" in ends.result.outlines
    assert ends(UNSURE, "--infer-inconclusive=pass") == 0
    assert "inconclusive: passes (--infer-inconclusive=pass)" in ends.result.outlines
    assert ends(UNSURE, BISECT, "--infer-inconclusive=pass") == 125
    assert "inconclusive: exit 125 (--infer-exit=bisect)" in ends.result.outlines
    assert ends(PASSES) == 0
    assert not any(line.startswith("inconclusive") for line in ends.result.outlines)


@pytest.mark.parametrize(
    ("rule", "test", "code"),
    [(NOTHING, MEASURES, 11), (FAILS, MEASURES, 1), (UNSURE, ALSO_FAILS, 1), (PASSES, NO_TEST, 11)],
)
def test_nothing_but_the_verdict_passes(ends, rule, test, code):
    assert ends(rule, "--infer-inconclusive=pass", test=test) == code


def test_an_inconclusive_run_is_stored_in_a_word(ends, pytester):
    assert ends(UNSURE, "--infer-inconclusive=pass", "--benchmark-json=run.json") == 0
    gate = json.loads((pytester.path / "run.json").read_text())["pytest_infer"]["gate"]
    assert gate["result"] == "inconclusive"
    assert not {type(value) for value in gate.values()} & {int, float}


def test_ini_rules_fail_no_run_of_other_tests(ends, pytester):
    pytester.makeini("[pytest]\ninfer_gate = ttft<=10s\n")
    test = MEASURES + "\ndef test_other():\n    pass\n"
    assert ends("-k", "other", test=test) == 0
    assert ends(test=NO_TEST) == 11


FOR_MEASURING = {
    "rules": "gate = ttft<=10s",
    "baseline": "gate = ttft:5%\ninfer_baseline = v1",
    "commit": "against = v1",
    "server": "server = http://127.0.0.1:8\ninfer_against_server = http://127.0.0.1:9",
    "replay": "replay = v1",
    "resume": "resume = true",
    "text": "text = none",
}
"""Ini keys that a run has no use for which measures nothing."""


@pytest.mark.parametrize("off", ["--benchmark-skip", "--benchmark-disable"])
@pytest.mark.parametrize("keys", FOR_MEASURING)
def test_ini_keys_fail_no_run_that_is_told_to_measure_nothing(suite, off, keys):
    pytester = suite()
    pytester.makeini(f"[pytest]\ninfer_{FOR_MEASURING[keys]}\n")
    result = pytester.runpytest(off)
    result.assert_outcomes(**{"passed" if off == "--benchmark-disable" else "skipped": 2})
    assert result.ret == 0


def test_ini_rules_fail_no_run_whose_load_tests_are_given_no_levels(ends, pytester):
    pytester.makeini("[pytest]\ninfer_gate = ttft<=10s\n")
    test = "def test_load(infer_under_load, load_level):\n    infer_under_load(load_level)\n"
    assert ends(test=test) == 0
    assert ends(PASSES, test=test) == 11
