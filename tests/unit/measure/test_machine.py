from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pytest_infer.measure.machine import description


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = (
            root
            / {
                "hypervisor": "hypervisor/type",
                "vendor": "class/dmi/id/sys_vendor",
                "product": "class/dmi/id/product_name",
                "clocks": "devices/system/clocksource/clocksource0/available_clocksource",
                "governor": "devices/system/cpu/cpu0/cpufreq/scaling_governor",
            }[name]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "flag", "expected"),
    [
        ({}, False, None),
        ({}, True, "unknown hypervisor"),
        ({"hypervisor": "xen\n"}, True, "xen"),
        ({"clocks": "tsc kvm-clock \n"}, True, "kvm"),
        ({"clocks": "tsc kvm-clock \n"}, False, None),
        ({"vendor": "QEMU", "product": "Standard PC"}, True, "kvm"),
        ({"vendor": "Amazon EC2", "product": "c7g.large"}, False, "kvm"),
        ({"vendor": "Amazon EC2", "product": "c7g.metal"}, False, None),
        ({"vendor": "Microsoft Corporation", "product": "Virtual Machine"}, True, "hyper-v"),
        ({"vendor": "Microsoft Corporation", "product": "Surface Laptop"}, False, None),
    ],
)
def test_virtualization(proc, tmp_path: Path, files: dict[str, str], flag: bool, expected: str | None) -> None:
    proc.write("cpuinfo", f"flags : fpu {'hypervisor' if flag else ''}\n")
    assert description.virtualization(proc.root, write(tmp_path / "sys", **files)) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nmodel name\t: Fast 1000 @ 2 GHz: new\n", "Fast 1000 @ 2 GHz: new"),
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n", "Arm implementer 0x41 part 0xd0c"),
        ("processor : 0\nModel : Raspberry Pi 4\n", "Raspberry Pi 4"),
    ],
)
def test_processor_names_on_linux(proc, tmp_path: Path, cpuinfo: str, expected: str) -> None:
    proc.write("cpuinfo", cpuinfo)
    described = description.describe(platform="linux", proc=proc.root, sys_folder=tmp_path / "sys")
    assert described.cpu == expected


def test_limits_and_governor(proc, groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10_000))
    groups.limit(groups.mount("cgroup2", "", "/"), memory_max="4096", cpu_max="50000 100000")
    sys_folder = write(tmp_path / "sys", governor="powersave\n")
    described = description.describe(platform="linux", proc=proc.root, sys_folder=sys_folder)
    assert (described.memory_bytes, described.memory_limit_bytes) == (10_000, 4096)
    assert (described.quota_cores, described.usable_cores) == (0.5, 0.5)
    assert described.governor == "powersave"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_has_cores_and_limits_of_its_own(proc, groups, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10_000))
    top = groups.mount("cgroup2", "", "/ours")
    groups.limit(top / "ours", memory_max="1024", cpu_max="100000 100000")
    groups.limit(top / "theirs", memory_max="4096", cpu_max="max 100000")
    groups.join(7, "/theirs")
    # A runtime binds each thread to cores of its own.
    proc.write("7/task/8/children", "")
    masks = {0: {0}, 7: {1}, 8: {2, 3}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda task: masks[task])
    ours = description.describe(proc=proc.root, sys_folder=tmp_path / "sys")
    theirs = description.describe((7,), proc=proc.root, sys_folder=tmp_path / "sys")
    assert (ours.affinity_cores, ours.usable_cores, ours.memory_limit_bytes) == (1, 1, 1024)
    assert (theirs.affinity_cores, theirs.usable_cores, theirs.memory_limit_bytes) == (3, 3, 4096)


def test_macos_asks_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="Apple M9\n"))
    assert description.describe(platform="darwin").cpu == "Apple M9"

    def broken(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", broken)
    monkeypatch.setattr(description.system, "processor", lambda: "arm")
    described = description.describe(platform="darwin")
    assert (described.cpu, described.virtualization) == ("arm", None)
    assert description.describe(platform="win32").cpu == "arm"
