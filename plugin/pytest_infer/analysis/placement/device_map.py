"""A split by whole decoder layers for transformers' `device_map`, and what each token then copies to the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_infer.analysis.placement.sizes import Sizes, stack
from pytest_infer.errors import OptionError
from pytest_infer.records import ExpertSite
from pytest_infer.units import size

GPU, CPU = 0, "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap:
    """Module name → 0 (the first GPU) or "cpu". accelerate copies a layer on the CPU to the GPU in every forward.

    `copied_bytes` are those copies, experts that are not selected included; `gpu_bytes` is what stays on the GPU.
    """

    devices: dict[str, int | str]
    gpu_layers: int
    layers: int
    gpu_bytes: int
    copied_bytes: int


def split(sites: Sequence[ExpertSite], sizes: Sizes, budget: int) -> DeviceMap:
    """Return the map that fills `budget` bytes of the GPU: what is outside the layers, then layers from the first on.

    Usage cannot help here: accelerate moves modules, and the experts of a layer are one module with stacked tensors.

    Raises:
        OptionError: the sizes are not from files, their names are not those of the modules, or the memory is too small.
    """
    prefix = stack(sites[0])
    if not sizes.layers:
        raise OptionError("device-map names every module of the model: name its folder with --model")
    if prefix is None or sizes.prefix != prefix:
        raise OptionError(f"device-map: the files name {sizes.prefix}.N what the model calls {prefix}.N")
    held = dict(sizes.layers)
    for site, one in zip(sites, sizes.experts, strict=True):
        held[site.layer] = held.get(site.layer, 0) + one * site.experts
    root = prefix.rpartition(".")[0]
    # Neither is in the files when it has no weights of its own; a key that no module has is only warned of.
    extra = ([] if not sizes.tied else ["lm_head"]) + [f"{root}.rotary_emb" if root else "rotary_emb"]
    devices: dict[str, int | str] = dict.fromkeys([*sizes.outside, *extra], GPU)
    used = sum(sizes.outside.values())
    largest, whole = max(held.values()), used + sum(held.values())
    # A layer that is not kept there passes through, so there must be room for the largest.
    room = budget if whole <= budget else budget - largest
    if used > room:
        raise OptionError(
            f"device-map: {size(budget)} cannot hold {size(used)} and a layer of {size(largest)}: raise --gpu-memory"
        )
    on_gpu = copied = 0
    for layer, here in sorted(held.items()):
        fits = copied == 0 and used + here <= room
        devices[f"{prefix}.{layer}"] = GPU if fits else CPU
        used += here if fits else 0
        copied += 0 if fits else here
        on_gpu += fits
    return DeviceMap(devices=devices, gpu_layers=on_gpu, layers=len(held), gpu_bytes=used, copied_bytes=copied)
