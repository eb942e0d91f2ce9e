"""The gate inside pytest: which tests fail, how the run ends, and what is kept in its file."""

import json
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app

TEST = """
def test_prompt(infer, prompt):
    infer(prompt)
"""
SLOW = "Scripted.delays = [0.02, 0.02, 0.02]"
FAST = "Scripted.delays = [0.01, 0.01, 0.01]"
OPTIONS = ("--benchmark-autosave", "--infer-repeat-disturbed=0", "--infer-rounds=6", "-p", "no:cacheprovider")


@pytest.fixture
def gated(suite):
    """Return a function that runs a suite of two prompts and keeps the run; the gate is the caller's."""

    def run(*options, engine=FAST, **files):
        return suite(engine=engine, virtual=True, **files).runpytest(*OPTIONS, *options)

    return run


def stored(pytester):
    return [json.loads(path.read_text()) for path in sorted(pytester.path.glob(".benchmarks/*/*.json"))]


def test_a_planted_slow_down_fails_the_test_itself(gated, pytester):
    assert gated().ret == 0
    result = gated("--infer-gate=total:20%", "--junitxml=junit.xml", engine=SLOW)
    assert result.ret == 1
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*the gate failed, against 0001*", "*total:20%*→*regressed (threshold 20 %)*"])
    # Against one run nothing tells whether a change is within a bound.
    advice = "Is it real? Measure both commits in one run: --infer-against REV. If it is wanted: run without the gate *"
    result.stdout.fnmatch_lines([advice])
    result.stdout.no_fnmatch_line("*commit message*")
    tree = ET.parse(pytester.path / "junit.xml").getroot()[0]  # noqa: S314 - our own file
    assert (tree.get("tests"), tree.get("failures")) == ("2", "2")
    assert [case.find("failure") is not None for case in tree.iter("testcase")] == [True, True]
    assert "total:20%" in tree.find("testcase/failure").text


@pytest.mark.parametrize("option", ["-x", "--maxfail=2"])
def test_the_gate_stops_nothing_as_all_has_run(gated, option):
    result = gated("--infer-gate=total<=1us", option)
    result.assert_outcomes(failed=2)
    assert result.ret == 1
    result.stdout.no_fnmatch_line("*stopping after*")


@pytest.mark.parametrize("options", [(), ("--junit-prefix=ci",), ("-o", "junit_family=xunit1")])
def test_a_gated_test_is_one_entry_of_junits_file(gated, pytester, options):
    named = "import pytest\n\nclass TestIt:\n    @pytest.mark.parametrize('how', ['a::b[c]/d', 'plain'])\n"
    test = named + "    def test_it(self, infer, how):\n        infer('one')\n"
    result = gated("--infer-gate=total<=1us", "--junitxml=junit.xml", *options, test=test)
    assert result.ret == 1
    tree = ET.parse(pytester.path / "junit.xml").getroot()[0]  # noqa: S314 - our own file
    assert (tree.get("tests"), tree.get("failures")) == ("2", "2")
    assert [case.find("failure") is not None for case in tree.iter("testcase")] == [True, True]


def test_only_the_test_that_got_worse_fails(gated):
    gated()
    slow_second = """
    class Scripted(Scripted):
        def generate(self, prompt_ids, limits, clock):
            self.delays = [0.03] * 3 if len(prompt_ids) == 2 else [0.01] * 3
            return super().generate(prompt_ids, limits, clock)

    @pytest.fixture(scope="session")
    def engine():
        return Scripted()
    """
    result = gated("--infer-gate=total:20%", engine=slow_second)
    result.stdout.fnmatch_lines(["FAILED *second* - gate: total:20%*"])
    assert result.parseoutcomes()["failed"] == 1
    assert result.parseoutcomes()["passed"] == 1


