"""Stored runs: their order, what names them, and files that are none."""

import codecs
import json
import re
import shutil
import subprocess

import pytest

from pytest_infer.errors import StorageError
from pytest_infer.storage import baselines, history, runfile, runs
from pytest_infer.storage.code import branch_of_job

PLAIN = {"name": "t", "fullname": "other.py::t", "stats": {"median": 0.5, "data": [0.4, 0.5, 0.6]}, "extra_info": {}}


def names(found):
    return [run.path.name for run in found.runs]


def test_the_time_in_the_file_orders_runs_not_their_numbers(storage, make_block):
    storage.add([make_block()], name="m/0002_a.json", at="2026-01-01T00:00:00+00:00")
    storage.add([make_block()], name="m/0001_b.json", at="2026-01-02T00:00:00+00:00")
    storage.add([make_block()], name="other/0001_c.json", at="2025-12-31T23:59:59.500000+00:00")
    assert names(storage.load()) == ["0001_c.json", "0002_a.json", "0001_b.json"]


def test_time_zones_count_and_a_time_without_one_is_utc(storage, make_block):
    storage.add([make_block()], name="0001_a.json", at="2026-01-01T12:00:00+02:00")
    storage.add([make_block()], name="0002_b.json", at="2026-01-01T11:00:00")
    storage.add([make_block()], name="0003_c.json", at="2026-01-01T10:30:00Z")
    found = storage.load()
    assert names(found) == ["0001_a.json", "0003_c.json", "0002_b.json"]
    assert [f"{run.time:%H:%M}" for run in found.runs] == ["10:00", "10:30", "11:00"]


def test_numbers_go_on_past_9999(storage, make_block):
    for number in (9999, 10000, 10001):
        storage.add([make_block()], name=f"m/{number}_x.json")
    found = storage.load()
    assert [run.number for run in found.runs] == ["9999", "10000", "10001"]
    assert found.select("latest").number == "10001"
    assert found.select("10000").number == "10000"


def test_a_run_tells_what_it_is_without_its_rows(storage, make_block):
    storage.add([make_block("a"), make_block("b")], commit="ab" * 20, branch="topic", dirty=True)
    (run,) = storage.load().runs
    assert (run.commit, run.branch, run.dirty, run.tests, run.plain) == ("ab" * 20, "topic", True, 2, False)
    assert (run.model, run.machine) == ("hand-made float32", "A CPU × 2")
    assert run.label == "0001 abababab+ (topic)"
    assert [row.name for row in run.rows] == ["a", "b"]
    assert run.row("bench/t.py::t[b]").name == "b"
    assert run.row("bench/t.py::t[c]") is None
    assert run.rows[0].metrics["ttft_s"].numbers == (0.2, 0.201, 0.202, 0.203)


@pytest.mark.parametrize(
    ("commit", "branch"), [("unversioned", "(unknown)"), ("unknown", "(unknown)"), ("unknown", "(detached head)")]
)
def test_outside_git_there_is_no_commit(storage, make_block, commit, branch):
    path = storage.add([make_block()], commit=commit, branch=branch)
    (run,) = storage.load().runs
    assert (run.commit, run.branch, run.label) == (None, None, "0001")
    assert runs.read(path) == run


@pytest.mark.parametrize(
    ("variables", "branch"),
    [
        ("CI_COMMIT_SHA=c CI_COMMIT_BRANCH=main", "main"),
        ("CI_COMMIT_SHA=old CI_COMMIT_BRANCH=main", None),  # another commit is checked out: it may be of any branch
        ("CI_COMMIT_BRANCH=main", None),
        (
            "CI_COMMIT_SHA=c CI_PROJECT_PATH=a/b CI_MERGE_REQUEST_SOURCE_PROJECT_PATH=a/b "
            "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME=topic",
            "topic",
        ),
        (
            "CI_COMMIT_SHA=c CI_PROJECT_PATH=a/b CI_MERGE_REQUEST_SOURCE_PROJECT_PATH=fork/b "
            "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME=main",
            None,
        ),
        ("CI_COMMIT_SHA=c CI_COMMIT_TAG=v1", None),
        ("GITHUB_SHA=c GITHUB_REF_TYPE=branch GITHUB_REF_NAME=main GITHUB_HEAD_REF=", "main"),
        ("GITHUB_SHA=c GITHUB_REF_TYPE=branch GITHUB_REF_NAME=5/merge GITHUB_HEAD_REF=main", None),
        ("GITHUB_SHA=c GITHUB_REF_TYPE=tag GITHUB_REF_NAME=v1", None),
        ("", None),
    ],
)
def test_a_job_says_which_branch_its_commit_is_of(variables, branch):
    assert branch_of_job(dict(one.split("=") for one in variables.split()), "c") == branch
    assert branch_of_job(dict(one.split("=") for one in variables.split()), None) is None


