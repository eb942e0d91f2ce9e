"""Lines about the machine's limits: what it was probed to do, how much of that the run used, and of its memory."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_infer.analysis.suite import peak_parts, used_limit
from pytest_infer.metrics.result import Result
from pytest_infer.records import MachineInfo
from pytest_infer.units import bandwidth, flops, rate, significant, size


def machine_line(machine: MachineInfo, dtype: str | None = None) -> str | None:
    """Return what the machine was probed to do, with the GEMM rate of the dtype in use; None where nobody probed."""
    probe = machine.probe
    if probe is None and machine.probe_absent is None:
        return None
    cores = "core" if machine.usable_cores == 1 else "cores"
    parts = [f"{machine.usable_cores:g} usable {cores}"]
    if machine.memory_limit_bytes is not None:
        parts.append(size(machine.memory_limit_bytes))
    governor = machine.governor if probe is None else probe.governor
    parts += [part for part in (*machine.accelerators, machine.virtualization, governor) if part]
    if probe is None:
        return " · ".join([*parts, "no probe"])
    last = max(probe.caches, default=None)
    if last is not None:
        parts.append(f"{last} {size(probe.caches[last])}")
    parts.append(f"reads {bandwidth(probe.read_bandwidth)} ± {_percent(probe.read_bandwidth_spread)}")
    if dtype in probe.flops:
        parts.append(f"{flops(probe.flops[dtype])} in {dtype}")
    return " · ".join(parts)


def limit_line(results: Iterable[Result]) -> str | None:
    """Return how much of the machine's limit the prompts used, the lowest and the highest; None where none tells it."""
    used = used_limit(results)
    if used is None:
        return None
    line = f"decode: {_range(used.mbu)} of what this machine's memory allows"
    line += f" ({size(used.step_bytes)} a step, at most {rate(used.ceiling)}"
    line += f", bandwidth ± {_percent(used.probe.read_bandwidth_spread)})" if used.probe is not None else ")"
    if used.mfu is not None:
        line += f" · prefill: {_range(used.mfu)} of its GEMM rate"
    return line


def memory_line(results: Iterable[Result]) -> str | None:
    """Return which part of the highest peak the kernel can drop; None where none tells it."""
    parts = peak_parts(results)
    if parts is None:
        return None
    weights = f" ({size(parts.weights)} the model's own files)" if parts.weights else ""
    return (
        f"memory: {size(parts.peak)} at the peak, {size(parts.file_backed)} of it file-backed{weights}: "
        "the kernel can drop that"
    )


def _range(shares: tuple[float, float]) -> str:
    low, high = map(_percent, shares)
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def _percent(share: float) -> str:
    """Return a share as a whole percentage, or with two digits below ten."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{significant(value, 2)} %"
