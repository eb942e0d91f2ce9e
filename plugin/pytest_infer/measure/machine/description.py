"""The machine, as far as it affects the measurements."""

from __future__ import annotations

import platform as system
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.cpu import cores, has_hypervisor_flag
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
    *, platform: str = sys.platform, proc: Path = Path("/proc"), sys_folder: Path = Path("/sys")
) -> MachineInfo:
    """Describe this machine; a few ms, once per session. What cannot be determined is None."""
    linux = platform == "linux"
    groups = cgroup.discover(proc) if linux else cgroup.ControlGroups()
    counted = cores(groups)
    memory_bytes = psutil.virtual_memory().total
    limit = cgroup.memory_limit_bytes(groups)
    return MachineInfo(
        cpu=_cpu_name(platform, proc),
        logical_cores=counted.logical,
        physical_cores=counted.physical,
        affinity_cores=counted.affinity,
        quota_cores=counted.quota,
        usable_cores=counted.usable,
        memory_bytes=memory_bytes,
        memory_limit_bytes=memory_bytes if limit is None else min(limit, memory_bytes),
        system=system.system(),
        kernel=system.release(),
        architecture=system.machine(),
        python=f"{system.python_implementation()} {system.python_version()}",
        virtualization=virtualization(proc, sys_folder) if linux else None,
        governor=governor(sys_folder),
        environment=environment.relevant() | (environment.preloaded() if linux else {}),
        huge_pages=environment.huge_pages(sys_folder) if linux else None,
        scheduling=scheduling.granted(groups, proc=proc, sys_folder=sys_folder),
        clock_resolution_s=time.get_clock_info("perf_counter").resolution,
    )


def governor(sys_folder: Path = Path("/sys")) -> str | None:
    """Return the first core's frequency governor, or None where the kernel scales no frequency."""
    return _text(sys_folder / "devices/system/cpu/cpu0/cpufreq/scaling_governor")


def virtualization(proc: Path = Path("/proc"), sys_folder: Path = Path("/sys")) -> str | None:
    """Return the hypervisor's name, "unknown hypervisor" when only its presence is known, or None on bare metal.

    Sources, in this order: /sys/hypervisor, the processor's flag with the clocks offered, and the firmware's name (on
    Arm there is no such flag).
    """
    hypervisor = _text(sys_folder / "hypervisor/type")
    if hypervisor is not None:
        return hypervisor
    dmi = [_text(sys_folder / "class/dmi/id" / name) or "" for name in ("sys_vendor", "product_name")]
    firmware = " ".join(dmi).lower()
    named = None if "metal" in firmware else _first(_FIRMWARE, firmware)
    if named is None and has_hypervisor_flag(proc):
        clocks = _text(sys_folder / "devices/system/clocksource/clocksource0/available_clocksource") or ""
        return _first(_CLOCKS, clocks) or "unknown hypervisor"
    return named


def _first(names: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((name for part, name in names if part in text), None)


def _cpu_name(platform: str, proc: Path) -> str | None:
    if platform == "linux":
        return _cpuinfo_name(_text(proc / "cpuinfo") or "") or system.processor() or None
    if platform == "darwin":
        try:
            told = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return system.processor() or None
        return told.stdout.strip() or None
    return system.processor() or None


def _cpuinfo_name(cpuinfo: str) -> str | None:
    """Return the processor's name from /proc/cpuinfo; Arm's has none, but the numbers of maker and part."""
    fields = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in cpuinfo.splitlines())
        if colon
    }
    for name in ("model name", "Model", "cpu model", "cpu"):
        if fields.get(name):
            return fields[name]
    if "CPU part" in fields:
        return f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None
