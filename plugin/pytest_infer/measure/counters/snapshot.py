"""The exact layer: what the kernel counted around a window, read just before it and just after it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

from pytest_infer import untrusted
from pytest_infer.measure.counters import cgroup, memory, peak, portable
from pytest_infer.measure.counters.accelerator import DeviceMemory
from pytest_infer.measure.counters.contention import MachineTime, Pressure, RunQueue, own_cpu_s
from pytest_infer.measure.counters.cpu import CpuTime, Frequency, cores
from pytest_infer.measure.counters.disk import GroupIo, ProcessIo
from pytest_infer.measure.counters.elsewhere import memory as elsewhere_memory
from pytest_infer.measure.counters.elsewhere.client import Client
from pytest_infer.measure.counters.elsewhere.perf import TreePerf
from pytest_infer.measure.counters.elsewhere.portable import PsutilTree
from pytest_infer.measure.counters.elsewhere.served import FIGURES, Served
from pytest_infer.measure.counters.elsewhere.threads import TreeThreads
from pytest_infer.measure.counters.elsewhere.tree import Tree
from pytest_infer.measure.counters.elsewhere.use import TreeUse
from pytest_infer.measure.counters.energy import Rapl
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable
from pytest_infer.measure.counters.memory import ResidentMemory, SystemMemory
from pytest_infer.measure.counters.nvml import Nvml
from pytest_infer.measure.counters.perf import PerfCounters
from pytest_infer.measure.counters.thermal import Throttling
from pytest_infer.records import Counters, Observed, Reading, absent

_NS = 1e9
_OF_A_SERVER = ("client_cpu_s", "client_wait_s", *FIGURES)
_OF_A_TREE = (
    "cpu_children_s", "minor_faults", "major_faults", "voluntary_switches", "involuntary_switches", "peak_rss_bytes",
    "read_chars", "write_chars", "read_calls", "write_calls",
)  # fmt: skip


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

    window: peak.PeakWindow | None
    samples: tuple[Sample | Unavailable, ...]
    start_ns: int


class SystemCounters:
    """All counters of this system, opened once per session.

    `begin` costs some 80 µs and `end` some 120 µs, neither within the window; of another process 0.4 and 1 ms, more
    with many threads, and its server's answers. Windows may be nested.
    `platform` and `proc` are parameters for tests.
    """

    def __init__(
        self,
        *,
        observed: Observed | None = None,
        text: Callable[[], str | None] = lambda: None,
        platform: str = sys.platform,
        proc: Path = Path("/proc"),
    ) -> None:
        """Open the counters of this process, or of those that an engine observes; of the machine in either case.

        `text` returns what a server that is observed tells of itself, in Prometheus' text format.
        """
        self.observed, self._text = observed, text
        self._platform = platform
        self._proc = proc
        self._unavailable = _unavailable(observed, platform)
        self._open()

    def begin(self) -> Snapshot:
        """Reset the peak and read everything, the CPU clock last: the window starts when this returns."""
        if os.getpid() != self._pid:
            # After a fork the open files still describe the parent.
            self.close()
            self._open()
        window = None if self._peak is None else self._peak.begin()
        samples = [_sample(instrument) for instrument in reversed(self._instruments)]
        return Snapshot(window=window, samples=tuple(reversed(samples)), start_ns=time.perf_counter_ns())

    def end(self, before: Snapshot) -> Counters:
        """Read everything, the clocks first, and return what the window added."""
        end_ns = time.perf_counter_ns()
        samples = [_sample(instrument) for instrument in self._instruments]
        readings = {}
        if self._peak is not None and before.window is not None:
            sizes = (before.samples[self._memory], samples[self._memory])
            readings["peak_rss_bytes"] = self._peak.end(before.window, *sizes)
        for instrument, sample_before, sample_after in zip(self._instruments, before.samples, samples, strict=True):
            readings.update(_readings(instrument, sample_before, sample_after))
        for name, reading in self._unavailable.items():
            if name not in readings or readings[name].value is None:
                readings[name] = reading
        return Counters(wall_s=(end_ns - before.start_ns) / _NS, **readings)

    def close(self) -> None:
        """Close every file, and end the helper process if there is one."""
        for instrument in self._instruments:
            instrument.close()
        if self._peak is not None:
            self._peak.close()
        if self._tree is not None:
            self._tree.close()

    def footprint(self) -> tuple[Reading, Reading]:
        """Return (proportional, unique) set size in bytes, of whoever is observed: tens of ms, never within a round."""
        if self.observed is None:
            return memory.footprint()
        if self._tree is None:
            return self._not_told(), self._not_told()
        return elsewhere_memory.footprint(self._tree)

    def mapped(self, files: Sequence[Path]) -> Reading:
        """Return the resident bytes of these files in whoever is observed: tens of ms, never within a round."""
        if self.observed is None:
            return memory.mapped(files)
        return self._not_told() if self._tree is None else elsewhere_memory.mapped(self._tree, files)

    def _not_told(self) -> Reading:
        of = None if self.observed is None else self.observed.absent
        return absent(of or "only Linux tells it of another process")

    def _open(self) -> None:
        self._pid = os.getpid()
        self._tree: Tree | None = None
        self._peak: peak.Peak | None = None
        self._instruments: tuple[Instrument, ...]
        linux = self._platform == "linux"
        if self.observed is not None and self.observed.absent is not None:
            self._instruments = (Client(self._proc, linux=linux), Served(self._text))
            return
        groups = cgroup.discover(self._proc) if linux else cgroup.ControlGroups()
        # A helper that samples runs on this process's cores, whoever is observed.
        usable = cores(groups).usable
        if self.observed is None:
            self._instruments = linux_instruments(self._proc, groups) if linux else portable_instruments()
            self._peak = peak.choose(self._proc, linux=linux, usable_cores=usable)
        elif linux:
            self._tree = Tree(self.observed.pids, self._proc)
            theirs = cgroup.discover(self._proc, self.observed.pids)
            self._instruments = linux_instruments(self._proc, theirs, tree=self._tree)
            self._peak = elsewhere_memory.peak_of(self._tree, self._proc, usable)
        else:
            self._instruments = portable_instruments(self.observed.pids)
        if self.observed is not None:
            # It takes part in the server's work: farthest from the window.
            self._instruments = (*self._instruments, Served(self._text))
        sizes = ResidentMemory | elsewhere_memory.TreeMemory | portable.PsutilMemory | PsutilTree
        self._memory = next(n for n, instrument in enumerate(self._instruments) if isinstance(instrument, sizes))


def _unavailable(observed: Observed | None, platform: str) -> dict[str, Reading]:
    """Return the counters that there are none of, with the reasons: on this system, or of what is observed."""
    found = portable.unavailable_on(platform)
    if observed is None:
        return found | dict.fromkeys(_OF_A_SERVER, absent("the model runs in this process"))
    if observed.absent is not None:
        names = [field.name for field in fields(Counters) if field.name not in ("wall_s", *_OF_A_SERVER)]
        return found | dict.fromkeys(names, absent(observed.absent))
    found["device_peak_bytes"] = absent("torch tells what its own process allocated, and the model runs in another")
    if platform != "linux":
        found = dict.fromkeys(_OF_A_TREE, absent("only Linux tells it of another process with its children")) | found
    return found


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
    proc: Path, groups: cgroup.ControlGroups, sys_folder: Path = Path("/sys"), *, tree: Tree | None = None
) -> tuple[Instrument, ...]:
    """Return what reads /proc, /sys and the control groups, those closest to the window first."""
    # Right behind the clock comes what counts the other instruments' reads as well.
    if tree is None:
        own: tuple[Instrument, ...] = (CpuTime(), ProcessIo(proc), PerfCounters(proc=proc), RunQueue(proc))
        time_of_machine = MachineTime(proc)
    else:
        use = TreeUse(tree)
        own = (Client(proc), use, TreePerf(tree, proc), TreeThreads(tree))
        time_of_machine = MachineTime(proc, lambda: own_cpu_s() + use.used_s())
    return (
        *own,
        *(Pressure(resource, groups, proc) for resource in ("cpu", "memory", "io")),
        time_of_machine,
        GroupIo(groups),
        ResidentMemory(proc) if tree is None else elsewhere_memory.TreeMemory(tree),
        SystemMemory(proc, groups),
        Frequency(sys_folder, proc),
        Throttling(sys_folder, proc),
        Rapl(sys_folder, proc),
        *([DeviceMemory()] if tree is None else []),
        Nvml(),
    )


def portable_instruments(pids: Sequence[int] | None = None) -> tuple[Instrument, ...]:
    """Return what asks psutil, for macOS and Windows; the same order."""
    if pids is not None:
        use = PsutilTree(pids)
        machine = portable.PsutilMachineTime(lambda: own_cpu_s() + use.used_s())
        return (Client(linux=False), use, machine, portable.PsutilSystemMemory(), Nvml())
    return (
        CpuTime(),
        portable.PsutilMachineTime(),
        portable.PsutilIo(),
        portable.PsutilMemory(),
        portable.PsutilSystemMemory(),
        DeviceMemory(),
        Nvml(),
    )
