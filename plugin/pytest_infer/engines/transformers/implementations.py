"""Which device, attention and experts implementations a model can run with here, checked before weights are read."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.utils import is_kernels_available

from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers import classes, quantization, work
from pytest_infer.engines.transformers.loading import explained
from pytest_infer.errors import ModelError, UnknownValueError, alternatives

# transformers takes these names everywhere and fails in the first forward pass: they are kernels for CUDA.
_CUDA_EXPERTS = {"deepgemm", "deepgemm_megamoe", "sonicmoe"}


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have."""
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    usable = ["cpu", *([accelerator.type] if accelerator else [])]
    if wanted.type not in usable:
        raise ModelError(alternatives("device", device, usable))
    count = 1 if wanted.type == "cpu" else torch.accelerator.device_count()
    if wanted.index is not None and wanted.index >= count:
        raise ModelError(alternatives("device", device, [f"{wanted.type}:{number}" for number in range(count)]))


def check(source: str, config: Any, options: EngineOptions) -> work.Tables:
    """Build the model without memory (on torch's meta device), and reject what it cannot be built or run with.

    Returns the sizes of the tables in which it looks up ids and positions.
    """
    with explained(source):
        quantization.check_own(config)
        model = _skeleton(config, options)
        classes.check_generate(model, source)
    device = torch.device(options.device or "cpu").type
    if options.attention is not None:
        _check_attention(model, config, options, device)
    if options.experts_implementation is not None:
        _check_experts(model, options.experts_implementation, device)
    quantization.check(config, options)
    return work.tables(model)


def _skeleton(config: Any, options: EngineOptions, **given: Any) -> Any:
    # A copy, since a model writes its choices into its config.
    with torch.device("meta"):
        return classes.auto_class(config).from_config(
            copy.deepcopy(config), trust_remote_code=options.trust_remote_code, **given
        )


def _check_attention(model: Any, config: Any, options: EngineOptions, device: str) -> None:
    wanted = str(options.attention)
    error: Exception | None = None
    if _runs_here(wanted, device):
        try:
            # By a build and not by the list below: transformers may put a kernel from the hub in place of a name.
            _skeleton(config, options, attn_implementation=wanted)
        except (ValueError, ImportError, OSError, RuntimeError) as caught:
            error = caught
        else:
            return
    names = ["eager", *AttentionInterface().valid_keys()]
    usable = [name for name in names if _runs_here(name, device) and _dispatches(model, name)]
    # A kernel of the hub is named owner/name.
    kind = ModelError if wanted in names or "/" in wanted else UnknownValueError
    raise kind(_unusable("attention", wanted, model, usable)) from error


def _runs_here(attention: str, device: str) -> bool:
    # Paged attention needs the cache of continuous batching, which generate() does not make.
    return not attention.startswith("paged|") and not (device == "cpu" and "flash" in attention)


def _dispatches(model: Any, attention: str) -> bool:
    try:
        model.get_correct_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return True


def _check_experts(model: Any, wanted: str, device: str) -> None:
    if not type(model)._can_set_experts_implementation():
        raise ModelError(f"--infer-experts-implementation: {type(model).__name__} has no experts to choose one for")
    names = {"eager", *ALL_EXPERTS_FUNCTIONS.keys(), *_CUDA_EXPERTS}
    usable = names if device == "cuda" and is_kernels_available() else names - _CUDA_EXPERTS
    if wanted not in usable:
        kind = ModelError if wanted in names else UnknownValueError
        raise kind(_unusable("experts implementation", wanted, model, usable))


def _unusable(kind: str, wanted: str, model: Any, usable: Iterable[str]) -> str:
    return f"{kind} {wanted!r}: {type(model).__name__} cannot run it here; usable: {', '.join(sorted(usable))}"
