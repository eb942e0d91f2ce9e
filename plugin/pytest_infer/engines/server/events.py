"""Server-sent events, as servers stream tokens: split at any byte, each a line of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pytest_infer.errors import EngineError

DONE = b"[DONE]"
_MOST_BYTES = 2**24
"""Of one event: a token takes some hundred."""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read(pieces: Iterable[bytes]) -> Iterator[dict[str, Any] | None]:
    """Return the events of a stream as they come, and None for the line that ends it.

    Raises EngineError for an event that is no JSON, or without end.
    """
    left = b""
    for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        if len(left) > _MOST_BYTES:
            raise EngineError(f"the server sent an event of more than {_MOST_BYTES // 2**20} MiB")
        for line in lines:
            data = _data(line)
            if data == DONE:
                yield None
            elif data:
                yield _event(data)


def _data(line: bytes) -> bytes:
    """Return what a line says; nothing for comments, names and the empty lines between events."""
    for name in (b"data:", b"error:"):
        if line.startswith(name):
            return line[len(name) :].strip()
    return b""


def _event(data: bytes) -> dict[str, Any]:
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        shown = data[:80].decode(errors="replace")
        raise EngineError(f"the server sent an event that is no JSON: {shown!r}") from None
