"""The border: what a file must be before any of it is believed, and how it is decoded; whatever it holds, one error."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TypeVar

import msgspec

from pytest_infer.units import size

RUN_BYTES = 256 * 2**20
"""The most that a run file or a journal may have: its numbers take ten times as much memory once they are decoded."""
TEXT_BYTES = 64 * 2**20
"""The most that a file may have which people write: a prompt suite, a prompt's text, a config, baselines."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_POINTER = 1024

T_co = TypeVar("T_co", covariant=True)


class Damaged(ValueError):  # noqa: N818 - it is the file that is damaged
    """Why a file, or what it holds, cannot be taken: one line, without the file's name."""


class Decoder(Protocol[T_co]):
    """What decodes bytes: msgspec's decoders."""

    def decode(self, content: bytes, /) -> T_co:
        """Return what the bytes say."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file, or a link to one, to be read.

    Anything else is never opened: a pipe without a writer waits for ever, a device has no end or acts on being opened.

    Raises:
        Damaged: it is something else.
        OSError: it is not there, or may not be read.
    """
    _check_regular(path.stat().st_mode)
    # What lies there may have been replaced since: not to wait costs a regular file nothing.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _check_regular(os.fstat(file.fileno()).st_mode)
        yield file


def _check_regular(mode: int) -> None:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if not stat.S_ISREG(mode):
        raise Damaged(f"{kinds.get(stat.S_IFMT(mode), 'something else')}, not a file")


def is_file(path: Path) -> bool:
    """Return whether a name is that of a file; one that is too long for the system, or may not be looked at, is not."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_dir(path: Path) -> bool:
    """Return the same of a folder."""
    try:
        return path.is_dir()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Return the same of whatever may be there."""
    try:
        return path.exists()
    except OSError:
        return False


def is_pointer(path: Path) -> bool:
    """Return whether a file is what git-lfs keeps in the place of one that it has not fetched (its specification)."""
    try:
        if not is_file(path) or path.stat().st_size > _LONGEST_POINTER:
            return False
        with opened(path) as file:
            return file.read(len(_POINTER)) == _POINTER
    except (OSError, Damaged):
        # Whoever reads it says what is wrong.
        return False


def read(path: Path, most: int) -> bytes:
    """Return what a regular file of at most `most` bytes holds.

    Raises:
        Damaged: it is something else, or larger.
        OSError: it is not there, or cannot be read.
    """
    with opened(path) as file:
        length = os.fstat(file.fileno()).st_size
        if length > most:
            raise Damaged(f"too large: {size(length)}, and at most {size(most)} are read")
        # No further than it said: some files of /proc look regular, have no size, and wait at their end.
        return file.read(length)


def text(content: bytes) -> str:
    """Return bytes as text, without a byte order mark; raise Damaged unless they are UTF-8."""
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"not UTF-8: {error.reason} at byte {error.start}") from None


def writable(said: str) -> str:
    """Return a text that can be written: halves of characters, which JSON and Python can hold, are replaced."""
    return str.encode(said, errors="replace").decode()


def lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what JSON Lines hold, each with the number of its line: no blank ones, and no byte order marks.

    Files that were joined keep the mark of each.
    """
    for number, line in enumerate(content.split(b"\n"), 1):
        held = line.removeprefix(codecs.BOM_UTF8).strip()
        if held:
            yield number, held


def decode(decoder: Decoder[T_co], content: bytes) -> T_co:
    """Return what a decoder makes of bytes of JSON, with a byte order mark or without.

    Raises:
        Damaged: they are not UTF-8, no JSON, nested too deeply, or not of the decoder's type.
    """
    # A decoder passes over what its type does not ask for, and does not look at the bytes of it.
    if not content.isascii():
        text(content)
    return decode_binary(decoder, content.removeprefix(codecs.BOM_UTF8))


def decode_binary(decoder: Decoder[T_co], content: bytes) -> T_co:
    """Return what a decoder makes of bytes that are no text; raises Damaged as `decode` does."""
    try:
        return decoder.decode(content)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        # Older versions of msgspec: its errors were no ValueError.
        raise Damaged(reason(error)) from None


def reason(error: BaseException) -> str:
    """Return in one line why something could not be read, without the file's name."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def failure(error: BaseException) -> str:
    """Return in one line what was raised, by its kind and its words."""
    words = reason(error)
    return words if words == type(error).__name__ else f"{type(error).__name__}: {words}"
