"""The caches that the usable cores have together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def sizes(sys_folder: Path = Path("/sys"), cpus: set[int] | None = None) -> dict[str, int]:
    """Return bytes by level ("L1d", "L1i", "L2", "L3"), a cache that cores share counted once; {} where not told.

    `cpus` are the cores that count, by default those that this process may run on. In a virtual machine the figures
    are what the host tells its guest. Source: Documentation/ABI/testing/sysfs-devices-system-cpu, cpu/cache.
    """
    if cpus is None:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    seen: dict[tuple[str, str], int] = {}
    for cpu in sorted(cpus):
        for level, shared, size in _of(sys_folder / f"devices/system/cpu/cpu{cpu}/cache"):
            seen[level, shared] = size
    levels: dict[str, int] = {}
    for (level, _), size in sorted(seen.items()):
        levels[level] = levels.get(level, 0) + size
    return levels


def _of(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Yield level, the cores that share it, and bytes of each cache of one core."""
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, shared, size = (
                (index / name).read_text().strip() for name in ("level", "type", "shared_cpu_list", "size")
            )
            number = int(size.rstrip("KMG")) * _UNITS.get(size[-1:], 1)
        except (OSError, ValueError):
            continue
        letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
        yield f"L{level}{letter}", shared, number
