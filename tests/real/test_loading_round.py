"""One load of a real model as `pytest-infer loading` makes it, cold and warm."""

import sys

import pytest

from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure.loading import once
from pytest_infer.metrics import loading, timing
from pytest_infer.records import CacheState

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(sys.platform != "linux", reason="mincore and posix_fadvise as Linux has them"),
]
MB = 10**6


@pytest.fixture(scope="module")
def large(model_folder, tmp_path_factory):
    """A model whose file is large beside what else a load may read: 90 MB."""
    import torch
    import transformers

    folder, small = tmp_path_factory.mktemp("large"), model_folder("llama")
    torch.manual_seed(0)
    wide = {"hidden_size": 512, "intermediate_size": 4096, "head_dim": 128}
    config = transformers.LlamaConfig.from_pretrained(small, **wide)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(small).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("asked", [CacheState.COLD, CacheState.WARM])
def test_a_cold_load_reads_the_file_and_a_warm_one_nothing(large, asked):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine(EngineOptions(model=str(large), threads=1))
    found = once.run(engine, asked)
    engine.close()
    size = (large / "model.safetensors").stat().st_size
    assert (found.asked, found.model, found.file_bytes, found.problem) == (asked, large.name, size, None)
    if asked is CacheState.COLD and found.load.cached.value == 1:
        pytest.skip(f"the file system of {large} keeps the file in memory (tmpfs?)")
    assert loading.state(found.load.cached) is asked
    for trace in (found.first.trace, found.again.trace):
        assert timing.generated_tokens(trace) == 1
    if found.whole.read_bytes.value is None:
        pytest.skip(f"no I/O accounting here: {found.whole.read_bytes.reason}")
    # The weights are mapped: the load reads some of them, the first token the rest.
    assert found.whole.read_bytes.value == pytest.approx(size if asked is CacheState.COLD else 0, rel=0.02, abs=MB)
    assert found.load.read_bytes.value <= found.whole.read_bytes.value
    assert found.whole.peak_rss_bytes.value >= found.load.peak_rss_bytes.value > 0