def test_a_failed_run_is_marked_and_never_becomes_the_baseline(gated, pytester):
    gated()
    assert gated("--infer-gate=total:20%", engine=SLOW).ret == 1
    mark = stored(pytester)[1]["pytest_infer"]["gate"]
    assert (mark["result"], mark["against"], mark["rules"]) == ("regressed", "0001", ["total:20%"])
    assert [j["verdict"] for j in mark["judgements"]] == ["regressed", "regressed"]
    assert mark["judgements"][0]["change"] == pytest.approx(1.0, rel=0.2)
    again = gated("--infer-gate=total:20%", engine=SLOW)
    assert again.ret == 1
    again.stdout.fnmatch_lines(["*against 0001*"])
    refused = gated("--infer-gate=total:20%", "--infer-baseline=2")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*run 0002 failed its own gate*"])


def test_nothing_to_compare_is_not_passed(gated):
    result = gated("--infer-gate=total:20%")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*no stored run to compare with*", "gate: nothing to compare"])


def test_too_little_history_is_inconclusive(gated):
    gated()
    result = gated("--infer-gate=total:20%")
    assert result.ret == 10
    result.stdout.fnmatch_lines(["*1 comparable run, and 5 tell the spread*", "gate against 0001: inconclusive"])


def test_enough_history_passes(gated):
    for _ in range(5):
        gated()
    result = gated("--infer-gate=total:300%")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["gate against 0005: passed"])


def test_bounds_need_no_baseline(gated):
    assert gated("--infer-gate=ttft<=10s,decode_throughput>=1").ret == 0
    result = gated("--infer-gate=decode_throughput[first]>=100000")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*decode_throughput[[]first]>=100000*regressed*must be >= 100000*"])


def test_other_output_fails_the_exact_rule_and_makes_times_incomparable(gated):
    gated()
    other = "Scripted.delays = [0.01] * 2"
    result = gated("--infer-gate=output:exact,total:20%", engine=other)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*output:exact*regressed*", "*incomparable: differ: output*"])


def test_rules_of_the_ini_file_are_used_and_can_be_switched_off(gated, pytester):
    pytester.makeini("[pytest]\ninfer_gate =\n    ttft<=10s\n    total<=1us  # cannot hold\n")
    result = gated()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*total<=1us*"])
    assert gated("--infer-gate=off").ret == 0


def test_a_removed_test_is_missing_and_one_left_out_on_purpose_is_not(gated):
    gated()
    one = '[[prompt]]\nname = "first"\ntext = "one two three"\nmax_new_tokens = 3\n'
    result = gated("--infer-gate=output:exact", prompts=one)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*second*missing*"])
    assert gated("--infer-gate=output:exact", "-k", "first").ret == 0


OTHER = '[[prompt]]\nname = "{}"\ntext = "one two three"\nmax_new_tokens = 3\n'


@pytest.mark.parametrize(
    ("before", "now"),
    [
        pytest.param(["--infer-sweep=max-new-tokens=1,2"], ["--infer-sweep=max-new-tokens=2,3"], id="sweep"),
        pytest.param(
            ["--infer-sweep=max-new-tokens=1,2", "-k", "first"], ["--infer-sweep=max-new-tokens=2"], id="more of less"
        ),
        pytest.param(["--infer-curve=16,32,64"], ["--infer-curve=16,32"], id="curve"),
        pytest.param([], ["--infer-prompts=other.toml"], id="another suite"),
        pytest.param([], ["-k", "first"], id="-k"),
        pytest.param([], ["--deselect=test_suite.py::test_prompt[second]"], id="--deselect"),
    ],
)
def test_what_options_leave_out_is_not_missing(gated, pytester, before, now):
    first = OTHER.format("first")
    gated(*before)
    pytester.path.joinpath("other.toml").write_text(first + OTHER.format("third"))
    more = {} if "--infer-" in " ".join(now) else {"prompts": first}
    assert gated("--infer-gate=output:exact", *now, **more).ret == 0


def test_of_a_function_that_marks_leave_out_nothing_is_missing(gated):
    slow = TEST + f"\n\n@pytest.mark.slow\n{TEST.replace('test_prompt', 'test_slowly')}"
    options = {"test": f"import pytest\n{slow}", "prompts": OTHER.format("first")}
    gated(test=f"import pytest\n{slow}")
    result = gated("--infer-gate=output:exact", "-m", "not slow", **options)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*1 missing*"])


