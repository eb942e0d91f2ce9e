"""CPU time of this process, the cores that it may use, and their frequency."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.kernel_files import KernelFile, Sample, Sources, Unavailable, difference, now
from pytest_infer.records import Quality, Reading

try:
    import resource
except ImportError:  # Windows has no getrusage
    resource = None  # type: ignore[assignment]

_NS = 1e9

# Reading one policy can take tens of µs, and servers have hundreds: these few, evenly spread, represent all.
_POLICIES_READ = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """How many cores there are, and how many this process may use (`usable`: the lower of affinity and quota)."""

    logical: int | None
    physical: int | None
    affinity: int | None
    quota: float | None
    usable: float


def cores(
    groups: cgroup.ControlGroups | None = None, sources: Sources | None = None, tasks: Collection[int] = (0,)
) -> Cores:
    """Count the cores; the quota comes from the control groups, by default those of this process.

    `tasks` are the processes and threads that may use them, 0 for this one.
    """
    sources = sources or Sources()
    logical = sources.ask("logical_cores", psutil.cpu_count, "psutil cpu_count")
    affinity = sources.ask("affinity_cores", lambda: _affinity(tasks), "sched_getaffinity")
    quota = cgroup.quota_cores(cgroup.discover() if groups is None else groups, sources)
    limits = [float(limit) for limit in (affinity or logical, quota) if limit]
    return Cores(
        logical=logical,
        physical=sources.ask(
            "physical_cores", lambda: psutil.cpu_count(logical=False), "/sys/devices/system/cpu/*/topology"
        ),
        affinity=affinity,
        quota=quota,
        usable=min(limits, default=1.0),
    )


def _affinity(tasks: Collection[int]) -> int | None:
    """Return how many cores any of them may run on; None where nothing tells it."""
    found: set[int] = set()
    for task in tasks:
        with suppress(ProcessLookupError):
            if hasattr(os, "sched_getaffinity"):
                found |= os.sched_getaffinity(task)
            # macOS has no affinity; psutil then lacks the method.
            elif hasattr(psutil.Process, "cpu_affinity"):
                found.update(psutil.Process(task or None).cpu_affinity())
    return len(found) or None


def children_s() -> float:
    """Return the CPU seconds of the children that were waited for; 0 where the system keeps no such account."""
    if resource is None:
        return 0.0
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


class CpuTime:
    """CPU time, page faults and context switches of all threads of this process (getrusage(2))."""

    def read(self) -> Sample | Unavailable:
        """Return the process clock in ns, and getrusage's seconds and counts where the system has it."""
        sample: Sample = {"process_ns": time.process_time_ns()}
        if resource is None:
            times = os.times()
            sample.update(user=times.user, system=times.system)
            return sample
        own = resource.getrusage(resource.RUSAGE_SELF)
        sample.update(
            user=own.ru_utime,
            system=own.ru_stime,
            minor=own.ru_minflt,
            major=own.ru_majflt,
            voluntary=own.ru_nvcsw,
            involuntary=own.ru_nivcsw,
            children=children_s(),
        )
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return CPU seconds, page faults and context switches between two samples."""

        def grown(key: str, source: str, quality: Quality = Quality.EXACT) -> Reading:
            return difference(before, after, key, source, quality=quality)

        # The kernel counts the sum exactly, and splits it by what ran when its clock ticked.
        split = "getrusage, split by the kernel's clock ticks"
        return {
            "cpu_s": difference(before, after, "process_ns", "process CPU clock", per_unit=_NS),
            "cpu_user_s": grown("user", split, Quality.ESTIMATED),
            "cpu_system_s": grown("system", split, Quality.ESTIMATED),
            "cpu_children_s": grown("children", "getrusage of children that were waited for"),
            "minor_faults": grown("minor", "getrusage ru_minflt"),
            "major_faults": grown("major", "getrusage ru_majflt"),
            "voluntary_switches": grown("voluntary", "getrusage ru_nvcsw"),
            "involuntary_switches": grown("involuntary", "getrusage ru_nivcsw"),
        }

    def close(self) -> None:
        """Nothing is held open."""


class Frequency:
    """The cores' current frequency where the kernel scales it (cpufreq); two samples, so never exact."""

    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        sources = Sources()
        policies = sources.matching("policies", sys / "devices/system/cpu/cpufreq", "policy*/scaling_cur_freq")
        step = max(1, -(-len(policies) // _POLICIES_READ))
        self._files = [KernelFile(policy, _parse_khz, size=32) for policy in policies[::step]]
        self._reason = sources.unread.get("policies") or _no_frequency(proc)

    def read(self) -> Sample | Unavailable:
        """Return the mean over the policies in Hz."""
        if not self._files:
            return Unavailable(self._reason)
        total = 0.0
        for file in self._files:
            sample = file.read()
            if isinstance(sample, Unavailable):
                return sample
            total += sample["hz"]
        return {"hz": total / len(self._files)}

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the mean of the two samples."""
        source = f"scaling_cur_freq before and after, mean of {len(self._files)} policies"
        if isinstance(before, Unavailable) or isinstance(after, Unavailable):
            return {"frequency_hz": now(before if isinstance(before, Unavailable) else after, "hz", "cpufreq")}
        mean = (before["hz"] + after["hz"]) / 2
        return {"frequency_hz": Reading(value=mean, source=source, quality=Quality.SAMPLED)}

    def close(self) -> None:
        """Give the file descriptors back."""
        for file in self._files:
            file.close()


def _parse_khz(text: bytes) -> Sample:
    return {"hz": int(text) * 1000}


def _no_frequency(proc: Path) -> str:
    if has_hypervisor_flag(proc):
        return "no cpufreq policy: a virtual machine is told a constant, not what its cores run at"
    return "no cpufreq policy in /sys/devices/system/cpu/cpufreq"


def has_hypervisor_flag(proc: Path = Path("/proc"), sources: Sources | None = None) -> bool:
    """Return whether the processor reports a virtual machine (x86, cpuid leaf 1)."""
    fields = (sources or Sources()).read("virtualization", proc / "cpuinfo", parse_cpuinfo, optional=False)
    return fields is not None and "hypervisor" in fields.get("flags", "").split()


def parse_cpuinfo(text: str) -> dict[str, str]:
    """Return the fields of /proc/cpuinfo, of the last core that has one; raise ValueError if it is no such text."""
    lines = (line.partition(":") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, colon, value in lines if colon}
    if fields.keys().isdisjoint(("processor", "model name", "flags", "CPU part", "vendor_id")):
        raise ValueError("it tells of no processor")
    return fields


def peak_rss_bytes() -> int | None:
    """Return ru_maxrss, the most that was resident since the process started, where it is that (not on Linux).

    Linux inherits it through exec, so a small process started by a large one would show the large one's.
    """
    if resource is None or sys.platform == "linux":
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
