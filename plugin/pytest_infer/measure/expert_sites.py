"""Finds the places of a model where tokens are routed to experts, and refuses those it cannot observe."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_infer.errors import ExpertCaptureError
from pytest_infer.records import ExpertSite

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The second and third argument of an experts module; gpt_oss and openai_privacy_filter have names of their own.
_INDEX_NAMES = frozenset({"top_k_index", "router_indices"})
_WEIGHT_NAMES = frozenset({"top_k_weights", "routing_weights"})
# Attributes by which a module that is no site gives away that it holds experts all the same.
_COUNT_NAMES = ("num_experts", "num_local_experts", "num_routed_experts", "n_routed_experts")
_ID_TYPES = frozenset({torch.int64, torch.int32, torch.int16, torch.uint8})
_INTERFACE = "forward(hidden_states, top_k_index, top_k_weights)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """An experts module that can be observed. Its top-k is known only when it runs: `index.shape[-1]`.

    `experts` have weights; `slots` is what the router chooses among. `expert_bytes` is the size of one expert's
    weights as they are stored, scales and biases included; None when they are packed otherwise than one row an
    expert. `index_name` is how `forward` calls its second argument, the expert ids of shape (tokens, k).
    """

    name: str
    layer: int
    kind: str
    experts: int
    slots: int
    expert_bytes: int | None
    index_name: str
    module: torch.nn.Module

    def top_k(self, ids: object, rows: int) -> int:
        """Return k of the expert ids that the module was given, of shape (rows, k) or (batch, rows / batch, k).

        Raises:
            ExpertCaptureError: they are no such ids, or not those of every row.

        """
        if ids is None:
            raise ExpertCaptureError(f"{self.name} did not run in a forward of the model, or got no expert ids")
        if not isinstance(ids, torch.Tensor) or ids.dtype not in _ID_TYPES or ids.ndim < 2:
            raise ExpertCaptureError(f"{self.name} was not given expert ids of shape (tokens, k)")
        k = ids.shape[-1]
        if ids.numel() != rows * k:
            raise ExpertCaptureError(
                f"{self.name} was given {ids.shape[:-1].numel()} of {rows} rows: whose they are cannot be told"
            )
        return k

    def record(self, k: int) -> ExpertSite:
        """Return what is stored about this site, once its k is known."""
        return ExpertSite(
            name=self.name,
            layer=self.layer,
            kind=self.kind,
            experts=self.experts,
            slots=self.slots,
            k=k,
            expert_bytes=self.expert_bytes,
        )


def find(model: torch.nn.Module) -> tuple[Site, ...]:
    """Return every experts module of `model` in the order of its modules; a dense model has none.

    A site is recognised by the signature `forward(hidden_states, top_k_index, top_k_weights)`, which 67 of the 72
    mixture-of-experts directories of transformers 5.23 share, never by its class.

    Raises:
        ExpertCaptureError: the model is compiled, or it holds experts that cannot be observed exactly.

    """
    refuse_compiled(model)
    names = {kind: _index_name(kind) for kind in {type(module) for module in model.modules()}}
    sites = tuple(
        _site(model, name, module, index_name)
        for name, module in model.named_modules()
        if (index_name := names[type(module)]) is not None
    )
    _refuse_unseen(model, sites)
    return sites


def refuse_compiled(model: torch.nn.Module) -> None:
    """Raise ExpertCaptureError if any part of `model` is compiled: hooks added afterwards silently see nothing."""
    for name, module in model.named_modules():
        attributes = vars(module)
        if (
            "_orig_mod" in module._modules  # torch.compile(module)
            or attributes.get("_compiled_call_impl") is not None  # module.compile()
            or "_compiled_call" in attributes  # generate() with a static cache, in transformers
            or hasattr(attributes.get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(…)
        ):
            raise ExpertCaptureError(
                f"{name or 'the model'} is compiled, and hooks do not fire in compiled code: "
                "record experts on a model that is not (disable_compile=True)"
            )


def _index_name(kind: type[torch.nn.Module]) -> str | None:
    """Return the name of the argument that carries the expert ids, or None for a module of another interface."""
    try:
        parameters = list(inspect.signature(kind.forward).parameters)[1:]
    except (TypeError, ValueError):  # a scripted or builtin forward has no signature
        return None
    if len(parameters) != 3:
        return None
    states, index, weights = parameters
    return index if states == "hidden_states" and index in _INDEX_NAMES and weights in _WEIGHT_NAMES else None


def _site(model: torch.nn.Module, name: str, module: torch.nn.Module, index_name: str) -> Site:
    parent = model.get_submodule(_parent(name))
    _refuse_bypass(name, module, parent)
    layer = _layer(name)
    if layer is None:
        raise ExpertCaptureError(f"experts {name!r} are not in a numbered layer: their layer cannot be told")
    tensors = list(_tensors(module))
    experts = _count(name, module, tensors)
    return Site(
        name=name,
        layer=layer,
        kind="mlp",
        experts=experts,
        slots=_slots(name, module, parent, experts),
        expert_bytes=_expert_bytes(tensors, experts),
        index_name=index_name,
        module=module,
    )


def _refuse_bypass(name: str, module: torch.nn.Module, parent: torch.nn.Module) -> None:
    """Raise for experts that are known to run without their forward, or to see the selections of one rank only."""
    if hasattr(module, "forward_routed"):
        raise ExpertCaptureError(
            f"{name} ({type(module).__name__}) is called through forward_routed, where hooks do not fire: "
            "load the model dequantized to record its experts"
        )
    if getattr(module, "_is_expert_parallel", False):
        raise ExpertCaptureError(f"{name} holds one rank's experts only: record without expert parallelism")
    # The kernels package puts a hub kernel's forward on the instance; accelerate does so too, but calls the module's.
    kernel = getattr(type(parent), "kernel_layer_name", None)
    if kernel is not None and "forward" in vars(parent) and not hasattr(parent, "_hf_hook"):
        raise ExpertCaptureError(
            f"{_parent(name)} runs the hub kernel {kernel}, which bypasses its experts: "
            "load the model with use_kernels=False"
        )


def _count(name: str, module: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> int:
    """Return the number of experts: what the module says, else the leading dimension that its weights agree on."""
    declared = getattr(module, "num_experts", None)
    if isinstance(declared, int) and declared > 0:
        return declared
    leading = sorted(_leading(tensors))
    if len(leading) != 1:
        raise ExpertCaptureError(
            f"{name} ({type(module).__name__}): the number of its experts cannot be told, "
            f"its weights are stacked as {leading or 'nothing'}"
        )
    return leading[0]


def _slots(name: str, module: torch.nn.Module, parent: torch.nn.Module, experts: int) -> int:
    """Return how many slots the router chooses among, confirmed by a router with that many outputs.

    A router that is wider than its experts also chooses slots without weights (skip or identity experts), which reach
    `forward` in ways of their own: zaya's arrives as expert 0 with weight 0. Counting those would be wrong.
    """
    own = {id(tensor) for tensor in _tensors(module)}
    widths = _leading([tensor for tensor in _tensors(parent) if id(tensor) not in own])
    if experts not in widths:
        raise ExpertCaptureError(
            f"{name} ({type(module).__name__}) has {experts} experts, but no router beside it has {experts} outputs: "
            "slots without weights cannot be told from experts"
        )
    return experts


def _expert_bytes(tensors: Sequence[torch.Tensor], experts: int) -> int | None:
    if _leading(tensors) != {experts}:
        return None
    return sum(_bytes(tensor) for tensor in tensors if tensor.ndim and tensor.shape[0] == experts) // experts


def _bytes(tensor: torch.Tensor) -> int:
    """Return the stored size; a quantised tensor (torchao) is a wrapper around the tensors that hold its data."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    names, _ = flatten()
    return sum(_bytes(getattr(tensor, name)) for name in names)


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _leading(tensors: Sequence[torch.Tensor]) -> set[int]:
    """Return the leading dimensions of matrices and stacks; vectors may be norms that all experts share."""
    return {tensor.shape[0] for tensor in tensors if tensor.ndim > 1}


