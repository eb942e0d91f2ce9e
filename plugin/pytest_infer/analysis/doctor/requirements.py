"""What a model needs of a machine, by dtype and context, from its files' headers and its config; nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pytest_infer.analysis.doctor import kv_cache
from pytest_infer.analysis.doctor.kv_cache import KvCache
from pytest_infer.analysis.doctor.weights import AUTO, PLAIN, Parts, Weights, by_dtype
from pytest_infer.engines.base import dtype_named
from pytest_infer.engines.checkpoint import context as model_context
from pytest_infer.engines.checkpoint.source import Checkpoint
from pytest_infer.errors import OptionError, alternatives

RUNTIME_BYTES = 420 * 2**20
"""The interpreter, PyTorch and transformers: 385 to 440 MiB above weights and cache, measured with models of 14 MB,
0.3, 0.7 and 15 GB (docs/doctor.md)."""
COMFORTABLE = 0.8
"""The share of the memory that a process should not exceed (the guide's threshold for `memory percent`)."""
USABLE_RATE, GOOD_RATE = 5.0, 15.0
"""Tokens per second: less needs work, so many are good on a CPU (the guide's)."""
_TTFT_S, _TTFT_TOKENS = 2.0, 512
"""The guide's limit of a good time to first token, for a prompt of so many tokens."""


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

    `minimum_bytes` = weights + KV cache + runtime; `recommended_bytes` leaves a fifth of the memory free. `parts` is
    None where the shapes are not known.
    """

    dtype: str
    weights_bytes: int
    kv_bytes: int | None
    minimum_bytes: int
    recommended_bytes: int
    step_bytes: int | None
    verdict: Fit
    parts: Parts | None = None


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


def of(checkpoint: Checkpoint, room: Room, *, context: int | None = None, dtype: str = AUTO) -> Requirements:
    """Work out what a checkpoint needs; the context is 4096 tokens, or the model's own if shorter, unless given.

    Raises:
        ModelError: neither headers, config nor files tell how large it is.
        OptionError: the dtype is none of DTYPES, `stored` for weights that are not quantised included.
    """
    config = kv_cache.text_config(checkpoint.config)
    longest = model_context.longest(config)
    context = context or min(4096, longest or 4096)
    held = Weights.of(checkpoint, config)
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
        stored_dtypes=by_dtype(checkpoint.tensors),
        context=context,
        longest_context=longest,
        kv=kv,
        needs=needs,
        chosen=next(need for need in needs if need.dtype == wanted),
    )


def _need(dtype: str, held: Weights, weights: int, kv: KvCache, room: Room) -> Need:
    # Quantised weights are computed with in half precision, and so is the cache (llama.cpp's default: f16).
    kv_bytes = None if kv.elements is None else kv.elements * PLAIN.get(dtype, 2)
    minimum = weights + (kv_bytes or 0) + room.runtime_bytes
    parts = held.parts(dtype)
    return Need(
        dtype=dtype,
        weights_bytes=weights,
        kv_bytes=kv_bytes,
        minimum_bytes=minimum,
        recommended_bytes=math.ceil(minimum / COMFORTABLE),
        step_bytes=None
        if parts is None or kv_bytes is None
        else round(parts.fixed_bytes + parts.selected_bytes) + kv_bytes,
        verdict=verdict(minimum, room),
        parts=parts,
    )


def verdict(minimum: int, room: Room) -> Fit:
    """Return whether so many bytes fit the memory there is."""
    if room.limit_bytes is None:
        return Fit.UNKNOWN
    if minimum > room.limit_bytes:
        return Fit.TOO_LARGE
    if room.available_bytes is not None and minimum > room.available_bytes:
        return Fit.NOT_NOW
    return Fit.TIGHT if minimum > COMFORTABLE * room.limit_bytes else Fit.FITS


def cores_for_prefill(active_parameters: int, flops_per_core: float) -> int:
    """Return the cores that bring a prompt of 512 tokens to its first token in 2 s, by 2 FLOP a parameter and token.

    Kaplan et al. 2020, section 2.1; without attention, and if all cores keep the rate of one.
    """
    return max(1, math.ceil(2 * active_parameters * _TTFT_TOKENS / _TTFT_S / flops_per_core))
