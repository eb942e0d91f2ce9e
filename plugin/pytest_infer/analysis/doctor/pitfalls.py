"""What about a machine spoils a measurement, each with the numbers that show it and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_infer.measure.machine.cards import Card
from pytest_infer.measure.machine.host import Host
from pytest_infer.records import MachineInfo
from pytest_infer.units import significant, size

_BUSY = 0.1  # cores: what a quiet system's own services stay below
_HELD_BYTES = 2**30  # more than drivers keep of a card for themselves
_STEADY_GOVERNORS = {"performance"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pitfall:
    """One doubt about a machine."""

    evidence: str
    suggestion: str


def find(machine: MachineInfo, host: Host) -> tuple[Pitfall, ...]:
    """Return the pitfalls of a machine; what cannot be seen is none."""
    return (*_of_cores(machine, host), *_of_memory(machine, host), *_of_speed(machine, host))


def of_cards(cards: Sequence[Card]) -> tuple[Pitfall, ...]:
    """Return the pitfalls of cards on which nothing of this process runs."""
    return tuple(pitfall for card in cards for pitfall in _of_card(card))


def _of_card(card: Card) -> Iterator[Pitfall]:
    held = 0 if card.memory_bytes is None or card.free_bytes is None else card.memory_bytes - card.free_bytes
    if card.divided:
        yield Pitfall(
            evidence=f"{card.name} is divided (MIG): its parts share power and have no counters of their own",
            suggestion="expect no energy and no utilisation, and compare within one part",
        )
    elif held > _HELD_BYTES:
        yield Pitfall(
            evidence=f"{size(held)} of {card.name} are held by others: what they compute takes its time and its energy",
            suggestion="nvidia-smi names them; CUDA_VISIBLE_DEVICES chooses another card",
        )
    if card.power_limit_w and card.power_default_w and card.power_limit_w < card.power_default_w:
        yield Pitfall(
            evidence=f"{card.name} may take {card.power_limit_w:g} W, and {card.power_default_w:g} W by its maker",
            suggestion="keep to one limit: runs under another are not compared with these",
        )


def torch_threads(machine: MachineInfo, host: Host) -> int | None:
    """Return the threads that PyTorch would start: OMP_NUM_THREADS, else one a physical core (mkl_get_max_threads)."""
    counts = (machine.affinity_cores or machine.logical_cores, machine.physical_cores)
    return host.threads or min((count for count in counts if count), default=None)


def _of_cores(machine: MachineInfo, host: Host) -> Iterator[Pitfall]:
    usable = machine.usable_cores
    threads = torch_threads(machine, host)
    if threads is not None and threads > usable:
        whose = "OMP_NUM_THREADS asks for" if host.threads else "PyTorch starts as many as"
        yield Pitfall(
            evidence=f"{whose} {threads} threads, and {significant(usable)} cores may be used: threads wait for "
            "each other",
            suggestion=f"--infer-threads {max(1, int(usable))}, or OMP_NUM_THREADS={max(1, int(usable))}",
        )
    if machine.quota_cores is not None and machine.quota_cores < (machine.affinity_cores or math.inf):
        yield Pitfall(
            evidence=f"a control group allows {significant(machine.quota_cores)} cores' time: threads above it are "
            "stopped for parts of each period",
            suggestion="give the container whole cores (a cpuset), not a quota",
        )
    physical = machine.physical_cores
    if physical is not None and machine.logical_cores is not None and physical < machine.logical_cores:
        yield Pitfall(
            evidence=f"{machine.logical_cores} logical cores are {physical} physical ones",
            suggestion=f"compare --infer-threads {min(physical, max(1, int(usable)))} with more",
        )


def _of_memory(machine: MachineInfo, host: Host) -> Iterator[Pitfall]:
    total, limit = machine.memory_bytes, machine.memory_limit_bytes
    if total is not None and limit is not None and limit < total:
        yield Pitfall(
            evidence=f"a control group allows {size(limit)} of the machine's {size(total)}: beyond it the kernel kills",
            suggestion="plan with the limit, as the figures below do",
        )
    if host.swap_used_bytes:
        yield Pitfall(
            evidence=f"{size(host.swap_used_bytes)} are swapped out",
            suggestion="free memory: weights that are swapped are read from the disk again",
        )
    elif host.swap_total_bytes:
        yield Pitfall(
            evidence=f"there are {size(host.swap_total_bytes)} of swap: a model that is too large gets slow instead of "
            "failing",
            suggestion="swapoff -a for measurements, or watch swap_bytes",
        )


def _of_speed(machine: MachineInfo, host: Host) -> Iterator[Pitfall]:
    if host.busy_cores is not None and host.busy_cores > _BUSY:
        yield Pitfall(
            evidence=f"other processes use {significant(host.busy_cores, 2)} cores now",
            suggestion="stop them: neighbours change decode rates more than most commits do",
        )
    nice = (machine.scheduling or {}).get("nice", "0")
    if nice.isdecimal() and int(nice) > 0:
        yield Pitfall(
            evidence=f"this process has a niceness of {nice}: whatever else wants a core goes first",
            suggestion="measure without nice",
        )
    if machine.governor is not None and machine.governor not in _STEADY_GOVERNORS:
        yield Pitfall(
            evidence=f"the frequency governor is {machine.governor}: cores start slow and change their speed",
            suggestion="cpupower frequency-set -g performance",
        )
    if machine.virtualization is not None:
        yield Pitfall(
            evidence=f"a virtual machine ({machine.virtualization}): other tenants share cores and memory bandwidth, "
            "and are not seen from inside",
            suggestion="compare in one run (--infer-against), not across days",
        )
