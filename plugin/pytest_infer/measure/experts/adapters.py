"""The architectures whose experts are not called the usual way: one class for each, which finds and taps its sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from pytest_infer.errors import ExpertCaptureError
from pytest_infer.measure.experts.taps import (
    ExpertsCall,
    Selected,
    Site,
    Tap,
    bytes_of_one,
    capture_output,
    module_bytes,
    numbered_layer,
    shared_beside,
    stored_bytes,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.utils.hooks import RemovableHandle


class Adapter(Protocol):
    """Makes the sites of the modules whose class it is registered for."""

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:
        """Return the sites that `module`, called `name` in `model`, holds."""


def _site(
    name: str,
    experts: int,
    tap: Tap,
    expert_bytes: int | None,
    *,
    slots: int | None = None,
    kind: str = "mlp",
    shared: tuple[int | None, int | None] = (None, None),
    misses: str | None = None,
) -> Site:
    return Site(
        name=name,
        layer=numbered_layer(name),
        kind=kind,
        experts=experts,
        slots=experts if slots is None else slots,
        expert_bytes=expert_bytes,
        tap=tap,
        shared=shared[0],
        shared_bytes=shared[1],
        misses=misses,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4:
    """The experts get states only, and each computes every token, scaled by 0 unless selected: the router is tapped."""

    router: Any

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:
        """Return the site; its kind says that selecting an expert saves nothing."""
        experts = int(module.router.num_experts)
        site = name + ".experts"
        size = bytes_of_one(list(tensors_of(module.experts)), experts)
        shared = shared_beside(model, site)
        return [_site(site, experts, cls(router=module.router), size, kind="mlp-all", shared=shared)]

    def attach(self, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
        """Keep the scores of every expert and the logits."""
        return capture_output(self.router, put)

    def read(self, captured: Any, rows: int) -> Selected:  # noqa: ARG002 - all rows are there
        """Return what the router took: the same operator on the same logits (scores may underflow to a tie at 0)."""
        scores, logits = captured
        ids = torch.topk(logits, self.router.top_k, dim=1).indices
        return ids, scores.gather(1, ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class JetMoe:
    """Two sites a layer, MLP and attention, whose router sorts the tokens by expert: the sorting is undone."""

    router: Any

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:  # noqa: ARG003 - as Adapter says
        """Return the site of an MLP (JetMoeMoE) or of an attention (JetMoeMoA)."""
        experts = int(module.router.num_experts)
        size = bytes_of_one([module.input_linear.weight, module.output_linear.weight], experts)
        kind = "attention" if "attention" in name else "mlp"
        return [_site(name, experts, cls(router=module.router), size, kind=kind)]

    def attach(self, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
        """Keep the order, the sizes of the experts' parts (on the host already), and the gates."""
        return capture_output(self.router, put)

    def read(self, captured: Any, rows: int) -> Selected:
        """Return ids and gates in the order of the tokens."""
        order, _, gates, sizes, _ = captured
        numbers = torch.tensor([expert for expert, size in enumerate(sizes) for _ in range(size)], device=order.device)
        ids = torch.empty_like(order).index_copy_(0, order, numbers)
        weights = torch.empty_like(gates).index_copy_(0, order, gates)
        return ids.view(rows, -1), weights.view(rows, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doge:
    """Product keys over thousands of experts of one row each, looked up in an embedding: its input is tapped.

    The gate weights never leave the block, so there are none.
    """

    lookup: torch.nn.Module

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:  # noqa: ARG003 - as Adapter says
        """Return the site; the dense MLP in the same block is its shared expert."""
        experts = int(module.num_experts)
        size = bytes_of_one([module.down_embed.weight, module.up_embed.weight], experts)
        dense = sum(module_bytes(part) for part in (module.gate_proj, module.up_proj, module.down_proj))
        return [_site(name, experts, cls(lookup=module.down_embed), size, shared=(1, dense))]

    def attach(self, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
        """Keep the rows that are looked up."""
        return [self.lookup.register_forward_pre_hook(lambda _module, args: put(args[0]))]

    def read(self, captured: Any, rows: int) -> Selected:
        """Return them."""
        return captured.view(rows, -1), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(ExpertsCall):
    """A dispatch mask of shape (rows, 1, experts), empty where the selected expert had no capacity left."""

    index_name: str = "selected_experts"
    weights_name: str = "routing_weights"

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:  # noqa: ARG003 - as Adapter says
        """Return the site, whose experts are modules of their own."""
        experts = int(module.num_experts)
        return [_site(name, experts, cls(module=module), module_bytes(module) // experts, misses="dropped")]

    def read(self, captured: Any, rows: int) -> Selected:
        """Return the expert of each row, -1 where it was dropped."""
        mask, weights = captured
        mask = mask.reshape(rows, -1)
        ids = torch.where(mask.any(dim=-1), mask.argmax(dim=-1), -1)
        return ids.view(rows, 1), weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Zaya(ExpertsCall):
    """The router's last slot skips the experts; it arrives as expert 0 with weight 0."""

    experts: int

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:
        """Return the site with one weightless slot, if the router has one."""
        experts = int(module.num_experts)
        router: Any = model.get_submodule(name.rpartition(".")[0] + ".gate")
        slots = int(router.num_router_classes)
        if slots != experts + 1:
            raise ExpertCaptureError(f"{name}: {slots} router outputs for {experts} experts, expected one more")
        size = bytes_of_one(list(tensors_of(module)), experts)
        return [_site(name, experts, cls(module=module, experts=experts), size, slots=slots)]

    def read(self, captured: Any, rows: int) -> Selected:  # noqa: ARG002 - all rows are there
        """Give the skipped ones the last slot."""
        ids, weights = captured
        return torch.where((ids == 0) & (weights == 0), self.experts, ids), weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LongcatFlash:
    """Ids from the number of routed experts on are identity experts: they return their input."""

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:
        """Return the site; half of the weights has unused rows for the identity experts too, which do not count."""
        experts, slots = int(module.num_routed_experts), int(module.total_experts)
        size = sum(stored_bytes(stack) // stack.shape[0] for stack in (module.gate_up_proj, module.down_proj))
        return [_site(name, experts, ExpertsCall(module=module), size, slots=slots, shared=shared_beside(model, name))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErnieVl:
    """Text and image tokens have experts of their own: each set sees only its rows, identified by token types."""

    block: torch.nn.Module
    experts: torch.nn.Module
    top_k: int
    vision: bool

    TYPES: ClassVar[str] = "moe_mm_token_type_ids"

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:
        """Return the text site and the vision site of a block, which share its shared experts."""
        shared = shared_beside(model, name + ".text_moe")
        found = []
        for part, vision in ((module.text_moe, False), (module.vision_moe, True)):
            experts = int(part.num_experts)
            site = f"{name}.{'vision' if vision else 'text'}_moe.experts"
            tap = cls(block=module, experts=part.experts, top_k=int(part.top_k), vision=vision)
            size = bytes_of_one(list(tensors_of(part.experts)), experts)
            beside = (None, None) if vision else shared
            found.append(_site(site, experts, tap, size, shared=beside, misses="elsewhere"))
        return found

    def attach(self, put: Callable[[object], None]) -> Sequence[RemovableHandle]:
        """Keep what the experts are given, if they run, and which rows are theirs."""
        given: list[Any] = [(None, None)]

        def close(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> None:
            put((*given[0], args[1] if len(args) > 1 else kwargs.get(self.TYPES)))
            given[0] = (None, None)

        def keep(selected: object) -> None:
            given[0] = selected

        return [
            *ExpertsCall(module=self.experts).attach(keep),
            self.block.register_forward_hook(close, with_kwargs=True),
        ]

    def read(self, captured: Any, rows: int) -> Selected:
        """Spread the ids over all rows, -1 where a row belongs to the other set."""
        ids, weights, types = captured
        if ids is None:
            device = next(self.experts.parameters()).device
            return torch.full((rows, self.top_k), -1, device=device), torch.zeros(rows, self.top_k, device=device)
        if ids.shape[0] == rows:
            return ids, weights
        if types is None or types.numel() != rows:
            return ids, None
        own = (types.reshape(-1, 1).bool() == self.vision).expand(rows, self.top_k)
        spread = torch.full((rows, self.top_k), -1, dtype=ids.dtype, device=ids.device).masked_scatter_(own, ids)
        return spread, torch.zeros((rows, self.top_k), device=ids.device).masked_scatter_(own, weights.float())


@dataclass(frozen=True, slots=True, kw_only=True)
class Dbrx:
    """Called as usual, but all experts lie under each other in one matrix."""

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:  # noqa: ARG003 - as Adapter says
        """Return the site."""
        experts = int(module.num_experts)
        return [_site(name, experts, ExpertsCall(module=module), module_bytes(module) // experts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inkling:
    """Called as usual, but the router also weighs the shared experts: it has an output for each."""

    @classmethod
    def sites(cls, model: torch.nn.Module, name: str, module: Any) -> Sequence[Site]:
        """Return the site."""
        router: Any = model.get_submodule(name.rpartition(".")[0] + ".gate")
        experts, shared = int(router.num_experts), shared_beside(model, name)
        if router.weight.shape[0] != experts + (shared[0] or 0):
            raise ExpertCaptureError(
                f"{name}: {router.weight.shape[0]} router outputs for {experts} experts and {shared[0] or 0} shared"
            )
        size = bytes_of_one(list(tensors_of(module)), experts)
        return [_site(name, experts, ExpertsCall(module=module), size, shared=shared)]


ADAPTERS: dict[str, type[Adapter]] = {
    "DbrxExperts": Dbrx,
    "DogeCDMoE": Doge,
    "Ernie4_5_VLMoeMoeBlock": ErnieVl,
    "InklingExperts": Inkling,
    "JetMoeMoA": JetMoe,
    "JetMoeMoE": JetMoe,
    "Llama4TextMoe": Llama4,
    "LongcatFlashExperts": LongcatFlash,
    "SwitchTransformersExperts": Switch,
    "ZayaExperts": Zaya,
}
"""By the name of a class of transformers 5.23, or of one that it inherits from."""


def adapter_of(kind: type[torch.nn.Module]) -> type[Adapter] | None:
    """Return the adapter of a class, None where it needs none."""
    return next((ADAPTERS[base.__name__] for base in kind.__mro__ if base.__name__ in ADAPTERS), None)