def test_what_no_option_leaves_out_is_missing(gated):
    gated("--infer-sweep=max-new-tokens=1,2")
    options = ("--infer-gate=output:exact", "--infer-sweep=max-new-tokens=2", "-k", "prompt")
    result = gated(*options, prompts=OTHER.format("first"))
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*1 missing*"])


def test_of_the_same_suite_a_prompt_that_is_gone_is_missing(gated, pytester):
    suite = pytester.path / "other.toml"
    own = f"{TEST}\n\ndef test_own(infer):\n    infer('one')\n"
    suite.write_text(OTHER.format("first") + OTHER.format("third"))
    gated("--infer-prompts=other.toml", test=own)
    suite.write_text(OTHER.format("first"))
    result = gated("--infer-gate=output:exact", "--infer-prompts=other.toml")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["2 tests missing"])


def test_of_a_suite_that_was_typed_for_the_baseline_alone_nothing_is_missing(gated, pytester):
    first, third = OTHER.format("first"), OTHER.format("third")
    pytester.path.joinpath("other.toml").write_text(first + third)
    gated("--infer-prompts=other.toml")
    assert gated("--infer-gate=output:exact", prompts=first).ret == 0
    # Its own file may be typed as well.
    gated("--infer-prompts=prompts.toml", prompts=first + third)
    result = gated("--infer-gate=output:exact", prompts=first)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*third*missing*"])
    # A prompt of a test's own is in no file.
    marked = "@pytest.mark.infer_prompts([{'name': 'own', 'text': 'x'}])"
    own = f"import pytest\n{TEST}\n\n{marked}{TEST.replace('test_prompt', 'test_own')}"
    gated("--infer-prompts=other.toml", test=own)
    result = gated("--infer-gate=output:exact", prompts=first)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["1 test missing"])
    # What the ini file names is no matter of one run.
    pytester.makeini("[pytest]\ninfer_prompts = other.toml\n")
    gated()
    pytester.makeini("")
    assert gated("--infer-gate=output:exact", prompts=first).ret == 1


def test_a_suite_is_the_same_however_it_is_typed(gated, pytester):
    suite = pytester.mkdir("suites") / "a.toml"
    pytester.mkdir("bench")
    suite.write_text(OTHER.format("first") + OTHER.format("third"))
    gated("--infer-prompts=suites/a.toml")
    suite.write_text(OTHER.format("first"))
    result = gated("--infer-gate=output:exact", "--infer-prompts=bench/../suites/a.toml")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["1 test missing", "*third*"])


def test_a_test_of_no_suite_is_missing_where_others_follow_a_curve(gated):
    own = "\n\ndef test_own(infer):\n    infer('one')\n"
    gated("--infer-curve=16,32", test=TEST + own)
    result = gated("--infer-gate=output:exact", "--infer-curve=16")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["1 test missing", "test_own"])


@pytest.mark.parametrize("how", ["--lf", "--ignore=test_more.py", "--ignore-glob=*_more.py"])
def test_what_pytest_does_not_collect_is_not_missing(suite, monkeypatch, how):
    fails = f"import os\n{TEST}    assert prompt.name != os.environ.get('FAILS')\n"
    pytester = suite(engine=FAST, test=fails, virtual=True)
    pytester.makepyfile(test_more=TEST)
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=6").assert_outcomes(passed=4)
    monkeypatch.setenv("FAILS", "second")
    pytester.runpytest("--infer-rounds=1").assert_outcomes(passed=3, failed=1)
    monkeypatch.delenv("FAILS")
    result = pytester.runpytest(how, "--infer-rounds=6", "--infer-gate=output:exact")
    result.assert_outcomes(passed=1 if how == "--lf" else 2)
    assert result.ret == 0


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("speed:5%", "*gate rule 'speed:5%': unknown metric 'speed'; *pytest-infer metrics*"),
        ("ttft", "*gate rule 'ttft' cannot be read; write METRIC:5%*"),
        ("output:5%", "*output_sha256 has no noise: write output:exact*"),
        ("rss_file:5%", "*neither better high nor low; give a bound*"),
        ("ttft<=5lightyears", "*unknown unit 'lightyears'; known:*"),
        ("ttft:drift<0.1", "*drift is about experts*"),
        # Too long for the name of a file.
        ("x" * 300, "*gate rule 'xxx* cannot be read; write METRIC:5%*"),
    ],
)
def test_a_wrong_rule_is_refused_before_anything_runs(gated, rule, line):
    result = gated(f"--infer-gate={rule}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])


def test_in_a_storage_whose_name_is_too_long_for_the_system_nothing_is_stored(suite):
    result = suite(engine=FAST, virtual=True).runpytest(f"--benchmark-storage={'x' * 300}", "--infer-gate=total:20%")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["gate: no stored run to compare with*"])


