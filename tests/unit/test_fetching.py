"""Weights of a hub model are fetched before its load is timed, as the load would choose them, and said to be."""

import fnmatch
import json
import os
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from pytest_infer.engines.checkpoint import fetching
from pytest_infer.errors import ModelError

COMMIT = "c0ffee" + "0" * 34
HTTP_ERROR = next(kind for kind in HfHubHTTPError.__bases__ if not issubclass(kind, OSError))
SMALL = {"config.json": "{}", "tokenizer.json": "{}", "README.md": "text", "onnx/config.json": "{}"}
PARTS = ["a.safetensors", "parts/b.safetensors"]
INDEX = json.dumps({"weight_map": {"x": PARTS[0], "y": PARTS[1]}})


@pytest.fixture
def snapshot(tmp_path):
    folder = tmp_path / "models--owner--name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder.parent.parent / "blobs").mkdir()
    return folder


@pytest.fixture
def hub(snapshot, monkeypatch):
    """Return a function: what the hub holds, by name, to the list of what was downloaded from it, call by call."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching, "_EVERY_S", 0.01)

    def holding(files, meanwhile=lambda wanted: None):
        calls = []

        def info(self, name, *, revision, files_metadata):
            assert (name, revision, files_metadata) == ("owner/name", COMMIT, True)
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=len(t)) for n, t in files.items()])

        def download(name, *, revision, allow_patterns):
            assert (name, revision) == ("owner/name", COMMIT)
            wanted = [file for file in files if any(fnmatch.fnmatch(file, one) for one in allow_patterns)]
            calls.append(wanted)
            meanwhile(wanted)
            for file in wanted:
                (snapshot / file).parent.mkdir(exist_ok=True)
                (snapshot / file).write_text(files[file])

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return calls

    return holding


def fetch(snapshot, told=None, *, reachable=True):
    fetching.fetch("owner/name", snapshot, [].append if told is None else told.append, reachable=reachable)


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin", "consolidated.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        ([*PARTS, "model.safetensors.index.json"], PARTS),
        (["model.safetensors", "adapter_model.safetensors"], ["model.safetensors", "adapter_model.safetensors"]),
    ],
    ids=str,
)
def test_what_a_load_reads_is_fetched_once(snapshot, hub, weights, fetched):
    calls = hub({**SMALL, **{name: INDEX if name.endswith(".json") else "x" * 2048 for name in weights}})
    told = []
    fetch(snapshot, told)
    small, large = calls
    assert set(small) == {"config.json", "tokenizer.json", *(name for name in weights if name.endswith(".json"))}
    assert large == fetched
    assert told[0] == f"fetching owner/name · {2 * len(fetched)}.00 KiB …"
    assert told[-1] == "loading owner/name …"
    fetch(snapshot, told)
    assert len(calls) == 2


def test_it_is_said_how_far_it_is(snapshot, hub):
    told, seen = [], threading.Event()

    class Told(list):
        def append(self, line):
            super().append(line)
            if " of " in line and not line.startswith("fetching owner/name · 0 B"):
                seen.set()

    def meanwhile(wanted):
        if wanted == ["model.safetensors"]:
            (snapshot.parent.parent / "blobs" / "ab.incomplete").write_bytes(os.urandom(4096))
            assert seen.wait(120)

    told = Told()
    hub({**SMALL, "model.safetensors": "x" * 16384}, meanwhile)
    fetch(snapshot, told)
    assert told[0] == "fetching owner/name · 16.0 KiB …"
    assert told[-2].endswith(" KiB of 16.0 KiB …")


def test_where_no_blocks_are_told_sizes_say_how_far_it_is(snapshot, monkeypatch):
    held = SimpleNamespace(stat=lambda: SimpleNamespace(st_size=3000))  # as on Windows
    monkeypatch.setattr(fetching.Path, "glob", lambda *_: [held])
    assert fetching._held(snapshot) == 3000


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (HTTP_ERROR("no\nroute"), "no route"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("its downloader failed"), "its downloader failed"),
    ],
    ids=str,
)
@pytest.mark.parametrize("of", ["config.json", "model.safetensors"])
def test_a_download_that_fails_is_one_line(snapshot, hub, of, error, says):
    def meanwhile(wanted):
        if of in wanted:
            raise error

    hub({**SMALL, "model.safetensors": "x"}, meanwhile)
    with pytest.raises(ModelError) as caught:
        fetch(snapshot)
    assert str(caught.value) == f"owner/name: its weights cannot be fetched: {says}"


def test_a_download_that_was_broken_off_goes_on(snapshot, hub):
    calls = hub({**SMALL, "model.safetensors.index.json": INDEX, "a.safetensors": "x", "parts/b.safetensors": "y"})
    (snapshot / "model.safetensors.index.json").write_text(INDEX)
    (snapshot / "a.safetensors").write_text("x")
    fetch(snapshot)
    assert calls[1] == ["parts/b.safetensors"]


def test_weights_of_another_name_do_not_stand_for_those_that_are_loaded(snapshot, hub):
    calls = hub({**SMALL, "model.safetensors": "x", "consolidated.safetensors": "y"})
    (snapshot / "consolidated.safetensors").write_text("y")
    fetch(snapshot)
    assert calls[1] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("offline", "reachable", "says"),
    [(True, True, "HF_HUB_OFFLINE is set"), (False, False, "the hub cannot be reached")],
)
def test_without_the_hub_what_is_lacking_is_refused(snapshot, hub, monkeypatch, offline, reachable, says):
    calls = hub({**SMALL, "model.safetensors": "x"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(ModelError, match=f"the hub's cache does not hold its weights, and {says}: give a folder"):
        fetch(snapshot, reachable=reachable)
    (snapshot / "model.safetensors").write_text("x")
    fetch(snapshot, reachable=reachable)
    assert not calls
