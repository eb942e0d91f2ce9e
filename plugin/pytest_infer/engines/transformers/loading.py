"""Config, tokenizer and weights through transformers, and a one-line error for whatever it cannot load."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pytest_infer import untrusted
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.checkpoint import presence
from pytest_infer.engines.transformers import classes, quantization
from pytest_infer.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# A config of wrong values raises any of these, wherever a model's code first fails.
_UNLOADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
_SHOWN = 3
_NO_TOKENIZER = (
    "{}: holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json, …): "
    "copy these files from the model that this one was made from"
)


def config_and_tokenizer(source: str, options: EngineOptions, *, only_cached: bool = False) -> tuple[Any, Any]:
    """Return both, or raise ModelError; `only_cached` keeps a hub model from the network."""
    hub = _hub(options, only_cached=only_cached)
    with explained(source):
        config = AutoConfig.from_pretrained(source, **hub)
        check_decodes(source, config)
        return config, _tokenizer(source, hub)


def check_decodes(name: str, config: Any) -> None:
    """Raise ModelError for a model whose encoder would see the prompt."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name}: {config.model_type} is an encoder-decoder model; only causal language models are measured"
        )


def _hub(options: EngineOptions, *, only_cached: bool) -> dict[str, Any]:
    return {
        "revision": options.revision,
        "trust_remote_code": options.trust_remote_code,
        **({"local_files_only": True} if only_cached else {}),
    }


def _tokenizer(source: str, hub: dict[str, Any]) -> Any:
    """Return the tokenizer; without its files transformers asks for sentencepiece, or makes an empty one."""
    folder = Path(source)
    there = not untrusted.is_dir(folder) or presence.has_vocabulary(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
    except _UNLOADABLE as error:
        if there:
            raise
        raise ModelError(_NO_TOKENIZER.format(source)) from error
    if not there and len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(_NO_TOKENIZER.format(source))
    return tokenizer


def weights(source: str, config: Any, options: EngineOptions, *, only_cached: bool = False) -> Any:
    """Return the model with its weights on its device, or raise ModelError."""
    given: dict[str, Any] = {"dtype": DTYPES.get(options.dtype, "auto"), **_hub(options, only_cached=only_cached)}
    if options.experts_implementation is not None:
        given["experts_implementation"] = options.experts_implementation
    if options.attention is not None:
        given["attn_implementation"] = options.attention
    given |= quantization.given(options)
    with explained(source):
        # Wrong sizes are accepted here so that the line below can name them.
        model, info = classes.auto_class(config).from_pretrained(
            source, **given, output_loading_info=True, ignore_mismatched_sizes=True
        )
        _check_complete(source, info)
        model = quantization.applied(model, options)
        return model if options.device is None else model.to(options.device)


def _check_complete(source: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that would leave tensors random; tied weights are not among the missing ones."""
    if missing := info.get("missing_keys"):
        raise ModelError(f"{source}: tensors of the config that the weights lack: {_some(missing)}")
    if mismatched := info.get("mismatched_keys"):
        shapes = {f"{name} is {_shape(held)}, by the config {_shape(wanted)}" for name, held, wanted in mismatched}
        raise ModelError(f"{source}: the weights do not match the config: {_some(shapes)}")


def _some(lines: Collection[str]) -> str:
    more = len(lines) - _SHOWN
    return ", ".join(sorted(lines)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(size: Collection[int]) -> str:
    return "x".join(map(str, size)) or "a number"


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn what transformers raises for a model it cannot load into one line, and keep its progress bars quiet."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        # tokenizers raises a bare one for a file that it cannot read, as of a later version.
        if not isinstance(error, _UNLOADABLE) and type(error) is not Exception:
            raise
        raise ModelError(f"{source}: {_reason(error)}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "needs code that comes with the model: read that code, then add --infer-trust-remote-code"
    if text.startswith("Unrecognized configuration class"):
        return "is no causal language model that transformers knows"
    if isinstance(error, EOFError):
        return "cannot be loaded: a file of it ends early; copy or download it again"
    # The text of these is only a name or a number, meaningless without their type.
    kind = f"{type(error).__name__}: " if isinstance(error, (LookupError, ArithmeticError, AttributeError)) else ""
    return f"cannot be loaded: {kind}{text[:400]}"
