"""What the kernel and the devices counted around a window."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.records.reading import NOT_READ, Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the kernel counted between a snapshot just before a window and one just after it.

    Counts, times and bytes are differences over the window. Resident sizes are those at its end, except those `before`;
    `rss_file_bytes` holds `rss_shmem_bytes`; `peak_rss_bytes` is the high-water mark within the window. Scope: this
    process with all its threads, without children, except where a field says otherwise; of an engine whose work is
    done elsewhere, those processes with all their children (see `Observed`).
    """

    wall_s: float
    # CPU
    cpu_s: Reading
    cpu_user_s: Reading
    cpu_system_s: Reading
    cpu_children_s: Reading
    frequency_hz: Reading
    # memory
    rss_before_bytes: Reading
    rss_bytes: Reading
    rss_anon_bytes: Reading
    rss_file_bytes: Reading
    swap_bytes: Reading
    peak_rss_bytes: Reading
    memory_limit_bytes: Reading
    system_memory_percent: Reading
    # disk
    read_bytes: Reading
    write_bytes: Reading
    read_ops: Reading
    write_ops: Reading
    read_chars: Reading
    write_chars: Reading
    read_calls: Reading
    write_calls: Reading
    minor_faults: Reading
    major_faults: Reading
    # disturbance
    run_queue_wait_s: Reading
    voluntary_switches: Reading
    involuntary_switches: Reading
    steal_s: Reading
    other_cpu_s: Reading
    pressure_cpu_s: Reading
    pressure_memory_s: Reading
    pressure_io_s: Reading
    thermal_throttles: Reading = NOT_READ
    # more of memory
    rss_anon_before_bytes: Reading = NOT_READ
    rss_shmem_bytes: Reading = NOT_READ
    # work, in user mode
    instructions: Reading = NOT_READ
    cycles: Reading = NOT_READ
    cache_misses: Reading = NOT_READ
    branch_misses: Reading = NOT_READ
    # energy of the whole package, not of this process alone
    energy_j: Reading = NOT_READ
    # accelerators: peak is torch's own allocations, the others are of the whole device
    device_peak_bytes: Reading = NOT_READ
    device_energy_j: Reading = NOT_READ
    device_power_w: Reading = NOT_READ
    device_utilization: Reading = NOT_READ
    # this process, where another one does the work
    client_cpu_s: Reading = NOT_READ
    client_wait_s: Reading = NOT_READ
    # what a server tells of itself, each under its own name: running and waiting requests as of right before
    server_cached_tokens: Reading = NOT_READ
    server_prompt_tokens: Reading = NOT_READ
    server_running: Reading = NOT_READ
    server_waiting: Reading = NOT_READ
    server_kv_usage: Reading = NOT_READ
