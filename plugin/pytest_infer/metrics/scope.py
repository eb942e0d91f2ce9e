"""Whose figure a metric is, and what other work on the machine does to it: what a change of it can be evidence of."""

from __future__ import annotations

from enum import StrEnum

from pytest_infer.metrics.fidelity import OF_BOTH


class Scope(StrEnum):
    """The process's own, one that others on the machine or in the control group change too, one of the probe.

    Or a distance: between this side and a reference, so that no change of it is compared, only the figure itself.
    """

    PROCESS = "process"
    MACHINE = "machine"
    PROBE = "probe"
    DISTANCE = "distance"


OTHERS: dict[str, tuple[Scope, str]] = {
    "system_memory_percent": (Scope.MACHINE, "peak_rss_bytes"),
    "frequency_hz": (Scope.MACHINE, "tpot_s"),
    "read_ops": (Scope.MACHINE, "read_bytes"),
    "write_ops": (Scope.MACHINE, "write_bytes"),
    "steal_s": (Scope.MACHINE, "tpot_s"),
    "other_cpu_s": (Scope.MACHINE, "cpu_s"),
    "pressure_cpu_s": (Scope.MACHINE, "tpot_s"),
    "pressure_memory_s": (Scope.MACHINE, "peak_rss_bytes"),
    "pressure_io_s": (Scope.MACHINE, "read_bytes"),
    "thermal_throttles": (Scope.MACHINE, "tpot_s"),
    **dict.fromkeys(OF_BOTH, (Scope.DISTANCE, "nll")),
    "mbu": (Scope.PROBE, "tpot_s"),
    "decode_ceiling": (Scope.PROBE, "step_bytes"),
    "mfu": (Scope.PROBE, "prefill_s"),
    "energy_j": (Scope.MACHINE, "cpu_s"),
    "device_energy_j": (Scope.MACHINE, "tpot_s"),
    "device_power_w": (Scope.MACHINE, "tpot_s"),
    "device_utilization": (Scope.MACHINE, "tpot_s"),
    **dict.fromkeys(("server_running", "server_waiting"), (Scope.MACHINE, "tpot_s")),
    **dict.fromkeys(("server_prompt_tokens", "server_cached_tokens"), (Scope.MACHINE, "ttft_s")),
    "server_kv_usage": (Scope.MACHINE, "peak_rss_bytes"),
}
"""The metrics that are not the process's own, each with the one to gate instead."""

COUNTS_MOVED_BY_LOAD = frozenset(
    (
        # Threads of OpenMP spin while they wait for one that was taken off its core; caches are shared.
        *("cpu_s", "cpu_user_s", "cpu_system_s", "cpu_children_s", "cores_used", "cpu_utilization"),
        *("instructions", "cycles", "cache_misses", "branch_misses"),
        *("run_queue_wait_s", "client_wait_s", "involuntary_switches", "voluntary_switches"),
        # Others' need of memory empties the page cache and moves pages to swap.
        *("read_bytes", "load_read_bytes", "first_run_read_bytes", "major_faults", "swap_bytes"),
    )
)
"""The counts that differ when something else uses the machine; times and samples all do."""
