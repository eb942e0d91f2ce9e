"""What a model needs of a machine, by dtype and context, from its files' headers and its config; nothing is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from typing import Any

from pytest_infer.analysis.doctor import kv_cache, shapes
from pytest_infer.analysis.doctor.kv_cache import KvCache
from pytest_infer.engines.base import TOWER, dtype_named
from pytest_infer.engines.checkpoint import context as model_context
from pytest_infer.engines.checkpoint.source import Checkpoint, ModelSource
from pytest_infer.engines.checkpoint.tensors import EXPERT, SHARED, Tensor
from pytest_infer.errors import ModelError, OptionError, alternatives

STORED = "stored"
AUTO = "auto"

_PLAIN = {"float32": 4, "bfloat16": 2, "float16": 2}
_BLOCKS = {"int8": 34, "int4": 18}
"""Bytes of a block of 32 weights: ggml's Q8_0 and Q4_0, a float16 scale and 32 numbers of 8 or 4 bits."""
DTYPES = (*_PLAIN, *_BLOCKS)

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "F8_E8M0")

RUNTIME_BYTES = 420 * 2**20
"""The interpreter, PyTorch and transformers: 385 to 440 MiB above weights and cache, measured with models of 14 MB,
0.3, 0.7 and 15 GB (docs/doctor.md)."""
COMFORTABLE = 0.8
"""The share of the memory that a process should not exceed (the guide's threshold for `memory percent`)."""
USABLE_RATE, GOOD_RATE = 5.0, 15.0
"""Tokens per second: less needs work, so many are good on a CPU (the guide's)."""
_TTFT_S, _TTFT_TOKENS = 2.0, 512
"""The guide's limit of a good time to first token, for a prompt of so many tokens."""

_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|token_embd)\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.weight$")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
EXPERTS_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "experts_per_token",
)


class Fit(StrEnum):
    """Whether a model runs in the memory there is."""

    FITS = "fits"
    TIGHT = "tight"
    NOT_NOW = "not now"
    UNKNOWN = "unknown"
    TOO_LARGE = "does not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory there is: the most that the process may have, and what is free of it now; None where nobody tells.

    `runtime_bytes` are still to be taken by interpreter and libraries, none of it once they are loaded.
    """

    limit_bytes: int | None
    available_bytes: int | None = None
    runtime_bytes: int = RUNTIME_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a model takes in one dtype; `step_bytes` is what decoding one token reads, None where it is not told.

    `minimum_bytes` = weights + KV cache + runtime; `recommended_bytes` leaves a fifth of the memory free.
    """

    dtype: str
    weights_bytes: int
    kv_bytes: int | None
    minimum_bytes: int
    recommended_bytes: int
    step_bytes: int | None
    verdict: Fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """A model's needs. `needs` are in the order of DTYPES, behind `stored` for quantised weights; `chosen` is asked."""

    name: str
    source: str
    parameters: int | None
    active_parameters: int | None
    stored_bytes: int | None
    stored_dtypes: Mapping[str, int]
    context: int
    longest_context: int | None
    kv: KvCache
    needs: tuple[Need, ...]
    chosen: Need

    @property
    def fitting(self) -> tuple[str, ...]:
        """Return the dtypes that fit, the most exact first."""
        return tuple(need.dtype for need in self.needs if need.verdict not in (Fit.TOO_LARGE, Fit.UNKNOWN))


def of(checkpoint: Checkpoint, room: Room, *, context: int | None = None, dtype: str = AUTO) -> Requirements:
    """Work out what a checkpoint needs; the context is 4096 tokens, or the model's own if shorter, unless given.

    Raises:
        ModelError: neither headers, config nor files tell how large it is.
        OptionError: the dtype is none of DTYPES, `stored` for weights that are not quantised included.
    """
    config = kv_cache.text_config(checkpoint.config)
    longest = model_context.longest(config)
    context = context or min(4096, longest or 4096)
    held = _Held.of(checkpoint, config)
    kv = kv_cache.of_config(config, context)
    known = {name: held.bytes_in(name) for name in held.dtypes}
    wanted = held.own if dtype_named(dtype) == AUTO else dtype_named(dtype)
    if wanted not in known:
        raise OptionError(alternatives("dtype", wanted, (AUTO, *known)))
    needs = tuple(_need(name, held, size, kv, room) for name, size in known.items())
    return Requirements(
        name=checkpoint.name,
        source=checkpoint.source.value,
        parameters=held.parameters,
        active_parameters=held.active,
        stored_bytes=checkpoint.stored_bytes,
        stored_dtypes=_by_dtype(checkpoint.tensors),
        context=context,
        longest_context=longest,
        kv=kv,
        needs=needs,
        chosen=next(need for need in needs if need.dtype == wanted),
    )


