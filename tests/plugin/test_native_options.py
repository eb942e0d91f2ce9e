"""pytest-benchmark's own options on our tests: what does nothing says so, and nothing that was measured is dropped."""

import json

import pytest
from pytest_benchmark import plugin as native

from pytest_infer.pytest_face.native_options import NO_EFFECT

ROUNDS = ("--infer-rounds=2", "--infer-warmup=0", "--infer-no-profile")
VALUES = {
    "min-time": "0.1",
    "max-time": "9",
    "min-rounds": "50",
    "precision": "0.02",
    "confidence": "0.9",
    "timer": "time.process_time",
    "calibration-precision": "20",
    "warmup": "on",
    "warmup-iterations": "7",
    "disable-gc": None,
    "cprofile": "tottime",
    "cprofile-loops": "3",
    "cprofile-top": "5",
    "cprofile-dump": "dump/all",
}
APPLY = """
    skip disable enable only save autosave save-data json compare compare-fail storage netrc verbose quiet sort group-by
    columns name time-unit histogram
"""
"""Options that our rows follow as all others do."""


def typed(name):
    value = VALUES[name]
    return f"--benchmark-{name}" + ("" if value is None else f"={value}")


def lines(result):
    return [line for line in result.outlines if "no effect on tests that measure with `infer`" in line]


def saved(pytester):
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    return json.loads(path.read_text())["benchmarks"]


def test_every_option_of_pytest_benchmark_is_known_here():
    found = []

    class Parser:
        def getgroup(self, *_):
            return self

        def addoption(self, name, *_, **__):
            found.append(name.removeprefix("--benchmark-"))

    native.pytest_addoption(Parser())
    assert sorted(found) == sorted([*NO_EFFECT, *APPLY.split()])
    assert set(VALUES) == set(NO_EFFECT)


@pytest.mark.parametrize("name", NO_EFFECT)
def test_each_says_so_once_and_measures_all(suite, name):
    pytester = suite()
    result = pytester.runpytest(*ROUNDS, "--benchmark-autosave", typed(name))
    result.assert_outcomes(passed=2)
    (line,) = lines(result)
    assert line.startswith(f"--benchmark-{name}: no effect")
    rows = saved(pytester)
    assert len(rows) == 6
    assert all(row["stats"]["rounds"] == 2 and "cprofile" not in row for row in rows)


def test_all_of_them_in_one_line_wherever_they_stand(suite, monkeypatch):
    pytester = suite()
    pytester.makeini(f"[pytest]\naddopts = {typed('min-rounds')} {typed('cprofile')}\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", f"--infer-repeat-disturbed=0 {typed('disable-gc')}")
    result = pytester.runpytest(*ROUNDS, "--benchmark-max-time", "3")
    result.assert_outcomes(passed=2)
    text = " ".join(result.outlines)
    named = "--benchmark-max-time, --benchmark-min-rounds, --benchmark-disable-gc, --benchmark-cprofile: no effect on"
    assert named in text
    assert text.count("no effect on") == 1


def test_a_pyproject_says_so_too(suite):
    pytester = suite()
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\naddopts = ["--benchmark-warmup=on", "--benchmark-columns=min"]'
    )
    (line,) = lines(pytester.runpytest(*ROUNDS))
    assert line.startswith("--benchmark-warmup: no effect")


GATE = "--benchmark-compare", "--benchmark-compare-fail=median:50%"
BY_A_PLUGIN = """
from pytest_benchmark.utils import parse_compare_fail

def pytest_configure(config):
    config.option.benchmark_compare = True
    config.option.benchmark_compare_fail = [parse_compare_fail("median:50%")]
    config.option.benchmark_min_rounds = 7
"""
WAYS = ["typed", "a file of arguments", "a file of the variable's", "a plugin"]


@pytest.mark.parametrize("way", WAYS)
def test_the_native_gate_fails_what_is_slower_whoever_asks_for_it(suite, monkeypatch, way):
    pytester = suite(engine="Scripted.delays = [0.1] * 3", virtual=True)
    pytester.runpytest(*ROUNDS, "--benchmark-autosave").assert_outcomes(passed=2)
    conftest = pytester.path / "conftest.py"
    slower = conftest.read_text().replace("[0.1] * 3", "[0.2] * 3")
    conftest.write_text(slower + (BY_A_PLUGIN if way == "a plugin" else ""))
    (pytester.path / "args.txt").write_text("\n".join([*GATE, "--benchmark-min-rounds=7"]))
    if way == "a file of the variable's":
        monkeypatch.setenv("PYTEST_ADDOPTS", "@args.txt")
    given = {"typed": [*GATE, "--benchmark-min-rounds=7"], "a file of arguments": ["@args.txt"]}
    result = pytester.runpytest_subprocess(*ROUNDS, *given.get(way, []))
    assert result.ret != 0
    assert "Performance has regressed" in result.stderr.str()
    (line,) = lines(result)
    assert line.startswith("--benchmark-min-rounds: no effect")


