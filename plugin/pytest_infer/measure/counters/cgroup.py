"""Where this process or another sits in the control-group hierarchies, and what they allow it."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pytest_infer.measure.counters.kernel_files import Sources

UNIFIED = ""
"""The name of the version 2 hierarchy, which has no controller in /proc/self/cgroup."""

# cgroup v1 writes "no limit" as the largest page-aligned number.
_NO_LIMIT = 2**60

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlGroups:
    """The directories of a process's groups: its own first, then its visible ancestors; `why` it has none."""

    unified: tuple[Path, ...] = ()
    memory_v1: tuple[Path, ...] = ()
    cpu_v1: tuple[Path, ...] = ()
    why: str | None = None


def parse_memberships(text: str) -> dict[str, str]:
    """Return the group's path of each hierarchy from /proc/self/cgroup; version 2 under `UNIFIED` (cgroups(7))."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _number, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """Return (root within the hierarchy, mount point) of each hierarchy from /proc/self/mountinfo (proc(5))."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields, kind = mount.split(), filesystem.split()
        if not kind or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        # Spaces in a path are written as octal escapes.
        place = (fields[3].replace("\\040", " "), fields[4].replace("\\040", " "))
        names = [UNIFIED] if kind[0] == "cgroup2" else kind[-1].split(",")
        for name in names:
            mounts.setdefault(name, place)
    return mounts


def discover(proc: Path = Path("/proc"), pids: Sequence[int] = ()) -> ControlGroups:
    """Find the groups of this process, or of others; without control groups all are empty."""
    found = {_groups_of(str(pid), proc) for pid in pids or ("self",)}
    several = f"processes {', '.join(map(str, pids))} are in several control groups"
    return found.pop() if len(found) == 1 else ControlGroups(why=several)


def _groups_of(process: str, proc: Path) -> ControlGroups:
    sources, own = Sources(), process == "self"
    memberships = sources.read("groups", proc / process / "cgroup", parse_memberships)
    mounts = sources.read("groups", proc / "self/mountinfo", parse_mounts)
    if memberships is None or mounts is None:
        return ControlGroups(why=sources.unread.get("groups"))
    chains: dict[str, tuple[Path, ...]] = {}
    for name in {UNIFIED, "memory", "cpu"} & memberships.keys() & mounts.keys():
        root, mounted = mounts[name]
        group = _shown(Path(mounted), root, memberships[name])
        if group is None and not own:
            return ControlGroups(why=f"the control group of process {process} is not shown to this one")
        chains[name] = _upward(Path(mounted), group or Path(mounted))
    none: tuple[Path, ...] = ()
    return ControlGroups(
        unified=chains.get(UNIFIED, none), memory_v1=chains.get("memory", none), cpu_v1=chains.get("cpu", none)
    )


def _shown(mount_point: Path, root: str, membership: str) -> Path | None:
    """Return the group's directory, or None where it is not below the mount point.

    A container mounts only its own part of the hierarchy (`root`), while v1 gives the path as the host sees it.
    """
    try:
        inside = PurePosixPath(membership).relative_to(root)
    except ValueError:
        return None
    group = mount_point / inside
    return group if ".." not in inside.parts and _there(group) else None


def _upward(mount_point: Path, group: Path) -> tuple[Path, ...]:
    """Return the group's directory and its ancestors up to the mount point."""
    return (group, *(above for above in group.parents if above.is_relative_to(mount_point)))


def _there(folder: Path) -> bool:
    """Return whether there is such a folder; one that may not be looked at is there, and says so when it is read."""
    try:
        return stat.S_ISDIR(folder.stat().st_mode)
    except PermissionError:
        return True
    except OSError:
        return False


def quota_cores(groups: ControlGroups, sources: Sources | None = None) -> float | None:
    """Return the CPU quota in cores, the lowest of all levels, or None without one.

    What cannot be read is noted in `sources` under the name of the function, here and below.
    Sources: `cpu.max` (cgroup-v2.rst), `cpu.cfs_quota_us` over `cpu.cfs_period_us` (sched-bwc.rst).
    """
    read = _reader(groups, sources or Sources(), "quota_cores")
    # Absent files, "max" and a quota of -1 all mean: no quota at this level.
    quotas = [read(directory / "cpu.max", _quota) for directory in groups.unified]
    for directory in groups.cpu_v1:
        quota = read(directory / "cpu.cfs_quota_us", int)
        period = read(directory / "cpu.cfs_period_us", int)
        quotas.append(quota / period if quota and period else None)
    return min((quota for quota in quotas if quota is not None and quota > 0), default=None)


def memory_limit_bytes(groups: ControlGroups, sources: Sources | None = None) -> int | None:
    """Return the memory limit in bytes, the lowest of all levels, or None without one.

    Sources: `memory.max` (cgroup-v2.rst), `memory.limit_in_bytes` (cgroup-v1/memory.rst).
    """
    read = _reader(groups, sources or Sources(), "memory_limit_bytes")
    files = [d / "memory.max" for d in groups.unified] + [d / "memory.limit_in_bytes" for d in groups.memory_v1]
    limits = (read(file, _limit) for file in files)
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left_bytes(groups: ControlGroups, sources: Sources | None = None) -> int | None:
    """Return how many bytes the groups still allow, the lowest of all levels with a limit, or None without one.

    Pages of files are given back when others need them, so they do not count as used. Sources: `memory.current` and
    `memory.stat` (cgroup-v2.rst), `memory.usage_in_bytes` and `total_` of `memory.stat` (cgroup-v1/memory.rst).
    """
    read = _reader(groups, sources or Sources(), "available_bytes")
    left: list[int] = []
    levels = [(d / "memory.max", d / "memory.current", d / "memory.stat", "") for d in groups.unified]
    levels += [
        (d / "memory.limit_in_bytes", d / "memory.usage_in_bytes", d / "memory.stat", "total_")
        for d in groups.memory_v1
    ]
    for limit_file, usage_file, stat_file, prefix in levels:
        limit = read(limit_file, _limit)
        if limit is None:
            continue
        used, pages = read(usage_file, int), read(stat_file, partial(_file_pages, prefix=prefix))
        if used is not None and pages is not None:
            left.append(max(0, limit - max(0, used - pages)))
    return min(left, default=None)


def _reader(groups: ControlGroups, sources: Sources, name: str) -> Callable[[Path, Callable[[str], _T]], _T | None]:
    if groups.why is not None:
        sources.unread.setdefault(name, groups.why)
    return lambda path, parse: sources.read(name, path, parse)


def _limit(text: str) -> int | None:
    number = None if text.strip() == "max" else int(text)
    return None if number is None or number >= _NO_LIMIT else number


def _quota(text: str) -> float | None:
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)


def _file_pages(text: str, *, prefix: str) -> int:
    lines = dict(line.split() for line in text.splitlines())
    return sum(int(lines[f"{prefix}{name}_file"]) for name in ("active", "inactive"))
