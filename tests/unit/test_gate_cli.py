"""The commands over stored runs, run as a person does: what they print, how they end, what they keep."""

import csv
import io
import json
import os
import re
import shutil
import sys

import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.storage import files, runfile

STEADY = (1.0, 1.004, 0.996, 1.002, 0.998, 1.001)
ROUNDS = (1.0, 1.001, 0.999, 1.002, 0.998, 1.0)
KEPT = ("prompt_tokens", "output_sha256", "peak_rss_bytes")


@pytest.fixture
def infer(storage, monkeypatch, tmp_path):
    """Return a function that runs a command on the storage, away from any ini file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(*arguments, folder=storage.folder):
        result = CliRunner().invoke(app, [*arguments, f"--storage={folder}"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def add(storage, make_block):
    """Return a function that stores a run of two prompts, `story` by a factor slower."""

    def run(factor=1.0, *, other=1.0, prompts=("story", "chat"), changes=None, **whole):
        blocks = [
            make_block(
                name,
                only=KEPT,
                ttft_s=[0.2 * other * r for r in ROUNDS],
                tpot_s=[0.05 * (factor if name == "story" else other) * r for r in ROUNDS],
                **(changes or {}),
            )
            for name in prompts
        ]
        return storage.add(blocks, **whole)

    return run


@pytest.fixture
def steady(add):
    for factor in STEADY:
        add(factor, other=factor)


def mark(path):
    return json.loads(path.read_text()).get("pytest_infer", {}).get("gate")


# compare


def test_the_two_newest_are_compared(infer, add, steady):
    add(1.3)
    result = infer("compare")
    assert result.exit_code == 0
    headline, heading, *_ = result.stdout.splitlines()
    assert re.fullmatch(r"decode of story 30 % slower \[\d+, \d+\]; the other prompt unchanged", headline)
    assert heading == "0006 cccccccc (main) → 0007 cccccccc (main)"
    whole, line = [line for line in result.stdout.splitlines() if "regressed (threshold 2 %)" in line]
    assert whole.split()[:4] == ["TPOT", "all", "2", "prompts"]
    assert line.split()[:6] == ["TPOT", "50.0", "ms", "→", "65.0", "ms"]


def test_as_json(infer, add, steady):
    path = add(1.3)
    result = infer("compare", "6", "7", "--format=json")
    found = json.loads(result.stdout)
    assert found["confidence"] == 0.99
    assert found["headline"][str(path)].startswith("decode of story 30 % slower ")
    suite = {row["metric"]: row for row in found["suite"][str(path)]}
    assert set(suite) == {"ttft_s", "tpot_s", "peak_rss_bytes"}
    assert (suite["tpot_s"]["prompts"], suite["tpot_s"]["of"], suite["tpot_s"]["verdict"]) == (2, 2, "regressed")
    assert suite["tpot_s"]["change"] == pytest.approx(1.3**0.5 - 1, abs=0.01)
    assert found["runs"][1] == str(path)
    assert {row["run"] for row in found["judgements"]} == {str(path)}
    verdicts = {(row["prompt"], row["metric"]): row["verdict"] for row in found["judgements"]}
    assert verdicts == {
        ("story", "prompt_tokens"): "unchanged",
        ("story", "ttft_s"): "unchanged",
        ("story", "tpot_s"): "regressed",
        ("story", "peak_rss_bytes"): "unchanged",
        ("story", "output_sha256"): "unchanged",
        ("chat", "prompt_tokens"): "unchanged",
        ("chat", "ttft_s"): "unchanged",
        ("chat", "tpot_s"): "unchanged",
        ("chat", "peak_rss_bytes"): "unchanged",
        ("chat", "output_sha256"): "unchanged",
    }


def test_as_csv_and_markdown(infer, add, steady):
    add(1.3)
    rows = list(csv.DictReader(io.StringIO(infer("compare", "6", "7", "--format=csv").stdout)))
    assert len(rows) == 10
    assert [row["metric"] for row in rows if row["verdict"] == "regressed"] == ["tpot_s"]
    text = infer("compare", "6", "7", "--format=markdown").stdout
    assert text.startswith("### decode of story 30 % slower ")
    assert text.splitlines()[2].startswith("**0006 cccccccc (main) → 0007 cccccccc (main)**")
    assert "| 🔴 | story | TPOT | 50.0 ms → 65.0 ms |" in text


def test_several_runs_are_held_against_the_first_in_every_format(infer, add, steady):
    paths = [add(1.3), add(0.7)]
    rows = list(csv.DictReader(io.StringIO(infer("compare", "1", "7", "8", "--metric=tpot", "--format=csv").stdout)))
    assert [row["verdict"] for row in rows if row["prompt"] == "story"] == ["regressed", "improved"]
    assert [row["run"] for row in rows] == [str(paths[0])] * 2 + [str(paths[1])] * 2
    found = json.loads(infer("compare", "1", "7", "8", "--metric=tpot", "--format=json").stdout)
    assert [row["run"] for row in found["judgements"]] == [row["run"] for row in rows]
    text = infer("compare", "1", "7", "8", "--format=markdown").stdout
    assert text.count("**0001 cccccccc (main) → 000") == 2
    shown = infer("compare", "1", "7", "8").stdout
    assert shown.startswith("B  decode of story 30 % slower ")
    assert "A  0001 cccccccc (main)\nB  0007 cccccccc (main)\nC  0008 cccccccc (main)\n" in shown


def test_only_some_tests_and_metrics(infer, add, steady):
    add(1.3)
    found = json.loads(
        infer("compare", "6", "7", "-k", "cha", "--metric=tpot", "--metric=ttft_s", "--format=json").stdout
    )
    assert [(row["prompt"], row["metric"]) for row in found["judgements"]] == [("chat", "ttft_s"), ("chat", "tpot_s")]
    assert "prompt" in infer("compare", "6", "7", "--metric=all").stdout
    nothing = infer("compare", "6", "7", "-k", "no such test")
    assert (nothing.exit_code, "nothing to compare" in nothing.stdout) == (11, True)
    unknown = infer("compare", "6", "7", "--metric=speed")
    assert (
        unknown.exit_code,
        unknown.stderr.startswith("pytest-infer: unknown metric 'speed'; `pytest-infer metrics`"),
    ) == (2, True)


def test_missing_and_new_tests_are_told(infer, add, steady):
    add(prompts=("story", "third"))
    shown = infer("compare").stdout
    assert "1 missing, 1 new" in shown
    filtered = json.loads(infer("compare", "-k", "third", "--format=json").stdout)
    assert [(row["prompt"], row["verdict"]) for row in filtered["judgements"]] == [("third", "new")]


def test_runs_of_which_nothing_can_be_compared_end_so(infer, add):
    add()
    add(changes={"machine": {"cpu": "another"}})
    add(prompts=("third",))
    incomparable = infer("compare", "1", "2", "--metric=tpot")
    assert (incomparable.exit_code, incomparable.stdout.startswith("nothing to compare: differ: cpu")) == (11, True)
    # What the output is does not depend on the CPU.
    assert infer("compare", "1", "2").exit_code == 0
    assert infer("compare", "1", "3").exit_code == 11
    assert infer("compare", "1", "2", "3").exit_code == 0


def test_what_came_and_went_of_a_sweep_has_its_configuration(infer, storage, make_block):
    def swept(threads):
        return make_block(f"guide-threads={threads}") | {"config": {"threads": str(threads)}}

    storage.add([swept(1), swept(2)])
    storage.add([swept(1), swept(4)])
    found = json.loads(infer("compare", "--format=json").stdout)["judgements"]
    told = {row["verdict"]: row["prompt"] for row in found if row["metric"] is None}
    assert told == {"new": "guide-threads=4 threads=4", "missing": "guide-threads=2 threads=2"}


def test_logits_that_are_no_longer_finite_are_shown_and_counted(infer, storage, make_block):
    storage.add([make_block(nonfinite_logits=0)])
    storage.add([make_block(nonfinite_logits=3)])
    shown = infer("compare").stdout
    assert "non-finite logits  0 → 3" in shown
    assert "1 incomparable" in shown


def test_plain_files_are_compared_by_time(infer, storage):
    for median in (0.5, 0.6):
        data = [median * r for r in ROUNDS]
        storage.add([{"name": "t", "fullname": "t.py::t", "stats": {"median": median, "data": data}, "extra_info": {}}])
    result = infer("compare")
    assert result.exit_code == 0
    assert "total  500 ms → 600 ms" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("compare", "1"), "compare takes 2 to 26 runs, not 1"),
        (("compare", *["1"] * 27), "compare takes 2 to 26 runs, not 27"),
        (("compare", "1", "99"), "no run '99' among the 6 in"),
        (("compare", "1", "colour:red"), "unknown selector colour:…"),
        (("compare", "1", "2", "--allow-different=colour"), "--allow-different: unknown key 'colour'"),
        (("gate", "99"), "no run '99' among the 6 in"),
        (("gate", "--against=99"), "no run '99'"),
        (("gate", "--rule=speed:5%"), "gate rule 'speed:5%': unknown metric"),
        (("gate", "--rule=ttft"), "gate rule 'ttft' cannot be read"),
        (("gate", "--allow-different=colour"), "--allow-different: unknown key"),
        (("baseline", "set", "a", "99"), "no run '99'"),
        (("baseline", "set", "a b", "1"), "a baseline's name is one word"),
        (("baseline", "forget", "a"), "no baseline 'a'; known: none"),
    ],
)
def test_wrong_usage_is_one_line(infer, steady, arguments, line):
    result = infer(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"pytest-infer: {line}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("compare",), ("gate",), ("history",), ("baseline", "list")])
def test_a_storage_that_does_not_exist(infer, tmp_path, arguments):
    result = infer(*arguments, folder=tmp_path / "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"pytest-infer: {tmp_path / 'nowhere'}: no such folder; name the storage with --storage\n"


@pytest.fixture
def alone(storage, make_block, tmp_path, monkeypatch):
    """Two run files in a folder without any storage, as a downloaded artifact lies there; there we are."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for name in ("earlier.json", "run.json"):
        storage.add([make_block("story")]).rename(folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "run.json"),
        ("report", "run.json"),
        ("export", "run.json"),
        ("advice", "run.json"),
        ("compare", "earlier.json", "run.json"),
        ("gate", "run.json", "--rule=tpot<=100s"),
        ("gate", "run.json", "--against=earlier.json", "--rule=output:exact"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_path_names_a_run_where_none_is_stored(alone, arguments):
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout


def test_other_names_say_that_no_run_is_stored(alone):
    for command in ("show", "export", "advice", "experts", "experts export"):
        file = ["census.json"] if " " in command else []
        result = CliRunner().invoke(app, [*command.split(), "latest", *file])
        assert (result.exit_code, result.stdout) == (11, "")
        assert result.stderr == (
            "pytest-infer: no run 'latest': none is stored in results; `pytest bench --benchmark-autosave` makes one, "
            "or name the storage with --storage\n"
        )
    assert CliRunner().invoke(app, ["history"]).exit_code == 11


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("compare",), 11, "fewer than two runs in"),
        (("compare", "1", "2"), 11, "no run '1': none is stored in"),
        (("show", "7"), 11, "no run '7': none is stored in"),
        (("placement", "latest"), 11, "no run 'latest': none is stored in"),
        (("report",), 11, "no run in"),
        (("gate",), 11, "no run 'latest': none is stored in"),
        (("history",), 11, "no runs in"),
        (("baseline", "list"), 0, ""),
    ],
)
def test_an_empty_storage(infer, arguments, code, line):
    result = infer(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert line in result.stderr
    assert result.stderr.count("\n") == (1 if line else 0)


def test_one_run_alone_has_nothing_to_be_compared_with(infer, add):
    add()
    result = infer("compare")
    assert (result.exit_code, result.stdout) == (11, "")
    assert "fewer than two runs in" in result.stderr


def test_damaged_files_are_named_and_left_out(infer, add, storage):
    add()
    add()
    (storage.folder / "0003_damaged.json").write_text("{")
    result = infer("compare")
    assert result.exit_code == 0
    assert result.stderr.startswith("pytest-infer: left out: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout.splitlines()[1].startswith("0001 ")


# gate


def test_passed(infer, add, steady):
    path = add(1.001)
    result = infer("gate", "--rule=tpot:5%", "--rule=output:exact")
    assert result.exit_code == 0
    headline, heading, *_ = result.stdout.splitlines()
    assert re.fullmatch(r"no change beyond [\d.]+ %", headline)
    assert heading == "gate 0007 cccccccc (main) against 0006 cccccccc (main)"
    assert result.stdout.endswith("gate: passed\n")
    kept = mark(path)
    judgements, suite = kept.pop("judgements"), kept.pop("suite")
    assert kept == {
        "result": "passed",
        "against": "0006 cccccccc (main)",
        "rules": ["tpot:5%", "output:exact"],
        "headline": headline,
    }
    assert {(j["rule"], j["verdict"]) for j in judgements} == {("tpot:5%", "unchanged"), ("output:exact", "unchanged")}
    assert [(one["judgement"]["metric"], one["prompts"]) for one in suite] == [("tpot_s", 2)]
    assert headline in infer("show").stdout.splitlines()


def test_regressed_is_marked_and_never_the_baseline(infer, add, steady):
    slow = add(1.3)
    first = infer("gate", "--rule=tpot:5%")
    assert first.exit_code == 1
    assert "regressed (threshold 5 %)" in first.stdout
    assert mark(slow)["result"] == "regressed"
    again = add(1.3)
    second = infer("gate", "--rule=tpot:5%")
    assert second.exit_code == 1
    assert "against 0006 " in second.stdout
    assert mark(again)["against"].startswith("0006 ")
    refused = infer("baseline", "set", "good", "7")
    assert (refused.exit_code, "failed its gate: it is no baseline" in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", [shutil.copy, os.symlink])
def test_what_another_file_of_a_run_is_told_its_own_is_told_too(infer, add, steady, tmp_path, name):
    path = add(1.3)
    name(path, tmp_path / "candidate.json")
    assert infer("gate", str(tmp_path / "candidate.json")).exit_code == 1
    assert (tmp_path / "candidate.json").is_symlink() == (name is os.symlink)
    assert mark(path)["result"] == mark(tmp_path / "candidate.json")["result"] == "regressed"
    add(1.3)
    assert "against 0006" in infer("gate").stdout


def test_a_gate_of_a_copy_that_judged_nothing_leaves_what_another_said_of_the_run(infer, add, tmp_path):
    path = add()
    shutil.copy(path, tmp_path / "candidate.json")
    files.mark(path, runfile.Mark(result="inconclusive"))
    result = infer("gate", str(tmp_path / "candidate.json"))
    assert (result.exit_code, mark(path)["result"]) == (11, "inconclusive")
    assert "the run keeps what a gate that judged it said: inconclusive" in result.stderr


def test_no_mark_keeps_the_file(infer, add, steady):
    path = add(1.3)
    before = path.read_bytes()
    assert infer("gate", "--rule=tpot:5%", "--no-mark").exit_code == 1
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_marked_is_told_and_the_verdict_stands(infer, add, steady, monkeypatch):
    path = add(1.3)
    before = path.read_bytes()

    def read_only(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "replacing", read_only)
    result = infer("gate", "--rule=tpot:5%")
    assert result.exit_code == 1
    assert "could not be marked with the gate's result: [Errno 13] Permission denied" in result.stderr
    assert path.read_bytes() == before


def test_a_read_only_file_in_a_writable_folder_is_marked_and_stays_read_only(infer, add, steady):
    path = add(1.3)
    path.chmod(0o444)
    assert infer("gate", "--rule=tpot:5%").exit_code == 1
    assert mark(path)["result"] == "regressed"
    assert path.stat().st_mode & 0o777 == 0o444


def test_inconclusive(infer, add):
    add()
    path = add(1.001)
    result = infer("gate", "--rule=tpot:5%")
    assert result.exit_code == 10
    assert "5 tell the spread" in result.stdout
    assert mark(path)["result"] == "inconclusive"


def test_nothing_to_compare(infer, add):
    add(changes={"machine": {"cpu": "another"}})
    path = add()
    result = infer("gate", "--rule=tpot:5%")
    assert result.exit_code == 11
    assert "no stored run to compare with" in result.stderr
    assert "against no stored run" in result.stdout
    expected = {"result": "nothing to compare", "rules": ["tpot:5%"], "against": None}
    assert expected.items() <= mark(path).items()
    assert mark(path)["headline"] == "nothing to compare: no earlier figure"
    allowed = infer("gate", "--rule=output:exact", "--allow-different=torch, cpu")
    assert allowed.exit_code == 0
    assert "against 0001" in allowed.stdout


def test_a_gate_that_judged_nothing_leaves_what_another_said(infer, add):
    path = add(gate={"result": "regressed", "against": "main", "rules": ["tpot:3%"]})
    before = mark(path)
    result = infer("gate", "--rule=tpot:5%")
    assert result.exit_code == 11
    assert "the run keeps what a gate that judged it said: regressed" in result.stderr
    assert mark(path) == before


def test_a_regression_is_accepted_by_the_file_but_not_in_a_bisection(infer, add, steady, tmp_path):
    # Outside git no run has a commit.
    add(commit="unversioned")
    add(1.3, commit="unversioned")
    entry = '[[accept]]\nmetric = "decode"\nbound = "{}"\nreason = "exact softmax"\n'
    file = tmp_path / "outside" / "bench" / "accepted.toml"
    file.parent.mkdir()
    file.write_text(entry.format("60%"))
    accepted = infer("gate", "--rule=tpot:5%", "--format=json")
    assert accepted.exit_code == 0
    (told,) = json.loads(accepted.stdout)["accepted"]
    assert (told["metric"], told["bound"], told["where"], told["verdicts"]) == (
        "decode",
        "60%",
        "bench/accepted.toml",
        1,
    )
    assert infer("gate", "--rule=tpot:5%", "--exit=bisect").exit_code == 1
    assert infer("gate", "--rule=tpot:5%", "--accepted=off").exit_code == 1
    file.rename(file.with_name("own.toml"))
    failed = infer("gate", "--rule=tpot:5%")
    assert failed.exit_code == 1
    assert re.fullmatch(r"  \[infer-accept: tpot\[story\] \d+%: WHY\]", failed.stdout.splitlines()[-1])
    (tmp_path / "outside" / "pytest.ini").write_text("[pytest]\ninfer_accepted = bench/own.toml\n")
    assert infer("gate", "--rule=tpot:5%").exit_code == 0
    file.with_name("own.toml").write_text(entry.format("5"))
    wrong = infer("gate", "--rule=tpot:5%")
    assert wrong.exit_code == 2
    assert "own.toml: 'decode 5': the bound is a share of the earlier value, as 5%" in wrong.stderr


def test_another_machine_that_was_asked_for_is_incomparable(infer, add):
    add(changes={"machine": {"cpu": "another"}})
    add()
    result = infer("gate", "--rule=tpot:5%", "--against=1")
    assert result.exit_code == 11
    assert "incomparable: differ: cpu another → A CPU (2×)" in result.stdout


def test_a_missing_test_fails_the_gate(infer, add, steady):
    path = add(prompts=("story",))
    result = infer("gate", "--rule=output:exact")
    assert result.exit_code == 1
    assert "the baseline has this test and this run did not measure it" in " ".join(result.stdout.split())
    assert mark(path)["result"] == "regressed"


def test_a_test_that_skipped_itself_is_accepted_by_name(infer, add, steady):
    gone = ["bench/t.py::t[story]"]
    add(prompts=("chat",), unmeasured=gone, skipped=gone)
    assert infer("gate", "--rule=tpot:5%").exit_code == 1
    assert infer("gate", "--rule=tpot:5%", "--allow-failed=*story*").exit_code == 0


def test_a_run_of_part_of_the_suite_hides_no_regression(infer, add, steady):
    add(prompts=("chat",))
    add(1.3)
    result = infer("gate", "--rule=tpot:5%")
    assert result.exit_code == 1
    assert "gate 0008 cccccccc (main) against 0006 " in result.stdout


def test_what_was_taken_from_a_run_is_not_held_against_it(infer, storage, make_block):
    for total in (2.1, 2.2):
        storage.add([make_block(total_s=[total] * 4)])
    taken = make_block(total_s=[2.2] * 4)
    taken["rounds"]["resumed"] = True
    storage.add([taken])
    assert "gate 0003 cccccccc (main) against 0001 " in infer("gate", "--rule=total:5%").stdout
    result = infer("gate", "--rule=total:5%", "--against=2")
    assert (result.exit_code, "1 new" in result.stdout) == (11, True)


def test_bounds_need_no_other_run(infer, add):
    add()
    assert infer("gate", "--rule=tpot<=60ms").exit_code == 0
    result = infer("gate", "--rule=tpot[story]<=10ms")
    assert result.exit_code == 1
    assert "against bounds only" in result.stdout
    assert "tpot[story]<=10ms" in result.stdout
    assert result.stderr == ""


def test_other_output_fails_and_can_be_accepted(infer, add, steady):
    add(1.0, changes={"output_sha256": "c" * 64})
    assert infer("gate", "--no-mark").exit_code == 1
    accepted = infer("gate", "--no-mark", "--allow-different=output")
    assert (accepted.exit_code, accepted.stdout.splitlines()[-1]) == (0, "gate: passed")


def test_rules_of_the_ini_file(infer, add, steady, tmp_path):
    path = add(1.3)
    (tmp_path / "outside" / "pytest.ini").write_text("[pytest]\ninfer_gate =\n    tpot[chat]:5%\n")
    assert infer("gate").exit_code == 0
    assert mark(path)["rules"] == ["tpot[chat]:5%"]
    assert infer("gate", "--rule=tpot:5%").exit_code == 1


def test_what_may_differ_by_the_ini_file(infer, add, tmp_path):
    add(changes={"machine": {"cpu": "another"}, "model": {"threads": 64}})
    add()
    assert infer("compare", "--metric=tpot").exit_code == 11
    ini = tmp_path / "outside" / "pytest.ini"
    ini.write_text("[pytest]\ninfer_allow_different = cpu, threads\n")
    assert infer("compare", "--metric=tpot").exit_code == 0
    assert "against 0001" in infer("gate", "--rule=tpot:5%").stdout
    assert "against no stored run" in infer("gate", "--rule=tpot:5%", "--allow-different=cpu").stdout
    ini.write_text("[pytest]\ninfer_allow_different = cpu,\n    threads,\n")
    assert infer("compare", "--metric=tpot").exit_code == 0
    ini.write_text("[pytest]\ninfer_allow_different = cpus\n")
    assert "infer_allow_different: unknown key 'cpus'" in infer("compare").stderr
    ini.write_text("[pytest\n")
    assert infer("compare").exit_code == 2


@pytest.mark.parametrize("form", ["terminal", "markdown", "json", "csv"])
def test_formats_of_a_gate(infer, add, steady, form):
    add(1.3)
    result = infer("gate", "--rule=tpot:5%", f"--format={form}")
    assert result.exit_code == 1
    assert "tpot:5%" in result.stdout
    if form == "json":
        found = json.loads(result.stdout)
        assert found["result"] == "regressed"
        assert [row["verdict"] for row in found["judgements"]] == ["regressed", "unchanged"]
    if form == "csv":
        assert [row["verdict"] for row in csv.DictReader(io.StringIO(result.stdout))] == ["regressed", "unchanged"]


@pytest.mark.parametrize("form", ["terminal", "json"])
def test_github(infer, add, steady, tmp_path, monkeypatch, form):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    add(1.3)
    result = infer("gate", "--rule=tpot:5%", "--github", f"--format={form}")
    assert result.exit_code == 1
    said = result.stderr if form == "json" else result.stdout
    (line,) = [line for line in said.splitlines() if line.startswith("::")]
    assert line.startswith("::error title=story%3A tpot%3A5%25::50.0 ms → 65.0 ms  [+")
    text = summary.read_text()
    assert text.startswith("before\n### decode of story 30 % slower ")
    assert "\n**gate 0007 cccccccc (main) against 0006" in text
    assert "**gate: regressed**" in text
    if form == "json":
        json.loads(result.stdout)


def test_a_step_summary_that_cannot_be_written_does_not_change_the_verdict(infer, add, steady, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary.md"))
    path = add(1.3)
    result = infer("gate", "--rule=tpot:5%", "--github")
    assert result.exit_code == 1
    assert "cannot be written: No such file or directory" in result.stderr
    assert mark(path)["result"] == "regressed"


def test_a_newer_file_does_not_stop_the_gate(infer, add, steady, make_block, storage):
    storage.add([{**make_block(), "schema": 2}])
    add(1.3)
    result = infer("gate", "--rule=tpot:5%")
    assert result.exit_code == 1
    assert "schema 2 is newer" in result.stderr


# history and baselines


def test_history_lists_runs_marks_and_names(infer, add):
    add(commit="a" * 40)
    add(commit="b" * 40, branch="topic", dirty=True, gate={"result": "regressed"}, failed={"x": {}})
    assert infer("baseline", "set", "release", "1").stdout == "baseline:release is 0001 aaaaaaaa (main)\n"
    lines = infer("history").stdout.splitlines()
    assert lines[1].split() == [
        *("0001", "2026-01-01", "00:01", "aaaaaaaa", "main", "2", "hand-made", "float32", "A", "CPU", "×", "2"),
        *("—", "release"),
    ]
    assert "bbbbbbbb+" in lines[2]
    assert "2 (+1 failed)" in lines[2]
    assert lines[2].endswith("regressed")
    assert len(infer("history", "-n", "1").stdout.splitlines()) == 2
    assert "bbbbbbbb" not in infer("history", "--branch=main").stdout
    none = infer("history", "--branch=none")
    assert none.exit_code == 11
    assert re.fullmatch(r"pytest-infer: no run in .* is of the branch none\n", none.stderr)


def test_a_name_is_shown_beside_its_own_file_only(infer, add):
    add(name="one/0001_x.json")
    add(name="two/0001_x.json", branch="topic")
    infer("baseline", "set", "mine", "branch:topic")
    assert [line.endswith("mine") for line in infer("history").stdout.splitlines()] == [False, False, True]


def test_a_name_of_a_copy_is_shown_beside_the_run(infer, add):
    path = add(name="one/0001_x.json")
    copy = path.with_name("0002_x.json")
    shutil.copy(path, copy)
    infer("baseline", "set", "mine", str(copy))
    (_, line) = infer("history").stdout.splitlines()
    assert line.startswith("0001")
    assert line.endswith("mine")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode elsewhere")
def test_a_storage_whose_name_is_not_utf8_is_one_as_any(infer, storage, add, steady):
    folder = storage.folder.with_name(os.fsdecode(b"caf\xe9"))
    try:
        storage.folder.rename(folder)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    shutil.copy(folder / "Linux-CPython-3.12-64bit" / "0001_cccccccc_x.json", folder / os.fsdecode(b"0001_\xe9.json"))
    for _ in range(2):  # read, and known
        assert infer("gate", "--rule=tpot:5%", folder=folder).exit_code == 0
    refused = infer("baseline", "set", "mine", str(folder / os.fsdecode(b"0001_\xe9.json")), folder=folder)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert refused.stderr.endswith("baselines.ini cannot name a file whose own name is not UTF-8; rename it\n")
    infer("baseline", "set", "mine", str(folder / "Linux-CPython-3.12-64bit" / "0003_cccccccc_x.json"), folder=folder)
    assert infer("history", folder=folder).stdout.splitlines()[3].endswith("mine")
    assert infer("compare", "baseline:mine", "2", folder=folder).exit_code == 0
    assert "caf\\udce9" in json.loads(infer("show", "--format=json", folder=folder).stdout)["run"]


def test_history_shows_hostile_names_as_they_are(infer, add):
    add(branch="[red]\x1b[31m/topic")
    shown = infer("history").stdout
    assert "\x1b" not in shown
    assert r"[red]\x1b[31m/topic" in shown


def test_baselines(infer, add, steady):
    add(1.3)
    infer("baseline", "set", "release", "1")
    infer("baseline", "set", "Release", "2")
    shown = infer("baseline", "list").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["Release", "release"]
    assert shown[1].endswith("0001_cccccccc_x.json")
    result = infer("gate", "--rule=tpot:5%", "--against=baseline:release", "--no-mark")
    assert "against 0001 " in result.stdout
    assert infer("baseline", "forget", "release").exit_code == 0
    assert infer("compare", "baseline:release", "7").exit_code == 2
    assert infer("compare", "baseline:Release", "7").exit_code == 0


def test_a_baseline_whose_file_is_gone(infer, add):
    path = add()
    add()
    infer("baseline", "set", "old", "1")
    path.unlink()
    result = infer("compare", "baseline:old", "latest")
    assert (result.exit_code, "which is gone; `pytest-infer baseline set old RUN`" in result.stderr) == (2, True)
    assert infer("history").exit_code == 0


def test_a_damaged_ini_file_is_one_line(infer, add, storage):
    add()
    (storage.folder / "baselines.ini").write_text("[baselines\n")
    for arguments in (("history",), ("baseline", "list"), ("baseline", "set", "a", "1")):
        result = infer(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "mend it or remove it" in result.stderr


@pytest.mark.parametrize("command", [["compare"], ["report", "-o", "report.html"]])
def test_a_run_is_not_compared_with_itself_by_whatever_names(infer, add, command):
    add()
    add()
    same = (("latest", "latest"), 2)
    for names, number in (same, (("main", "latest"), 2), (("1", "latest~1"), 1), (("latest~1", "2", "main"), 2)):
        result = infer(*command, *names)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        said = f"{names[-2]} and {names[-1]} are both 000{number} cccccccc (main): name two runs"
        assert said in result.stderr


def test_of_a_run_with_two_names_one_is_exported(infer, add):
    add()
    once = infer("export", "latest").stdout
    assert once.count("\n") > 1
    assert infer("export", "1", "latest").stdout == once


def test_change_points_are_shown_with_names_as_they_are(infer, add):
    for number in range(16):
        factor = STEADY[number % 6] * (1.0 if number < 8 else 1.2)
        add(factor, other=STEADY[number % 6], prompts=("story",), branch="[red]main")
    result = infer("history", "--change-points", "--metric=tpot")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()[1:]
    assert line.startswith("0009 cccccccc ([red]main)")
    assert "50.0 ms → 60.0 ms  +20 %" in line
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    assert "no change points" in infer("history", "--change-points", "--metric=ttft").stdout


def test_experts_of_tests_with_one_prompt_are_told_apart(infer, storage, make_block):
    for shares in ([5, 5], [9, 1]):
        sites = [{"name": "layers.0", "layer": 0}]
        used = {"sites": sites, "counts": {"prefill": [shares], "decode": [[0, 0]]}}
        block = make_block("story", only=KEPT, experts=used)
        rows = [{"name": "t", "fullname": f"{file}.py::t[story]", "stats": {"median": 1}} for file in "ab"]
        storage.add([{**row, "extra_info": {"pytest_infer": block}} for row in rows])
    found = json.loads(infer("compare", "--format=json").stdout)
    (drifts,) = found["expert_drift"].values()
    assert {test: layers[0]["distance"] for test, layers in drifts.items()} == {
        "a.py::t[story]": pytest.approx(0.4),
        "b.py::t[story]": pytest.approx(0.4),
    }
    assert "b.py::t[story]: layer 0 40.0 % (E0 50 → 90 %, E1 50 → 10 %)" in infer("compare").stdout


# how a gate ends


def test_what_is_inconclusive_may_pass_and_nothing_else(infer, add, tmp_path):
    add()
    add(1.02)
    told = infer("gate", "--rule", "tpot:5%", "--no-mark")
    assert (told.exit_code, told.stdout.splitlines()[-1]) == (
        10,
        "inconclusive: exit 10 (--inconclusive=pass lets it pass)",
    )
    passed = infer("gate", "--rule", "tpot:5%", "--inconclusive=pass")
    assert (passed.exit_code, passed.stdout.splitlines()[-1]) == (0, "inconclusive: passes (--inconclusive=pass)")
    (newest,) = infer("history", "-n1").stdout.splitlines()[-1:]
    assert "inconclusive" in newest, "what is stored is what was found"
    (tmp_path / "outside" / "pytest.ini").write_text("[pytest]\ninfer_inconclusive = pass\n")
    assert infer("gate", "--rule", "tpot:5%").exit_code == 0
    assert infer("gate", "--rule", "tpot:5%", "--inconclusive=fail").exit_code == 10
    add(1.02, changes={"model": {"threads": 77}})
    different = infer("gate", "--against", "1", "--rule", "tpot:5%", "--inconclusive=pass")
    assert different.exit_code == 11, different.stdout
    add(prompts=("story",))
    missing = infer("gate", "--against", "1", "--rule", "tpot:5%", "--inconclusive=pass")
    assert missing.exit_code == 1, missing.stdout


def test_incomparable_does_not_pass_with_what_is_inconclusive(infer, storage, make_block):
    def block(name, digest="a" * 64):
        return make_block(name, only=KEPT, output_sha256=digest, tpot_s=[0.05 * r for r in ROUNDS])

    storage.add([block("story"), block("chat")])
    storage.add([block("story"), block("chat", "b" * 64)])
    result = infer("gate", "--rule", "tpot:5%", "--inconclusive=pass")
    assert "1 inconclusive, 1 incomparable" in result.stdout
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (
        10,
        "inconclusive: passes (--inconclusive=pass); incomparable does not: exit 10",
    )


@pytest.mark.parametrize("exits", [("--exit=bisect",), ("--exit", "bisect")])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--rule", "tpot<=100s"), 0),
        (("--rule", "tpot<=1us"), 1),
        (("--rule", "tpot:5%"), 125),
        (("--rule", "tpot:5%", "--inconclusive=pass"), 125),
        (("--rule", "nothing:5%"), 128),
        (("77",), 128),
        (("--no-such-option",), 128),
        (("--confidence=two",), 128),
        (("--inconclusive=maybe",), 128),
    ],
)
def test_git_bisect_is_told(infer, add, arguments, code, exits):
    add()
    add(1.02)
    assert infer("gate", *arguments, *exits, "--no-mark").exit_code == code


def test_git_bisect_skips_what_has_nothing_to_be_compared_with_and_a_crash_of_ours(infer, add, monkeypatch):
    assert infer("gate", "--exit=bisect").exit_code == 125
    add()
    assert infer("gate", "--exit=bisect").exit_code == 125

    def crash(*_arguments, **_named):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("pytest_infer.cli.gate._gated", crash)
    assert infer("gate", "--exit=bisect").exit_code == 125


def test_a_missing_test_is_not_bad_for_git_bisect(infer, add):
    add()
    add(prompts=("story",))
    assert infer("gate", "--rule", "output:exact").exit_code == 1
    assert infer("gate", "--rule", "output:exact", "--exit=bisect").exit_code == 125


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--inconclusive=maybe", "--inconclusive: unknown value 'maybe'; known: fail, pass"),
        ("--exit=git", "--exit: unknown value 'git'; known: bisect, plain"),
    ],
)
def test_a_wrong_ending_is_one_line(infer, add, option, line):
    add()
    result = infer("gate", option)
    assert (result.exit_code, result.stderr) == (2, f"pytest-infer: {line}\n")
