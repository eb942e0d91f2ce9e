"""Heads of run files, kept in the cache: they save time and never change what is read."""

import os

import pytest

from pytest_infer.storage import files, history, runfile, runs


@pytest.fixture
def reads(monkeypatch):
    """Return the files whose heads were read."""
    found = []
    read = runs.read

    def counted(path):
        found.append(path.name)
        return read(path)

    monkeypatch.setattr(history, "read", counted)
    return found


def kept(tmp_path):
    (path,) = (tmp_path / "cache" / "history").iterdir()
    return path


def test_a_head_is_read_once_and_is_the_same_from_the_cache(storage, make_block, reads):
    gate = {"result": "regressed", "against": "0001", "rules": ["ttft:5%"]}
    storage.add([make_block()], gate=gate, failed={"x": {}}, unmeasured=["y"])
    storage.add([], commit="unversioned", branch="(unknown)", dirty=True)
    first = storage.load()
    second = storage.load()
    assert len(reads) == 2
    assert second == first
    assert second.runs[0].gate == runfile.Mark(result="regressed", against="0001", rules=("ttft:5%",))
    assert (second.runs[0].failed, second.runs[0].unmeasured) == (("x",), ("y",))
    assert [row.name for row in second.runs[0].rows] == ["guide"]
    assert second.runs[0].regressed


def test_a_changed_file_is_read_again(storage, make_block, reads):
    path = storage.add([make_block()])
    storage.add([make_block()])
    storage.load()
    files.mark(path, runfile.Mark(result="regressed"))
    assert [run.regressed for run in storage.load().runs] == [True, False]
    assert len(reads) == 3


def test_a_change_of_the_same_length_is_seen(storage, make_block):
    path = storage.add([make_block()], branch="main")
    state = path.stat()
    storage.load()
    path.write_text(path.read_text().replace('"main"', '"side"'))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert path.stat().st_size == state.st_size
    assert storage.load().runs[0].branch == "side"


def test_a_file_that_went_away_is_forgotten(storage, make_block, tmp_path):
    path = storage.add([make_block()])
    storage.add([make_block()])
    storage.load()
    before = kept(tmp_path).stat().st_size
    path.unlink()
    assert [run.number for run in storage.load().runs] == ["0002"]
    assert kept(tmp_path).stat().st_size < before


def test_a_damaged_file_is_warned_of_every_time(storage, make_block):
    storage.add([make_block()])
    (storage.folder / "0002_x.json").write_text("{")
    assert storage.load().warnings == storage.load().warnings != ()


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x80", b"\x82\xa6fields\x90\xa5heads\x80"])
def test_a_damaged_cache_is_not_believed(storage, make_block, tmp_path, content):
    storage.add([make_block()])
    first = storage.load()
    kept(tmp_path).write_bytes(content)
    assert storage.load() == first


def test_a_cache_that_cannot_be_written_costs_only_time(storage, make_block, tmp_path, reads):
    (tmp_path / "cache").write_text("in the way")
    storage.add([make_block()])
    assert storage.load() == storage.load()
    assert len(reads) == 2


def test_two_storages_do_not_mix(storage, make_block, tmp_path):
    storage.add([make_block()])
    other = type(storage)(tmp_path / "other")
    other.add([make_block(), make_block("b")])
    for _ in range(2):
        assert [run.tests for run in storage.load().runs] == [1]
        assert [run.tests for run in other.load().runs] == [2]
