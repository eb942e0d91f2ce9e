"""Where a loaded model computes: a module's weights may be elsewhere until it runs (accelerate's offloading)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

NOT_AWAITED = ("cpu", "meta")


def home(model: Any) -> torch.device:
    """Return the device on which a model takes its ids: that of its first weights, or where a hook brings them."""
    device: torch.device = model.device
    return next(_executing(model), device) if device.type == "meta" else device


def awaited(model: Any) -> tuple[torch.device, ...]:
    """Return the accelerators on which a model computes: all of them are waited for."""
    found = [parameter.device for parameter in model.parameters()]
    return tuple(dict.fromkeys(d for d in (*found, *_executing(model)) if d.type not in NOT_AWAITED))


def _executing(model: Any) -> Iterator[torch.device]:
    """Yield the devices on which accelerate's hooks let modules compute, in the modules' order."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                yield torch.device(device)
