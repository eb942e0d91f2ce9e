"""What a run leaves in pytest-benchmark's storage, and that its own tools can use it."""

import json
import sys

import pytest

from pytest_infer.storage import runs


def saved(pytester, number=-1):
    """Return the run files that were saved, the chosen one parsed."""
    files = sorted(pytester.path.glob(".benchmarks/*/*.json"))
    return json.loads(files[number].read_text()) if files else None


def rows(run):
    return {row["fullname"]: row for row in run["benchmarks"]}


def test_a_row_per_phase(suite):
    pytester = suite(engine="Scripted.delays = [0.05, 0.01, 0.01]")
    result = pytester.runpytest("--benchmark-autosave", "--infer-rounds=3")
    result.assert_outcomes(passed=2)
    run = saved(pytester)
    names = set(rows(run))
    assert names == {
        f"test_suite.py::test_prompt[{name}]{phase}" for name in ("first", "second") for phase in ("", ":ttft", ":tpot")
    }
    total = rows(run)["test_suite.py::test_prompt[first]"]
    ttft = rows(run)["test_suite.py::test_prompt[first]:ttft"]
    tpot = rows(run)["test_suite.py::test_prompt[first]:tpot"]
    assert [row["group"] for row in (total, ttft, tpot)] == ["total", "ttft", "tpot"]
    assert total["params"] == {"prompt": "first", "phase": "total"}
    assert total["stats"]["rounds"] == ttft["stats"]["rounds"] == tpot["stats"]["rounds"] == 3
    assert ttft["stats"]["min"] >= 0.05
    assert tpot["stats"]["min"] >= 0.01
    assert ttft["extra_info"]["pytest_infer"] == {"schema": 1, "phase": "ttft", "of": total["fullname"]}


