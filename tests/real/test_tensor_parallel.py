"""Models whose weights are spread over ranks: what one rank holds is counted, and what two of them make of a run."""

import json
import os
import subprocess
import sys

import pytest
from lazily import Late, torch, transformers

from pytest_infer.engines import models
from pytest_infer.errors import ExpertCaptureError

work = Late("pytest_infer.engines.transformers.work")
taps = Late("pytest_infer.measure.experts.taps")

pytestmark = pytest.mark.real

CONFTEST = """
from pathlib import Path

import pytest
import pytest_infer
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(pytest_infer.__file__).parent / "engines/data/reference-moe"


@pytest.fixture(scope="session")
def model(engine):
    mine = AutoModelForCausalLM.from_pretrained(FOLDER, tp_plan="auto")
    return engine.adopt(mine, AutoTokenizer.from_pretrained(FOLDER), name="reference-moe, 2 ranks")
"""
SUITE = """
[defaults]
max_new_tokens = 4

[[prompt]]
name = "a"
text = "Alice was beginning to get very tired"

[[prompt]]
name = "b"
text = "Once upon a time"
"""


@pytest.fixture
def mesh():
    """Two ranks, of which this process is the first and the other is imagined: nothing is ever sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group(backend="fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    finally:
        torch.distributed.destroy_process_group()


def spread(module, name, mesh, dim):
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = getattr(module, name)
    part = distribute_tensor(whole.detach(), mesh, [Shard(dim)])
    setattr(module, name, torch.nn.Parameter(part, requires_grad=False))


def test_what_a_rank_holds_is_counted_and_nothing_of_the_others(mesh):
    folder = models.resolve("reference-moe", lambda _line: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    whole, all_bytes, before = work.parameters(model), work.parameter_bytes(model), work.of(model)
    queries = experts = 0
    for layer in model.model.layers:
        spread(layer.self_attn.q_proj, "weight", mesh, 0)
        queries += layer.self_attn.q_proj.weight.numel()
        spread(layer.mlp.experts, "down_proj", mesh, 2)
        experts += layer.mlp.experts.down_proj.numel()
    assert work.parameters(model) == whole - (queries + experts) // 2
    assert work.parameter_bytes(model) == all_bytes - 4 * (queries + experts) // 2
    after = work.of(model)
    assert after.read_bytes == before.read_bytes - 4 * (queries + experts) // 2
    assert after.parameters == before.parameters - (queries + experts) // 2
    assert after.pair_flops == before.pair_flops // 2
    assert sum(after.expert_parameters.values()) == sum(before.expert_parameters.values()) - experts // 2
    down = model.model.layers[0].mlp.experts.down_proj
    assert taps.stored_bytes(down) == 4 * down.numel() // 2


def test_selections_count_where_each_rank_sees_all_of_them(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    ids = torch.arange(8).view(4, 2)
    assert taps.replicated(ids, "x") is ids
    assert taps.replicated(None, "x") is None
    same = taps.replicated(distribute_tensor(ids, mesh, [Replicate()], src_data_rank=None), "x")
    assert type(same) is torch.Tensor
    assert same.equal(ids)
    with pytest.raises(ExpertCaptureError, match="x sees the selections of one rank only"):
        taps.replicated(distribute_tensor(ids, mesh, [Shard(0)], src_data_rank=None), "x")


@pytest.mark.slow
def test_two_ranks_store_one_run(tmp_path):
    tmp_path.joinpath("conftest.py").write_text(CONFTEST)
    tmp_path.joinpath("prompts.toml").write_text(SUITE)
    tmp_path.joinpath("test_it.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    options = ["--benchmark-autosave", "--benchmark-storage=results", "--infer-rounds=2", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pytest", *options],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 passed") == 1
    assert " ".join(done.stdout.split()).count("of CPU a round in rank 1;") == 1, done.stdout
    files = list(tmp_path.glob("results/*/*.json"))
    assert len(files) == 1
    rows = json.loads(files[0].read_text())["benchmarks"]
    blocks = [row["extra_info"]["pytest_infer"] for row in rows]
    for block in (block for block in blocks if block["phase"] == "total"):
        assert block["ranks"]["size"] == 2
        assert all(told["peak_rss_bytes"] > 0 for told in block["ranks"]["memory"])
        assert all(told > 0 for told in block["ranks"]["cpu_s"])
        assert block["experts"].get("check") == "passed" or block["experts"]["absent"]
        assert block["metrics"]["kv_cache_bytes"]["value"] > 0
        assert block["model"]["parameters"] > 0
        assert "uncounted" not in block["model"]
