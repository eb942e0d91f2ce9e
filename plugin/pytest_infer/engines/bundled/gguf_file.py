"""The bundled models as GGUF files, for llama.cpp: exactly the weights of their folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pytest_infer.engines.bundled import cache
from pytest_infer.engines.checkpoint import hashes
from pytest_infer.errors import ModelError

FORMAT = "1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}
"""What general.file_type says (llama_ftype of llama.h)."""
_PLACES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "w1": "ffn_gate_exps",
    "w2": "ffn_down_exps",
    "w3": "ffn_up_exps",
}
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(w\d)")
_NORMAL, _CONTROL = 1, 3  # token_type, by the GGUF specification


def ensure(name: str, folder: Path, dtype: str, cache_root: Path, progress: cache.Progress) -> Path:
    """The GGUF file of a bundled model that lies in `folder`, below `cache_root`, built on the first call.

    `dtype` is that of matrices: `auto`, what transformers runs them in by the config. Vectors and routers are float32,
    as llama.cpp has them. A weight that is stored in bfloat16 is the same number in float32.

    Raises:
        ModelError: the package gguf is not installed, the cache is not writable or the disk is full.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config["dtype"]) if dtype == "auto" else dtype
    weights = folder / "model.safetensors"
    recipe = cache.Recipe(
        name=f"{name}-{kind}-gguf",
        format=FORMAT,
        source_sha256=str(hashes.sha256(folder, progress)),
        bytes_needed=3 * weights.stat().st_size,
        notes={"source": name},
    )
    path = cache_root / recipe.name / f"{name}-{kind}.gguf"

    def build(empty: Path) -> None:
        progress(f"{name}: writing {path.name}")
        write(folder, config, kind, empty / path.name)

    cache.ensure(cache_root, recipe, build, progress)
    return path


def write(folder: Path, config: Mapping[str, Any], dtype: str, path: Path) -> None:
    """Write the Llama or Mixtral model of a folder as the GGUF file `path`, its matrices in `dtype`."""
    try:
        import gguf  # noqa: PLC0415 - of an extra
    except ImportError as error:
        raise ModelError("a GGUF file is written by gguf: pip install 'pytest-infer[llamacpp]'") from error
    writer = gguf.GGUFWriter(path, "llama")
    _write_config(writer, config, _FILE_TYPES[dtype])
    _write_tokenizer(writer, folder, config)
    kinds = {torch.float32: gguf.GGMLQuantizationType.F32, torch.float16: gguf.GGMLQuantizationType.F16}
    for name, stored in _tensors(folder / "model.safetensors", config):
        small = stored.ndim == 1 or "ffn_gate_inp" in name
        tensor = stored.to(torch.float32 if small else DTYPES[dtype]).contiguous()
        kind = kinds.get(tensor.dtype, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_config(writer: Any, config: Mapping[str, Any], file_type: int) -> None:
    heads = config["num_attention_heads"]
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("num_local_experts"):
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])


def _write_tokenizer(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Write a byte-level BPE whose digits are tokens of their own, which llama.cpp calls "smollm": all of ours are."""
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    words = dict(held["model"]["vocab"])
    special = {one["content"]: one["id"] for one in held["added_tokens"]}
    words |= special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(words, key=words.__getitem__))
    writer.add_token_types([_CONTROL if word in special else _NORMAL for word in sorted(words, key=words.__getitem__)])
    merges = held["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    ends = generation["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_pad_token_id(config["pad_token_id"])
    template = folder / "chat_template.jinja"
    writer.add_chat_template(template.read_text(encoding="utf-8") if template.is_file() else settings["chat_template"])


def _tensors(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor by its name in GGUF; the experts of a layer are one tensor there."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            base = name.removesuffix(".weight").removeprefix("model.layers.")
            layer, _, inner = base.partition(".")
            if not layer.isdigit():
                yield f"{_PLACES[base]}.weight", file.get_tensor(name)
                continue
            expert = _EXPERT.fullmatch(inner)
            if expert is None:
                tensor, part = file.get_tensor(name), _PLACES[inner]
                yield f"blk.{layer}.{part}.weight", _pairs(tensor, heads[part]) if part in heads else tensor
            elif expert[1] == "0":
                one = name.replace("experts.0.", "experts.{}.")
                parts = [file.get_tensor(one.format(number)) for number in range(config["num_local_experts"])]
                yield f"blk.{layer}.{_PLACES[expert[2]]}.weight", torch.stack(parts)


def _pairs(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from first and second half (transformers) to rotary pairs side by side (GGUF)."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