def _refuse_unseen(model: torch.nn.Module, sites: Sequence[Site]) -> None:
    """Raise for a module that holds experts without being a site, the block around one, or a part of that block."""
    blocks = [_parent(site.name) + "." for site in sites]
    for name, module in model.named_modules():
        path = name + "."
        seen = any(path.startswith(block) for block in blocks) or any(site.name.startswith(path) for site in sites)
        if name and not seen and _holds_experts(name, module):
            raise ExpertCaptureError(
                f"{name} ({type(module).__name__}) holds experts but has no {_INTERFACE}: "
                "this architecture's selections cannot be recorded yet"
            )


def _holds_experts(name: str, module: torch.nn.Module) -> bool:
    # A model or a stack of layers repeats the count of its config even when no layer of it has experts.
    if _layer(name) is None and any(_layer(child) is not None for child, _ in module.named_modules()):
        return False
    counts = (getattr(module, count, None) for count in _COUNT_NAMES)
    declared = any(isinstance(count, int) and count > 1 for count in counts)
    return declared or "Experts" in type(module).__name__ or name.rpartition(".")[2] == "experts"


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _layer(name: str) -> int | None:
    """Return the first number of a qualified name: "model.layers.3.mlp.experts" is in layer 3."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return None if number is None else int(number[1])
