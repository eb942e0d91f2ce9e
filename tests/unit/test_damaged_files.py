"""One damaged file beside good ones: named in one note and left out, by whatever reads the storage."""

import json
import zipfile

import not_files
import numpy as np
import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.errors import StorageError
from pytest_infer.storage import baselines, files, history, sidecar
from pytest_infer.storage.runfile import Mark

pytestmark = pytest.mark.timeout(180)

DEEP = "[" * 2000 + "]" * 2000


def run(*args):
    return CliRunner().invoke(app, list(map(str, args)))


@pytest.fixture
def good(storage, make_block, tmp_path, monkeypatch):
    """A storage of four good runs."""
    monkeypatch.chdir(tmp_path)  # a site is written there
    for value in (0.010, 0.011, 0.0102, 0.0099):
        storage.add([make_block("a", tpot_s=[value] * 5), make_block("b", tpot_s=[value] * 5)])
    return storage


def damaged(path, change, named="0099_damaged.json"):
    """Write a copy of a run file, its text changed, beside it."""
    text = path.read_text(encoding="utf-8")
    made = change(json.loads(text)) if callable(change) else change
    target = path.with_name(named)
    target.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    return target


def in_block(**changes):
    def change(run):
        run["datetime"] = "2026-06-01T00:00:00"
        run["benchmarks"][0]["extra_info"]["pytest_infer"].update(changes)
        return run

    return change


def bad_byte(run):
    run["machine_info"]["node"] = "MARK"
    return json.dumps(run).encode().replace(b"MARK", b"M\xffRK")


def without(*keys):
    def change(run):
        place = run
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        return run

    return change


USAGE = {"sites": [{"name": "l", "layer": 0, "experts": 2, "slots": 2, "k": 1}], "tokens": {"prefill": 1, "decode": 1}}

AT_ONCE = {
    "nesting": f'{{"datetime":"2026-01-01T00:00:00","benchmarks":[],"x":{DEEP}}}'.encode(),
    "a byte that is not UTF-8": bad_byte,
    "no time": without("datetime"),
    "no rows": without("benchmarks"),
    "a row without its figures": without("benchmarks", 0, "stats"),
    "a commit of another type": lambda run: {**run, "commit_info": 7},
    "a schema of another type": in_block(schema="one"),
    "a model of another type": in_block(model=[1]),
    "a time that is none": lambda run: {**run, "datetime": "yesterday"},
    "nothing": b"",
    "zeros": b"\0" * 1000,
    "half": lambda run: json.dumps(run).encode()[:2000],
}
"""Damage that the list of runs sees."""
IN_A_BLOCK = {
    "a figure of another type": in_block(metrics={"tpot_s": {"value": []}}),
    "a figure without its value": in_block(metrics={"tpot_s": {"rounds": [1.0]}}),
    "text for a number": in_block(metrics={"tpot_s": {"value": "fast"}}),
    "a number for text": in_block(metrics={"hottest_experts": {"value": 1}}),
    "a quality that there is not": in_block(metrics={"tpot_s": {"value": 1.0, "quality": "samled"}}),
    "a quality of another type": in_block(metrics={"tpot_s": {"value": 1.0, "quality": 3}}),
    "rounds of another type": in_block(rounds=3),
    "limits of another type": in_block(prompt={"name": "a", "limits": "none"}),
    "negative counts": in_block(experts={**USAGE, "counts": {"prefill": [[1, 0]], "decode": [[-1, 0]]}}),
}
"""Damage that only those see who read the tests."""

EVERYWHERE = [
    ("history",),
    ("history", "--change-points"),
    ("compare",),
    ("gate", "latest", "--no-mark", "--rule", "tpot:5%"),
    ("show",),
    ("advice",),
    ("export", "--all"),
    ("site", "public", "--keep=1"),
    ("baseline", "list"),
]


def assert_named_once(result, path, code):
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in code, result.output
    notes = [line for line in result.stderr.splitlines() if path.name in line]
    assert len(notes) == 1, result.stderr
    assert "left out: " in notes[0] or "cannot be read" in notes[0]


