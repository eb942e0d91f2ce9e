"""--infer-report: the report of the run that was just stored, or a refusal before anything is measured."""

import re

import pytest

# Here and not by its name: what a pytester run imports first is forgotten after it, and a patch of it with that.
from pytest_infer.report.html import page


def shown(path):
    return re.sub(r"<[^>]*>", "", path.read_text(encoding="utf-8"))


def test_the_report_is_of_the_run_that_was_just_stored_with_its_latencies(suite):
    pytester = suite()
    for _ in range(2):
        result = pytester.runpytest("--benchmark-autosave", "--infer-report=out/r.html", "--infer-rounds=2")
    result.assert_outcomes(passed=2)
    assert re.search(r"^report:\s", result.stdout.str(), re.MULTILINE)
    text = (pytester.path / "out" / "r.html").read_text(encoding="utf-8")
    assert '"prompt-second-itl":{' in text
    assert '"trend-ttft_s":{' in text
    assert "0002 " in shown(pytester.path / "out" / "r.html")


def test_a_run_in_a_json_file_has_a_report_too(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-json=run.json", "--infer-report=r.html", "--infer-rounds=1").assert_outcomes(
        passed=2
    )
    assert '"prompt-first-itl":{' in (pytester.path / "r.html").read_text(encoding="utf-8")
    assert (pytester.path / "run.npz").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--infer-report shows a stored run: add --benchmark-autosave"),
        (["--benchmark-autosave"], "--infer-report * is a folder: name a file in it"),
    ],
    ids=["not stored", "folder"],
)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(suite, options, said):
    pytester = suite(engine="Scripted.generate = None")
    (pytester.path / "r.html").mkdir()
    result = pytester.runpytest("--infer-report=r.html", *options)
    result.stderr.fnmatch_lines([f"*{said}"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("name", ["r.html", "x" * 300 + ".html", "file/r.html"], ids=["circle", "long", "below"])
def test_a_name_that_no_file_can_have_is_refused_before_anything_is_measured(suite, name):
    pytester = suite(engine="Scripted.generate = None")
    (pytester.path / "r.html").symlink_to("r.html")
    (pytester.path / "file").write_text("")
    result = pytester.runpytest(f"--infer-report={name}", "--benchmark-autosave")
    result.stderr.fnmatch_lines(["*--infer-report *; choose another file"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_the_ini_file_may_ask_for_it_and_a_disabled_run_writes_none(suite):
    pytester = suite()
    pytester.makeini("[pytest]\ninfer_report = kept/r.html\n")
    pytester.runpytest("--benchmark-disable").assert_outcomes(passed=2)
    assert not (pytester.path / "kept").exists()
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=1").assert_outcomes(passed=2)
    assert (pytester.path / "kept" / "r.html").exists()


def test_a_report_that_breaks_costs_neither_the_summary_nor_what_is_published(suite, monkeypatch, tmp_path):
    pytester = suite()

    def broken(*_, **__):
        raise KeyError("tpot_s")

    monkeypatch.setattr(page, "write", broken)
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    options = ("--benchmark-autosave", "--infer-gate=output:exact", "--infer-report=r.html", "--infer-rounds=1")
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["* inference *", "! no report: KeyError: 'tpot_s'"])
    assert summary.exists()


def test_a_gates_verdicts_come_first(suite):
    pytester = suite()
    options = ("--benchmark-autosave", "--infer-gate=output:exact", "--infer-report=r.html", "--infer-rounds=1")
    pytester.runpytest(*options)
    pytester.runpytest(*options).assert_outcomes(passed=2)
    assert re.search(
        r"nothing got worse\s+compared\s+0001.* → 0002.*2 unchanged\s+decode",
        shown(pytester.path / "r.html"),
        re.DOTALL,
    )
