"""The tensors that a config makes, for architectures whose shapes it tells in full; others need the model's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pytest_infer.analysis.doctor import kv_cache
from pytest_infer.engines.checkpoint.tensors import Tensor
from pytest_infer.errors import ModelError, alternatives

_Shape = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerKind:
    """What a model type adds to the common decoder: embeddings, grouped attention, gated feed-forward, two norms."""

    experts: str | None = None
    """The key that holds the number of experts; None for a dense model."""
    width: str = "intermediate_size"
    """The key that holds an expert's width."""
    qkv_bias: str | bool = False
    output_bias: str | bool = False
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    norm_bias: bool = False
    query_norm: str | None = None
    """"head": a norm of head_dim; "whole": one over all heads."""
    head_dim_told: bool = False
    """Whether the model's code has a head_dim of its own for configs without one."""
    sparse_step: bool = False
    """Whether some layers may be dense, by `decoder_sparse_step` and `mlp_only_layers`."""
    shared: bool = False
    tied: bool = False
    """Whether a config that does not say so means tied embeddings."""


_KINDS = {
    "llama": _LayerKind(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": _LayerKind(),
    "mixtral": _LayerKind(experts="num_local_experts"),
    "olmoe": _LayerKind(
        experts="num_experts", qkv_bias="attention_bias", output_bias="attention_bias", query_norm="whole"
    ),
    "phi3": _LayerKind(),
    "phimoe": _LayerKind(
        experts="num_local_experts",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        head_bias="lm_head_bias",
        norm_bias=True,
    ),
    "qwen2": _LayerKind(qkv_bias=True),
    "qwen2_moe": _LayerKind(
        experts="num_experts", width="moe_intermediate_size", qkv_bias="qkv_bias", sparse_step=True, shared=True
    ),
    "qwen3": _LayerKind(qkv_bias="attention_bias", output_bias="attention_bias", query_norm="head", head_dim_told=True),
    "qwen3_moe": _LayerKind(
        experts="num_experts",
        width="moe_intermediate_size",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        query_norm="head",
        sparse_step=True,
        head_dim_told=True,
    ),
    "smollm3": _LayerKind(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias", tied=True),
}


def of_config(config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return every parameter of the model that a config describes, in float32; tied ones once.

    Each agrees with transformers' own model on the meta device (tests/real/test_doctor_shapes.py).

    Raises:
        ModelError: its architecture is not among those known here, or the config lacks a size.
    """
    # The one key whose absence means yes.
    config = {"qkv_bias": True, **kv_cache.text_config(config)}
    name = str(config.get("model_type"))
    if name not in _KINDS:
        raise ModelError(f"{alternatives('model type', name, _KINDS)}: its config alone does not tell its shapes")
    made = _model(config, _KINDS[name])
    return tuple(Tensor(name=key, dtype="F32", shape=shape, bytes=4 * prod(shape)) for key, shape in made)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = kv_cache.number(config, key)
    if value is None:
        raise ModelError(f"the config has no {key}, so its shapes are not known")
    return value


def _wants(config: Mapping[str, Any], bias: str | bool) -> bool:
    return bool(config.get(bias)) if isinstance(bias, str) else bias


def _model(config: Mapping[str, Any], kind: _LayerKind) -> Iterator[_Shape]:
    hidden, vocabulary = _size(config, "hidden_size"), _size(config, "vocab_size")
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    count = kv_cache.layers(config)
    if count is None:
        raise ModelError("the config has no num_hidden_layers that a model may have, so its shapes are not known")
    for number in range(count):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _norm(f"{layer}.{norm}", hidden, kind)
        yield from _attention(f"{layer}.self_attn", config, kind)
        if kind.experts is not None and _is_sparse(config, kind, number):
            yield from _experts(f"{layer}.mlp", config, kind)
        else:
            yield from _mlp(f"{layer}.mlp", hidden, _size(config, "intermediate_size"), config, kind)
    yield from _norm("model.norm", hidden, kind)
    if not config.get("tie_word_embeddings", kind.tied):
        yield from _linear("lm_head", hidden, vocabulary, bias=_wants(config, kind.head_bias))


def _linear(name: str, inputs: int, outputs: int, *, bias: bool) -> Iterator[_Shape]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int, kind: _LayerKind) -> Iterator[_Shape]:
    yield f"{name}.weight", (width,)
    if kind.norm_bias:
        yield f"{name}.bias", (width,)


def _attention(name: str, config: Mapping[str, Any], kind: _LayerKind) -> Iterator[_Shape]:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    groups = kv_cache.number(config, "num_key_value_heads") or heads
    head = _size(config, "head_dim") if kind.head_dim_told else kv_cache.number(config, "head_dim") or hidden // heads
    bias = _wants(config, kind.qkv_bias)
    yield from _linear(f"{name}.q_proj", hidden, heads * head, bias=bias)
    yield from _linear(f"{name}.k_proj", hidden, groups * head, bias=bias)
    yield from _linear(f"{name}.v_proj", hidden, groups * head, bias=bias)
    yield from _linear(f"{name}.o_proj", heads * head, hidden, bias=_wants(config, kind.output_bias))
    if kind.query_norm is not None:
        whole = kind.query_norm == "whole"
        yield f"{name}.q_norm.weight", (heads * head if whole else head,)
        yield f"{name}.k_norm.weight", (groups * head if whole else head,)


def _is_sparse(config: Mapping[str, Any], kind: _LayerKind, number: int) -> bool:
    if not kind.sparse_step:
        return True
    step = kv_cache.number(config, "decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers")
    return not (isinstance(dense, list) and number in dense) and (number + 1) % step == 0


def _experts(name: str, config: Mapping[str, Any], kind: _LayerKind) -> Iterator[_Shape]:
    hidden, width, count = _size(config, "hidden_size"), _size(config, kind.width), _size(config, str(kind.experts))
    yield f"{name}.gate.weight", (count, hidden)
    yield f"{name}.experts.gate_up_proj", (count, 2 * width, hidden)
    yield f"{name}.experts.down_proj", (count, hidden, width)
    if kind.shared:
        yield from _mlp(f"{name}.shared_expert", hidden, _size(config, "shared_expert_intermediate_size"), config, kind)
        yield f"{name}.shared_expert_gate.weight", (1, hidden)


def _mlp(name: str, hidden: int, width: int, config: Mapping[str, Any], kind: _LayerKind) -> Iterator[_Shape]:
    bias = _wants(config, kind.mlp_bias)
    yield from _linear(f"{name}.gate_proj", hidden, width, bias=bias)
    yield from _linear(f"{name}.up_proj", hidden, width, bias=bias)
    yield from _linear(f"{name}.down_proj", width, hidden, bias=bias)