@pytest.mark.parametrize(
    ("event", "told", "branch"),
    [
        ("pull_request", '{"pull_request": {"head": {"repo": {"full_name": "a/b"}}}}', "topic"),
        ("pull_request", '{"pull_request": {"head": {"repo": {"full_name": "fork/b"}}}}', None),
        ("pull_request", '{"pull_request": {"head": {"repo": null}}}', None),  # the fork was deleted
        ("pull_request", "[", None),
        ("pull_request_target", '{"pull_request": {"head": {"repo": {"full_name": "a/b"}}}}', None),
    ],
)
def test_a_pull_request_of_the_repository_itself_has_its_branch(tmp_path, event, told, branch):
    tmp_path.joinpath("event.json").write_text(told)
    of_job = {"GITHUB_SHA": "c", "GITHUB_REF_TYPE": "branch", "GITHUB_REF_NAME": "5/merge", "GITHUB_HEAD_REF": "topic"}
    of_event = {"GITHUB_EVENT_NAME": event, "GITHUB_EVENT_PATH": str(tmp_path / "event.json")}
    assert branch_of_job({**of_job, **of_event, "GITHUB_REPOSITORY": "a/b"}, "c") == branch
    assert branch_of_job({**of_job, **of_event, "GITHUB_REPOSITORY": "a/b"}, "d") is None


def test_plain_rows_are_timing_only(storage, make_block):
    storage.add([PLAIN])
    storage.add([PLAIN, make_block()])
    plain, mixed = storage.load().runs
    assert (plain.plain, plain.model, plain.machine) == (True, None, "host")
    (row,) = plain.rows
    assert (row.plain, set(row.metrics), row.test) == (True, {"total_s"}, "other.py::t")
    assert row.metrics["total_s"].numbers == (0.4, 0.5, 0.6)
    assert [r.plain for r in mixed.rows] == [True, False]
    assert not mixed.plain


def test_plain_rows_without_saved_data_have_their_median(storage):
    storage.add([{**PLAIN, "stats": {"median": 0.5, "min": 0.1}}])
    assert storage.load().runs[0].rows[0].metrics["total_s"].numbers == (0.5,)


def test_rows_of_phases_are_no_tests(storage, make_block):
    phase = {**PLAIN, "fullname": "bench/t.py::t[guide] ttft"}
    phase["extra_info"] = {"pytest_infer": {"schema": 1, "phase": "ttft", "of": "bench/t.py::t[guide]"}}
    storage.add([make_block(), phase])
    (run,) = storage.load().runs
    assert run.tests == 1
    assert [row.test for row in run.rows] == ["bench/t.py::t[guide]"]


def test_a_file_with_no_more_than_it_must_have(storage):
    storage.folder.joinpath("0001_x.json").write_text('{"datetime": "2026-01-01T00:00:00", "benchmarks": []}')
    (run,) = storage.load().runs
    assert (run.commit, run.machine, run.model, run.gate, run.tests, run.plain) == (None, None, None, None, 0, False)
    assert run.rows == ()


def test_a_block_with_no_more_than_it_must_have(storage):
    storage.add([{**PLAIN, "extra_info": {"pytest_infer": {"schema": 1, "phase": "total"}, "own": 1}}])
    (row,) = storage.load().runs[0].rows
    assert (row.name, dict(row.metrics), row.plain) == ("t", {}, False)


def test_what_the_run_says_of_itself(storage, make_block):
    mark = {"result": "regressed", "against": "0001", "rules": ["ttft:5%"]}
    failed = {"bench/t.py::t[b]": {"schema": 1, "anything": [1]}}
    storage.add([make_block()], gate=mark, failed=failed, unmeasured=["bench/t.py::t[c]"])
    (run,) = storage.load().runs
    assert (run.gate.result, run.gate.against, run.gate.rules) == ("regressed", "0001", ("ttft:5%",))
    assert (run.failed, run.unmeasured) == (("bench/t.py::t[b]",), ("bench/t.py::t[c]",))
    assert run.regressed
    assert [row.name for row in run.rows] == ["guide"]


