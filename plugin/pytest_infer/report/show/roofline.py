"""Lines about the machine's limit: what it was probed to do, and how much of that the run used."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from pytest_infer.metrics.result import Result
from pytest_infer.records import MachineInfo
from pytest_infer.units import bandwidth, flops, rate, significant, size


def machine_line(machine: MachineInfo, dtype: str | None = None) -> str | None:
    """Return what the machine was probed to do, with the GEMM rate of the dtype in use; None without a probe."""
    probe = machine.probe
    if probe is None:
        return None
    cores = "core" if machine.usable_cores == 1 else "cores"
    parts = [f"{machine.usable_cores:g} usable {cores}"]
    if machine.memory_limit_bytes is not None:
        parts.append(size(machine.memory_limit_bytes))
    parts += [part for part in (*machine.accelerators, machine.virtualization, probe.governor) if part]
    last = max(probe.caches, default=None)
    if last is not None:
        parts.append(f"{last} {size(probe.caches[last])}")
    parts.append(f"reads {bandwidth(probe.read_bandwidth)} ± {_percent(probe.read_bandwidth_spread)}")
    if dtype in probe.flops:
        parts.append(f"{flops(probe.flops[dtype])} in {dtype}")
    return " · ".join(parts)


def limit_line(results: Iterable[Result]) -> str | None:
    """Return how much of the machine's limit the prompts used, the lowest and the highest; None where none tells it."""
    known = [result for result in results if _value(result, "mbu") is not None]
    if not known:
        return None
    probe = known[0].machine.probe
    read = statistics.median(_values(known, "step_bytes"))
    line = f"decode: {_range(_values(known, 'mbu'))} of what this machine's memory allows"
    line += f" ({size(read)} a step, at most {rate(statistics.median(_values(known, 'decode_ceiling')))}"
    line += f", bandwidth ± {_percent(probe.read_bandwidth_spread)})" if probe is not None else ")"
    multiplied = _values(known, "mfu")
    if multiplied:
        line += f" · prefill: {_range(multiplied)} of its GEMM rate"
        line += " (above 100 %: something else slowed the probe)" if max(multiplied) > 1 else ""
    return line


def _value(result: Result, key: str) -> float | None:
    value = result.figures[key].value
    return float(value) if isinstance(value, int | float) else None


def _values(results: Iterable[Result], key: str) -> list[float]:
    return [value for result in results if (value := _value(result, key)) is not None]


def _range(shares: list[float]) -> str:
    low, high = _percent(min(shares)), _percent(max(shares))
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def _percent(share: float) -> str:
    """Return a share as a whole percentage, or with two digits below ten."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{significant(value, 2)} %"
