"""Traces of load that once was: when each request came and how long it was, as JSON Lines, Mooncake's among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import OptionError

BLOCK = 512
"""The tokens of a prompt that one of Mooncake's hashes stands for (Qin et al. 2024, section 4); its last may be fewer.
"""
_LATEST = 1e12


class Traced(msgspec.Struct, frozen=True):
    """One request. With `hash_ids` it is Mooncake's: its `timestamp` is in milliseconds, else in seconds.

    Prompts begin with the same tokens as far as their `hash_ids` are the same, one for each `BLOCK` of tokens.
    """

    timestamp: Annotated[float, msgspec.Meta(ge=0, le=_LATEST)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=1)]
    hash_ids: tuple[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)], ...] | None = None

    @property
    def damage(self) -> str | None:
        """Return what makes no request of it."""
        blocks = -(-self.input_length // BLOCK)
        if self.hash_ids is None or len(self.hash_ids) == blocks:
            return None
        return f"{len(self.hash_ids)} hash_ids of {BLOCK} tokens each for an input_length of {self.input_length}"


_DECODER: msgspec.json.Decoder[Traced] = msgspec.json.Decoder(Traced)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A file of at least one request, as they came; `sha256` is that of the file."""

    path: Path
    requests: tuple[Traced, ...]
    sha256: str

    @property
    def longest(self) -> int:
        """Return the tokens of the longest answer."""
        return max(request.output_length for request in self.requests)

    @property
    def mooncake(self) -> bool:
        """Return whether it is in Mooncake's format, so that its prompts share their beginnings."""
        return self.requests[0].hash_ids is not None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the requests as the generator's data, their times in seconds since the first one's."""
        unit = 1000.0 if self.mooncake else 1.0
        ordered = sorted(self.requests, key=lambda request: request.timestamp)
        for request in ordered:
            told = {} if request.hash_ids is None else {"hash_ids": request.hash_ids}
            yield {
                "timestamp": (request.timestamp - ordered[0].timestamp) / unit,
                "input_length": request.input_length,
                "output_length": request.output_length,
                **told,
            }


def read(path: Path, where: str) -> Trace:
    """Return a trace; raise OptionError naming the option `where`, and the line, for a file that is none.

    It is JSON Lines of `Traced`, all of them with `hash_ids` or none; what else a line has is left out.
    """
    found: list[Traced] = []
    try:
        content = untrusted.read(path, untrusted.TEXT_BYTES)
    except (OSError, untrusted.Damaged) as error:
        raise OptionError(f"{where}: {path}: {untrusted.reason(error)}") from error
    for number, line in untrusted.lines(content):
        try:
            request = untrusted.decode(_DECODER, line)
        except untrusted.Damaged as error:
            raise OptionError(f"{where}: {path}, line {number}: {untrusted.reason(error)}") from error
        damage = request.damage
        if found and (found[0].hash_ids is None) != (request.hash_ids is None):
            damage = "all lines have hash_ids (Mooncake's format, its timestamps in milliseconds) or none has"
        if damage is not None:
            raise OptionError(f"{where}: {path}, line {number}: {damage}")
        found.append(request)
    if not found:
        raise OptionError(f"{where}: {path} holds no request")
    return Trace(path=path, requests=tuple(found), sha256=hashlib.sha256(content).hexdigest())
