"""The bytes of a model by what a placement can move: each expert, and the dense rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_infer.engines.base import TOWER
from pytest_infer.engines.checkpoint.tensors import EXPERT, IN_LAYER, SHARED, Tensor
from pytest_infer.errors import ModelError
from pytest_infer.records import ExpertSite

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "token_embd")
_HEADS = ("lm_head", "embed_out", "output")
_GGUF = "blk"
"""What a GGUF calls the stack of layers, whatever the model calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a model's weights. `experts[i]` is one expert of site i; `shared[i]` its always-on experts together.

    `dense` is all that is no routed expert, shared experts included; `read` of it a decode step reads (an input
    embedding that is not also the output head is looked up, not read; nor are towers for images and sound). None where
    only the files could tell.
    `layers` are the dense bytes by layer number, `outside` the modules in no layer. `source` says where all this is
    from.
    """

    experts: tuple[int, ...]
    shared: tuple[int, ...]
    dense: int | None
    read: int | None
    source: str
    layers: Mapping[int, int] = field(default_factory=dict)
    outside: Mapping[str, int] = field(default_factory=dict)
    prefix: str | None = None
    tied: bool | None = None


def of_run(
    sites: Sequence[ExpertSite],
    parameter_bytes: int | None,
    read_bytes: int | None = None,
    apart: Sequence[str] = (),
) -> Sizes:
    """Return the sizes that a run stored: those of the tensors in memory while it was measured.

    `read_bytes` are those of the parameters that a forward pass reads, every expert included (`records.Work`); without
    them all dense weights count as read. `apart` are configurations of the run that differ in sizes.

    Raises:
        ModelError: an expert's size was not recorded, or there are several; the model's files have it.
    """
    if apart:
        raise ModelError(
            f"the run's experts have several sizes ({', '.join(apart)}): choose with -k TEXT, "
            "or name the model with --model"
        )
    unknown = [site.name for site in sites if not site.expert_bytes]
    if unknown:
        raise ModelError(f"the run does not know the size of an expert of {unknown[0]}: name the model with --model")
    experts = tuple(site.expert_bytes or 0 for site in sites)
    routed = sum(one * site.experts for one, site in zip(experts, sites, strict=True))
    dense = None if parameter_bytes is None or parameter_bytes < routed else parameter_bytes - routed
    return Sizes(
        experts=experts,
        shared=tuple(site.shared_bytes or 0 for site in sites),
        dense=dense,
        read=dense if dense is None or read_bytes is None or read_bytes < routed else read_bytes - routed,
        source="as loaded in the run",
    )


def of_tensors(tensors: Sequence[Tensor], sites: Sequence[ExpertSite], folder: str, *, alone: bool = False) -> Sizes:
    """Return the sizes of a checkpoint's tensors, routed experts told by `experts` in their names.

    `alone`: they are those that its config makes, for want of files.

    Raises:
        ModelError: a layer of the run has no experts in the files, another number of them, or several kinds.
    """
    names = _Names(sites)
    # A layer with experts that the model never ran is a draft head, which transformers does not load.
    idle = {names.layer(t.name) for t in tensors if names.idle_expert(t.name)}
    routed: dict[int, list[Tensor]] = defaultdict(list)
    layers: dict[int, int] = defaultdict(int)
    shared: dict[int, int] = defaultdict(int)
    outside: dict[str, int] = defaultdict(int)
    for tensor in tensors:
        site, layer = names.site(tensor.name), names.layer(tensor.name)
        if site is not None:
            routed[site].append(tensor)
        elif layer is None:
            outside[tensor.name.rpartition(".")[0] or tensor.name] += tensor.bytes
        elif layer not in idle:
            layers[layer] += tensor.bytes
            shared[layer] += tensor.bytes if SHARED.search(tensor.name) else 0
    experts = tuple(_one(routed[number], site, folder) for number, site in enumerate(sites))
    dense = sum(layers.values()) + sum(outside.values())
    tied = not any(name.rpartition(".")[2] in _HEADS for name in outside)
    looked_up = 0 if tied else sum(b for name, b in outside.items() if name.rpartition(".")[2] in _EMBEDDINGS)
    first = {site.layer: number for number, site in reversed(list(enumerate(sites)))}
    prefixes = {found[1] for t in tensors if (found := IN_LAYER.match(t.name)) and names.layer(t.name) is not None}
    return Sizes(
        experts=experts,
        shared=tuple(shared[site.layer] if first[site.layer] == number else 0 for number, site in enumerate(sites)),
        dense=dense,
        read=dense - looked_up - sum(b for name, b in outside.items() if TOWER.search(name)),
        source=f"{'config alone' if alone else 'files'} of {folder} ({', '.join(sorted({t.dtype for t in tensors}))})",
        layers=dict(sorted(layers.items())),
        outside=dict(outside),
        prefix=next(iter(prefixes)).rstrip(".") if len(prefixes) == 1 else None,
        tied=tied,
    )


def stack(site: ExpertSite) -> str | None:
    """Return the name of the stack of layers that a site is in: "model.layers" for "model.layers.3.mlp.experts"."""
    found = IN_LAYER.match(site.name + ".")
    return found[1].rstrip(".") if found else None


class _Names:
    """Which site or layer a tensor belongs to. Checkpoints may name the way to a site otherwise than the model does."""

    def __init__(self, sites: Sequence[ExpertSite]) -> None:
        self._sites = sites
        self._by_layer: dict[int, list[int]] = defaultdict(list)
        for number, site in enumerate(sites):
            self._by_layer[site.layer].append(number)
        # The last word in front of the number: "layers" of "model.language_model.layers.3".
        self._stacks = {_GGUF, *((stack(site) or "").rpartition(".")[2] for site in sites)}

    def layer(self, name: str) -> int | None:
        """Return the layer of a tensor in a stack of the name that holds the sites, and not in a tower."""
        found = None if TOWER.search(name) else IN_LAYER.match(name)
        inside = found is not None and found[1].rstrip(".").rpartition(".")[2] in self._stacks
        return int(found[2]) if inside and found is not None else None

    def site(self, name: str) -> int | None:
        """Return the number of the site whose routed experts this tensor is part of."""
        layer = self.layer(name)
        here = self._by_layer.get(layer, []) if layer is not None else []
        for number in here:
            if name.startswith(self._sites[number].name + "."):
                return number
        return here[0] if len(here) == 1 and _is_expert(name) else None

    def idle_expert(self, name: str) -> bool:
        """Return whether this is an expert's tensor in a layer without a site."""
        layer = self.layer(name)
        return layer is not None and layer not in self._by_layer and _is_expert(name)


def _is_expert(name: str) -> bool:
    return EXPERT.search(name) is not None and SHARED.search(name) is None


def _one(tensors: Sequence[Tensor], site: ExpertSite, folder: str) -> int:
    """Return the bytes of one expert from all tensors of its site: one set an expert, or stacked over the experts."""
    if not tensors:
        raise ModelError(
            f"{folder}: no experts of layer {site.layer} in the files: not the run's model? leave out --model"
        )
    numbers = {found[1] for t in tensors if (found := EXPERT.search(t.name)) and found[1] is not None}
    held = len(numbers) or max((t.shape[0] for t in tensors if len(t.shape) > 1), default=0)
    if held != site.experts and (numbers or held % site.experts):
        raise ModelError(
            f"{folder}: layer {site.layer} has {held} experts, the run {site.experts}: not the run's model"
        )
    return sum(tensor.bytes for tensor in tensors) // site.experts
