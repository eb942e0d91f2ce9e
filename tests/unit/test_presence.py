"""Files of a model's folder that are missing, or that git-lfs has not fetched."""

import importlib.util
import json

import pytest

from pytest_infer.engines.checkpoint import presence
from pytest_infer.errors import ModelError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4977222288\n"


def write(folder, **files):
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def index(*names):
    return {"weight_map": {f"tensor{n}": name for n, name in enumerate(names)}}


def refused(check, folder):
    with pytest.raises(ModelError) as caught:
        check(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "tokenizer.model", "config.json", "merges.txt"],
)
def test_a_pointer_says_what_to_do(tmp_path, name):
    write(tmp_path, **{name: POINTER})
    line = refused(presence.check_pointers, tmp_path)
    assert line.endswith(f"{name}: a pointer of git-lfs and not the file: run git lfs pull in that folder")


def test_several_pointers_are_counted(tmp_path):
    files = {"model.safetensors.index.json": index("a.safetensors", "b.safetensors"), "tokenizer.json": POINTER}
    write(tmp_path, **files, **{"a.safetensors": POINTER, "b.safetensors": b"\0" * 2000})
    assert "a.safetensors and 1 more: a pointer" in refused(presence.check_pointers, tmp_path)


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "picture.png", "pytorch_model.bin"])
def test_a_pointer_that_nothing_reads_is_left_alone(tmp_path, name):
    write(tmp_path, **{"model.safetensors": b"\0" * 16, name: POINTER})
    presence.check_pointers(tmp_path)
    # Beside one that matters it is not counted either.
    write(tmp_path, **{"config.json": POINTER})
    assert "config.json: a pointer of git-lfs" in refused(presence.check_pointers, tmp_path)


def test_what_only_quotes_a_pointer_is_none(tmp_path):
    write(tmp_path, **{"notes.txt": b"see " + POINTER, "model.safetensors": POINTER + b" " * 2000})
    presence.check_pointers(tmp_path)
    write(tmp_path, **{"model.safetensors": POINTER})
    assert "model.safetensors: a pointer of git-lfs" in refused(presence.check_pointers, tmp_path)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no weights"),
        ({"tf_model.h5": b"x"}, "holds no weights"),
        ({"model.safetensors.index.json": b"{}"}, "holds no weights"),
        (
            {"model.safetensors.index.json": index("a.safetensors", "b.safetensors"), "a.safetensors": b"x"},
            "1 of 2 files of the weights are missing, the first is b.safetensors: fetch the model again",
        ),
        (
            {"pytorch_model.bin.index.json": index("a.bin", "b.bin", "c.bin"), "b.bin": b"x"},
            "2 of 3 files of the weights are missing, the first is a.bin",
        ),
    ],
    ids=str,
)
def test_weights_that_are_missing(tmp_path, files, says):
    write(tmp_path, **files)
    assert says in refused(presence.check_weights, tmp_path)


@pytest.mark.parametrize("files", [["model.safetensors"], ["pytorch_model.bin"], ["other-name.safetensors"]])
def test_weights_that_are_there(tmp_path, files):
    write(tmp_path, **dict.fromkeys(files, b"x"))
    presence.check_weights(tmp_path)
    # The file itself is what was found.
    (tmp_path / files[0]).unlink()
    assert "holds no weights" in refused(presence.check_weights, tmp_path)


def test_an_adapter_needs_its_package(tmp_path, monkeypatch):
    write(tmp_path, **{"model.safetensors": b"x", "adapter_config.json": {}, "adapter_model.safetensors": b"x"})
    found = importlib.util.find_spec
    monkeypatch.setattr(presence, "find_spec", lambda name: None if name == "peft" else found(name))
    assert "without peft: pip install peft" in refused(presence.check_weights, tmp_path)
    monkeypatch.setattr(presence, "find_spec", lambda name: object())
    presence.check_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (["tokenizer.json", "tokenizer_config.json"], True),
        (["tokenizer.model"], True),
        (["vocab.json", "merges.txt"], True),
        (["vocab.txt"], True),
        (["qwen.tiktoken"], True),
        (["tekken.json"], True),
        (["spiece.model"], True),
        (["tokenizer_config.json", "special_tokens_map.json", "config.json", "model.safetensors"], False),
        (["chat_template.jinja", "generation_config.json"], False),
        ([], False),
    ],
    ids=str,
)
def test_a_vocabulary_is_known_by_its_name(tmp_path, names, there):
    write(tmp_path, **dict.fromkeys(names, b"x"))
    assert presence.has_vocabulary(tmp_path) is there
