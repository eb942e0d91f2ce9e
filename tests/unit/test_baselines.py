"""Names for runs in baselines.ini."""

import codecs
import threading

import pytest

from pytest_infer.errors import StorageError
from pytest_infer.storage import baselines, files, runfile, runs


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "Linux" / "0001_x.json"
    path.parent.mkdir()
    path.touch()
    return path


def test_a_name_is_kept_relative_to_the_folder(tmp_path, run_file):
    baselines.name(tmp_path, "release", run_file)
    assert (tmp_path / "baselines.ini").read_text() == "[baselines]\nrelease = Linux/0001_x.json\n\n"
    assert baselines.path_of(tmp_path, "release") == run_file
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert baselines.path_of(moved, "release") == moved / "Linux" / "0001_x.json"


def test_names_keep_their_case_and_are_told_apart_by_it(tmp_path, run_file):
    other = run_file.with_name("0002_x.json")
    other.touch()
    baselines.name(tmp_path, "Main", run_file)
    baselines.name(tmp_path, "main", other)
    assert baselines.names(tmp_path) == {"Main": "Linux/0001_x.json", "main": "Linux/0002_x.json"}


def test_a_name_can_be_given_again(tmp_path, run_file):
    other = run_file.with_name("0002_x.json")
    other.touch()
    baselines.name(tmp_path, "a", run_file)
    baselines.name(tmp_path, "a", other)
    assert baselines.path_of(tmp_path, "a") == other


def test_no_file_has_no_names(tmp_path):
    assert baselines.names(tmp_path) == {}
    assert baselines.path_of(tmp_path, "a") is None


def test_forget(tmp_path, run_file):
    baselines.name(tmp_path, "a", run_file)
    baselines.name(tmp_path, "b", run_file)
    baselines.forget(tmp_path, "a")
    assert list(baselines.names(tmp_path)) == ["b"]
    with pytest.raises(StorageError, match="no baseline 'a'; known: b"):
        baselines.forget(tmp_path, "a")
    baselines.forget(tmp_path, "b")
    with pytest.raises(StorageError, match="no baseline 'b'; known: none"):
        baselines.forget(tmp_path, "b")


@pytest.mark.parametrize(
    "name", ["v1.0", "größe", "100%", "%(x)s", "DEFAULT", "a/b", "~", "$HOME", "-x", "7", "!", "'"]
)
def test_odd_names(tmp_path, run_file, name):
    baselines.name(tmp_path, name, run_file)
    assert baselines.path_of(tmp_path, name) == run_file
    assert list(baselines.names(tmp_path)) == [name]


@pytest.mark.parametrize(
    "name", ["", "a b", "a=b", "a:b", "[a]", "#a", ";a", "a\nb", "a\x1b[31m", "a\u202eb", "\u00a0"]
)
def test_names_that_cannot_be_written_are_refused(tmp_path, run_file, name):
    with pytest.raises(StorageError, match="a baseline's name is one word") as raised:
        baselines.name(tmp_path, name, run_file)
    assert str(raised.value).isprintable()
    assert not (tmp_path / "baselines.ini").exists()


@pytest.mark.parametrize("file", ["100% %(here)s_x.json", "0001 _x; a # b = c.json", "größe.json"])
def test_odd_file_names(tmp_path, file):
    path = tmp_path / file
    path.touch()
    baselines.name(tmp_path, "a", path)
    assert baselines.path_of(tmp_path, "a") == path


def test_a_run_outside_the_storage_can_be_named(tmp_path):
    folder, outside = tmp_path / "results", tmp_path / "outside.json"
    folder.mkdir()
    outside.touch()
    baselines.name(folder, "a", outside)
    assert baselines.path_of(folder, "a").resolve() == outside


def test_names_that_are_given_at_once_are_all_kept(tmp_path, run_file):
    given = [threading.Thread(target=baselines.name, args=(tmp_path, f"n{number}", run_file)) for number in range(8)]
    for one in given:
        one.start()
    for one in given:
        one.join()
    assert sorted(baselines.names(tmp_path)) == [f"n{number}" for number in range(8)]


def test_without_locks_a_name_is_given_all_the_same(tmp_path, run_file, monkeypatch):
    def none(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    baselines.name(tmp_path, "a", run_file)
    baselines.forget(tmp_path, "a")
    assert baselines.names(tmp_path) == {}


def test_a_run_that_is_a_link_is_the_one_that_a_gate_marks(storage, make_block, tmp_path):
    target = storage.add([make_block()]).rename(tmp_path / "object")
    link = storage.folder / "0001_x.json"
    link.symlink_to(target)
    baselines.name(storage.folder, "a", link)
    files.mark(link, runfile.Mark(result="regressed"))
    assert runs.read(baselines.path_of(storage.folder, "a")).regressed


def test_a_linked_file_of_names_stays_a_link(tmp_path, run_file):
    target = tmp_path / "shared.ini"
    (tmp_path / "baselines.ini").symlink_to(target)
    baselines.name(tmp_path, "a", run_file)
    assert (tmp_path / "baselines.ini").is_symlink()
    assert "a = Linux/0001_x.json" in target.read_text()


def test_a_file_that_is_gone_is_named(tmp_path, run_file):
    baselines.name(tmp_path, "a", run_file)
    run_file.unlink()
    with pytest.raises(
        StorageError, match=r"baseline 'a' names .*0001_x.json, which is gone; `pytest-infer baseline set"
    ):
        baselines.path_of(tmp_path, "a")


@pytest.mark.parametrize(
    "content",
    [
        b"a = b\n",
        b"[baselines\na = b\n",
        b"[baselines]\na = 1\na = 2\n",
        b"[baselines]\nnothing\n",
        b"\xff\xfe\x00",
        b"[baselines]\n[baselines]\n",
    ],
)
def test_a_damaged_file_is_one_line_and_kept(tmp_path, run_file, content):
    path = tmp_path / "baselines.ini"
    path.write_bytes(content)
    for ask in (
        lambda: baselines.names(tmp_path),
        lambda: baselines.name(tmp_path, "new", run_file),
        lambda: baselines.forget(tmp_path, "a"),
    ):
        with pytest.raises(StorageError, match=r"baselines\.ini: .*; mend it or remove it") as raised:
            ask()
        assert "\n" not in str(raised.value)
    assert path.read_bytes() == content


def test_a_byte_order_mark_hides_no_name(tmp_path, run_file):
    baselines.name(tmp_path, "a", run_file)
    path = tmp_path / "baselines.ini"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    baselines.name(tmp_path, "b", run_file)
    assert list(baselines.names(tmp_path)) == ["a", "b"]


def test_other_sections_are_not_names(tmp_path):
    (tmp_path / "baselines.ini").write_text("[other]\na = b\n")
    assert baselines.names(tmp_path) == {}


def test_a_file_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, run_file):
    # A folder in its place fails for root too; a file without the right to read it fails alike.
    (tmp_path / "baselines.ini").mkdir()
    with pytest.raises(StorageError, match=r"baselines\.ini cannot be read"):
        baselines.names(tmp_path)
    with pytest.raises(StorageError, match=r"baselines\.ini cannot be read"):
        baselines.name(tmp_path, "a", run_file)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, run_file, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baselines, "replacing", full)
    with pytest.raises(StorageError, match=r"baselines\.ini cannot be written: No space left on device"):
        baselines.name(tmp_path, "a", run_file)
