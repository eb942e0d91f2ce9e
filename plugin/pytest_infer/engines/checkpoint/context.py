"""How many positions a model takes, by its config: the limit as it is written, and what RoPE scaling makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

_WRITTEN = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_ORIGINAL = "original_max_position_embeddings"
_LONGER = "model_max_length"
_SCALING = ("rope_parameters", "rope_scaling")
KEYS = (*_WRITTEN, _ORIGINAL, _LONGER, *_SCALING)
"""The entries of a config that say something about it."""

_OF_THE_LIMIT = {"linear", "dynamic", "yarn", "ntk"}
"""The kinds of scaling whose factor is of the limit as it is written, unless they name the original one."""


def longest(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens, prompt and generated, a model takes; None where nothing says so, or what says so is not
    a number above 0 (some write -1 for no limit).

    YaRN, dynamic and linear scaling stretch the limit by their factor, longrope and Llama 3's the original one, which
    the limit as it is written mostly includes already. Of several kinds of layers the least counts. Cohere writes the
    limit of its long versions as `model_max_length`.

    Source: transformers' modeling_rope_utils.py and the model cards of Qwen2.5, Phi-3 and Command R.
    """
    written = next((number for key in _WRITTEN if (number := _number(config.get(key))) is not None), None)
    longer = _number(config.get(_LONGER))
    if written is None:
        return longer
    scaled = [_scaled(written, scaling, config) for scaling in _scalings(config)]
    return max(min(scaled, default=written), longer or 0)


def _scalings(config: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield the parameters of RoPE, for each kind of layers where they differ."""
    found = next((value for key in _SCALING if isinstance(value := config.get(key), Mapping) and value), {})
    inner = [value for value in found.values() if isinstance(value, Mapping)]
    return inner or [found]


def _scaled(written: int, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    factor = scaling.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 < factor < math.inf:
        return written
    original = _number(config.get(_ORIGINAL)) or _number(scaling.get(_ORIGINAL))
    if original is None and str(scaling.get("rope_type") or scaling.get("type")) not in _OF_THE_LIMIT:
        return written
    try:
        return max(written, math.floor(factor * (original or written)))
    except OverflowError:
        return written  # no model takes so many


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