def test_where_the_native_gate_fails_a_run_that_was_saved_no_journal_stays(suite):
    pytester = suite(engine="Scripted.delays = [0.1] * 3", virtual=True)
    pytester.runpytest(*ROUNDS, "--benchmark-autosave").assert_outcomes(passed=2)
    suite(engine="Scripted.delays = [0.2] * 3", virtual=True)
    result = pytester.runpytest_subprocess(*ROUNDS, *GATE, "--benchmark-autosave")
    assert "Performance has regressed" in result.stderr.str()
    assert len(list(pytester.path.glob(".benchmarks/*/*.json"))) == 2
    assert list(pytester.path.glob(".benchmarks/**/.journal/*")) == []


LATE = """
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish():
    raise RuntimeError("before anything is saved")
    yield
"""


def test_where_another_plugin_fails_before_the_run_is_saved_its_journal_stays(suite):
    pytester = suite()
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + LATE)
    pytester.runpytest_subprocess(*ROUNDS, "--benchmark-autosave")
    assert list(pytester.path.glob(".benchmarks/*/*.json")) == []
    assert list(pytester.path.glob(".benchmarks/**/.journal/*.jsonl"))


def test_a_run_that_asks_for_no_table_shows_none(suite):
    result = suite().runpytest(*ROUNDS, "--benchmark-autosave")
    assert "benchmark 'total'" not in result.stdout.str()


MARKED = """
import pytest

@pytest.mark.benchmark(min_rounds=50, cprofile=True, group="mine")
def test_prompt(infer, prompt):
    infer(prompt)

@pytest.mark.benchmark(max_time=0.01, min_rounds=3)
def test_other(benchmark):
    benchmark(sum, (1, 2))
"""


def test_a_mark_says_so_too_and_others_follow_theirs(suite):
    pytester = suite(test=MARKED)
    result = pytester.runpytest(*ROUNDS, "--benchmark-autosave", "--benchmark-cprofile=tottime")
    result.assert_outcomes(passed=3)
    text = " ".join(result.outlines)
    assert text.count("no effect on") == 1
    assert "--benchmark-cprofile, @pytest.mark.benchmark(min_rounds=…, cprofile=…): no effect on" in text
    rows = {row["fullname"]: row for row in saved(pytester)}
    assert len(rows) == 7
    assert [name for name, row in rows.items() if "cprofile" in row] == ["test_suite.py::test_other"]
    assert "mine: ttft" in {row["group"] for row in rows.values()}


@pytest.mark.parametrize("given", [(), ("--benchmark-min-rounds=50", "--benchmark-disable")])
def test_no_line_without_a_reason(suite, given):
    result = suite().runpytest(*ROUNDS, *given)
    result.assert_outcomes(passed=2)
    assert "no effect" not in result.stdout.str()


GONE = {
    "not installed": "import sys\nsys.modules['pygal'] = None\n",
    "hidden": (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'pygal': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    ),
}


@pytest.mark.parametrize("gone", GONE)
@pytest.mark.parametrize("how", ["command line", "ini"])
def test_a_histogram_needs_an_extra_and_says_which(suite, gone, how):
    pytester = suite(engine="Scripted.generate = lambda *_: open('measured', 'w')")
    conftest = pytester.path / "conftest.py"
    conftest.write_text(GONE[gone] + conftest.read_text())
    given = ["--benchmark-histogram=plots/run"] if how == "command line" else []
    pytester.makeini("[pytest]\n" + ("" if given else "addopts = --benchmark-histogram=plots/run\n"))
    result = pytester.runpytest(*ROUNDS, *given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest-infer: --benchmark-histogram draws with pygal: *benchmark?histogram?'"])
    assert not (pytester.path / "measured").exists()


def test_what_would_fail_at_the_end_is_refused_at_the_beginning(suite):
    pytester = suite(engine="Scripted.generate = lambda *_: open('measured', 'w')")
    pytester.path.joinpath("file").touch()
    for given, told in {
        "--benchmark-compare-fail=min:5%": "compares with a stored run: add --benchmark-compare",
        "--benchmark-compare-fail=min:5% --benchmark-autosave --benchmark-compare": "compares with a stored run: store",
        "--benchmark-compare-fail=min:5% --benchmark-compare=0042": "compares with a stored run: store one first",
        "--benchmark-histogram=file/run": "--benchmark-histogram file/run: nothing can be written there",
    }.items():
        result = pytester.runpytest(*ROUNDS, *given.split())
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert told in result.stderr.str()
    assert not (pytester.path / "measured").exists()
