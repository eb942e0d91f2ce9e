"""How much a KV cache holds at a context, from a model's config alone; what the config does not tell is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_infer.engines.transformers.work import WHOLE, WINDOWED, WITHOUT

_STATEFUL = {"linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding"}

_EVERY_LAYER_WINDOWED = {"mistral", "mixtral", "phi3", "phimoe", "starcoder2"}
"""Models whose `sliding_window` is that of every layer; others choose the layers in their code."""

_HYBRID = (
    "attn_layer_period",
    "attn_type_list",
    "full_attention_interval",
    "hybrid_override_pattern",
    "layers_block_type",
    "linear_attn_config",
    "mamba_d_state",
    "ssm_state_size",
    "state_size",
)
"""Keys of models that keep other than keys and values in some layers; without `layer_types` in which is not told."""

MOST_LAYERS = 100_000
_MOST = 2**40
"""What a config may say and mean."""

_PER_LAYER = ("global_head_dim", "num_global_key_value_heads", "per_layer_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """Numbers in the cache of one sequence at a context, None when the config does not tell, and how that is known."""

    elements: int | None
    how: str


def _unknown(reason: str) -> KvCache:
    return KvCache(elements=None, how=f"unknown: {reason}")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of a config that holds several."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def number(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first of these keys that holds a whole number above 0, and not beyond any model."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
            return value
    return None


def layers(config: Mapping[str, Any]) -> int | None:
    """Return the number of layers, whatever the config calls it."""
    count = number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return None if count is None or count > MOST_LAYERS else count


def layer_types(config: Mapping[str, Any]) -> list[str] | None:
    """Return the type of each layer; None where the config lists none, or no names."""
    types = config.get("layer_types")
    return types if isinstance(types, list) and all(isinstance(kind, str) for kind in types) else None


def of_config(config: Mapping[str, Any], context: int) -> KvCache:  # noqa: PLR0911 - one for each reason
    """Return what the cache of one sequence holds after `context` tokens.

    Keys and values: layers x 2 x KV heads x head_dim x tokens (Pope et al. 2022, section 3.3); a layer with a sliding
    window keeps that many tokens, one that reuses another's keys none. Multi-head latent attention keeps one latent
    and one rotary part a token (DeepSeek-V2, section 2.1.3), as transformers does from 5.23 on for most such models.
    """
    config = text_config(config)
    count = layers(config)
    if count is None:
        return _unknown("the config names no number of layers")
    if config.get("is_encoder_decoder"):
        return _unknown("an encoder-decoder model")
    odd = next((key for key in _PER_LAYER if config.get(key)), None)
    if odd is not None:
        return _unknown(f"its layers differ ({odd})")
    kept = _tokens_kept(config, count, context)
    if isinstance(kept, str):
        return _unknown(kept)
    shared = number(config, "num_kv_shared_layers") or 0
    kept = [0 if n >= count - shared else tokens for n, tokens in enumerate(kept)]
    if config.get("kv_lora_rank"):
        return _latent(config, kept)
    widths = _widths(config, count)
    if isinstance(widths, str):
        return _unknown(widths)
    elements = sum(width * tokens for width, tokens in zip(widths, kept, strict=True))
    return KvCache(elements=elements, how=_how(config, kept, context))


def _latent(config: Mapping[str, Any], kept: list[int]) -> KvCache:
    rank, rotary = number(config, "kv_lora_rank"), number(config, "qk_rope_head_dim")
    if rank is None or rotary is None:
        return _unknown("latent attention without qk_rope_head_dim in the config")
    how = f"latent attention: {rank} + {rotary} numbers a layer and token; a runtime that caches whole heads takes more"
    return KvCache(elements=(rank + rotary) * sum(kept), how=how)


def _tokens_kept(  # noqa: PLR0911 - one for each reason
    config: Mapping[str, Any], count: int, context: int
) -> list[int] | str:
    """Return how many tokens each layer keeps, or why that is not known."""
    windowed = config.get("use_sliding_window") is not False
    window = number(config, "sliding_window") if windowed else None
    window = window or number(config, "attention_chunk_size")
    types = layer_types(config)
    if types is None and config.get("layer_types"):
        return "layer types that are no names"
    if types is not None:
        unheard = sorted(set(types) - WHOLE - WINDOWED - WITHOUT)
        if unheard or len(types) != count:
            return f"layers of type {unheard[0]}" if unheard else f"{len(types)} layer types for {count} layers"
        if window is None and set(types) & WINDOWED:
            return "layers with a window whose size the config does not tell"
        windows = {**dict.fromkeys(WHOLE, context), **dict.fromkeys(WITHOUT, 0)}
        return [windows.get(kind, min(context, window or context)) for kind in types]
    hybrid = next((key for key in _HYBRID if config.get(key)), None)
    if hybrid is not None:
        return f"a hybrid model ({hybrid}) whose config does not list its layers' types"
    if window is None or context <= window:
        return [context] * count
    if str(config.get("model_type")) in _EVERY_LAYER_WINDOWED:
        return [window] * count
    return f"which layers keep only the window of {window} tokens is in the model's code"


def _widths(config: Mapping[str, Any], count: int) -> list[int] | str:
    """Return the numbers that each layer keeps for a token, or why that is not known."""
    heads = attention_heads(config)
    hidden = number(config, "hidden_size", "n_embd", "d_model", "n_embed")
    head = number(config, "head_dim") or (hidden // heads if hidden and heads else None)
    if head is None:
        return "the config tells no head_dim, nor hidden size and heads"
    per_layer = kv_heads(config, count)
    if per_layer is None:
        return "the config tells no number of KV heads"
    value = number(config, "v_head_dim") or head
    return [n * (head + value) for n in per_layer]


def attention_heads(config: Mapping[str, Any]) -> int | None:
    """Return the number of a layer's heads, whatever the config calls it."""
    return number(config, "num_attention_heads", "n_head", "n_heads", "num_heads")


def kv_heads(config: Mapping[str, Any], count: int) -> list[int] | None:
    """Return the number of heads of keys and values in each of so many layers; None where that is not told."""
    listed = config.get("num_key_value_heads") or config.get("num_kv_heads")
    own: Any = listed if listed is not None else attention_heads(config)
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        own = 1
    per_layer = own if isinstance(own, list) else [own] * count
    whole = len(per_layer) == count and all(isinstance(n, int) and n >= 0 for n in per_layer)
    return per_layer if whole else None


def _how(config: Mapping[str, Any], kept: list[int], context: int) -> str:
    parts = []
    for tokens in sorted(set(kept), reverse=True):
        what = f"{tokens} tokens" if tokens else "none"
        parts.append(f"{kept.count(tokens)} layers keep {what}")
    how = "keys and values of every layer" if set(kept) == {context} else ", ".join(parts)
    stateful = [kind for kind in layer_types(config) or () if kind in _STATEFUL]
    return how + (f"; the fixed state of {len(stateful)} layers is not counted" if stateful else "")
