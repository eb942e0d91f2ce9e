"""What the system grants a process of a machine's cores and memory, beside how many: priority, weight, policies."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_infer.measure.counters.cgroup import ControlGroups
from pytest_infer.measure.counters.kernel_files import Sources

DEFAULTS = {"nice": "0", "policy": "other", "cpu_weight": "100", "cpu_shares": "1024", "memory_policy": "default"}
"""What a process has where nobody asked for anything else; turbo is on."""
_POLICIES = {0: "other", 1: "fifo", 2: "rr", 3: "batch", 5: "idle", 6: "deadline"}  # sched(7)


def granted(
    groups: ControlGroups,
    *,
    pid: int = 0,
    proc: Path = Path("/proc"),
    sys_folder: Path = Path("/sys"),
    sources: Sources | None = None,
) -> dict[str, str] | None:
    """Return what is known of it, by name; None where nothing is. What cannot be read is noted in `sources`.

    `nice` (nice(2)) and `policy` (sched(7)) of a process, by default of this one; `cpu_weight` or `cpu_shares` of its
    control group (cgroup-v2.rst, sched-design-CFS.rst); `memory_nodes` and `memory_policy` (numa(7)); `turbo` and
    `energy_preference` of the first core (cpufreq/boost, intel_pstate.rst).
    """
    ours, cores, own = sources or Sources(), sys_folder / "devices/system/cpu", proc / str(pid or "self")
    weights = (ours.text("cpu_weight", group / "cpu.weight") for group in groups.unified)
    shares = (ours.text("cpu_shares", group / "cpu.shares") for group in groups.cpu_v1)
    found = {
        "nice": ours.ask("nice", lambda: _nice(pid), "getpriority"),
        "policy": ours.ask("policy", lambda: _policy(pid), "sched_getscheduler"),
        "cpu_weight": next((weight for weight in weights if weight), None),
        "cpu_shares": next((share for share in shares if share), None),
        "memory_nodes": ours.read("memory_nodes", own / "status", _allowed_nodes, optional=False),
        # Only kernels that know of nodes have this file, whose first mapping has no policy of its own (numa(7)).
        "memory_policy": ours.read("memory_policy", own / "numa_maps", _first_policy),
        "turbo": _turbo(cores, ours),
        "energy_preference": ours.text("energy_preference", cores / "cpu0/cpufreq/energy_performance_preference"),
    }
    return {name: value for name, value in found.items() if value is not None} or None


def unusual(of: dict[str, str] | None) -> dict[str, str]:
    """Return what of it is not as it is by default."""
    known = of or {}
    changed = {name: known[name] for name, usual in DEFAULTS.items() if known.get(name, usual) != usual}
    return changed | ({"turbo": "off"} if known.get("turbo") == "off" else {})


def _nice(pid: int) -> str | None:
    return str(os.getpriority(os.PRIO_PROCESS, pid)) if hasattr(os, "getpriority") else None


def _policy(pid: int) -> str | None:
    if not hasattr(os, "sched_getscheduler"):
        return None
    # A child may be told to reset its policy (SCHED_RESET_ON_FORK), which changes nothing here.
    number = os.sched_getscheduler(pid) & ~getattr(os, "SCHED_RESET_ON_FORK", 0x40000000)
    return _POLICIES.get(number, str(number))


def _turbo(cores: Path, sources: Sources) -> str | None:
    boost = sources.text("turbo", cores / "cpufreq/boost")
    no_turbo = sources.text("turbo", cores / "intel_pstate/no_turbo")
    if boost is not None:
        return "on" if boost == "1" else "off"
    return None if no_turbo is None else "off" if no_turbo == "1" else "on"


def _allowed_nodes(status: str) -> str | None:
    found = (line.partition(":") for line in status.splitlines())
    return next((value.strip() or None for name, _, value in found if name == "Mems_allowed_list"), None)


def _first_policy(maps: str) -> str | None:
    fields = maps.partition("\n")[0].split()
    return fields[1] if len(fields) > 1 else None