def test_a_gate_that_swallowed_the_folder_says_so(gated, pytester):
    result = gated("--infer-gate", "test_suite.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--infer-gate took 'test_suite.py' for its rules: put it last*"])


def test_unknown_baseline_and_unknown_difference_are_refused(gated):
    gated()
    unknown = gated("--infer-gate", "--infer-baseline=77")
    assert unknown.ret == pytest.ExitCode.USAGE_ERROR
    unknown.stderr.fnmatch_lines(["*no run '77' among the 1*"])
    wrong = gated("--infer-gate", "--infer-allow-different=colour")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["*unknown key 'colour'; known:*"])


def test_disabled_benchmarks_never_pass_a_gate(gated):
    result = gated("--infer-gate=total:20%", "--benchmark-disable")
    assert result.ret == 11
    result.stdout.fnmatch_lines(["*nothing was measured, so nothing was gated*"])


def test_github_gets_a_summary_and_annotations(gated, pytester, monkeypatch):
    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = gated("--infer-gate=decode_throughput>=100000")
    result.stdout.fnmatch_lines(["::error title=first%3A decode_throughput>=100000::*must be*"])
    assert "| 🔴 | first | decode\\_throughput&gt;=100000 |" in summary.read_text()


# what nobody can have measured, and rules about nothing


def test_a_time_that_cannot_be_fails_its_test_by_name(gated):
    backwards = """
    class Scripted(Scripted):
        def generate(self, prompt_ids, limits, clock):
            clock.tick([1])
            clock._stamps[-1] = clock._start_ns
            return StopReason.EOS

    @pytest.fixture(scope="session")
    def engine():
        return Scripted()
    """
    result = gated("--infer-gate=total<=1s", engine=backwards)
    assert result.ret == 1
    text = " ".join(result.stdout.str().split())
    for prompt in ("first", "second"):
        assert f"FAILED test_suite.py::test_prompt[{prompt}] - gate: missing" in text
    assert "cannot be judged: ttft_s is 0 s, and the clock tells no less than" in text


def test_a_named_baseline_with_an_impossible_figure_is_refused_before_measuring(gated, pytester):
    gated()
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    run = json.loads(path.read_text())
    for row in run["benchmarks"]:
        block = row["extra_info"]["pytest_infer"]
        if block["phase"] == "total":
            block["metrics"]["total_s"] |= {"value": 1e-300, "rounds": [1e-300] * 6}
    path.write_text(json.dumps(run))
    result = gated("--infer-gate=total:20%", "--infer-baseline=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*run 0001*: *first*: total_s is 1e-300 s, and the clock tells no less than*"])
    assert "test session starts" in result.stdout.str()
    # One that nobody named is left out.
    assert gated("--infer-gate=total:20%").ret == 11


def test_a_rule_about_no_prompt_of_the_suite_is_refused_before_measuring(gated, pytester):
    result = gated("--infer-gate=total[fisrt]<=10s,ttft<=10s")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*gate rule 'total[[]fisrt]<=10s' is about no prompt of this run; near it: first*"])
    assert stored(pytester) == []