def _need(dtype: str, held: _Held, weights: int, kv: KvCache, room: Room) -> Need:
    # Quantised weights are computed with in half precision, and so is the cache (llama.cpp's default: f16).
    kv_bytes = None if kv.elements is None else kv.elements * _PLAIN.get(dtype, 2)
    minimum = weights + (kv_bytes or 0) + room.runtime_bytes
    read = held.read_share
    return Need(
        dtype=dtype,
        weights_bytes=weights,
        kv_bytes=kv_bytes,
        minimum_bytes=minimum,
        recommended_bytes=math.ceil(minimum / COMFORTABLE),
        step_bytes=None if read is None or kv_bytes is None else round(weights * read) + kv_bytes,
        verdict=_verdict(minimum, room),
    )


def _verdict(minimum: int, room: Room) -> Fit:
    if room.limit_bytes is None:
        return Fit.UNKNOWN
    if minimum > room.limit_bytes:
        return Fit.TOO_LARGE
    if room.available_bytes is not None and minimum > room.available_bytes:
        return Fit.NOT_NOW
    return Fit.TIGHT if minimum > COMFORTABLE * room.limit_bytes else Fit.FITS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The tensors of a model in plain numbers; `own` is the dtype that `auto` means, `STORED` for packed weights."""

    tensors: tuple[Tensor, ...]
    own: str
    stored: int | None = None
    parameters: int | None = None
    active: int | None = None
    read_share: float | None = None
    """Of the weights' bytes those that decoding one token reads."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Mapping[str, Any]) -> _Held:
        tensors = loaded(checkpoint.tensors, config)
        packed = _packed(tensors) or checkpoint.source is ModelSource.GGUF
        stored = sum(t.bytes for t in tensors) if packed else None
        own = STORED if packed else _own_dtype(config, tensors)
        plain = tensors
        if not tensors or (packed and checkpoint.source is not ModelSource.GGUF):
            try:
                plain = shapes.of_config(config)
            except ModelError as error:
                if stored is None and checkpoint.stored_bytes is None:
                    raise ModelError(f"{checkpoint.name}: {error}") from error
                # Only the bytes are known: of packed weights, or of files without a header.
                size = checkpoint.stored_bytes if stored is None else stored
                return cls(tensors=(), own=STORED, stored=size)
        elements = {t.name: prod(t.shape) for t in plain}
        share, active = _active(elements, config)
        return cls(
            tensors=plain, own=own, stored=stored, parameters=sum(elements.values()), active=active, read_share=share
        )

    @property
    def dtypes(self) -> tuple[str, ...]:
        return (*((STORED,) if self.stored is not None else ()), *(DTYPES if self.tensors else ()))

    def bytes_in(self, dtype: str) -> int:
        return self.stored or 0 if dtype == STORED else weights_bytes(self.tensors, dtype)


def weights_bytes(tensors: Iterable[Tensor], dtype: str) -> int:
    """Return the bytes of the weights in a dtype.

    float32, bfloat16, float16: numbers x size. int8, int4: matrices whose rows are multiples of 32 in blocks of
    ggml's Q8_0 (34 bytes for 32 weights) and Q4_0 (18 bytes), all else in float32, as llama.cpp keeps it.
    """
    if dtype in _PLAIN:
        return sum(prod(t.shape) for t in tensors) * _PLAIN[dtype]
    return sum(_blocked(t, _BLOCKS[dtype]) for t in tensors)


def _blocked(tensor: Tensor, block: int) -> int:
    elements = prod(tensor.shape)
    return elements // 32 * block if len(tensor.shape) > 1 and tensor.shape[-1] % 32 == 0 else elements * 4


