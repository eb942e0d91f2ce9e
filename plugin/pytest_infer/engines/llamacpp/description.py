"""What the header of a GGUF file says about the model: its types, its KV cache, and the work of a forward pass."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from pytest_infer.engines.checkpoint.tensors import Tensor
from pytest_infer.engines.llamacpp import arguments
from pytest_infer.records import Role, RoleWork, Work

_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ROLES = (
    (Role.EXPERTS, r"_exps\b"),
    (Role.SHARED, r"_shexp\b"),
    (Role.ROUTER, r"ffn_gate_inp|exp_probs"),
    (Role.NORMS, r"norm"),
    (Role.OUTPUT, r"attn_output|attn_out\b"),
    (Role.LINEAR, r"\bssm_|\btime_mix|shortconv"),
    (Role.PROJECTIONS, r"attn_"),
    (Role.DENSE, r"ffn_"),
    (Role.POSITIONS, r"rope_"),
    (Role.EMBEDDING, r"token_embd|position_embd|token_types|per_layer"),
    (Role.HEAD, r"^output\b"),
)
_LOOKED_UP = re.compile(r"^(token_embd|position_embd|token_types|per_layer_token_embd)\.weight$")
_UNCOUNTED = ("ssm.state_size", "nextn_predict_layers", "decoder_start_token_id")
"""Layers that are recurrent, that predict ahead and may not run, or that decode what an encoder has read."""
_OTHER_CACHES = ("attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size", "attention.shared_kv_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A model's metadata and tensors, as the headers of its files have them."""

    metadata: Mapping[str, Any]
    tensors: Sequence[Tensor]

    @property
    def architecture(self) -> str:
        """Return the name of the architecture."""
        return str(self.metadata.get("general.architecture", ""))

    def of(self, key: str) -> Any:
        """Return an entry of the architecture's own, or None."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str) -> int | None:
        """Return such an entry that is one whole number."""
        found = self.of(key)
        return found if isinstance(found, int) and not isinstance(found, bool) else None


def dtype(header: Header) -> str:
    """Return the storage type that most weights have: torch's name of it, or ggml's in small letters (q4_k)."""
    held: Counter[str] = Counter()
    for tensor in header.tensors:
        held[tensor.dtype] += prod(tensor.shape)
    kind = max(held, key=held.__getitem__, default="F32")
    return _TORCH.get(kind, kind.lower())


def quantization(header: Header) -> str | None:
    """Return how the file is quantised: the storage types of its matrices with their shares; None where it is not."""
    held: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            held[tensor.dtype] += prod(tensor.shape)
    if set(held) <= set(_TORCH):
        return None
    total = sum(held.values())
    return ", ".join(f"{kind} {count / total:.0%}" for kind, count in held.most_common())


def position_bytes(header: Header, given: argparse.Namespace) -> int | None:
    """Return the bytes of keys and values of one position in all layers; None where layers have other caches."""
    layers, heads = header.number("block_count"), header.number("attention.head_count")
    width, keys = header.number("embedding_length"), header.of("attention.head_count_kv")
    if not layers or not heads or not width or any(header.of(key) for key in _OTHER_CACHES):
        return None
    per_layer = keys if isinstance(keys, list) else [keys or heads] * layers
    key, value = (header.number(f"attention.{what}_length") or width // heads for what in ("key", "value"))
    return sum(
        arguments.bytes_of(given.cache_type_k, count * key) + arguments.bytes_of(given.cache_type_v, count * value)
        for count in per_layer
    )


def work(header: Header) -> Work | None:
    """Return what a forward pass reads and multiplies, by role.

    Which experts it takes is not known here, but how many is: each of a layer's is as large as the others, so the
    share that one token takes is counted, as if it were a dense model's. None where the header does not tell.
    """
    heads, layers = header.number("attention.head_count"), header.number("block_count")
    width = header.number("embedding_length")
    if not heads or not layers or not width or any(header.of(key) for key in _UNCOUNTED):
        return None
    experts, used = header.number("expert_count") or 0, header.number("expert_used_count") or 0
    share = used / experts if experts and used else 1.0
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    parts: dict[str, list[RoleWork]] = {}
    for tensor in header.tensors:
        for role, part in _parts(tensor, tied, share):
            parts.setdefault(role, []).append(part)
    roles = {role: _sum(found) for role, found in parts.items()}
    head = roles.get(Role.HEAD, RoleWork(read_bytes=0, parameters=0))
    key, value = (header.number(f"attention.{what}_length") or width // heads for what in ("key", "value"))
    # Which layers have a window is not in every file; latent attention multiplies otherwise.
    other = header.of("attention.sliding_window") or header.of("attention.kv_lora_rank")
    return Work(
        read_bytes=sum(part.read_bytes for part in roles.values()),
        parameters=sum(part.parameters or 0 for role, part in roles.items() if role != Role.HEAD),
        head_parameters=head.parameters or 0,
        expert_parameters={},
        pair_flops=None if other else 2 * heads * (key + value) * layers,
        roles=roles,
    )


def _parts(tensor: Tensor, tied: bool, share: float) -> Iterable[tuple[str, RoleWork]]:
    """Yield what a tensor is to each role: a table that is the head too is both."""
    role = next((role for role, found in _ROLES if re.search(found, tensor.name)), Role.AROUND)
    if _LOOKED_UP.match(tensor.name):
        row = tensor.bytes // max(tensor.shape[0], 1)
        is_head = tied and tensor.name.startswith("token_embd")
        yield role, RoleWork(read_bytes=0 if is_head else row, parameters=0, parameter_bytes=tensor.bytes)
        if is_head:
            yield Role.HEAD, RoleWork(read_bytes=tensor.bytes, parameters=prod(tensor.shape), parameter_bytes=0)
        return
    part = share if role == Role.EXPERTS else 1.0
    multiplied = prod(tensor.shape) if len(tensor.shape) > 1 else 0
    yield (
        role,
        RoleWork(
            read_bytes=round(tensor.bytes * part),
            parameters=round(multiplied * part),
            parameter_bytes=tensor.bytes,
        ),
    )


def _sum(parts: Sequence[RoleWork]) -> RoleWork:
    return RoleWork(
        read_bytes=sum(part.read_bytes for part in parts),
        parameters=sum(part.parameters or 0 for part in parts),
        parameter_bytes=sum(part.parameter_bytes or 0 for part in parts),
    )
