"""The machine, as far as it affects the measurements."""

from __future__ import annotations

import platform as system
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.cpu import cores, has_hypervisor_flag, parse_cpuinfo
from pytest_infer.measure.counters.elsewhere.tree import Tree
from pytest_infer.measure.counters.kernel_files import Sources
from pytest_infer.measure.machine import environment, scheduling
from pytest_infer.records import MachineInfo

# What firmware calls itself (DMI), and the hypervisor that it belongs to. Amazon's metal instances have no hypervisor.
_FIRMWARE = (
    ("qemu", "kvm"),
    ("kvm", "kvm"),
    ("google", "kvm"),
    ("openstack", "kvm"),
    ("firecracker", "kvm"),
    ("amazon ec2", "kvm"),
    ("vmware", "vmware"),
    ("virtualbox", "virtualbox"),
    ("innotek", "virtualbox"),
    ("xen", "xen"),
    ("parallels", "parallels"),
    ("virtual machine", "hyper-v"),
)
# Clocks that a hypervisor offers to its guests.
_CLOCKS = (("kvm-clock", "kvm"), ("hyperv", "hyper-v"), ("xen", "xen"))


def describe(
    pids: Sequence[int] = (),
    *,
    platform: str = sys.platform,
    proc: Path = Path("/proc"),
    sys_folder: Path = Path("/sys"),
) -> MachineInfo:
    """Describe this machine; a few ms. What cannot be determined is None, `unread` says why.

    What it grants is what it grants this process, or those named, with all their children; `environment` is ours.
    """
    linux = platform == "linux"
    sources = Sources()
    groups = cgroup.discover(proc, pids) if linux else cgroup.ControlGroups()
    tasks = sources.ask("affinity_cores", lambda: _tasks(pids, proc, linux=linux), "/proc/*/task")
    counted = cores(groups, sources, tasks or ())
    memory_bytes = sources.ask("memory_bytes", lambda: int(psutil.virtual_memory().total), "/proc/meminfo") or None
    granted = scheduling.granted(groups, pid=next(iter(pids), 0), proc=proc, sys_folder=sys_folder, sources=sources)
    limits = (memory_bytes, cgroup.memory_limit_bytes(groups, sources))
    if memory_bytes is None and "memory_bytes" in sources.unread:
        sources.unread.setdefault("memory_limit_bytes", sources.unread["memory_bytes"])
    return MachineInfo(
        cpu=_cpu_name(platform, proc, sources),
        logical_cores=counted.logical,
        physical_cores=counted.physical,
        affinity_cores=counted.affinity,
        quota_cores=counted.quota,
        usable_cores=counted.usable,
        memory_bytes=memory_bytes,
        memory_limit_bytes=min((limit for limit in limits if limit is not None), default=None),
        system=system.system(),
        kernel=system.release(),
        architecture=system.machine(),
        python=f"{system.python_implementation()} {system.python_version()}",
        virtualization=virtualization(proc, sys_folder, sources) if linux else None,
        governor=governor(sys_folder, sources),
        environment=environment.relevant() | (environment.preloaded() if linux else {}),
        huge_pages=environment.huge_pages(sys_folder, sources) if linux else None,
        scheduling=granted,
        clock_resolution_s=time.get_clock_info("perf_counter").resolution,
        unread=sources.unread or None,
    )


def _tasks(pids: Sequence[int], proc: Path, *, linux: bool) -> Sequence[int]:
    """Return all threads of processes and their children: a runtime may have bound each to a core of its own."""
    if not pids or not linux:
        return pids or (0,)
    tree = Tree(pids, proc)
    try:
        return [int(thread) for _, threads in tree.each(lambda member: member.threads()) for thread in threads]
    finally:
        tree.close()


def governor(sys_folder: Path = Path("/sys"), sources: Sources | None = None) -> str | None:
    """Return the first core's frequency governor, or None where the kernel scales no frequency."""
    return (sources or Sources()).text("governor", sys_folder / "devices/system/cpu/cpu0/cpufreq/scaling_governor")


def virtualization(
    proc: Path = Path("/proc"), sys_folder: Path = Path("/sys"), sources: Sources | None = None
) -> str | None:
    """Return the hypervisor's name, "unknown hypervisor" when only its presence is known, or None on bare metal.

    Sources, in this order: /sys/hypervisor, the processor's flag with the clocks offered, and the firmware's name (on
    Arm there is no such flag).
    """
    ours = sources or Sources()

    def told(place: str) -> str:
        return ours.text("virtualization", sys_folder / place) or ""

    hypervisor = told("hypervisor/type")
    if hypervisor:
        return hypervisor
    dmi = [told(f"class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    firmware = " ".join(dmi).lower()
    named = None if "metal" in firmware else _first(_FIRMWARE, firmware)
    if named is None and has_hypervisor_flag(proc, ours):
        clocks = told("devices/system/clocksource/clocksource0/available_clocksource")
        return _first(_CLOCKS, clocks) or "unknown hypervisor"
    return named


def _first(names: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((name for part, name in names if part in text), None)


def _cpu_name(platform: str, proc: Path, sources: Sources) -> str | None:
    if platform == "linux":
        fields = sources.read("cpu", proc / "cpuinfo", parse_cpuinfo, optional=False)
        return _cpuinfo_name(fields or {}) or system.processor() or None
    if platform == "darwin":
        try:
            told = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return system.processor() or None
        return told.stdout.strip() or None
    return system.processor() or None


def _cpuinfo_name(fields: Mapping[str, str]) -> str | None:
    """Return the processor's name from /proc/cpuinfo; Arm's has none, but the numbers of maker and part."""
    for name in ("model name", "Model", "cpu model", "cpu"):
        if fields.get(name):
            return fields[name]
    if "CPU part" in fields:
        return f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return None
