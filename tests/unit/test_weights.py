"""The hash of a model's weight files: which files, when they are read, and when not."""

import hashlib
import json
import os
import sys

import pytest

from pytest_infer.engines.checkpoint import hashes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / hashes.CACHE_FILE


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    return made


@pytest.fixture
def told():
    return []


def put(folder, **contents):
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def by_hand(**contents):
    total = hashlib.sha256()
    for name, content in sorted(contents.items()):
        total.update(f"{name.replace('__', '.')}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def test_it_is_the_hash_of_names_and_hashes(folder, told):
    put(folder, model__safetensors=b"one")
    assert hashes.sha256(folder, told.append) == by_hand(model__safetensors=b"one")
    assert told == ["hashing model.safetensors, once …"]


@pytest.mark.parametrize(
    ("present", "loaded"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        (["other.gguf"], ["other.gguf"]),
        (["a.safetensors", "b.safetensors", "c.bin"], ["a.safetensors", "b.safetensors"]),
        (["model.safetensors", "adapter_model.safetensors"], ["adapter_model.safetensors", "model.safetensors"]),
        (["config.json"], []),
    ],
    ids=str,
)
def test_only_what_is_loaded_counts(folder, present, loaded):
    for name in present:
        (folder / name).write_bytes(b"{}")
    assert [path.name for path in hashes.files(folder)] == loaded


def test_an_index_names_the_files(folder, told):
    put(folder, a__safetensors=b"one", b__safetensors=b"two", stale__safetensors=b"three")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hashes.sha256(folder, told.append) == by_hand(a__safetensors=b"one", b__safetensors=b"two")
    (folder / "b.safetensors").unlink()
    assert hashes.sha256(folder, told.append) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_path_that_is_no_utf_8_is_remembered_and_forgets_no_other(tmp_path, folder, told):
    put(folder, model__safetensors=b"one")
    other = tmp_path / os.fsdecode(b"\xff")
    other.mkdir()
    (other / os.fsdecode(b"\xfe.gguf")).write_bytes(b"two")
    first = [hashes.sha256(one, told.append) for one in (folder, other)]
    assert [hashes.sha256(one, told.append) for one in (folder, other)] == first
    assert None not in first
    assert len(told) == 2


def test_a_file_is_read_once_and_again_when_it_changed(folder, told):
    put(folder, model__safetensors=b"one")
    first = hashes.sha256(folder, told.append)
    assert hashes.sha256(folder, told.append) == first
    assert len(told) == 1
    put(folder, model__safetensors=b"other")
    assert hashes.sha256(folder, told.append) == by_hand(model__safetensors=b"other") != first
    assert len(told) == 2


def test_the_cache_keeps_one_hash_a_file_and_those_of_other_files(folder, cache, told):
    put(folder, model__safetensors=b"one")
    hashes.sha256(folder, told.append)
    put(folder, model__safetensors=b"other")
    hashes.sha256(folder, told.append)
    other = folder.parent / "second"
    other.mkdir()
    put(other, model__safetensors=b"second")
    hashes.sha256(other, told.append)
    held = json.loads(cache.read_text())
    assert set(held) == {str(made.resolve() / "model.safetensors") for made in (folder, other)}
    assert {entry.split()[-1] for entry in held.values()} == {
        hashlib.sha256(content).hexdigest() for content in (b"other", b"second")
    }
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": "not a hash"}', "\0"])
def test_a_damaged_cache_is_ignored_and_replaced(folder, cache, told, content):
    cache.parent.mkdir()
    cache.write_text(content)
    put(folder, model__safetensors=b"one")
    assert hashes.sha256(folder, told.append) == by_hand(model__safetensors=b"one")
    hashes.sha256(folder, told.append)
    assert len(told) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(folder, cache, told):
    cache.parent.write_text("a file where the folder should be")
    put(folder, model__safetensors=b"one")
    assert hashes.sha256(folder, told.append) == by_hand(model__safetensors=b"one")


@pytest.mark.parametrize(("name", "read"), [("ab" * 32, False), ("ab" * 20, True), ("AB" * 32, True)])
def test_a_hub_blob_bears_its_hash_as_a_name(folder, told, name, read):
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    (blobs / name).write_bytes(b"what is in it")
    (folder / "model.safetensors").symlink_to(blobs / name)
    found = hashes.sha256(folder, told.append)
    assert bool(told) is read
    digest = hashlib.sha256(b"what is in it").hexdigest() if read else name
    assert found == hashlib.sha256(f"model.safetensors\0{digest}\n".encode()).hexdigest()


def test_without_weights_there_is_no_hash(folder, told):
    assert hashes.sha256(folder, told.append) is None
    (folder / "model.safetensors").symlink_to(folder / "gone")
    assert hashes.sha256(folder, told.append) is None
