"""How much of files the page cache holds, and how to drop it or fill it, without root."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pytest_infer.measure.counters.kernel_files import why
from pytest_infer.records import Reading, absent

_SOURCE = "mincore(2)"
# A private mapping of a whole model is refused where memory may not be overcommitted.
_WINDOW = 2**28
# The other bits of mincore's bytes are reserved.
_LOW_BIT = bytes(value & 1 for value in range(256))
_CHUNK = 2**20


def cached(paths: Sequence[Path], *, platform: str = sys.platform) -> Reading:
    """Return the share of the files' pages that the page cache holds, 0 to 1; some 5 ms per GB.

    Nothing is read, and nothing stays mapped. Since Linux 5.2 mincore(2) calls every page resident for a process that
    neither owns a file nor may write it: the value is then absent.
    """
    if platform != "linux":
        return absent("only Linux tells what the page cache holds", _SOURCE)
    if not paths:
        return absent("no files of the weights were here before the load", _SOURCE)
    resident = pages = 0
    for path in paths:
        try:
            if path.stat().st_uid != os.geteuid() and not os.access(path, os.W_OK):
                return absent(f"the kernel tells only those who may write {path.name} what is cached of it", _SOURCE)
            counts = [*_counts(path)]
        except OSError as error:
            return absent(why(error, path.name), _SOURCE)
        resident += sum(held for held, _ in counts)
        pages += sum(all_of for _, all_of in counts)
    return Reading(value=resident / pages, source=_SOURCE) if pages else absent("the files are empty", _SOURCE)


def _counts(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (pages resident, pages) of one part of the file after the other."""
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset in range(0, size, _WINDOW):
            length = min(_WINDOW, size - offset)
            pages = -(-length // mmap.PAGESIZE)
            flags = ctypes.create_string_buffer(pages)
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset) as mapped:
                start = ctypes.c_char.from_buffer(mapped)
                failed = mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(length), flags)
                del start  # or the mapping cannot be closed
            if failed:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            yield flags.raw.translate(_LOW_BIT).count(1), pages


def drop(paths: Iterable[Path]) -> str | None:
    """Write the files' changes out and drop their pages from the page cache; return why that is impossible.

    The kernel may keep pages without reporting it: those that a process has mapped, and all of a file system in memory.
    Check with `cached`. Source: posix_fadvise(2), POSIX_FADV_DONTNEED.
    """
    if not hasattr(os, "posix_fadvise"):
        return "this system has no posix_fadvise"
    for path in paths:
        try:
            with path.open("rb") as file:
                # Changed pages are not dropped.
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            return why(error, path.name)
    return None


def fill(paths: Iterable[Path]) -> str | None:
    """Read the files once, so that the page cache holds them if it has room; return why one cannot be read."""
    buffer = bytearray(_CHUNK)
    for path in paths:
        try:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        except OSError as error:
            return why(error, path.name)
    return None
