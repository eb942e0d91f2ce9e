"""Kernel files, read once or kept open and re-read with one `pread`, and the reasons when they cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pytest_infer.records import Quality, Reading, absent

# Raw values of one source at one moment. Counts stay `int`: a difference of ints is exact at any size.
Sample = dict[str, float]

# What a kernel file can do wrong: refuse to be read, hold something other than numbers or a zero, or lack a line.
FAILURES = (OSError, ValueError, LookupError, ArithmeticError)

_T = TypeVar("_T")

# Room for every file read here; `Groups:` in /proc/self/status can be long and stands before the memory lines.
_READ_SIZE = 16_384


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A source that could not be read, and why."""

    reason: str


def why(error: Exception, path: Path | str) -> str:
    """Return the reason for a failed read, for people."""
    if isinstance(error, PermissionError):
        return f"permission denied: {path}"
    if isinstance(error, FileNotFoundError):
        return f"this kernel or container has no {path}"
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    return f"{path} is not in the expected form"


class Sources:
    """Reads each source once. One that fails is None; `unread` then says why, by the name of what it was read for."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def ask(self, name: str, call: Callable[[], _T], source: str) -> _T | None:
        """Return what a call returns, which asks the system or psutil about `source`."""
        try:
            return call()
        # psutil's readers and sandboxed system calls raise whatever the source makes them.
        except Exception as error:  # noqa: BLE001
            place = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else source
            self.unread.setdefault(name, why(error, place))
            return None

    def read(self, name: str, path: Path, parse: Callable[[str], _T], *, optional: bool = True) -> _T | None:
        """Return what `parse` makes of a file; that an `optional` one is not there is no failure."""
        try:
            return parse(path.read_text(encoding="utf-8", errors="replace"))
        except FAILURES as error:
            if not (optional and isinstance(error, FileNotFoundError | NotADirectoryError)):
                self.unread.setdefault(name, why(error, path))
            return None

    def text(self, name: str, path: Path, *, optional: bool = True) -> str | None:
        """Return the stripped text of a file, None for an empty one."""
        return self.read(name, path, str.strip, optional=optional) or None

    def matching(self, name: str, folder: Path, pattern: str) -> list[Path]:
        """Return the sorted paths below a folder that match a pattern, none where it is not there."""
        try:
            # glob passes over what it may not list.
            next(folder.iterdir(), None)
            return sorted(folder.glob(pattern))
        except FAILURES as error:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self.unread.setdefault(name, why(error, folder))
            return []


class KernelFile:
    """One file of /proc or /sys, opened once; `pread` at offset 0 makes the kernel write it again (2 µs, proc(5))."""

    def __init__(self, path: Path, parse: Callable[[bytes], Sample], *, size: int = _READ_SIZE) -> None:
        self.path = path
        self._parse = parse
        self._size = size
        self._fd: int | None = None
        self._unavailable = Unavailable("")
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._unavailable = Unavailable(why(error, path))

    def read(self) -> Sample | Unavailable:
        """Return the file's values now, or why there are none; never raises."""
        if self._fd is None:
            return self._unavailable
        try:
            return self._parse(os.pread(self._fd, self._size, 0))
        except FAILURES as error:
            return Unavailable(why(error, self.path))

    def close(self) -> None:
        """Give the file descriptor back."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None
        self._unavailable = Unavailable(f"{self.path} was closed")


def now(sample: Sample | Unavailable, key: str, source: str, quality: Quality = Quality.EXACT) -> Reading:
    """Return one value of a sample as it stands."""
    if isinstance(sample, Unavailable):
        return absent(sample.reason, source)
    if key not in sample:
        return absent(f"this system does not tell {source}", source)
    return Reading(value=sample[key], source=source, quality=quality)


def growth(before: Reading, after: Reading) -> Reading:
    """Return by how much a size grew, 0 where it did not; or why that is not known."""
    if before.value is None or after.value is None:
        return after if after.value is None else before
    return Reading(value=max(0, after.value - before.value), source=after.source, quality=after.quality)


def difference(
    before: Sample | Unavailable,
    after: Sample | Unavailable,
    key: str,
    source: str,
    *,
    per_unit: float | None = None,
    quality: Quality = Quality.EXACT,
) -> Reading:
    """Return how much one value grew, divided by `per_unit` when the source counts in smaller units (ticks, ns)."""
    if isinstance(before, Unavailable):
        return absent(before.reason, source)
    if isinstance(after, Unavailable):
        return absent(after.reason, source)
    if key not in before or key not in after:
        return absent(f"this system does not tell {source}", source)
    grown = after[key] - before[key]
    return Reading(value=grown if per_unit is None else grown / per_unit, source=source, quality=quality)
