"""Each engine option leaves its trace in the stored model, so that two values of it are not the same work."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from lazily import torch

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.records import PromptRecord
from pytest_infer.storage import block, runs

pytestmark = pytest.mark.real

DATA = Path(__file__).parents[1] / "data"
OTHER = {
    "dtype": ({"dtype": "bfloat16"}, "dtype"),
    "quantization": ({"quantization": "int8-dynamic"}, "quantization"),
    "device": ({"device": "cuda"}, "device"),
    "threads": ({"threads": 2}, "threads"),
    "experts_implementation": ({"experts_implementation": "eager"}, "experts_implementation"),
    "attention": ({"attention": "eager"}, "attention"),
    "use_cache": ({"use_cache": False}, "generation"),
    "sampling": ({"sampling": Sampling(temperature=0.7)}, "generation"),
    "compile": ({"compile": True}, "generation"),
    "trust_remote_code": ({"trust_remote_code": True}, "remote_code"),
}
ELSEWHERE = {"model", "revision", "server", "engine_args", "progress"}
"""Servers are of another engine (tests/plugin/test_servers.py), engine_args for those that have a tool of their own
(test_llamacpp.py). The weights' hash tells models and revisions apart; progress is told before any round."""


def stored(folder, **options):
    """Return the row that is stored of a test whose model these options load."""
    from pytest_infer.engines.transformers.engine import TransformersEngine

    record = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    engine = TransformersEngine(EngineOptions(model=str(folder), **options))
    try:
        made = block.build(dataclasses.replace(record, model=engine.load()))
    finally:
        engine.close()
    return runs.row_of("t", "t", made)


@pytest.fixture
def folder(model_folder, tmp_path):
    """A model that comes with code of its own, which transformers knows too."""
    made = tmp_path / "own"
    shutil.copytree(model_folder(), made)
    (made / "modeling_own.py").write_text(
        "from transformers import MixtralForCausalLM\n\n\nclass Own(MixtralForCausalLM):\n    pass\n"
    )
    config = json.loads((made / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Own"}
    (made / "config.json").write_text(json.dumps(config))
    return made


def test_every_option_is_here():
    assert {*OTHER, *ELSEWHERE} == {field.name for field in dataclasses.fields(EngineOptions)}


@pytest.mark.parametrize("name", OTHER)
def test_another_value_is_stored_and_told(folder, tmp_path, monkeypatch, name):
    options, fact = OTHER[name]
    if options.get("device") == "cuda" and not torch.cuda.is_available():
        pytest.skip("no accelerator")
    # Where transformers puts such code, and finds it again.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    found = fingerprint.differences(stored(folder), stored(folder, **options))
    assert fact in [difference.key for difference in found]
    assert fingerprint.differences(stored(folder), stored(folder)) == ()
