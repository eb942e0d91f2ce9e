"""The machine, and what it was measured to achieve."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProbe:
    """What `threads` threads were measured to achieve on `device`, the denominators of MBU and MFU.

    `read_bandwidth` is in bytes/s: the 95th percentile over slices of a buffer much larger than the caches, whose
    interquartile range / median is `read_bandwidth_spread`. `flops` is in FLOP/s by dtype name: the best of
    `F.linear` with a batch of 512 or more. `caches` are bytes by level, all those together that the usable cores have.
    `at_ns` is `time.time_ns`, `boot` names the boot of the system. `waited` is the share of their time for which the
    threads that read waited for a core.
    """

    threads: int
    read_bandwidth: float
    read_bandwidth_spread: float
    flops: dict[str, float]
    caches: dict[str, int]
    at_ns: int
    boot: str | None = None
    governor: str | None = None
    device: str = "cpu"
    instructions: tuple[str, ...] = ()
    waited: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """The machine, as far as it affects measurements. `usable_cores` is the lower of affinity and container quota.

    Cores, limits and `scheduling` are those of the processes that do the work: of a server where one does it.

    `environment` holds the variables that change how fast code runs, `scheduling` what the system grants the process,
    and `instrumented` the tools that watched Python code in timed rounds because they cannot be suspended.
    `card_settings` are the NVIDIA cards' driver, power limit, clocks and error correction, as far as NVML tells them.
    `probe_absent` says why a probe that was made is not used. `clock_resolution_s` is the performance counter's: no
    time is told below it. `unread` says, by field, why it is unknown, or which limit it may lack.
    """

    cpu: str | None = None
    logical_cores: int | None = None
    physical_cores: int | None = None
    affinity_cores: int | None = None
    quota_cores: float | None = None
    usable_cores: float
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    system: str
    kernel: str
    architecture: str
    python: str
    virtualization: str | None = None
    governor: str | None = None
    accelerators: tuple[str, ...] = ()
    card_settings: dict[str, str] | None = None
    probe: MachineProbe | None = None
    environment: dict[str, str] | None = None
    huge_pages: str | None = None
    scheduling: dict[str, str] | None = None
    instrumented: tuple[str, ...] = ()
    probe_absent: str | None = None
    clock_resolution_s: float | None = None
    unread: dict[str, str] | None = None
