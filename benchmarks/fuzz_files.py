"""Good files of every kind for fuzz.py, made from the record in tests/data."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer.analysis.experts import recorded, source
from pytest_infer.records import AgainstInfo, PromptRecord, RoleTurns, Turns
from pytest_infer.report.placement import exports
from pytest_infer.storage import baselines, block, files, journal, runs, sidecar
from pytest_infer.storage.schema import KEY

RECORD = Path(__file__).parents[1] / "tests" / "data" / "record-1.json"
RUNS = 7
PLACE = "Linux-CPython-3.12-64bit"

SUITE = """
[defaults]
max_new_tokens = 3

[[prompt]]
name = "first"
text = "one two three"
tags = ["a"]

[[prompt]]
name = "second"
file = "long.txt"
stop = ["."]

[[prompt]]
name = "third"
messages = [{role = "user", content = "four"}]
"""
MIXTURE = {
    "model_type": "mixtral", "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
LINES = '{"defaults": {"max_new_tokens": 3}}\n{"name": "a", "text": "b"}\n{"name": "c", "file": "long.txt"}\n'

ENGINE = """
import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.records import ModelInfo, StopReason


class Scripted(Engine):
    def load(self):
        return ModelInfo(name="scripted", engine="scripted", dtype="float32", device="cpu", parameter_bytes=1000)

    def encode(self, prompt):
        return list(range(len((prompt.text or "a dialogue").split())))

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

    def context_length(self):
        return None

    def generate(self, prompt_ids, limits, clock):
        for number in range(limits.max_new_tokens):
            clock.tick([number])
        return StopReason.LENGTH


@pytest.fixture(scope="session")
def engine():
    return Scripted()