FAILS = """
import pytest


{mark}
def test_prompt(infer, prompt):
    assert {measured} or prompt.name != "second", "wrong"
    infer(prompt)
    assert prompt.name != "second", "wrong"
"""


@pytest.mark.parametrize("measured", [True, False])
def test_a_test_that_fails_itself_is_failed_once(gated, pytester, measured):
    gated()
    test = FAILS.format(mark="", measured=measured)
    result = gated("--infer-gate=total:20%", "--junitxml=junit.xml", test=test)
    assert result.ret == 1
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*missing: failed in this run*"])
    result.stdout.fnmatch_lines(["1 test failed; *"])
    assert "restore it" not in result.stdout.str()
    assert "infer-accept: missing" not in result.stdout.str()
    tree = ET.parse(pytester.path / "junit.xml").getroot()[0]  # noqa: S314 - our own file
    assert (tree.get("tests"), tree.get("failures")) == ("2", "1")


@pytest.mark.parametrize("measured", [True, False])
def test_a_test_that_now_fails_as_expected_is_missing(gated, pytester, measured):
    gated()
    test = FAILS.format(mark="@pytest.mark.xfail", measured=measured)
    result = gated("--infer-gate=output:exact", "--junitxml=junit.xml", test=test)
    result.stdout.fnmatch_lines(["FAILED *second*gate: missing*"])
    assert result.ret == 1
    result.assert_outcomes(failed=1, xpassed=1)
    assert counted(pytester) == {"tests": 2, "failures": 1, "skipped": 0}


def test_a_test_that_skips_itself_in_every_run_spoils_no_baseline(gated, pytester):
    skips = "import pytest\n\n@pytest.fixture\ndef card():\n    pytest.skip('no card here')\n\n"
    test = f"{skips}{TEST}\ndef test_card(card, infer):\n    infer('one')\n"
    gated(test=test)
    result = gated("--infer-gate=total:20%", test=test)
    result.stdout.fnmatch_lines(["not measured: test_suite.py::test_card", "gate against 0001: inconclusive"])
    command = ["gate", "--rule=total:20%", f"--storage={pytester.path / '.benchmarks'}"]
    assert CliRunner().invoke(app, command).exit_code == result.ret == 10
    # Once it has been measured it is missing.
    gated(test=test.replace("    pytest.skip('no card here')", "    pass"))
    gated(test=test)
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, "1 missing" in done.stdout) == (1, True)


@pytest.mark.parametrize("measures", ["infer('one')\n    ", ""])
def test_a_test_that_fails_as_expected_in_every_run_spoils_no_baseline(gated, pytester, measures):
    test = f"{TEST}\nimport pytest\n\n@pytest.mark.xfail\ndef test_wrong(infer):\n    {measures}assert False\n"
    gated(test=test)
    result = gated("--infer-gate=total:20%", test=test)
    result.stdout.fnmatch_lines(["gate against 0001: inconclusive"])
    command = ["gate", "--rule=total:20%", f"--storage={pytester.path / '.benchmarks'}"]
    assert CliRunner().invoke(app, command).exit_code == result.ret == 10


@pytest.mark.parametrize("measures", ["infer('one')\n    ", ""])
def test_a_test_that_skips_itself_and_fails_in_its_teardown_fails(gated, pytester, measures):
    fixture = "import pytest\n\n@pytest.fixture\ndef bad():\n    yield\n    raise ValueError('bad')\n"
    gated(test=f"{TEST}\n{fixture}\ndef test_wrong(infer, bad):\n    {measures}pytest.skip('no')\n")
    done = CliRunner().invoke(app, ["gate", "--rule=total<=10s", f"--storage={pytester.path / '.benchmarks'}"])
    assert (done.exit_code, "test_wrong" in done.stdout) == (1, True)


