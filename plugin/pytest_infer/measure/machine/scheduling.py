"""What the system grants this process of a machine's cores and memory, beside how many: priority, weight, policies."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_infer.measure.counters.cgroup import ControlGroups
from pytest_infer.measure.counters.kernel_files import FAILURES

DEFAULTS = {"nice": "0", "policy": "other", "cpu_weight": "100", "cpu_shares": "1024", "memory_policy": "default"}
"""What a process has where nobody asked for anything else; turbo is on."""
_POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline"}  # sched(7)


def granted(
    groups: ControlGroups, *, proc: Path = Path("/proc"), sys_folder: Path = Path("/sys")
) -> dict[str, str] | None:
    """Return what is known of it, by name; None where nothing is.

    `nice` (nice(2)) and `policy` (sched(7)) of this process; `cpu_weight` or `cpu_shares` of its control group
    (cgroup-v2.rst, sched-design-CFS.rst); `memory_nodes` and `memory_policy` (numa(7)); `turbo` and
    `energy_preference` of the first core (cpufreq/boost, intel_pstate.rst).
    """
    cores = sys_folder / "devices/system/cpu"
    found = {
        "nice": str(os.getpriority(os.PRIO_PROCESS, 0)) if hasattr(os, "getpriority") else None,
        "policy": _policy(),
        "cpu_weight": next((w for group in groups.unified if (w := _text(group / "cpu.weight"))), None),
        "cpu_shares": next((s for group in groups.cpu_v1 if (s := _text(group / "cpu.shares"))), None),
        "memory_nodes": _status(proc, "Mems_allowed_list"),
        "memory_policy": _memory_policy(proc),
        "turbo": _turbo(cores),
        "energy_preference": _text(cores / "cpu0/cpufreq/energy_performance_preference"),
    }
    return {name: value for name, value in found.items() if value is not None} or None


def unusual(of: dict[str, str] | None) -> dict[str, str]:
    """Return what of it is not as it is by default."""
    known = of or {}
    changed = {name: known[name] for name, usual in DEFAULTS.items() if known.get(name, usual) != usual}
    return changed | ({"turbo": "off"} if known.get("turbo") == "off" else {})


def _policy() -> str | None:
    if not hasattr(os, "sched_getscheduler"):
        return None
    # A child may be told to reset its policy (SCHED_RESET_ON_FORK), which changes nothing here.
    number = os.sched_getscheduler(0) & ~getattr(os, "SCHED_RESET_ON_FORK", 0x40000000)
    return _POLICIES.get(number, str(number))


def _turbo(cores: Path) -> str | None:
    boost, no_turbo = _text(cores / "cpufreq/boost"), _text(cores / "intel_pstate/no_turbo")
    if boost is not None:
        return "on" if boost == "1" else "off"
    return None if no_turbo is None else "off" if no_turbo == "1" else "on"


def _status(proc: Path, name: str) -> str | None:
    lines = (_text(proc / "self/status") or "").splitlines()
    return next((line.split()[1] for line in lines if line.startswith(f"{name}:") and len(line.split()) > 1), None)


def _memory_policy(proc: Path) -> str | None:
    """Return the policy of this process: that of the first mapping, which has none of its own (proc(5), numa_maps)."""
    try:
        with (proc / "self/numa_maps").open(encoding="utf-8", errors="replace") as file:
            fields = file.readline().split()
    except FAILURES:
        return None
    return fields[1] if len(fields) > 1 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except FAILURES:
        return None