@pytest.mark.parametrize("result", ["passed", "inconclusive", "nothing to compare"])
def test_only_a_failed_gate_spoils_a_run(storage, make_block, result):
    storage.add([make_block()], gate={"result": result})
    assert not storage.load().runs[0].regressed


ROW = '"name": "t", "fullname": "t", "stats": {"median": 1}'
NEWER = f'{{"datetime": "2026-01-01", "benchmarks": [{{{ROW}, "extra_info": {{"pytest_infer": %s}}}}]}}'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "not a run of pytest-benchmark"),
        (b'{"benchmarks": [', "not a run of pytest-benchmark"),
        (b"\xff\xfe", "not a run of pytest-benchmark"),
        (b"[]", "not a run of pytest-benchmark"),
        (b'{"name": "package"}', "not a run of pytest-benchmark"),
        (b'{"datetime": "yesterday", "benchmarks": []}', "not a run of pytest-benchmark"),
        (b'{"datetime": "0001-01-01T00:00:00+09:00", "benchmarks": []}', "not a run of pytest-benchmark"),
        (b'{"datetime": "2026-01-01", "benchmarks": [{"other": 1}]}', "not a run of pytest-benchmark"),
        (b'{"datetime": "2026-01-01", "benchmarks": [{"stats": NaN}]}', "not a run of pytest-benchmark"),
        ((NEWER % '{"schema": 2, "phase": "total"}').encode(), "schema 2 is newer"),
        ((NEWER % '{"schema": 2, "model": "m"}').encode(), "schema 2 is newer"),
        (b'{"datetime": "2026-01-01", "benchmarks": [], "pytest_infer": {"schema": 9}}', "schema 9 is newer"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_warning(storage, make_block, content, line):
    storage.add([make_block()])
    path = storage.folder / "0002_damaged.json"
    path.write_bytes(content)
    found = storage.load()
    assert names(found) == ["0001_cccccccc_x.json"]
    (warning,) = found.warnings
    assert warning.startswith(f"left out: {path}: ")
    assert line in warning
    assert "\n" not in warning
    with pytest.raises(StorageError, match=line):
        found.select(str(path))


def test_hidden_files_are_no_runs(storage, make_block):
    storage.add([make_block()], name=".run-1.json")
    storage.add([make_block()], name=".cache/0001_x.json")
    found = storage.load()
    assert (found.runs, found.warnings) == ((), ())


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(StorageError, match="no such folder; name the storage with --storage"):
        history.load(tmp_path / "nowhere")


def test_a_file_that_went_away_is_one_line(storage, make_block):
    path = storage.add([make_block()])
    (run,) = storage.load().runs
    path.unlink()
    with pytest.raises(StorageError, match="not a run of pytest-benchmark"):
        _ = run.rows


@pytest.mark.parametrize("marked", [None, "Linux-CPython-3.12-64bit", "restored"])
def test_copies_of_a_run_count_once_and_with_what_a_gate_said(storage, make_block, marked):
    """An artefact of CI that was restored into a folder of its own."""
    from pytest_infer.storage import files

    paths = [storage.add([make_block()]) for _ in range(3)]
    for path in paths:
        copy = storage.folder / "restored" / path.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    baselines.name(storage.folder, "named", storage.folder / "restored" / paths[1].name)
    if marked is not None:
        files.mark(storage.folder / marked / paths[1].name, runfile.Mark(result="regressed"))
    for _ in range(2):  # read, and known
        found = storage.load()
        assert [run.number for run in found.runs] == ["0001", "0002", "0003"]
        assert [run.regressed for run in found.runs] == [False, marked is not None, False]
    assert found.select("latest~1") == found.select("baseline:named") == found.runs[1]
    by_path = found.select(str(copy))
    assert by_path.path == copy


@pytest.mark.parametrize("gate", [{}, {"gate": {"result": "passed"}}])
def test_of_copies_one_with_a_number_counts(storage, make_block, gate):
    """The file of --benchmark-json is a copy which the next run replaces."""
    numbered = storage.add([make_block()], **gate)
    for name in ("+latest.json", "latest.json"):  # before and behind a number
        shutil.copy(numbered, storage.folder / name)
    assert [run.path for run in storage.load().runs] == [numbered]


def test_a_baseline_that_names_a_copy_which_a_gate_failed_is_that_copy(storage, make_block):
    from pytest_infer.storage import files

    numbered = storage.add([make_block()])
    copy = storage.folder / "restored.json"
    shutil.copy(numbered, copy)
    baselines.name(storage.folder, "named", copy)
    files.mark(numbered, runfile.Mark(result="passed"))
    files.mark(copy, runfile.Mark(result="regressed"))
    assert storage.load().select("baseline:named").path == copy


def test_a_copy_that_was_made_before_a_gate_failed_the_run_has_failed_too(storage, make_block, tmp_path):
    from pytest_infer.storage import files

    storage.add([make_block()])
    numbered = storage.add([make_block()])
    copy = tmp_path / "good.json"
    shutil.copy(numbered, copy)
    assert not storage.load().select(str(copy)).regressed
    files.mark(numbered, runfile.Mark(result="regressed"))
    found = storage.load().select(str(copy))
    assert (found.path, found.regressed) == (copy, True)


def test_a_copy_is_named_by_its_number(storage, make_block):
    path = storage.add([make_block()], name="a/0003_x.json")
    shutil.copy(path, path.with_name("0009_x.json"))
    storage.add([make_block()], name="b/0009_y.json", at="2025-01-01T00:00:00+00:00")
    found = storage.load()
    assert found.select("9").path == found.select("3").path == path
    (run,) = found.other_than(found.runs[-1]).runs
    assert found.other_than(found.runs[-1]).select("9") == run
    path.with_name("0010_x.json").write_text("")
    assert storage.load().select("9", strict=True).path == path
    path.with_name("00009_x.json").write_text("")
    with pytest.raises(StorageError, match=r"00009_x\.json is newer than 0003"):
        storage.load().select("9", strict=True)


@pytest.fixture
def four(storage, make_block):
    """Runs 1 to 4: of aaaa on main, of bbbb on topic, of aaaa on main again, and the newest of 0007… on 7."""
    for commit, branch in (("a" * 40, "main"), ("b" * 40, "topic"), ("a" * 40, "main"), ("0007" * 10, "latest")):
        storage.add([make_block()], commit=commit, branch=branch)
    return storage


@pytest.mark.parametrize(
    ("selector", "number"),
    [
        ("1", 1),
        ("0002", 2),
        ("number:3", 3),
        ("latest", 4),
        ("latest~0", 4),
        ("latest~3", 1),
        ("aaaa", 3),
        ("AAAAAAA", 3),
        ("commit:bbbbbbbb", 2),
        ("main", 3),
        ("branch:topic", 2),
        ("branch:latest", 4),
        ("commit:0007", 4),
    ],
)
def test_selectors(four, selector, number):
    assert four.load().select(selector).number == f"{number:04}"


def test_a_path_selects_a_file_anywhere(four, storage, make_block, tmp_path):
    outside = storage.add([make_block()], name="../outside.json")
    assert four.load().select(str(outside)).path == outside
    assert outside.parent == storage.folder / ".."


def test_a_number_comes_before_a_commit_and_a_baseline_before_a_branch(four):
    found = four.load()
    # 0007 is no run's number, so it is the commit; with a seventh run it would be that.
    assert found.select("0007").number == "0004"
    baselines.name(four.folder, "topic", found.runs[0].path)
    assert found.select("topic").number == "0001"
    assert found.select("branch:topic").number == "0002"
    baselines.name(four.folder, "2", found.runs[0].path)
    assert found.select("2").number == "0002"
    assert found.select("baseline:2").number == "0001"


def test_the_newest_of_several_with_one_number(storage, make_block):
    storage.add([make_block()], name="m/0001_new.json", at="2026-02-01T00:00:00")
    storage.add([make_block()], name="other/0001_old.json", at="2026-01-01T00:00:00")
    assert storage.load().select("1").path.name == "0001_new.json"


@pytest.mark.parametrize(
    "selector",
    [
        "9",
        "latest~4",
        "latest~x",
        "abc",
        "",
        "ffffff",
        "baseline:none",
        "-h",
        "./nowhere.json",
        "9" * 5000,
        "x" * 5000 + ".json",
    ],
)
def test_what_names_no_run_is_one_line(four, selector):
    with pytest.raises(StorageError, match=r"no run .* among the 4 in .*`pytest-infer history` lists them") as raised:
        four.load().select(selector)
    assert "\n" not in str(raised.value)


def test_an_unknown_kind_lists_the_known_ones(four):
    with pytest.raises(StorageError, match="unknown selector colour:…; known: number:, latest:, baseline:, commit:"):
        four.load().select("colour:red")


def test_a_tag_is_resolved_by_git(storage, make_block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def git(*command):
        options = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *options, *command], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("tag", "v1.0")
    git("commit", "-q", "--allow-empty", "-m", "second")
    storage.add([make_block()], commit=git("rev-parse", "HEAD~1"))
    storage.add([make_block()], commit=git("rev-parse", "HEAD"))
    found = storage.load()
    assert found.select("v1.0").number == found.select("tag:v1.0").number == found.select("HEAD~1").number == "0001"
    assert found.select("HEAD").number == "0002"
    with pytest.raises(StorageError, match="no run"):
        found.select("tag:v2.0")


def test_runs_before_another(four):
    found = four.load()
    assert [run.number for run in found.before(found.runs[2])] == ["0001", "0002"]


def test_a_mark_is_written_into_the_file_and_read_again(storage, make_block):
    from pytest_infer.storage import files

    path = storage.add([make_block()], unmeasured=["x"])
    before = json.loads(path.read_text())
    path.chmod(0o640)
    files.mark(path, runfile.Mark(result="regressed", against="0001", rules=("ttft:5%",)))
    (run,) = storage.load().runs
    assert run.gate == runfile.Mark(result="regressed", against="0001", rules=("ttft:5%",))
    after = json.loads(path.read_text())
    assert after["pytest_infer"].pop("gate")["result"] == "regressed"
    assert after == before
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_run_that_an_editor_gave_a_byte_order_mark_is_one(storage, make_block):
    from pytest_infer.storage import files

    path = storage.add([make_block()])
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    files.mark(path, runfile.Mark(result="passed"))
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    (run,) = storage.load().runs
    assert len(run.rows) == 1
    assert run.gate.result == "passed"


@pytest.mark.parametrize("odd", [float("nan"), -float("inf"), "\ud800", {"\udfff": ["ü\U0001f600"]}])
def test_what_python_alone_writes_into_a_tests_own_information_hides_no_run(storage, make_block, odd):
    """It is no JSON, and pytest-benchmark reads it."""
    from pytest_infer.storage import files

    own = {**PLAIN, "extra_info": {"loss": odd}}
    path = storage.add([make_block(), own])
    files.mark(path, runfile.Mark(result="passed"))
    (run,) = storage.load().runs
    assert (len(run.rows), run.gate.result) == (2, "passed")
    newer = storage.add([make_block(), own], gate=[], failed={"t": float("nan")})
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(StorageError, match="schema 99 is newer"):
        runfile.read(newer, runfile.ALL)
    # A figure of ours has no such value.
    path.write_text(re.sub('"value": ?[0-9]+', '"value": NaN', path.read_text(), count=1))
    with pytest.raises(StorageError, match="not a run of pytest-benchmark"):
        runfile.read(path, runfile.ROWS)


def test_a_plain_run_can_be_marked_too(storage):
    from pytest_infer.storage import files

    path = storage.add([PLAIN])
    files.mark(path, runfile.Mark(result="passed"))
    assert storage.load().runs[0].gate.result == "passed"


@pytest.mark.parametrize("content", ["", "[]", '{"pytest_infer": 3}', '{"pytest_infer": []}'])
def test_what_cannot_be_marked_is_one_line_and_unchanged(tmp_path, content):
    from pytest_infer.storage import files

    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(StorageError, match="could not be marked"):
        files.mark(path, runfile.Mark(result="passed"))
    assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_data_of_a_plain_row_are_one_line(storage):
    path = storage.add([{**PLAIN, "stats": {"median": 0.5, "data": "many"}}])
    with pytest.raises(StorageError, match=f"{path}: not a run of pytest-benchmark: Expected `array`, got `str`"):
        _ = storage.load().runs[0].rows