@pytest.mark.parametrize("change", AT_ONCE.values(), ids=AT_ONCE)
def test_a_damaged_run_is_named_once_and_left_out(good, change):
    path = damaged(good.folder / "Linux-CPython-3.12-64bit" / "0001_cccccccc_x.json", change, "0000_damaged.json")
    for command in EVERYWHERE:
        assert_named_once(run(*command, "--storage", good.folder), path, (0, 10))


@pytest.mark.parametrize("change", IN_A_BLOCK.values(), ids=IN_A_BLOCK)
def test_damage_within_a_test_is_found_by_those_who_read_it(good, change):
    path = damaged(good.folder / "Linux-CPython-3.12-64bit" / "0001_cccccccc_x.json", change)
    for command in EVERYWHERE[1:-1]:
        result = run(*command, "--storage", good.folder)
        assert result.exception is None or isinstance(result.exception, SystemExit), (command, result.exception)
        # A gate never takes the run before it in place of the newest.
        assert result.exit_code in ((2,) if command[0] == "gate" else (0, 10)), result.output
        assert path.name in result.stderr
        assert result.stderr.count(f"{path}: ") <= 1
    named = run("show", path, "--storage", good.folder)
    assert named.exit_code == 2
    assert path.name in named.stderr


@not_files.needs_posix
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_what_is_no_file_is_named_and_never_opened(good, make):
    path = good.folder / "Linux-CPython-3.12-64bit" / "0000_odd.json"
    make(path)
    for command in EVERYWHERE:
        result = run(*command, "--storage", good.folder)
        assert result.exit_code in (0, 10), result.output
        assert sum(f"{path.name}: " in line for line in result.stderr.splitlines()) == 1


def test_a_run_too_large_is_not_read(good, monkeypatch):
    path = good.folder / "0000_large.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    result = run("history", "--storage", good.folder)
    assert result.exit_code == 0
    assert "too large: 1.00 TiB" in result.stderr


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"no section", b"[baselines]\nmain = a\nmain = b\n", b"[baselines]\nmain = \xff\n", b"[baselines\n"],
)
def test_damaged_baselines_are_one_line(good, content):
    good.folder.joinpath(baselines.FILE).write_bytes(content)
    for command in (("compare", "baseline:main", "latest"), ("baseline", "list"), ("history",)):
        result = run(*command, "--storage", good.folder)
        assert result.exit_code == 2
        assert baselines.FILE in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["x" * 5000, "a\0b", "../" * 2000 + "x", "."])
def test_a_baseline_that_names_no_file_is_one_line(good, value):
    good.folder.joinpath(baselines.FILE).write_text(f"[baselines]\nmain = {value}\n")
    result = run("compare", "1", "baseline:main", "--storage", good.folder)
    assert result.exit_code == 2
    assert "main" in result.stderr
    assert run("history", "--storage", good.folder).exit_code in (0, 2)


@not_files.needs_posix
@pytest.mark.parametrize("links", [["a.json"], ["b.json", "a.json"], ["gone.json"]], ids=["itself", "two", "nothing"])
def test_a_baseline_that_is_a_link_to_nowhere_hides_no_run(good, links):
    good.folder.joinpath(baselines.FILE).write_text("[baselines]\nmain = a.json\n")
    for name, target in zip(["a.json", "b.json"], links, strict=False):
        good.folder.joinpath(name).symlink_to(target)
    result = run("history", "--storage", good.folder)
    assert result.exit_code == 0
    assert "0001" in result.stdout
    assert "left out" in result.stderr


@not_files.needs_posix
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_baselines_that_are_no_file_are_one_line(good, make):
    make(good.folder / baselines.FILE)
    result = run("history", "--storage", good.folder)
    assert result.exit_code == 2
    assert "not a file" in result.stderr


@pytest.mark.parametrize(
    "content", [f'{{"x": {DEEP}}}'.encode(), b'{"x": "\xff"}', b"[]", b"7", b'{"pytest_infer": 7}']
)
def test_a_file_that_cannot_be_marked_is_one_line(tmp_path, content):
    path = tmp_path / "0001_x.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="could not be marked") as caught:
        files.mark(path, Mark(result="passed"))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


# arrays beside a run


def members(run_file, **arrays):
    np.savez_compressed(sidecar.path_for(run_file), **arrays)


@pytest.fixture
def run_file(tmp_path):
    return tmp_path / "0001_x.json"


