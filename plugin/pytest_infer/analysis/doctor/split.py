"""A model divided between a GPU's memory and main memory on a machine that is described, and how fast it decodes."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.analysis.doctor.requirements import RUNTIME_BYTES, Fit, Need, Room, verdict
from pytest_infer.analysis.placement import speed
from pytest_infer.analysis.placement.speed import Bandwidths
from pytest_infer.analysis.placement.strategies import Served

RESERVE_BYTES = 2**30
"""What is left free of a GPU's memory for its driver, buffers and activations: as much as llama.cpp's --fit leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A machine in figures: bytes, and bytes per second at which weights are read there; None where it is not told.

    `here`: its main memory is that of this machine, whose probe then stands for its bandwidth.
    """

    ram_bytes: int | None
    vram_bytes: int = 0
    reserve_bytes: int = RESERVE_BYTES
    bandwidth: float | None = None
    vram_bandwidth: float | None = None
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What lies where: `on_gpu` of `units`, experts of a mixture, else layers; bytes of both memories.

    The GPU has everything that each token reads first, then as many units as fit. `ceiling` are the most tokens per
    second, as both sides wait for each other, and None where a bandwidth or what a token reads is not known.
    """

    on_gpu: int
    units: int
    experts: bool
    gpu_bytes: int
    ram_bytes: int
    ceiling: float | None
    verdict: Fit


def of(need: Need, machine: Described) -> Split | None:
    """Return how a model in one dtype is divided; None where what can be moved of it is not known.

    Of the experts those on the GPU are taken as no more often selected than others: then their part of a token's
    expert reads is their part of all experts, which a placement by usage exceeds.
    """
    parts = need.parts
    if parts is None:
        return None
    kept = parts.fixed_bytes + (need.kv_bytes or 0)
    left = machine.vram_bytes - machine.reserve_bytes - kept
    fits = left >= 0 and machine.vram_bytes > 0
    on_gpu = min(parts.units, left * parts.units // parts.movable_bytes) if fits and parts.movable_bytes else 0
    moved = parts.movable_bytes * on_gpu // parts.units if parts.units else 0
    gpu = kept + moved if fits else 0
    ram = need.weights_bytes + (need.kv_bytes or 0) - gpu + RUNTIME_BYTES
    share = on_gpu / parts.units if parts.units else 1.0
    read = parts.selected_bytes
    rate = speed.predict(
        Served(share=share, gpu=(share * read,), cpu=((1 - share) * read,)),
        None if need.step_bytes is None else kept,
        Bandwidths(cpu=machine.bandwidth, gpu=machine.vram_bandwidth),
        dense_on_gpu=fits,
    ).in_turns
    return Split(
        on_gpu=on_gpu,
        units=parts.units,
        experts=parts.experts,
        gpu_bytes=gpu,
        ram_bytes=ram,
        ceiling=rate,
        verdict=verdict(ram, Room(limit_bytes=machine.ram_bytes)),
    )


def undivided(need: Need, machine: Described) -> Fit:
    """Return whether a model of which nothing is known to move fits main memory; unknown if both memories may hold it
    together."""
    fit = verdict(need.minimum_bytes, Room(limit_bytes=machine.ram_bytes))
    if fit is Fit.TOO_LARGE:
        there = (machine.ram_bytes or 0) + max(0, machine.vram_bytes - machine.reserve_bytes)
        return fit if need.minimum_bytes > there else Fit.UNKNOWN
    return fit
