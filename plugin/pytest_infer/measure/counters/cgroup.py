"""Where this process sits in the control-group hierarchies, and what they allow it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_infer.measure.counters.kernel_files import FAILURES

UNIFIED = ""
"""The name of the version 2 hierarchy, which has no controller in /proc/self/cgroup."""

# cgroup v1 writes "no limit" as the largest page-aligned number.
_NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlGroups:
    """The directories of this process's groups: its own first, then its visible ancestors."""

    unified: tuple[Path, ...] = ()
    memory_v1: tuple[Path, ...] = ()
    cpu_v1: tuple[Path, ...] = ()


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


def discover(proc: Path = Path("/proc")) -> ControlGroups:
    """Find the groups of this process; without control groups all are empty."""
    try:
        memberships = parse_memberships((proc / "self/cgroup").read_text())
        mounts = parse_mounts((proc / "self/mountinfo").read_text())
    except FAILURES:
        return ControlGroups()

    def chain(hierarchy: str) -> tuple[Path, ...]:
        if hierarchy not in memberships or hierarchy not in mounts:
            return ()
        root, mount_point = mounts[hierarchy]
        return tuple(_upward(Path(mount_point), root, memberships[hierarchy]))

    return ControlGroups(unified=chain(UNIFIED), memory_v1=chain("memory"), cpu_v1=chain("cpu"))


def _upward(mount_point: Path, root: str, membership: str) -> Iterator[Path]:
    """Yield the group's directory and its ancestors up to the mount point.

    A container mounts only its own part of the hierarchy (`root`), while v1 gives the path as the host sees it.
    """
    try:
        inside = PurePosixPath(membership).relative_to(root)
    except ValueError:
        inside = PurePosixPath()
    own = mount_point / inside
    if ".." in inside.parts or not own.is_dir():
        own = mount_point
    while own != mount_point:
        yield own
        own = own.parent
    yield mount_point


def quota_cores(groups: ControlGroups) -> float | None:
    """Return the CPU quota in cores, the lowest of all levels, or None without one.

    Sources: `cpu.max` (cgroup-v2.rst), `cpu.cfs_quota_us` over `cpu.cfs_period_us` (sched-bwc.rst).
    """
    quotas: list[float] = []
    for directory in groups.unified:
        # Absent files, "max" and a quota of -1 all mean: no quota at this level.
        with contextlib.suppress(*FAILURES):
            quota, period = (directory / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
    for directory in groups.cpu_v1:
        with contextlib.suppress(*FAILURES):
            quotas.append(_number(directory / "cpu.cfs_quota_us") / _number(directory / "cpu.cfs_period_us"))
    return min((quota for quota in quotas if quota > 0), default=None)


def memory_limit_bytes(groups: ControlGroups) -> int | None:
    """Return the memory limit in bytes, the lowest of all levels, or None without one.

    Sources: `memory.max` (cgroup-v2.rst), `memory.limit_in_bytes` (cgroup-v1/memory.rst).
    """
    files = [d / "memory.max" for d in groups.unified] + [d / "memory.limit_in_bytes" for d in groups.memory_v1]
    return min((limit for limit in _numbers(files) if limit < _NO_LIMIT), default=None)


def memory_left_bytes(groups: ControlGroups) -> int | None:
    """Return how many bytes the groups still allow, the lowest of all levels with a limit, or None without one.

    Pages of files are given back when others need them, so they do not count as used. Sources: `memory.current` and
    `memory.stat` (cgroup-v2.rst), `memory.usage_in_bytes` and `total_` of `memory.stat` (cgroup-v1/memory.rst).
    """
    left: list[int] = []
    levels = [(d / "memory.max", d / "memory.current", d / "memory.stat", "") for d in groups.unified]
    levels += [
        (d / "memory.limit_in_bytes", d / "memory.usage_in_bytes", d / "memory.stat", "total_")
        for d in groups.memory_v1
    ]
    for limit_file, usage_file, stat_file, prefix in levels:
        with contextlib.suppress(*FAILURES):
            limit, used = _number(limit_file), _number(usage_file)
            if limit < _NO_LIMIT:
                left.append(max(0, limit - max(0, used - _file_pages(stat_file, prefix))))
    return min(left, default=None)


def _file_pages(stat: Path, prefix: str) -> int:
    lines = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(lines[f"{prefix}{name}_file"]) for name in ("active", "inactive"))


def _numbers(files: Iterable[Path]) -> Iterator[int]:
    for file in files:
        # An absent file and "max" both mean: no limit at this level.
        with contextlib.suppress(*FAILURES):
            yield _number(file)


def _number(file: Path) -> int:
    return int(file.read_text())
