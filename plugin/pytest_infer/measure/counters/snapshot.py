"""The exact layer: what the kernel counted around a window, read just before it and just after it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pytest_infer import untrusted
from pytest_infer.measure.counters import cgroup, peak, portable
from pytest_infer.measure.counters.accelerator import DeviceMemory
from pytest_infer.measure.counters.contention import MachineTime, Pressure, RunQueue
from pytest_infer.measure.counters.cpu import CpuTime, Frequency, cores
from pytest_infer.measure.counters.disk import GroupIo, ProcessIo
from pytest_infer.measure.counters.energy import Rapl
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable
from pytest_infer.measure.counters.memory import ResidentMemory, SystemMemory
from pytest_infer.measure.counters.nvml import Nvml
from pytest_infer.measure.counters.perf import PerfCounters
from pytest_infer.measure.counters.thermal import Throttling
from pytest_infer.records import Counters, Reading

_NS = 1e9


class Instrument(Protocol):
    """One source of counters. `read` never raises: a source that fails marks its own readings absent."""

    def read(self) -> Sample | Unavailable:
        """Return the source's raw values now, or why there are none."""

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the fields of `Counters` that follow from two samples."""

    def close(self) -> None:
        """Give back what is held open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Raw counters at the beginning of a window; only `SystemCounters.end` reads it."""

    window: peak.PeakWindow
    samples: tuple[Sample | Unavailable, ...]
    start_ns: int


class SystemCounters:
    """All counters of this system, opened once per session.

    `begin` costs some 80 µs and `end` some 120 µs, neither within the window. Windows may be nested.
    `platform` and `proc` are parameters for tests.
    """

    def __init__(self, *, platform: str = sys.platform, proc: Path = Path("/proc")) -> None:
        self._platform = platform
        self._proc = proc
        self._not_on_this_system = portable.unavailable_on(platform)
        self._open()

    def begin(self) -> Snapshot:
        """Reset the peak and read everything, the CPU clock last: the window starts when this returns."""
        if os.getpid() != self._pid:
            # After a fork the open files still describe the parent.
            self.close()
            self._open()
        window = self._peak.begin()
        samples = [_sample(instrument) for instrument in reversed(self._instruments)]
        return Snapshot(window=window, samples=tuple(reversed(samples)), start_ns=time.perf_counter_ns())

    def end(self, before: Snapshot) -> Counters:
        """Read everything, the clocks first, and return what the window added."""
        end_ns = time.perf_counter_ns()
        samples = [_sample(instrument) for instrument in self._instruments]
        peak_reading = self._peak.end(before.window, before.samples[self._memory], samples[self._memory])
        readings = {"peak_rss_bytes": peak_reading}
        for instrument, sample_before, sample_after in zip(self._instruments, before.samples, samples, strict=True):
            readings.update(_readings(instrument, sample_before, sample_after))
        for name, reading in self._not_on_this_system.items():
            if name not in readings or readings[name].value is None:
                readings[name] = reading
        return Counters(wall_s=(end_ns - before.start_ns) / _NS, **readings)

    def close(self) -> None:
        """Close every file, and end the helper process if there is one."""
        for instrument in self._instruments:
            instrument.close()
        self._peak.close()

    def _open(self) -> None:
        self._pid = os.getpid()
        linux = self._platform == "linux"
        groups = cgroup.discover(self._proc) if linux else cgroup.ControlGroups()
        self._instruments = linux_instruments(self._proc, groups) if linux else portable_instruments()
        self._memory = next(
            place
            for place, instrument in enumerate(self._instruments)
            if isinstance(instrument, ResidentMemory | portable.PsutilMemory)
        )
        self._peak = peak.choose(self._proc, linux=linux, usable_cores=cores(groups).usable)


def _sample(instrument: Instrument) -> Sample | Unavailable:
    """Return what an instrument reads; one that breaks its word and raises has no value, and its round goes on."""
    try:
        return instrument.read()
    except Exception as error:  # noqa: BLE001 - whatever a kernel or a driver makes it raise
        return Unavailable(untrusted.failure(error))


def _readings(instrument: Instrument, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
    try:
        return instrument.readings(before, after)
    except Exception as error:  # noqa: BLE001 - as above
        failed = Unavailable(untrusted.failure(error))
        return instrument.readings(failed, failed)


def linux_instruments(
    proc: Path, groups: cgroup.ControlGroups, sys_folder: Path = Path("/sys")
) -> tuple[Instrument, ...]:
    """Return what reads /proc, /sys and the control groups, those closest to the window first."""
    return (
        CpuTime(),
        # Right behind the clock, as it counts the other instruments' reads as well.
        ProcessIo(proc),
        PerfCounters(proc=proc),
        RunQueue(proc),
        *(Pressure(resource, groups, proc) for resource in ("cpu", "memory", "io")),
        MachineTime(proc),
        GroupIo(groups),
        ResidentMemory(proc),
        SystemMemory(proc, groups),
        Frequency(sys_folder, proc),
        Throttling(sys_folder, proc),
        Rapl(sys_folder, proc),
        DeviceMemory(),
        Nvml(),
    )


def portable_instruments() -> tuple[Instrument, ...]:
    """Return what asks psutil, for macOS and Windows; the same order."""
    return (
        CpuTime(),
        portable.PsutilMachineTime(),
        portable.PsutilIo(),
        portable.PsutilMemory(),
        portable.PsutilSystemMemory(),
        DeviceMemory(),
        Nvml(),
    )
