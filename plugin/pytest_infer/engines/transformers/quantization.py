"""Quantised weights: torch's own dynamic int8 for linear layers, and int8 and int4 weight-only by torchao."""

from __future__ import annotations

import copy
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from transformers.quantizers import AutoHfQuantizer

from pytest_infer.engines.base import QUANTIZATIONS, EngineOptions
from pytest_infer.errors import ModelError, UnknownValueError, alternatives

NONE, DYNAMIC, INT8, INT4 = QUANTIZATIONS
_DYNAMIC_LAYERS = "torch.ao.nn.quantized.dynamic"


def check(config: Any, options: EngineOptions) -> None:
    """Refuse, before weights are read, what cannot be quantised here.

    Raises:
        UnknownValueError: there is no such quantisation.
        ModelError: it needs torchao, another dtype, or another device.
    """
    wanted = options.quantization
    if wanted is None or wanted == NONE:
        return
    if wanted not in QUANTIZATIONS:
        raise UnknownValueError(alternatives("quantization", wanted, QUANTIZATIONS))
    on_cpu = torch.device(options.device or "cpu").type == "cpu"
    if wanted == INT4 and on_cpu:
        # Its kernels for the CPU are prototypes that change with each version.
        raise ModelError(f"quantization {INT4}: torchao has it for accelerators only; take {INT8} or {DYNAMIC}")
    if wanted in (INT8, INT4) and find_spec("torchao") is None:
        raise ModelError(f"quantization {wanted} needs torchao: pip install torchao; {DYNAMIC} is torch's own")
    if wanted == DYNAMIC:
        _check_dynamic(config, options, on_cpu=on_cpu)


def check_own(config: Any) -> None:
    """Raise what transformers raises while it loads weights that are quantised already: ImportError for a package.

    Source: `get_hf_quantizer` of transformers.
    """
    own = _own(config)
    if own is None or not AutoHfQuantizer.supports_quant_method(own):
        return
    AutoHfQuantizer.from_config(copy.deepcopy(own), pre_quantized=True).validate_environment(
        device_map=None, weights_only=True
    )


def named(model: Any, wanted: str | None) -> str | None:
    """Return to what a model was quantised, else by which method its checkpoint was; None if neither.

    `wanted` is what it was asked for as it was loaded; of one that was loaded elsewhere None.
    """
    if wanted not in (None, NONE):
        return wanted
    if any(type(module).__module__.startswith(_DYNAMIC_LAYERS) for module in model.modules()):
        return DYNAMIC
    own = _own(model.config)
    method = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def _own(config: Any) -> Any:
    """Return what a config says of weights that are quantised; of a model for more than text that of its text."""
    own = getattr(config, "quantization_config", None)
    return own or getattr(config.get_text_config(), "quantization_config", None)


def _check_dynamic(config: Any, options: EngineOptions, *, on_cpu: bool) -> None:
    if not hasattr(torch.ao.quantization, "quantize_dynamic"):
        raise ModelError(f"quantization {DYNAMIC}: this torch has none of its own any more; take {INT8}, with torchao")
    if not on_cpu:
        raise ModelError(f"quantization {DYNAMIC} runs on the CPU only")
    own = str(getattr(config, "dtype", None) or "torch.float32").removeprefix("torch.")
    dtype = own if options.dtype == "auto" else options.dtype
    if dtype != "float32":
        raise ModelError(f"quantization {DYNAMIC} computes with float32 and not with {dtype}: add dtype float32")


def given(options: EngineOptions) -> dict[str, Any]:
    """Return what `from_pretrained` is given to quantise while it loads."""
    if options.quantization not in (INT8, INT4):
        return {}
    # Imported late: torchao need not be installed.
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig  # noqa: PLC0415
    from transformers import TorchAoConfig  # noqa: PLC0415

    if options.quantization == INT8:
        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    return {"quantization_config": TorchAoConfig(Int4WeightOnlyConfig(group_size=32))}


def applied(model: Any, options: EngineOptions) -> Any:
    """Return a loaded model with its linear layers quantised in place, if torch itself does that."""
    if options.quantization != DYNAMIC:
        return model
    with warnings.catch_warnings():
        # It is called deprecated in favour of torchao, which need not be installed.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        quantize: Any = torch.ao.quantization.quantize_dynamic
        return quantize(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