def test_replayed_durations_are_the_measured_ones_to_the_last_bit(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-json=run.json", "--infer-rounds=7").assert_outcomes(passed=2)
    run = json.loads(pytester.path.joinpath("run.json").read_text())
    for name in ("first", "second"):
        total = rows(run)[f"test_suite.py::test_prompt[{name}]"]
        metrics = total["extra_info"]["pytest_infer"]["metrics"]
        assert total["stats"]["data"] == metrics["total_s"]["rounds"]
        ttft = rows(run)[f"test_suite.py::test_prompt[{name}]:ttft"]
        assert ttft["stats"]["data"] == metrics["ttft_s"]["rounds"]


def test_the_json_file_beside_a_run_is_a_copy_of_it(suite):
    """Counted as another run it would be the baseline of the very run that it is."""
    pytester = suite()
    pytester.runpytest("--benchmark-json=run.json", "--benchmark-autosave").assert_outcomes(passed=2)
    (numbered,) = pytester.path.glob(".benchmarks/*/*.json")
    assert runs.read(pytester.path / "run.json").identity == runs.read(numbered).identity


def test_the_block_names_what_is_absent_and_why(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    block = rows(saved(pytester))["test_suite.py::test_prompt[first]"]["extra_info"]["pytest_infer"]
    assert block["schema"] == 1
    assert block["experts"] == {"absent": "the engine gives no access to its modules"}
    assert block["absent"]["kv_cache_bytes"] == "the engine keeps no cache that can be counted"
    assert not set(block["absent"]) & set(block["metrics"])
    assert block["metrics"]["prompt_tokens"]["value"] == 3
    assert block["metrics"]["generated_tokens"]["value"] == 3
    assert block["output"]["text"] == "1 2 3"
    assert len(block["prompt"]["content_sha256"]) == 64


def test_one_token_has_no_tpot_row(suite):
    pytester = suite(engine="Scripted.delays = [0.0]")
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    run = saved(pytester)
    assert "test_suite.py::test_prompt[first]:tpot" not in rows(run)
    block = rows(run)["test_suite.py::test_prompt[first]"]["extra_info"]["pytest_infer"]
    assert "second tick" in block["absent"]["tpot_s"]


def test_sidecar_holds_the_raw_stamps(suite):
    np = pytest.importorskip("numpy")
    pytester = suite()
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=2").assert_outcomes(passed=2)
    (sidecar,) = pytester.path.glob(".benchmarks/*/*.npz")
    (run_file,) = pytester.path.glob(".benchmarks/*/*.json")
    assert sidecar.stem == run_file.stem
    block = rows(saved(pytester))["test_suite.py::test_prompt[first]"]["extra_info"]["pytest_infer"]
    with np.load(sidecar) as arrays:
        stamps = arrays["test_suite.py::test_prompt[first]|1|stamps_ns"]
        assert stamps.shape == (3,)
        assert stamps[0] / 1e9 == block["metrics"]["ttft_s"]["rounds"][1]
        assert list(arrays["test_suite.py::test_prompt[first]|0|token_ids"]) == [1, 2, 3]


def test_native_compare_shows_prompts_and_phases_of_both_runs(suite):
    pytester = suite()
    pytester.path.joinpath("conftest.py").write_text(
        pytester.path.joinpath("conftest.py").read_text()
        + "\nfrom pytest_infer.storage.native import pytest_benchmark_group_stats, pytest_benchmark_scale_unit\n"
    )
    for _ in range(2):
        pytester.runpytest("--benchmark-autosave", "--infer-rounds=2").assert_outcomes(passed=2)
    result = pytester.run(sys.executable, "-m", "pytest_benchmark", "compare")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*benchmark 'test_suite.py::test_prompt?first?:tpot': 2 tests*", "*0001_*", "*0002_*"])
    assert result.stdout.str().count(": 2 tests") == 6


def test_native_gate_fails_exactly_the_rows_of_a_slower_decode(suite):
    pytester = suite(engine="Scripted.delays = [0.05, 0.1, 0.1]", virtual=True)
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=3").assert_outcomes(passed=2)
    conftest = pytester.path / "conftest.py"
    # Decode 20 % slower in `second` only, which has two words: its total is then 16 % slower, its TTFT the same.
    loop = "        for number, delay in enumerate(self.delays):\n"
    slower = loop + "            delay *= 1.2 if number and len(prompt_ids) == 2 else 1\n"
    conftest.write_text(conftest.read_text().replace(loop, slower))
    gate = ("--benchmark-compare", "--benchmark-compare-fail=median:10%", "--infer-rounds=3")
    result = pytester.runpytest_subprocess(*gate)
    assert result.ret != 0
    lines = [line.split()[0] for line in (*result.outlines, *result.errlines) if "Field 'median' has failed" in line]
    assert sorted(lines) == ["test_prompt[second]", "test_prompt[second]:tpot"]


def changed(folder, change):
    """Change what the one run in a folder says of its machine."""
    (run_file,) = folder.glob("*/*.json")
    run = json.loads(run_file.read_text())
    change(run["machine_info"])
    run_file.write_text(json.dumps(run))


def another_clock_rate(machine):
    machine["cpu"]["hz_actual_friendly"] = "9.9 GHz"


def another_machine(machine):
    machine["node"] = "another"


@pytest.mark.parametrize("place", ["outside", "inside", "behind a link"])
@pytest.mark.parametrize("change", [another_clock_rate, another_machine])
def test_a_run_compares_with_one_of_another_machine(suite, tmp_path, monkeypatch, place, change):
    pytester = suite()
    monkeypatch.delenv("PYTEST_ADDOPTS")
    folder = pytester.path / ".benchmarks" if place == "inside" else tmp_path / "elsewhere"
    if place == "behind a link":
        folder.mkdir()
        (pytester.path / ".benchmarks").symlink_to(folder)
    options = [f"--benchmark-storage={folder}"] if place == "outside" else []
    pytester.runpytest("--benchmark-autosave", *options).assert_outcomes(passed=2)
    changed(folder, change)
    result = pytester.runpytest_subprocess("--benchmark-compare", *options)
    result.assert_outcomes(passed=2)
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(["*test_prompt?first?:tpot (0001_unversi)*"])
    said = result.stderr.str()
    assert said.count(": PytestBenchmarkWarning: ") == (change is another_machine)
    assert said.count("on another machine, or with") == (change is another_machine and place != "inside")


def test_no_nan_is_written(suite):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    (run_file,) = pytester.path.glob(".benchmarks/*/*.json")

    def refuse(name):
        raise AssertionError(f"{name} in the file")

    json.loads(run_file.read_text(), parse_constant=refuse)


def test_a_disk_that_fills_up_at_the_end_loses_nothing(suite):
    full = """
    import errno
    from pytest_infer.storage import files

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    files._claim = full
    """
    pytester = suite(engine="Scripted.delays = [0.0] * 3\n" + full.replace("\n    ", "\n"))
    result = pytester.runpytest_subprocess("--benchmark-autosave")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    text = " ".join(result.stdout.str().split())
    assert "could not be saved" in text
    assert "No space left on device; its prompts are" in text
    assert not list(pytester.path.glob(".benchmarks/Linux*/*"))
    (journal,) = pytester.path.glob(".benchmarks/.journal/*.jsonl")
    assert len(journal.read_text().splitlines()) == 2


FULL_FOR_JSON = """
import builtins, errno, pathlib

class Full:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def write(self, data): raise OSError(errno.ENOSPC, "No space left on device")

def full(real):
    def open(path, mode="r", *args, **kwargs):
        if "w" in mode and "run.json" in str(path): return Full()
        return real(path, mode, *args, **kwargs)
    return open

builtins.open, pathlib.Path.open = full(open), full(pathlib.Path.open)
"""


@pytest.mark.parametrize("autosave", [True, False])
def test_a_disk_that_fills_up_under_the_json_file_loses_nothing(suite, autosave):
    pytester = suite(engine="Scripted.delays = [0.0] * 3\n" + FULL_FOR_JSON)
    (pytester.path / "run.json").write_text("an older run")
    given = ["--benchmark-autosave"] if autosave else []
    result = pytester.runpytest_subprocess("--benchmark-json=run.json", *given)
    result.assert_outcomes(passed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = " ".join(result.stdout.str().split())
    assert "! the run could not be written to run.json: No space left on device; its prompts are in" in text
    assert "TTFT" in text
    assert (pytester.path / "run.json").read_text() == "an older run"
    assert sorted(path.suffix for path in pytester.path.glob(".benchmarks/Linux*/*")) == [".json", ".npz"] * autosave
    assert not (pytester.path / "run.npz").exists()
    (journal,) = pytester.path.glob(".benchmarks/.journal/*.jsonl")
    assert len(journal.read_text().splitlines()) == 2


def test_a_json_file_may_be_a_stream(suite):
    result = suite().runpytest_subprocess("--benchmark-json=/dev/stderr", "--benchmark-autosave")
    assert result.ret == 0
    assert '"benchmarks": [' in result.stderr.str()


@pytest.mark.parametrize(("variable", "stored"), [("CI_COMMIT_BRANCH", "topic"), ("OTHER", "(detached head)")])
def test_a_detached_head_is_of_the_branch_that_the_job_is_for(suite, monkeypatch, variable, stored):
    for other in ("CI_COMMIT_BRANCH", "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "GITHUB_SHA"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("CI_COMMIT_SHA", "c" * 40)
    monkeypatch.setenv(variable, "topic")
    detached = """
def pytest_benchmark_update_commit_info(commit_info):
    commit_info.update(branch="(detached head)", id="c" * 40)
"""
    pytester = suite(engine=detached)
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=2)
    (run_file,) = pytester.path.glob(".benchmarks/*/*.json")
    assert json.loads(run_file.read_text())["commit_info"]["branch"] == stored


@pytest.mark.parametrize("where", ["--benchmark-autosave", "--benchmark-json=run.json"])
@pytest.mark.parametrize("what", ["sidecar", "traces"])
def test_a_disk_that_fills_up_behind_the_run_file_leaves_the_run_and_the_journal(suite, where, what):
    full = f"""
import errno
from pytest_infer.storage import {what}

def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

{what}.write = full
"""
    pytester = suite(engine="Scripted.delays = [0.0] * 3\n" + full)
    result = pytester.runpytest_subprocess(where)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    text = " ".join(result.stdout.str().split())
    assert text.count("but without its arrays: No space left on device; its prompts are in") == 1
    assert "TTFT" in text
    assert [*pytester.path.glob(".benchmarks/Linux*/*.json"), *pytester.path.glob("run.json")]
    (journal,) = pytester.path.glob(".benchmarks/.journal/*.jsonl")
    assert len(journal.read_text().splitlines()) == 2


def test_without_pytest_benchmark_other_suites_run_and_ours_are_refused(suite):
    pytester = suite()
    pytester.makepyfile(test_other="def test_other():\n    pass\n")
    pytester.runpytest_subprocess("-p", "no:benchmark", "test_other.py").assert_outcomes(passed=1)
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "test_suite.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*leave out -p no:benchmark*"])
