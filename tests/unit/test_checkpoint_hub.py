"""What the hub tells of a model through headers alone, with the hub's client faked."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, NotASafetensorsRepoError

from pytest_infer.engines import models
from pytest_infer.engines.checkpoint import hub as reach
from pytest_infer.engines.checkpoint import source
from pytest_infer.engines.checkpoint.source import ModelSource
from pytest_infer.errors import ModelError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a function: what asking for the headers returns or raises."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}), encoding="utf-8")
    monkeypatch.setattr(reach, "only_cached", lambda name, revision: False)
    monkeypatch.setattr(models, "local_folder", lambda name, revision: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(config))

    def answer(told):
        def get(self, name, *, revision):
            if isinstance(told, Exception):
                raise told
            return told

        monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", get)

    return answer


def test_headers_of_all_files_count(hub):
    first = SimpleNamespace(dtype="BF16", shape=[4, 8], data_offsets=(0, 64))
    second = SimpleNamespace(dtype="F32", shape=[8], data_offsets=(100, 132))
    files = {"a": SimpleNamespace(tensors={"x": first}), "b": SimpleNamespace(tensors={"y": second})}
    hub(SimpleNamespace(files_metadata=files))
    found = source.find("owner/name")
    assert (found.source, found.stored_bytes, found.folder) == (ModelSource.SAFETENSORS, 96, None)
    assert {t.name: (t.dtype, t.shape, t.bytes) for t in found.tensors} == {
        "x": ("BF16", (4, 8), 64),
        "y": ("F32", (8,), 32),
    }


def test_a_download_that_was_broken_off_is_asked_of_the_hub(hub, tmp_path, monkeypatch):
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}}
    tmp_path.joinpath("model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    monkeypatch.setattr(models, "local_folder", lambda name, revision: tmp_path)
    first = SimpleNamespace(dtype="BF16", shape=[4, 8], data_offsets=(0, 64))
    hub(SimpleNamespace(files_metadata={"a": SimpleNamespace(tensors={"x": first})}))
    found = source.find("owner/name")
    assert (found.source, found.stored_bytes, found.folder) == (ModelSource.SAFETENSORS, 64, None)


def test_without_safetensors_the_config_is_left(hub):
    hub(NotASafetensorsRepoError("none"))
    found = source.find("owner/name")
    assert (found.source, found.tensors, found.config["num_hidden_layers"]) == (ModelSource.CONFIG, (), 2)


HTTP_ERROR = next(kind for kind in HfHubHTTPError.__bases__ if not issubclass(kind, OSError))


@pytest.mark.parametrize(
    "error", [HTTP_ERROR("no route"), LocalEntryNotFoundError("no route"), ConnectionError("no route")]
)
def test_a_hub_that_does_not_answer_is_one_line(hub, error):
    hub(error)
    with pytest.raises(ModelError, match="owner/name: the hub does not tell: no route; give a folder instead"):
        source.find("owner/name")
