"""Decode rates predicted from the bytes that a token reads and the bandwidths of the memories they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from pytest_infer.analysis.placement.strategies import Served


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidths:
    """Bytes per second at which weights are read: by the CPU, by the GPU, and over the bus from one to the other.

    `probed` names those that the run's own probe measured, "cpu" or "gpu"; the others were given.
    """

    cpu: float | None = None
    gpu: float | None = None
    pcie: float | None = None
    probed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Predicted decode rates in tokens a second; None where a bandwidth or size that it takes is not known.

    `in_turns`: what lies on the CPU is computed there, and both sides wait for each other. `at_once`: within a layer
    both work at the same time. `streamed`: the CPU's experts are copied over the bus and computed on the GPU.
    """

    in_turns: float | None
    at_once: float | None
    streamed: float | None


def predict(served: Served, dense: int | None, bandwidths: Bandwidths, *, dense_on_gpu: bool) -> Speed:
    """Return the rates for a token that reads what `served` says and `dense` bytes of other weights.

    Decoding one sequence is bound by memory bandwidth: each weight that takes part is read once a token, so time =
    bytes / bandwidth (the memory side of the roofline model, Williams et al. 2009). A layer needs the one before it,
    so the times of layers add, for `at_once` those of each layer's longer side. KV-cache reads, activations and all
    overheads are left out: these are upper limits.
    """
    dense_cpu, dense_gpu = (0, dense) if dense_on_gpu else (dense, 0)
    cpu = [_time(one, bandwidths.cpu) for one in served.cpu]
    gpu = [_time(one, bandwidths.gpu) for one in served.gpu]
    longer = [None if c is None or g is None else max(c, g) for c, g in zip(cpu, gpu, strict=True)]
    rest = _sum(_time(dense_cpu, bandwidths.cpu), _time(dense_gpu, bandwidths.gpu))
    copied = _sum(_time(served.cpu_bytes, bandwidths.pcie), _time(served.cpu_bytes, bandwidths.gpu))
    return Speed(
        in_turns=_rate(_sum(*cpu, *gpu, rest)),
        at_once=_rate(_sum(*longer, rest)),
        streamed=None if bandwidths.pcie is None else _rate(_sum(copied, *gpu, rest)),
    )


def ends(speeds: Sequence[Speed]) -> tuple[Speed, Speed] | tuple[None, None]:
    """Return the lowest and the highest rate of each kind: with a slower GPU, to serve more is slower."""
    if not speeds:
        return None, None
    rates = {kind.name: [getattr(one, kind.name) for one in speeds] for kind in fields(Speed)}
    known = {kind: found for kind, found in rates.items() if None not in found}
    low, high = (Speed(**{kind: pick(known[kind]) if kind in known else None for kind in rates}) for pick in (min, max))
    return low, high


def _time(size: float | None, bandwidth: float | None) -> float | None:
    if size is None:
        return None
    return 0.0 if not size else None if bandwidth is None else size / bandwidth


def _sum(*times: float | None) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None


def _rate(time: float | None) -> float | None:
    return 1 / time if time else None
