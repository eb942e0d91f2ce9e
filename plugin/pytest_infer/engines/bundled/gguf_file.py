"""The bundled models as GGUF files, for llama.cpp: exactly the weights of their folders."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_infer.engines.bundled import cache
from pytest_infer.engines.checkpoint import hashes
from pytest_infer.errors import ModelError

FORMAT = "1"
Floats = NDArray[np.float32]
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
    kinds = gguf.GGMLQuantizationType
    chosen = {"float32": kinds.F32, "float16": kinds.F16, "bfloat16": kinds.BF16}[dtype]
    for name, tensor in _tensors(folder / "model.safetensors", config):
        kind = kinds.F32 if tensor.ndim == 1 or "ffn_gate_inp" in name else chosen
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
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


def _tensors(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Floats]]:
    """Yield each tensor by its name in GGUF; the experts of a layer are one tensor there."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    held = _Weights(path)
    for name in held.places:
        base = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, inner = base.partition(".")
        if not layer.isdigit():
            yield f"{_PLACES[base]}.weight", held[name]
            continue
        expert = _EXPERT.fullmatch(inner)
        if expert is None:
            part = _PLACES[inner]
            yield f"blk.{layer}.{part}.weight", _pairs(held[name], heads[part]) if part in heads else held[name]
        elif expert[1] == "0":
            one = name.replace("experts.0.", "experts.{}.")
            parts = [held[one.format(number)] for number in range(config["num_local_experts"])]
            yield f"blk.{layer}.{_PLACES[expert[2]]}.weight", np.stack(parts)


class _Weights:
    """The tensors of a safetensors file, mapped, in float32; torch, which would stay in memory, is not needed."""

    def __init__(self, path: Path) -> None:
        self._data = np.memmap(path, np.uint8, "r")
        (length,) = struct.unpack("<Q", self._data[:8].tobytes())
        self.places: dict[str, dict[str, Any]] = json.loads(self._data[8 : 8 + length].tobytes())
        self.places.pop("__metadata__", None)
        self._start = 8 + length

    def __getitem__(self, name: str) -> Floats:
        place = self.places[name]
        first, end = (self._start + offset for offset in place["data_offsets"])
        data = self._data[first:end]
        if place["dtype"] == "BF16":  # the upper half of a float32
            return (data.view("<u2").astype("<u4") << 16).view("<f4").reshape(place["shape"])
        return data.view({"F32": "<f4", "F16": "<f2"}[place["dtype"]]).astype("<f4").reshape(place["shape"])


def _pairs(rows: Floats, heads: int) -> Floats:
    """Reorder the rows of each head from first and second half (transformers) to rotary pairs side by side (GGUF)."""
    by_head = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(by_head.swapaxes(1, 2)).reshape(rows.shape)