"""
TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"

CONFIG = {
    "model_type": "qwen2_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "layer_types": ["full_attention", "sliding_attention"],
    "mlp_only_layers": [0],
    "sliding_window": 64,
    "rope_scaling": {"type": "yarn", "factor": 2.0},
    "text_config": {"head_dim": 16},
    "dtype": "bfloat16",
}


def _row(made: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "group": "total",
        "name": f"t[{name}]",
        "fullname": f"bench/t.py::t[{name}]",
        "params": {"prompt": name, "phase": "total"},
        "stats": {"median": 0.38, "data": [0.38, 0.39]},
        "extra_info": {KEY: made},
    }


def _records() -> list[PromptRecord]:
    record = msgspec.json.decode(RECORD.read_bytes(), type=PromptRecord)
    if record.profile is not None and record.profile.experts is not None:
        # So that a placement can be planned.
        sites = tuple(replace(site, expert_bytes=1000) for site in record.profile.experts.sites)
        record = replace(record, profile=replace(record.profile, experts=replace(record.profile.experts, sites=sites)))
    return [
        replace(record, nodeid=f"bench/t.py::t[{name}]", prompt=replace(record.prompt, name=name), tokenize_s=0.001)
        for name in ("guide", "story")
    ]


def _against(made: dict[str, Any]) -> dict[str, Any]:
    """Return a block with another side, which took turns of a token with it and was taken apart."""
    ratios: dict[str, tuple[tuple[float, ...], ...]] = {
        part: tuple((0.01 * launch, 0.012, 0.008, 0.01) for launch in range(3)) for part in ("first", "step", "steps")
    }
    parts = tuple(
        RoleTurns(
            role=role,
            before_ns=(1000, 1010, 1005),
            after_ns=(1100, 1090, 1110),
            layers=(0, 1),
            layer_change_ns=((100, 80, 105), (0, 0, 0)),
        )
        for role in ("experts", "router")
    )
    turns = Turns(every=1, cycles=4, seconds=9.0, ratios=ratios, parts={"decode": parts, "prefill": parts})
    info = AgainstInfo(rev="main", commit="a" * 40, dirty=False, sequential=False)
    told = {"turns": msgspec.to_builtins(turns), "differ": [], "rounds": made["rounds"], "metrics": made["metrics"]}
    return {**made, "against": {**msgspec.to_builtins(info), **told}}


def _run(folder: Path, number: int) -> Path:
    records = _records()
    time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    run = {
        "machine_info": {"node": "host", "cpu": {"brand_raw": "a cpu"}},
        "commit_info": {"id": f"{number:040x}", "branch": "main", "dirty": False},
        "benchmarks": [_row(_against(block.build(record)), record.prompt.name) for record in records],
        "datetime": time.isoformat(),
        "version": "5.3.1",
        KEY: {
            "schema": 1,
            "unmeasured": [],
            "failed": {},
            "gate": {"result": "passed", "against": "0001", "rules": ["ttft:5%"], "judgements": [], "suite": []},
            "advice": [],
        },
    }
    path = folder / PLACE / f"{number:04}_run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(files.dumps(run), encoding="utf-8")
    sidecar.write(path, records)
    return path


def _safetensors() -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in (
        ("model.embed_tokens.weight", [128, 64]),
        ("model.layers.0.mlp.experts.0.up_proj.weight", [32, 64]),
    ):
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def _text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def _gguf() -> bytes:
    keys = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        _text("llama.block_count") + struct.pack("<II", 4, 2),
        _text("llama.embedding_length") + struct.pack("<II", 4, 64),
        _text("llama.attention.head_count") + struct.pack("<II", 4, 4),
        _text("llama.context_length") + struct.pack("<II", 4, 128),
        _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + _text("a") + _text("b") + _text("c"),
        _text("tokenizer.ggml.scores") + struct.pack("<IIQ3f", 9, 6, 3, 0, 0, 0),
    ]
    tensor = _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 128, 0, 0)
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(keys)) + b"".join(keys) + tensor
    return head + bytes(-len(head) % 32) + bytes(64 * 128 * 4)


def make_good(folder: Path) -> None:
    """Fill a folder with a storage, a suite, and models."""
    storage = folder / "results"
    for number in range(1, RUNS + 1):
        last = _run(storage, number)
    baselines.name(storage, "main", last)
    book = storage / journal.FOLDER / "old.jsonl"
    book.parent.mkdir(exist_ok=True)  # a lock of baselines lies there
    entries = [journal.Entry(nodeid=record.nodeid, key="k", record=record) for record in _records()]
    book.write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    suite = folder / "suite"
    suite.mkdir()
    for name, content in (
        ("prompts.toml", SUITE),
        ("prompts.jsonl", LINES),
        ("long.txt", "four five\nsix\n"),
        ("conftest.py", ENGINE),
        ("test_suite.py", TEST),
        ("pytest.ini", "[pytest]\n"),
    ):
        (suite / name).write_text(content, encoding="utf-8")
    (folder / "bench").mkdir()
    accepted = '[[accept]]\nmetric = "decode"\nprompt = "*"\nbound = "5%"\nreason = "wanted"\nuntil = "v2"\n'
    (folder / "bench" / "accepted.toml").write_text(accepted, encoding="utf-8")
    for name in ("whole", "sharded"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "whole" / "model.safetensors").write_bytes(_safetensors())
    (folder / "sharded" / "model-00001-of-00001.safetensors").write_bytes(_safetensors())
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {"model.embed_tokens.weight": "model-00001-of-00001.safetensors"},
    }
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    ini = '[tool.pytest.ini_options]\naddopts = "--benchmark-storage=results"\ninfer_gate = ["tpot:5%"]\n'
    (folder / "pyproject.toml").write_text(ini, encoding="utf-8")
    (folder / "x.gguf").write_bytes(_gguf())
    held = runs.Run(path=last, time=datetime.now(UTC))
    usage = source.of_run(held, recorded.recorded(held)[0])
    (folder / "census.json").write_text(exports.census(usage, [1024] * len(usage.sites)), encoding="utf-8")
    (folder / "mixture").mkdir()
    (folder / "mixture" / "config.json").write_text(json.dumps(MIXTURE), encoding="utf-8")
    chosen = [[[0, 1], [2, 3]], [[3, 1], [2, 0]]]
    response = {"id": "a", "choices": [{"routed_experts": chosen}], "prompt_routed_experts": chosen[:1]}
    (folder / "responses.json").write_text(json.dumps([response, response]), encoding="utf-8")
