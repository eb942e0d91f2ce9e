"""What the command of a server gets for its model, and of which files a load of it is cold or warm."""

import struct
from pathlib import Path

import pytest

from pytest_infer.engines.base import EngineOptions, ServerOptions
from pytest_infer.engines.server.given import Given
from pytest_infer.errors import ModelError


def given(model, command):
    return Given(EngineOptions(model=str(model), server=ServerOptions(command=f"serve {command} {{port}}")))


@pytest.fixture
def split(tmp_path):
    """Return the parts of a split GGUF file that holds nothing."""
    parts = [tmp_path / f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for part in parts:
        part.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    return parts


@pytest.mark.parametrize("command", ["{gguf}", "{model}"])
def test_all_parts_of_a_split_file_are_its_files(split, command):
    assert given(split[0], command).files() == tuple(part.resolve() for part in split)


def test_a_part_that_is_missing_is_refused(split):
    split[1].unlink()
    with pytest.raises(ModelError, match=r"\{gguf\} in the command of a server: .*00002-of-00003.gguf is missing"):
        _ = given(split[0], "{gguf}").gguf


def test_the_weights_of_a_folder_are_its_files(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert given(tmp_path, "{model}").files() == ((tmp_path / "model.safetensors").resolve(),)
    assert given("owner/name", "{model}").files() == ()


def test_a_home_folder_is_expanded_where_no_shell_did(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert given("~/m", "{model}").model == str(Path(tmp_path, "m"))
    assert given("owner/name", "{model}").model == "owner/name"
