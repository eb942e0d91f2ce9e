"""What decides the tokens: one greedy or sampled sequence, whatever a model's own generation config says."""

from __future__ import annotations

import copy
from typing import Any

from transformers import GenerationConfig

from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers import compiling
from pytest_infer.records import Limits

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

# What shapes the scores belongs to the model and stays, with the value that changes nothing. All else is work that
# nobody asked for (beams, several sequences, guidance, look-ups), an end that is not in the limits (max_time,
# stop_strings, min_length, forced ends), or the business of our options (caches, compilation).
SHAPES: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "renormalize_logits": False,
    "remove_invalid_values": False,
}
SAMPLED_SHAPES: dict[str, Any] = {
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def score_settings(own: GenerationConfig, options: EngineOptions) -> dict[str, Any]:
    """Return what a model's own generation config says about scores, where it says anything."""
    shapes = SHAPES | (SAMPLED_SHAPES if options.sampling else {})
    values = {name: getattr(own, name, None) for name in shapes}
    return {name: value for name, value in values.items() if value is not None and value != shapes[name]}


def configuration(own: GenerationConfig, options: EngineOptions) -> GenerationConfig:
    """Return the configuration that every round runs with, limits aside; `own` is not touched.

    Raises:
        ValueError: transformers refuses a value that the model's own config holds.
    """
    # A new one instead of a copy: whatever transformers adds later is then off as well.
    config = GenerationConfig(**{name: getattr(own, name, None) for name in TOKENS}, **score_settings(own, options))
    sampling = options.sampling
    config.num_beams = config.num_return_sequences = 1
    config.do_sample = sampling is not None
    config.temperature = sampling.temperature if sampling else None
    config.top_p = sampling.top_p if sampling else None
    config.top_k = 0 if sampling else None
    config.use_cache = options.use_cache
    config.return_dict_in_generate = True  # returns the cache, so that its bytes can be counted
    if config.pad_token_id is None:
        config.pad_token_id = _first(config.eos_token_id)
    if options.compile:
        config.cache_implementation = "static"
        config.compile_config = compiling.config()
    return config


def limited(config: GenerationConfig, limits: Limits, *, ignore_eos: bool) -> GenerationConfig:
    """Return a copy of a configuration that ends where the limits say, but for their stop strings."""
    config = copy.copy(config)
    config.max_new_tokens = limits.max_new_tokens
    if ignore_eos:
        config.eos_token_id = None
    return config


def ends(config: GenerationConfig, limits: Limits) -> set[int]:
    """Return the ids that end a sequence."""
    eos = config.eos_token_id
    if limits.ignore_eos or eos is None:
        return set()
    return {eos} if isinstance(eos, int) else set(eos)


def described(own: GenerationConfig, options: EngineOptions) -> dict[str, str | int | float | bool | None]:
    """Return what results say about decoding: the options, and what the model's own config adds to them."""
    sampling = options.sampling
    return {
        "do_sample": sampling is not None,
        "temperature": sampling.temperature if sampling else None,
        "top_p": sampling.top_p if sampling else None,
        "seed": sampling.seed if sampling else 0,
        "use_cache": options.use_cache,
        "compile": options.compile,
        **{k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in score_settings(own, options).items()},
    }


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids
