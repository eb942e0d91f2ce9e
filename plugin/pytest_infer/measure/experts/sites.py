"""Finds the places of a model where tokens are routed to experts, and refuses those it cannot observe."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from pytest_infer.engines.base import TOWER
from pytest_infer.engines.roles import layer_of
from pytest_infer.errors import ExpertCaptureError
from pytest_infer.measure.experts import types
from pytest_infer.measure.experts.adapters import adapter_of
from pytest_infer.measure.experts.taps import (
    ExpertsCall,
    Site,
    bytes_of_one,
    leading,
    numbered_layer,
    shared_beside,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The second and third argument of an experts module; gpt_oss and openai_privacy_filter have names of their own.
_INDEX_NAMES = frozenset({"top_k_index", "router_indices"})
_WEIGHT_NAMES = frozenset({"top_k_weights", "routing_weights"})
# Attributes that show that a module holds experts although it is no site.
_COUNT_NAMES = ("num_experts", "num_local_experts", "num_routed_experts", "n_routed_experts")
_INTERFACE = "forward(hidden_states, top_k_index, top_k_weights)"


def find(model: torch.nn.Module) -> tuple[Site, ...]:
    """Return every place of `model` that routes text to experts, in the order of its modules; a dense model has none.

    A site is recognised by the signature `forward(hidden_states, top_k_index, top_k_weights)`, which 67 of the 72
    mixture-of-experts directories of transformers 5.23 share; the others have an adapter each.

    Raises:
        ExpertCaptureError: the model is compiled, or it holds experts that cannot be observed exactly.

    """
    refuse_compiled(model)
    kind = model_type(model)
    try:
        _refuse_type(kind)
        sites = tuple(_sites(model))
        _refuse_unseen(model, sites)
        _refuse_two_halves(model, sites)
    except ExpertCaptureError as error:
        raise error if kind is None or kind in str(error) else ExpertCaptureError(f"{kind}: {error}") from None
    return sites


def towers(model: torch.nn.Module) -> tuple[tuple[str, torch.nn.Module], ...]:
    """Return the experts modules, with their names, that see images or sound and must not run on text."""
    return tuple(
        (name, module)
        for name, module in model.named_modules()
        if TOWER.search(name) and _argument_names(type(module)) is not None and not _is_adapted(model, name)
    )


def model_type(model: torch.nn.Module) -> str | None:
    """Return the type that the model's config names; None for a module without a config."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind if isinstance(kind, str) and kind else None


def note(model: torch.nn.Module) -> str | None:
    """Return the note on counts of a model of this type; None where they were checked."""
    kind = model_type(model)
    if kind is None or kind in types.CHECKED:
        return None
    return (
        f"{kind} is not among the architectures that this version was checked with (transformers "
        f"{types.VERSION}): its experts look regular and the sums are right, but no recount confirmed the counts"
    )


def _refuse_type(kind: str | None) -> None:
    if kind in types.REFUSED:
        raise ExpertCaptureError(f"{kind} {types.REFUSED[kind]}")


def _refuse_two_halves(model: torch.nn.Module, sites: Sequence[Site]) -> None:
    halves = {"encoder", "decoder"}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and any(
        halves & set(site.name.split(".")) for site in sites
    ):
        raise ExpertCaptureError(
            f"{type(model).__name__} is an encoder-decoder, whose two halves see different tokens: "
            "record its encoder or its decoder"
        )


def _sites(model: torch.nn.Module) -> Iterator[Site]:
    names = {kind: _argument_names(kind) for kind in {type(module) for module in model.modules()}}
    adapted = ""
    for name, module in model.named_modules():
        adapter = adapter_of(type(module))
        if adapted and name.startswith(adapted):
            continue
        if adapter is not None:
            adapted = name + "."
            try:
                yield from adapter.sites(model, name, module)
            except AttributeError as error:
                raise ExpertCaptureError(
                    f"{name} ({type(module).__name__}) is not built as in transformers {types.VERSION}: {error}"
                ) from error
        elif (arguments := names[type(module)]) is not None and not TOWER.search(name):
            yield _site(model, name, module, arguments)


def _is_adapted(model: torch.nn.Module, name: str) -> bool:
    parts = name.split(".")
    parents = (model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) + 1))
    return any(adapter_of(type(parent)) is not None for parent in parents)


