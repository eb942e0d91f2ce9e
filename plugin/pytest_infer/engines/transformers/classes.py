"""Which class of transformers a config is loaded with, and whether its generate() can be fed and watched."""

from __future__ import annotations

import inspect
from typing import Any

import transformers

from pytest_infer.errors import ModelError

_AUTO = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
"""Tried in this order: the same model may be known to several, and it is text that is measured."""
_GIVEN = ("attention_mask", "generation_config", "streamer")
_FED = ("inputs", "input_ids")


def auto_class(config: Any) -> Any:
    """Return the auto class that knows a config; the one of causal models, which says so, where none does."""
    own = getattr(config, "auto_map", None) or {}
    for name in _AUTO:
        found = getattr(transformers, name, None)
        if found is not None and (name in own or type(config) in found._model_mapping):
            return found
    return transformers.AutoModelForCausalLM


def check_generate(model: Any, name: str) -> None:
    """Raise ModelError where a model's own generate() takes no text alone, or no streamer that stamps its tokens."""
    generate = getattr(model, "generate", None)
    if generate is None:
        raise ModelError(f"{name}: {type(model).__name__} cannot generate")
    parameters = inspect.signature(generate).parameters.values()
    first = next(iter(parameters), None)
    if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD and first.name not in _FED:
        raise ModelError(f"{name}: {type(model).__name__} generates from {first.name} and not from text alone")
    lacking = [given for given in _GIVEN if given not in {p.name for p in parameters}]
    if lacking and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ModelError(
            f"{name}: generate() of {type(model).__name__} takes no {' and no '.join(lacking)}: "
            "measure it with an engine of your own"
        )