def tensors_of(checkpoint: Checkpoint, dtype: str = AUTO) -> tuple[Tensor, ...]:
    """Return the tensors of a model with their bytes: as they are stored, by its config alone, or in another dtype.

    Raises:
        ModelError: neither headers nor config tell its shapes, or packed weights are asked for in another dtype.
        OptionError: the dtype is none of DTYPES.
    """
    config, wanted = kv_cache.text_config(checkpoint.config), dtype_named(dtype)
    if wanted not in (AUTO, *DTYPES):
        raise OptionError(alternatives("dtype", wanted, (AUTO, *DTYPES)))
    tensors = loaded(checkpoint.tensors, config)
    if not tensors:
        try:
            tensors = shapes.of_config(config)
        except ModelError as error:
            raise ModelError(f"{checkpoint.name}: {error}") from error
        wanted = _own_dtype(config, ()) if wanted == AUTO else wanted
    if wanted == AUTO:
        return tensors
    if _packed(tensors) and checkpoint.source is not ModelSource.GGUF:
        raise ModelError(f"{checkpoint.name}: its weights are packed: their size in {wanted} is not known")
    return tuple(replace(t, dtype=wanted, bytes=weights_bytes((t,), wanted)) for t in tensors)


def loaded(tensors: Sequence[Tensor], config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Leave out what transformers does not load: the layers of a draft head, behind the model's own."""
    count = kv_cache.layers(config)
    if not config.get("num_nextn_predict_layers") or count is None:
        return tuple(tensors)
    return tuple(t for t in tensors if (found := _LAYER.search(t.name)) is None or int(found[1]) < count)


def _packed(tensors: Sequence[Tensor]) -> bool:
    """Return whether integers hold the weights, several in one: then shapes do not tell how many weights there are."""
    total = sum(t.bytes for t in tensors)
    integers = sum(t.bytes for t in tensors if t.dtype not in _FLOATS and t.dtype not in _EIGHT_BITS)
    return integers > total / 100


def _own_dtype(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """Return what transformers takes for `auto`: the config's dtype, else that of the files."""
    named = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if named in _PLAIN:
        return named
    sizes = _by_dtype(tensors)
    stored = _FLOATS.get(max(sizes, key=lambda name: sizes[name]), "") if sizes else ""
    return stored if stored in _PLAIN else "bfloat16" if sizes else "float32"


def _by_dtype(tensors: Iterable[Tensor]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return sizes


def _active(elements: Mapping[str, int], config: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """Return the share of the weights that a token's step reads, and the parameters that it is multiplied with.

    All weights outside the routed experts, and k of each site's experts; of an embedding that is not the output head
    too only a row is looked up, and towers for images and sound are not run. A step of one sequence selects k distinct
    experts. None where the config tells of experts that are not found, or not how many a token selects.
    """
    unseen = sum(n for name, n in elements.items() if TOWER.search(name))
    elements = {name: n for name, n in elements.items() if not TOWER.search(name)}
    routed = sum(n for name, n in elements.items() if EXPERT.search(name) and not SHARED.search(name))
    looked_up = sum(n for name, n in elements.items() if _EMBEDDING.search(name))
    tied = not any(_HEAD.search(name) for name in elements)
    total = sum(elements.values())
    chosen = 0.0
    experts, k = kv_cache.number(config, *EXPERTS_KEYS), kv_cache.number(config, *TOP_K_KEYS)
    if routed:
        if experts is None or k is None:
            return None, None
        chosen = routed * k / experts
    elif (experts or 0) > 1:
        return None, None
    read = total - routed + chosen - (0 if tied else looked_up)
    return (read / (total + unseen), round(read)) if total + unseen else (None, None)


def cores_for_prefill(active_parameters: int, flops_per_core: float) -> int:
    """Return the cores that bring a prompt of 512 tokens to its first token in 2 s, by 2 FLOP a parameter and token.

    Kaplan et al. 2020, section 2.1; without attention, and if all cores keep the rate of one.
    """
    return max(1, math.ceil(2 * active_parameters * _TTFT_TOKENS / _TTFT_S / flops_per_core))