def refuse_compiled(model: torch.nn.Module) -> None:
    """Raise ExpertCaptureError if any part of `model` is compiled: hooks added afterwards silently see nothing."""
    name = compiled_part(model)
    if name is not None:
        raise ExpertCaptureError(
            f"{name or 'the model'} is compiled, and hooks do not fire in compiled code: "
            "record experts on a model that is not (disable_compile=True)"
        )


def compiled_part(model: torch.nn.Module) -> str | None:
    """Return the name of the first part of `model` that is compiled, None if none is."""
    for name, module in model.named_modules():
        attributes = vars(module)
        if (
            "_orig_mod" in module._modules  # torch.compile(module)
            or attributes.get("_compiled_call_impl") is not None  # module.compile()
            or "_compiled_call" in attributes  # generate() with a static cache, in transformers
            or hasattr(attributes.get("forward"), "_torchdynamo_orig_callable")  # module.forward = torch.compile(…)
        ):
            return str(name)
    return None


def _argument_names(kind: type[torch.nn.Module]) -> tuple[str, str] | None:
    """Return how `forward` calls the expert ids and the gate weights, or None for a module of another interface."""
    try:
        parameters = list(inspect.signature(kind.forward).parameters)[1:]
    except (AttributeError, TypeError, ValueError):  # a scripted or builtin forward has no signature
        return None
    if len(parameters) != 3:
        return None
    states, index, weights = parameters
    known = states == "hidden_states" and index in _INDEX_NAMES and weights in _WEIGHT_NAMES
    return (index, weights) if known else None


def _site(model: torch.nn.Module, name: str, module: torch.nn.Module, names: tuple[str, str]) -> Site:
    parent = model.get_submodule(_parent(name))
    _refuse_bypass(name, module, parent)
    tensors = list(tensors_of(module))
    experts = _count(name, module, tensors)
    shared, shared_bytes = shared_beside(model, name)
    return Site(
        name=name,
        layer=numbered_layer(name),
        kind="mlp",
        experts=experts,
        slots=_slots(name, module, parent, experts),
        expert_bytes=bytes_of_one(tensors, experts),
        tap=ExpertsCall(module=module, index_name=names[0], weights_name=names[1]),
        shared=shared,
        shared_bytes=shared_bytes,
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
    rows = sorted(leading(tensors))
    if len(rows) != 1:
        raise ExpertCaptureError(
            f"{name} ({type(module).__name__}): the number of its experts cannot be told, "
            f"its weights are stacked as {rows or 'nothing'}"
        )
    return rows[0]


def _slots(name: str, module: torch.nn.Module, parent: torch.nn.Module, experts: int) -> int:
    """Return how many slots the router chooses among, confirmed by a router with that many outputs.

    A router that is wider than its experts also chooses slots without weights (skip or identity experts), which reach
    `forward` in ways of their own: zaya's arrives as expert 0 with weight 0. Counting those would be wrong.
    """
    own = {id(tensor) for tensor in tensors_of(module)}
    widths = leading([tensor for tensor in tensors_of(parent) if id(tensor) not in own])
    if experts not in widths:
        raise ExpertCaptureError(
            f"{name} ({type(module).__name__}) has {experts} experts, but no router beside it has {experts} outputs: "
            "slots without weights cannot be told from experts"
        )
    return experts


def _refuse_unseen(model: torch.nn.Module, sites: Sequence[Site]) -> None:
    """Raise for a module that holds experts without being a site, the block around one, or a part of that block."""
    blocks = [_parent(site.name) + "." for site in sites]
    for name, module in model.named_modules():
        path = name + "."
        seen = any(path.startswith(block) for block in blocks) or any(site.name.startswith(path) for site in sites)
        if name and not seen and not TOWER.search(name) and _holds_experts(name, module):
            raise ExpertCaptureError(
                f"{name} ({type(module).__name__}) holds experts but has no {_INTERFACE}: "
                "this architecture's selections cannot be recorded yet"
            )


def _holds_experts(name: str, module: torch.nn.Module) -> bool:
    # A model or a stack of layers repeats the count of its config even when no layer of it has experts.
    if layer_of(name) is None and any(layer_of(child) is not None for child, _ in module.named_modules()):
        return False
    counts = (getattr(module, count, None) for count in _COUNT_NAMES)
    declared = any(isinstance(count, int) and count > 1 for count in counts)
    return declared or "Experts" in type(module).__name__ or name.rpartition(".")[2] == "experts"


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