def test_the_size_of_arrays_is_known_before_they_are_unpacked(run_file, monkeypatch):
    path = sidecar.path_for(run_file)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("t|0|stamps_ns.npy", "w") as member,
    ):
        for _ in range(9):
            member.write(b"\0" * 2**20)
    assert path.stat().st_size < 2**16
    monkeypatch.setattr(sidecar, "MOST_BYTES", 2**23)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(StorageError, match=r"0001_x\.npz cannot be read: it would unpack to 9.00 MiB"):
        sidecar.read(run_file)


def test_a_large_run_is_read_whatever_its_size(run_file, monkeypatch):
    stamps = np.random.default_rng(1).integers(0, 2**60, 1000)
    np.savez_compressed(sidecar.path_for(run_file), **{"t|0|stamps_ns": stamps})
    monkeypatch.setattr(sidecar, "MOST_BYTES", 2**10)
    assert (sidecar.read(run_file)["t|0|stamps_ns"] == stamps).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), dtype=np.int64),
        np.zeros(3),
        np.array(["a"]),
        np.array([1 + 2j]),
        np.int64(3),
    ],
    ids=["dimensions", "floats", "texts", "complex", "a number"],
)
def test_an_array_of_another_kind_is_damage(run_file, array):
    members(run_file, **{"t|0|stamps_ns": array})
    with pytest.raises(StorageError, match="an array of "):
        sidecar.read(run_file)


def test_an_array_that_says_it_is_larger_than_it_is(run_file):
    members(run_file, **{"t|0|stamps_ns": np.zeros(3, dtype=np.int64)})
    path = sidecar.path_for(run_file)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("t|0|stamps_ns.npy").replace(b"(3,)", b"(9999999999,)"[:12])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t|0|stamps_ns.npy", content)
    with pytest.raises(StorageError, match="cannot be read"):
        sidecar.read(run_file)


def test_arrays_that_belong_together_are_of_one_length(run_file):
    members(run_file, **{"t|0|stamps_ns": np.arange(3), "t|0|tick_sizes": np.arange(2, dtype=np.int32)})
    with pytest.raises(StorageError, match="tick_sizes has 2 entries, not 3"):
        sidecar.read(run_file)


@pytest.mark.parametrize("part", ["experts", "gates", "breakdown"])
def test_a_prompt_may_be_called_like_a_part_of_a_key(run_file, part):
    key = f"t.py::test[a|{part}|b]"
    made = {f"{key}|0|stamps_ns": np.arange(3), sidecar.expert_key(key, "l"): np.zeros((3, 2), dtype=np.uint8)}
    members(run_file, **made)
    assert list(sidecar.read(run_file)) == list(made)
    wrong = {"experts": "l", "gates": "l", "breakdown": "decode|norms"}[part]
    members(run_file, **{f"{key}|{part}|{wrong}": np.zeros(3)})
    with pytest.raises(StorageError, match="an array of "):
        sidecar.read(run_file)


def test_what_no_run_of_today_writes_may_be_there(run_file):
    members(run_file, **{"t|0|stamps_ns": np.arange(3), "more": np.array(["x"]), "t|0|other": np.ones(3)})
    assert list(sidecar.read(run_file)) == ["t|0|stamps_ns", "more", "t|0|other"]


@not_files.needs_posix
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_arrays_that_are_no_file(run_file, make):
    make(sidecar.path_for(run_file))
    with pytest.raises(StorageError, match="not a file"):
        sidecar.read(run_file)


# what a run remembers


def test_a_run_remembers_that_its_tests_cannot_be_read(good):
    path = damaged(next(good.folder.rglob("*.json")), IN_A_BLOCK["a figure of another type"])
    told = []
    found = history.load(good.folder, told.append)
    assert found.warnings == ()
    (bad,) = [one for one in found.runs if one.path == path]
    assert bad.known_damage is None, "nobody has asked yet"
    assert not bad.readable
    assert not bad.readable
    assert bad.passing() == ()
    assert told == [f"left out: {bad.damage}"]
    with pytest.raises(StorageError, match="not a run"):
        found.select("99")
    assert found.select("latest").path != path
    assert found.newer_unread(found.select("latest")) == [path]
