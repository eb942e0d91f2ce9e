"""A system that withholds its /proc, /sys and cgroup files: each read is recorded, or fails as it can fail somewhere.

`python denied.py PATTERN HOW MODULE:FUNCTION ARGUMENT…` calls a program's entry point so, from its first import on.
"""

from __future__ import annotations

import builtins
import errno
import fnmatch
import importlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

GARBLED = b"\xff\xfe: garbled -\n0\n"
HOWS = ("denied", "missing", "failing", "empty", "zero", "garbled")
"""Refused; not there; an error of the device; and what a file holds: nothing, a zero, bytes that are no text."""
_CONTENT = {"empty": b"", "zero": b"0\n", "garbled": GARBLED}
_ERRORS = {"denied": errno.EACCES, "missing": errno.ENOENT, "failing": errno.EIO}
_NUMBER = re.compile(r"(?<=/)\d+(?=/|$)|(?<=cpu)\d+|(?<=policy)\d+|(?<=index)\d+")


def kernel_file(path: object) -> str | None:
    """Return the path of a kernel file, whose numbers of processes, cores and caches do not count; None for another."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    text = os.path.normpath(os.fsdecode(path))
    return _NUMBER.sub("*", text) if text.startswith(("/proc/", "/sys/")) and "/fd" not in text else None


class Withheld:
    """Stands between Python and the system's files; `wanted` is a pattern of paths, `seen` the paths asked for."""

    def __init__(self, wanted: str | None = None, how: str | None = None) -> None:
        self.seen: set[str] = set()
        self._wanted, self._how = wanted, how
        self._folders: dict[int, str] = {}

    def refuse(self, path: object) -> bytes | None:
        """Raise for a file that is withheld, or return what it holds instead; None for any other."""
        name = kernel_file(path)
        if name is None:
            return None
        self.seen.add(name)
        if self._wanted is None or self._how is None or not fnmatch.fnmatchcase(name, self._wanted):
            return None
        if self._how in _CONTENT:
            return _CONTENT[self._how]
        raise OSError(_ERRORS[self._how], os.strerror(_ERRORS[self._how]), os.fsdecode(path))  # type: ignore[arg-type]

    def opened(self, real: Callable[..., int]) -> Callable[..., int]:
        """Return `os.open`, whose files may be relative to a folder that was opened before."""

        def open_it(path: object, flags: int, *args: int, dir_fd: int | None = None, **more: int) -> int:
            whole = path if dir_fd is None else f"{self._folders.get(dir_fd, '')}/{os.fsdecode(path)}"  # type: ignore[arg-type]
            content = self.refuse(whole)
            if content is not None and not flags & os.O_DIRECTORY:
                return _holding(content, flags)
            found = real(path, flags, *args, dir_fd=dir_fd, **more)
            if kernel_file(whole):
                self._folders[found] = os.fsdecode(whole)  # type: ignore[arg-type]
            return found

        return open_it

    def reading(self, real: Callable[..., object]) -> Callable[..., object]:
        """Return `open`."""

        def open_it(file: object, *args: object, **more: object) -> object:
            content = self.refuse(file)
            return real(file if content is None else _holding(content, os.O_RDONLY), *args, **more)

        return open_it

    def listing(self, real: Callable[..., object]) -> Callable[..., object]:
        """Return `os.listdir`, `os.scandir` or `os.stat`: the path alone decides, not what the file would hold."""

        def ask(path: object = ".", *args: object, **more: object) -> object:
            self.refuse(self._folders.get(path, path) if isinstance(path, int) else path)
            return real(path, *args, **more)

        return ask

    def asked(self, real: Callable[[], object], path: str) -> Callable[[], object]:
        """Return a call of the C library that reads a file."""

        def ask() -> object:
            if self.refuse(path) is not None:
                raise OSError("Load averages are unobtainable")
            return real()

        return ask


def _holding(content: bytes, flags: int) -> int:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        return os.dup(file.fileno()) if flags & 3 == os.O_RDONLY else os.open(os.devnull, os.O_WRONLY)


@contextmanager
def withheld(wanted: str | None = None, how: str | None = None) -> Iterator[Withheld]:
    """Withhold files in this process, or only record them; processes that it starts are not told."""
    files = Withheld(wanted, how)
    reading = files.reading(builtins.open)
    places = [(os, name, files.listing(getattr(os, name))) for name in ("listdir", "scandir", "stat")]
    places += [
        (os, "open", files.opened(os.open)),
        (os, "getloadavg", files.asked(os.getloadavg, "/proc/loadavg")),
        (builtins, "open", reading),
        (io, "open", reading),
    ]
    patches = [mock.patch.object(module, name, with_) for module, name, with_ in places]
    for patch in patches:
        patch.start()
    try:
        yield files
    finally:
        for patch in reversed(patches):
            patch.stop()


def main() -> None:
    """Call a program's entry point with files withheld, and end as it does."""
    pattern, how, entry, *sys.argv[1:] = sys.argv[1:]
    module, _, function = entry.partition(":")
    with withheld(pattern, how):
        sys.exit(getattr(importlib.import_module(module), function)())


if __name__ == "__main__":
    main()