def test_a_test_that_skips_itself_now_is_missing_and_counted_once(gated, pytester):
    gated()
    skips = "if prompt.name == 'second':\n        pytest.skip('not here')\n    infer(prompt)"
    test = f"import pytest\n{TEST.replace('infer(prompt)', skips)}"
    result = gated("--infer-gate=output:exact", "--junitxml=junit.xml", test=test)
    assert result.ret == 1
    result.assert_outcomes(failed=1, passed=1)
    assert counted(pytester) == {"tests": 2, "failures": 1, "skipped": 0}


def counted(pytester):
    tree = ET.parse(pytester.path / "junit.xml").getroot()[0]  # noqa: S314 - our own file
    return {name: int(tree.get(name)) for name in ("tests", "failures", "skipped")}


@pytest.mark.parametrize(
    "part", [("-k", "first"), ("-m", "not slow", "-k", "first"), ("test_suite.py::test_prompt[first]",)]
)
def test_a_part_of_the_suite_may_be_run_with_rules_about_the_others(gated, pytester, part):
    assert gated("--infer-gate=total[second]<=10s,ttft<=10s", *part).ret == 0
    pytester.makeini("[pytest]\ninfer_gate =\n    total[second]<=10s\n    total<=10s\n")
    assert gated(*part).ret == 0


def test_rules_of_the_ini_file_may_be_about_files_that_are_not_run(gated, pytester):
    pytester.makeini("[pytest]\ninfer_gate =\n    total[elsewhere]<=10s\n    total<=10s\n")
    pytester.mkdir("elsewhere")
    assert gated("test_suite.py").ret == gated("--ignore=elsewhere").ret == 0
    # What is not there is no test that was left out.
    refused = gated("--ignore=build")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*gate rule 'total[[]elsewhere]<=10s' is about no prompt of this run*"])
    typed = gated("--infer-gate=total[elsewhere]<=10s", "test_suite.py")
    assert typed.ret == pytest.ExitCode.USAGE_ERROR


OWN = "def test_it(infer):\n    infer('one')\n"


def test_prompts_that_a_test_brings_itself_are_not_known_before(gated, pytester):
    assert gated("--infer-gate=total[test_*]<=10s,ttft<=10s", test=OWN).ret == 0
    result = gated("--infer-gate=total[test_ti]<=10s,ttft<=10s", test=OWN + TEST)
    assert result.ret == 10
    found = ["*total[[]test_ti]<=10s*incomparable", "*incomparable: no prompt of that name was measured*"]
    result.stdout.fnmatch_lines(found)
    pytester.makeini("[pytest]\ninfer_gate =\n    total[test_it]<=10s\n    total<=10s\n")
    assert gated("-k", "not test_it", test=OWN + TEST).ret == 0


def test_a_rule_may_be_about_a_method_of_a_unittest_class_alone(suite):
    test = """
        import unittest
        import pytest

        class TestIt(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def measured(self, infer):
                self.infer = infer

            def test_it(self):
                self.infer("one")
    """
    pytester = suite(test=test, prompts=None)
    pytester.makeini("[pytest]\ninfer_gate = total[test_it]<=10s\n")
    result = pytester.runpytest()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1 unchanged"])


def test_a_test_that_brings_its_prompt_switches_no_other_check_off(gated):
    result = gated("--infer-gate=kl<=1", "--infer-no-profile", test=OWN)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*needs the profile round: leave out --infer-no-profile*"])


def test_a_curve_measures_the_longest_prompt_alone(gated, pytester):
    refused = gated("--infer-curve=16,32", "--infer-gate=total[second]<=10s")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*is about no prompt of this run; near it: first*"])
    pytester.makeini("[pytest]\ninfer_gate =\n    total[second]<=10s\n    total<=10s\n")
    assert gated("--infer-curve=16,32").ret == 0


def test_a_rule_about_a_figure_that_no_prompt_has_passes_nothing(gated):
    one = "Scripted.delays = [0.01]"
    gated(engine=one)
    result = gated("--infer-gate=tpot:20%,output:exact", engine=one)
    assert result.ret == 10
    result.stdout.fnmatch_lines(["*no prompt has tpot_s: the rule is about nothing*"])
