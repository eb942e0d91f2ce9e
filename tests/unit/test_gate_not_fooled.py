"""What a gate must not pass: another run in the candidate's place, itself, failed tests, rules about nothing."""

import errno
import os
from datetime import UTC, datetime

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.gate import judge
from pytest_infer.analysis.compare.verdicts import Exit
from pytest_infer.cli.main import app
from pytest_infer.errors import OptionError

BOUNDS = ("--rule", "ttft<=100s")
"""A rule that the runs here pass by themselves."""


@pytest.fixture
def gate(storage, monkeypatch, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)

    def run(*arguments):
        result = CliRunner().invoke(app, ["gate", *arguments, "--no-mark", f"--storage={storage.folder}"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def test_a_whole_run_passes(storage, make_block, gate):
    storage.add([make_block()])
    assert gate("latest", *BOUNDS).exit_code == 0


@pytest.mark.parametrize("content", ['{"benchmarks": [', '{"datetime": NaN, "benchmarks": []}', "", "\xff"])
def test_the_newest_run_is_not_replaced_by_the_one_before(storage, make_block, gate, content):
    storage.add([make_block()])
    newest = storage.add([make_block()])
    newest.write_text(content, encoding="latin-1")
    result = gate("latest", *BOUNDS)
    assert result.exit_code == 2
    assert f"{newest.name} is newer than" in result.stderr
    # An older file that is damaged is left out as ever, and a run that is named is gated.
    assert gate("1", *BOUNDS).exit_code == 0


@pytest.mark.parametrize("name", ["latest~0", "latest~1", "main", "branch:main", "commit:cccc"])
@pytest.mark.parametrize("damaged", ["file", "test"])
def test_no_name_stands_for_an_older_run_than_one_that_cannot_be_read(storage, make_block, gate, name, damaged):
    for _ in range(2):
        storage.add([make_block()])
    newest = storage.add([changed(make_block(), tpot_s={"value": "fast"})])
    if damaged == "file":
        newest.write_text("{", encoding="utf-8")
    result = gate(name, *BOUNDS)
    assert (result.exit_code, newest.name in result.stderr) == (2, True)
    assert gate("2", *BOUNDS).exit_code == 0


def test_of_two_runs_with_one_number_the_older_is_not_gated_for_the_newer(storage, make_block, gate):
    storage.add([make_block()])
    storage.add([make_block()], name="another/0001_x.json").write_text("{", encoding="utf-8")
    result = gate("1", *BOUNDS)
    assert (result.exit_code, "0001_x.json is newer than 0001" in result.stderr) == (2, True)


def test_a_damaged_run_of_another_branch_does_not_matter(storage, make_block, gate):
    storage.add([make_block()])
    storage.add([changed(make_block(), tpot_s={"value": "fast"})], branch="mine")
    assert gate("main", *BOUNDS).exit_code == 0
    assert gate("mine", *BOUNDS).exit_code == 2


def test_an_older_damaged_file_does_not_matter(storage, make_block, gate):
    storage.add([make_block()]).write_text("{", encoding="utf-8")
    storage.add([make_block()])
    assert gate("latest", *BOUNDS).exit_code == 0


@pytest.mark.parametrize(("number", "age_s", "code"), [("0001", -60, 2), ("0009", 60, 0)])
def test_in_the_folder_of_another_machine_the_time_tells_what_is_newer(storage, make_block, gate, number, age_s, code):
    storage.add([make_block()], where="Linux-CPython-3.11-64bit", at="2026-02-01T00:00:00+00:00")
    damaged = storage.add([make_block()], name=f"Linux-CPython-3.12-64bit/{number}_x.json")
    damaged.write_text("{", encoding="utf-8")
    changed = datetime(2026, 2, 1, tzinfo=UTC).timestamp() - age_s
    os.utime(damaged, (changed, changed))
    result = gate("latest", *BOUNDS)
    assert (result.exit_code, f"{damaged.name} is newer than" in result.stderr) == (code, code == 2)


@pytest.mark.parametrize(("named", "code"), [("20260131_235959", 0), ("20260201_000001", 2)])
def test_the_time_in_a_files_name_counts_before_that_of_its_last_change(storage, make_block, gate, named, code):
    storage.add([make_block()], where="Linux-CPython-3.11-64bit", at="2026-02-01T00:00:00+00:00")
    # A clone or a download makes all files new.
    damaged = storage.add([make_block()], name=f"Linux-CPython-3.12-64bit/0001_abc_{named}_uncommitted-changes.json")
    damaged.write_text("{", encoding="utf-8")
    assert gate("latest", *BOUNDS).exit_code == code


@pytest.mark.parametrize(("name", "code"), [("latest", 2), ("main", 2), ("commit:cccc", 2), ("2", 0), ("mine", 0)])
def test_a_clock_that_was_set_back_puts_no_older_run_in_the_newests_place(storage, make_block, gate, name, code):
    storage.add([make_block()], branch="mine", commit="d" * 40)
    storage.add([make_block()])
    storage.add([make_block()], at="1970-01-01T00:00:00+00:00")
    result = gate(name, *BOUNDS)
    assert (result.exit_code, "0003 cccccccc (main) has a higher number than" in result.stderr) == (code, code == 2)
    storage.add([make_block()])
    assert gate(name, *BOUNDS).exit_code == 0


@pytest.mark.parametrize(("began", "code"), [("20260101-000159", 0), ("20260101-000201", 2)])
def test_the_run_before_one_that_was_killed_is_not_gated_for_it(storage, make_block, gate, began, code):
    journal = storage.folder / ".journal" / f"{began}-7-abcdef.jsonl"
    journal.parent.mkdir()
    journal.write_text("")
    for _ in range(2):
        storage.add([make_block()])
    result = gate("latest", *BOUNDS)
    assert (result.exit_code, "a run begun after 0002" in result.stderr) == (code, code == 2)
    assert gate("2", *BOUNDS).exit_code == 0
    # One that is still being measured is nobody's newest run.
    with FileLock(journal.with_suffix(".lock")):
        assert gate("latest", *BOUNDS).exit_code == 0


def test_an_interrupted_run_that_was_stored_hides_no_run_of_another_branch(storage, make_block, gate):
    storage.add([make_block()])
    journal = storage.folder / ".journal" / "20260101-000130-7-abcdef.jsonl"
    journal.parent.mkdir()
    journal.write_text("")
    storage.add([make_block()], branch="mine")
    assert gate("main", *BOUNDS).exit_code == 0


def test_a_run_that_another_user_may_be_measuring_is_nobodys_newest(storage, make_block, gate, monkeypatch):
    def acquire(self, **kwargs):
        raise PermissionError(errno.EACCES, "of another user")

    storage.add([make_block()])
    journal = storage.folder / ".journal" / "20260101-000130-7-abcdef.jsonl"
    journal.parent.mkdir()
    journal.write_text("")
    assert gate("latest", *BOUNDS).exit_code == 2
    journal.with_suffix(".lock").touch()
    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert gate("latest", *BOUNDS).exit_code == 0


@pytest.mark.parametrize("against", ["latest", "branch:main", "main", "2", "commit:cccc"])
def test_a_run_is_never_its_own_baseline(storage, make_block, gate, against):
    first = storage.add([make_block(output_sha256="a" * 64)])
    storage.add([make_block(output_sha256="b" * 64)])
    result = gate("latest", "--against", against, "--rule", "output:exact")
    if against == "2":
        assert result.exit_code == 2
        assert "that is the run to be gated itself" in result.stderr
    else:
        # The newest other run that the name fits.
        assert result.exit_code == 1
        assert first.name[:4] in result.stdout.partition("against")[2][:20]


def test_a_copy_of_its_file_is_no_other_run(storage, make_block, gate):
    first = storage.add([make_block(output_sha256="a" * 64)])
    newest = storage.add([make_block(output_sha256="b" * 64)])
    copy = storage.folder / "backup" / newest.name
    copy.parent.mkdir()
    copy.write_bytes(newest.read_bytes())
    result = gate("latest", "--against", "main", "--rule", "output:exact")
    assert (result.exit_code, f"against {first.name[:4]}" in result.stdout) == (1, True)
    refused = gate(str(newest), "--against", str(copy), "--rule", "output:exact")
    assert (refused.exit_code, "that is the run to be gated itself" in refused.stderr) == (2, True)


def test_the_only_run_of_a_branch_has_no_baseline_there(storage, make_block, gate):
    storage.add([make_block()], branch="main")
    storage.add([make_block()], branch="mine")
    result = gate("latest", "--against", "branch:mine", "--rule", "output:exact")
    assert (result.exit_code, "itself" in result.stderr) == (2, True)


@pytest.mark.parametrize("how", [{"failed": {"bench/t.py::t[new]": {}}}, {"unmeasured": ["bench/t.py::t[new]"]}])
@pytest.mark.parametrize("rule", [BOUNDS, ("--rule", "output:exact")])
def test_what_failed_or_was_not_measured_fails_unless_it_is_accepted(storage, make_block, gate, how, rule):
    storage.add([make_block()])
    storage.add([make_block()], **how)
    result = gate("latest", *rule)
    assert result.exit_code == 1
    assert "bench/t.py::t[new]" in result.stdout.replace("\n", "")
    assert gate("latest", *rule, "--allow-failed", "*t[[]new]").exit_code == 0


@pytest.mark.parametrize("how", [{"failed": {"bench/t.py::t[b]": {}}}, {"unmeasured": ["bench/t.py::t[b]"]}])
def test_a_failed_test_that_the_baseline_has_is_accepted_by_name_too(storage, make_block, gate, how):
    storage.add([make_block("a"), make_block("b"), make_block("c")])
    storage.add([make_block("a"), make_block("c")], **how)
    failed = gate("latest", *BOUNDS)
    assert (failed.exit_code, "1 missing" in failed.stdout) == (1, True)
    assert gate("latest", *BOUNDS, "--allow-failed", "*[[]b]").exit_code == 0
    storage.add([make_block("a")], **how)
    assert gate("latest", *BOUNDS, "--allow-failed", "*[[]b]").exit_code == 1, "c is gone, and did not fail"


@pytest.mark.parametrize("rule", ["ttft[giude]:5%", "ttft[giude]<=1", "experts[giude]:drift<0.1", "output[x*]:exact"])
def test_a_rule_that_is_about_nothing_is_an_error(storage, make_block, gate, rule):
    storage.add([make_block()])
    storage.add([make_block()])
    result = gate("latest", "--rule", rule, "--rule", "tpot<=100s")
    assert result.exit_code == 2
    assert "is about no prompt of this run; near it: guide" in result.stderr


@pytest.mark.parametrize(
    "rule", ["ttft<=1e999", "peak_rss<=1e308GiB", f"ttft:{'9' * 309}%", f"experts:drift<{'9' * 309}"]
)
def test_a_limit_that_no_number_can_hold_is_an_error(rule):
    with pytest.raises(OptionError, match="more than a number can hold"):
        rules.parse([rule])


# figures that nobody can have measured


def changed(block, **figures):
    """Return a block with other figures: each replaces keys of what is stored of it."""
    for key, what in figures.items():
        block["metrics"][key] = {**block["metrics"][key], **what}
    return block


FIGURES = [
    (
        {"ttft_s": {"value": 1e-300, "rounds": [1e-300] * 4}},
        "ttft_s is 1e-300 s, and the clock tells no less than 1e-09",
    ),
    ({"total_s": {"value": 0.0, "rounds": [0.0] * 4}}, "total_s is 0 s, and the clock tells no less than 1e-09 s"),
    ({"decode_s": {"value": 0.0, "rounds": [0.0] * 4}}, "decode_s is 0 s, and the clock tells no less"),
    ({"ttft_s": {"value": -0.2, "rounds": [-0.2] * 4}}, "ttft_s is -0.2 s, and the clock tells no less"),
    ({"tpot_s": {"value": 1e-12, "rounds": [1e-12] * 4}}, "tpot_s is 1e-12 s, which the clock cannot tell"),
    ({"tpot_s": {"value": -0.01, "rounds": [-0.01] * 4}}, "tpot_s is -0.01 s, which the clock cannot tell"),
    ({"itl_p99_s": {"value": 1e-300, "rounds": [1e-300] * 4}}, "itl_p99_s is 1e-300 s, which the clock cannot tell"),
    ({"decode_throughput": {"value": -3.0, "rounds": [-3.0] * 4}}, "decode_throughput is -3 tok/s, which the clock"),
    ({"load_s": {"value": 1e-30}}, "load_s is 1e-30 s, which the clock cannot tell"),
    ({"total_s": {"value": 0.2, "rounds": [0.2] * 4}}, "ttft_s is longer than total_s"),
    ({"total_s": {"value": 0.3, "rounds": [0.3] * 4}}, "ttft_s and decode_s together are longer than total_s"),
    ({"ttft_s": {"value": 201.5, "rounds": [200.0, 201.0, 202.0, 203.0]}}, "ttft_s is longer than total_s"),
    ({"tpot_s": {"value": 45.0, "rounds": [45.0] * 4}}, "tpot_s is longer than decode_s"),
    ({"itl_max_s": {"value": 0.19, "rounds": [0.19] * 4}}, "itl_max_s is longer than decode_s"),
    ({"ttft_s": {"value": 0.1}}, "ttft_s is 0.1 s, and its rounds say 0.2015 s"),
    ({"peak_rss_bytes": {"value": 1, "rounds": [2**30] * 4}}, "peak_rss_bytes is 1 B, and its rounds say"),
    ({"ttft_s": {"rounds": []}}, "ttft_s has no rounds, and 4 were measured"),
    ({"tpot_s": {"unit": "ms"}}, "tpot_s is in ms, not in s"),
    ({"peak_rss_bytes": {"unit": "s"}}, "peak_rss_bytes is in s, not in B"),
    ({"peak_rss_bytes": {"value": -5, "rounds": [-5] * 4}}, "peak_rss_bytes is -5 B"),
    ({"peak_rss_bytes": {"value": 0, "rounds": [0] * 4}}, "peak_rss_bytes is 0 B"),
    ({"kv_cache_bytes": {"value": -1}}, "kv_cache_bytes is -1 B"),
]


@pytest.mark.parametrize("which", ["candidate", "baseline"])
@pytest.mark.parametrize(("figures", "line"), FIGURES, ids=[line for _, line in FIGURES])
def test_a_figure_that_cannot_be_is_an_error_that_names_it(storage, make_block, gate, figures, line, which):
    blocks = [make_block(), changed(make_block(), **figures)]
    for block in blocks if which == "candidate" else reversed(blocks):
        storage.add([make_block("another"), block])
    result = gate("latest", "--against", "1", *BOUNDS)
    assert result.exit_code == 2
    assert result.stderr.startswith("pytest-infer: run 000")
    assert f": bench/t.py::t[guide]: {line}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_with_such_a_figure_is_no_baseline_by_itself(storage, make_block, gate):
    for _ in range(2):
        storage.add([make_block()])
    storage.add([changed(make_block(), total_s={"value": 1e-300, "rounds": [1e-300] * 4})])
    storage.add([make_block()])
    result = gate("latest", "--rule", "output:exact")
    assert (result.exit_code, "against 0002" in result.stdout) == (0, True)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"0.2"', "null", "true"])
def test_what_is_no_number_is_an_error(storage, make_block, gate, value):
    storage.add([make_block()])
    newest = storage.add([make_block()])
    text = newest.read_text(encoding="utf-8")
    assert '"value": 0.2015' in text
    newest.write_text(text.replace('"value": 0.2015', f'"value": {value}'), encoding="utf-8")
    result = gate("latest", "--rule", "ttft<=100s")
    # A time that is text is a figure without numbers, which no bound passes.
    assert result.exit_code in ((2,) if value != '"0.2"' else (2, 10, 11)), result.stdout


def test_the_runs_own_clock_says_what_it_can_tell(storage, make_block, gate):
    coarse = {"clock_resolution_s": 0.015}
    for times, code in (([0.2, 0.201, 0.202, 0.203], 0), ([0.014] * 4, 2)):
        storage.add([make_block(machine=coarse, ttft_s=times)])
        assert gate("latest", *BOUNDS).exit_code == code
    storage.add([make_block(ttft_s=[0.014] * 4)])
    assert gate("latest", *BOUNDS).exit_code == 0


def test_two_rows_of_one_test_are_an_error(storage, make_block, gate):
    storage.add([make_block()])
    storage.add([make_block(), make_block(output_sha256="b" * 64)])
    for arguments in (("latest", *BOUNDS), ("1", "--against", "2", "--rule", "output:exact")):
        result = gate(*arguments)
        assert result.exit_code == 2
        assert "two rows of one test, bench/t.py::t[guide]; measure it again" in result.stderr


def test_a_test_without_a_timed_round_is_an_error(storage, make_block, gate):
    block = make_block()
    block["rounds"]["timed"] = 0
    storage.add([block])
    assert "it has no timed round" in gate("latest", *BOUNDS).stderr


@pytest.mark.parametrize("rule", ["tpot:3%", "tpot[guide]:3%", "tpot<=1s", "device_peak:3%", "tpot:3%,ttft<=100s"])
def test_a_rule_about_a_figure_that_no_prompt_has_is_an_error(storage, make_block, gate, rule):
    for _ in range(2):
        storage.add([make_block(tpot_s=None, decode_s=None, itl_max_s=None, device_peak_bytes=None)])
    result = gate("latest", "--rule", rule, "--rule", "output:exact")
    assert result.exit_code == 2
    assert "which no prompt of this run has" in result.stderr


def test_a_default_rule_is_for_who_has_the_figure(storage, make_block, gate):
    for _ in range(7):
        storage.add([make_block(tpot_s=None)])
    result = gate("latest")
    assert (result.exit_code, "tpot" in result.stderr) == (0, False), result.stdout


def test_a_rule_that_some_prompt_has_the_figure_for_judges_it(storage, make_block, gate):
    for _ in range(2):
        storage.add([make_block("short", tpot_s=None), make_block("long")])
    assert gate("latest", "--rule", "tpot<=1s").exit_code == 10
    assert gate("latest", "--rule", "tpot[long]<=1s").exit_code == 0


def test_a_rule_without_its_figure_passes_nothing(make_row):
    pair = RowPair(before=make_row(tpot_s=None), after=make_row(tpot_s=None), paired=True)
    found = judge([pair], rules.parse(["tpot:3%", "output:exact"]))
    assert found.exit is Exit.INCONCLUSIVE
    assert "the rule is about nothing" in found.judgements[0].reason
    lenient = judge([pair], rules.parse([], ("tpot:3%", "output:exact")))
    assert lenient.exit is Exit.PASSED
