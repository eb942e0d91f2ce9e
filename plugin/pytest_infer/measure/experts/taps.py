"""What an experts site is, how selections are tapped from it, and how large its weights are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from pytest_infer.engines.base import local
from pytest_infer.engines.roles import layer_of
from pytest_infer.errors import ExpertCaptureError
from pytest_infer.records import ExpertSite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.utils.hooks import RemovableHandle

Selected: TypeAlias = "tuple[torch.Tensor | None, torch.Tensor | None]"
"""Expert ids of shape (rows, k), -1 where a row reaches no expert of the site, and gate weights of the same size."""
_ID_TYPES = frozenset({torch.int64, torch.int32, torch.int16, torch.uint8})
_SHARED = re.compile(r"shared_(experts?|mlp)")
# How configs call the number of always-on experts that one module computes together.
_SHARED_COUNTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")


class Tap(Protocol):
    """Where selections are seen. Hooks only keep references; computations on them wait for the end."""

    def attach(self, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
        """Hook the modules so that `put` takes what a forward selected, exactly once a forward."""

    def read(self, captured: Any, rows: int) -> Selected:
        """Return the ids and gate weights from what was put, on the device and without synchronising."""


def capture_output(module: torch.nn.Module, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
    """Put what a module returns."""
    return [module.register_forward_hook(lambda _module, _args, output: put(output))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsCall:
    """The usual way: an experts module is called with the states, the ids and the gate weights, in that order."""

    module: torch.nn.Module
    index_name: str = "top_k_index"
    weights_name: str = "top_k_weights"

    def attach(self, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
        """Keep the second and third argument."""
        index_name, weights_name = self.index_name, self.weights_name

        def keep(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) > 2:
                put(args[1:3])
            else:
                put((args[1] if len(args) > 1 else kwargs.get(index_name), kwargs.get(weights_name)))

        return [self.module.register_forward_pre_hook(keep, with_kwargs=True)]

    def read(self, captured: Any, rows: int) -> Selected:  # noqa: ARG002 - other taps need the number of rows
        """Return them as they are."""
        index, weights = captured
        return index, weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where tokens are routed to experts. Its top-k is known only when it runs: `index.shape[-1]`.

    `experts` have weights; `slots` is what the router chooses among. `expert_bytes` is the size of one expert's
    weights as they are stored, scales and biases included; None when they are not packed as one row per
    expert. `misses` says why a row may reach no expert here ("dropped", "elsewhere"); None where each row must.
    """

    name: str
    layer: int
    kind: str
    experts: int
    slots: int
    expert_bytes: int | None
    tap: Tap
    shared: int | None = None
    shared_bytes: int | None = None
    misses: str | None = None

    def read(self, captured: object, rows: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the expert ids that a forward selected, (rows, k) or (batch, rows / batch, k), and their weights.

        Raises:
            ExpertCaptureError: there are no such ids, or not those of every row.

        """
        ids, weights = (None, None) if captured is None else self.tap.read(captured, rows)
        ids, weights = replicated(ids, self.name), replicated(weights, self.name)
        if ids is None:
            raise ExpertCaptureError(f"{self.name} did not run in a forward of the model, or got no expert ids")
        if not isinstance(ids, torch.Tensor) or ids.dtype not in _ID_TYPES or ids.ndim < 2:
            raise ExpertCaptureError(f"{self.name} was not given expert ids of shape (tokens, k)")
        if ids.numel() != rows * ids.shape[-1]:
            raise ExpertCaptureError(
                f"{self.name} was given {ids.shape[:-1].numel()} of {rows} rows: whose they are cannot be told"
            )
        weighs = isinstance(weights, torch.Tensor) and weights.is_floating_point() and weights.numel() == ids.numel()
        return ids, weights if weighs else None

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
            shared=self.shared,
            shared_bytes=self.shared_bytes,
        )


def numbered_layer(name: str) -> int:
    """Return the layer, or raise ExpertCaptureError for experts outside numbered layers."""
    layer = layer_of(name)
    if layer is None:
        raise ExpertCaptureError(f"experts {name!r} are not in a numbered layer: their layer cannot be told")
    return layer


def shared_beside(model: torch.nn.Module, name: str) -> tuple[int | None, int | None]:
    """Return the number and the bytes of the always-on experts in the block of a site or in the layer around that.

    They are found by their names (`shared_expert`, `shared_experts`, `shared_mlp`). One module may compute several of
    them at once; how many the config says, and 1 is assumed where it does not.
    """
    block = name.rpartition(".")[0]
    outer = block.rpartition(".")[0]
    places = [block] if layer_of(outer) is None else [block, outer]
    for place in places:
        for child, module in model.get_submodule(place).named_children():
            size = module_bytes(module)
            if _SHARED.fullmatch(child) and size:
                return _shared_count(model, module), size
    return None, None


def _shared_count(model: torch.nn.Module, module: torch.nn.Module) -> int:
    config: Any = getattr(module, "config", None) or getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    counts = (getattr(text, name, None) for name in _SHARED_COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 0), 1)


def bytes_of_one(tensors: Sequence[torch.Tensor], experts: int) -> int | None:
    """Return the size of one expert, if every matrix or stack of `tensors` has a row an expert; else None."""
    if leading(tensors) != {experts}:
        return None
    return sum(stored_bytes(tensor) for tensor in tensors if tensor.ndim and tensor.shape[0] == experts) // experts


def replicated(tensor: Any, name: str) -> Any:
    """Return a tensor that every rank has whole as a plain one; raise ExpertCaptureError for one that they share."""
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return tensor
    if not all(placement.is_replicate() for placement in placements):
        raise ExpertCaptureError(f"{name} sees the selections of one rank only: they are spread over the ranks")
    return tensor.to_local()


def stored_bytes(tensor: torch.Tensor) -> int:
    """Return the size stored here: a quantised tensor (torchao) wraps those with its data, a DTensor holds its part."""
    tensor = local(tensor)
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    names, _ = flatten()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield every parameter and buffer."""
    yield from module.parameters()
    yield from module.buffers()


def module_bytes(module: torch.nn.Module) -> int:
    """Return the stored size of all parameters and buffers."""
    return sum(stored_bytes(tensor) for tensor in tensors_of(module))


def leading(tensors: Sequence[torch.Tensor]) -> set[int]:
    """Return the leading dimensions of matrices and stacks; vectors may be norms that all experts share."""
    return {tensor.shape[0] for tensor in tensors if tensor.ndim > 1}
