"""The header of a GGUF file: its metadata, and each tensor's shape, storage type and place; no weight is read."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pytest_infer import untrusted
from pytest_infer.engines.checkpoint.tensors import Tensor
from pytest_infer.errors import ModelError
from pytest_infer.units import size

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 64 * 2**20
"""The most bytes of a header: vocabularies and merges of large models are a tenth of it."""
_DIMENSIONS = 8
_NESTED = 4
"""Arrays of arrays, so deep at most; ggml writes one."""

BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Storage types: name, weights in a block, bytes of a block (ggml's table of type traits)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """Where a tensor lies in its file: shape (rows first, as torch has them), storage type, first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The metadata of a file, and the place of each tensor by name, in the order of the file.

    `entries` are the first byte of each entry of the metadata, key and type included, and the one after its last.
    """

    metadata: dict[str, Any]
    places: dict[str, TensorPlace]
    entries: dict[str, tuple[int, int]]


def parse(data: bytes | mmap.mmap) -> Header:
    """Parse the header of a little-endian GGUF file of version 2 or 3.

    Source: the GGUF specification (docs/gguf.md of ggml).

    Raises:
        ValueError: it is no such file.
        struct.error: it is cut short.
    """
    magic, version, tensor_count, key_count = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"not a GGUF file of version 2 or 3: {magic!r}, version {version}")
    cursor = _Cursor(data, struct.calcsize("<4sIQQ"))
    metadata, entries = {}, {}
    for _ in range(key_count):
        first = cursor.position
        key = cursor.string()
        metadata[key] = cursor.value(cursor.integer("I"))
        entries[key] = (first, cursor.position)
    places = {}
    for _ in range(tensor_count):
        name = cursor.string()
        # The file gives the fastest-running dimension first.
        dimensions = cursor.integer("I")
        if dimensions > _DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed([cursor.integer("Q") for _ in range(dimensions)]))
        places[name] = (shape, cursor.integer("I"), cursor.integer("Q"))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"tensors aligned to {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    return Header(
        metadata=metadata,
        entries=entries,
        places={
            name: TensorPlace(shape=shape, kind=kind, start=start + offset)
            for name, (shape, kind, offset) in places.items()
        },
    )


def of_file(path: Path) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """Return a file's metadata and tensors, reading no more than its header (the file is mapped).

    Raises:
        ModelError: it cannot be read, is no GGUF file or cut short, or has a storage type that is not known here.
    """
    try:
        with untrusted.opened(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header, length = parse(data), len(data)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:
        raise ModelError(f"{path}: not a GGUF file: {untrusted.reason(error)}") from error
    tensors = []
    for name, place in header.places.items():
        if place.kind not in BLOCKS:
            raise ModelError(f"{path}: tensor {name} has a storage type that is not known here: {place.kind}")
        kind, weights, block = BLOCKS[place.kind]
        held = prod(place.shape) // weights * block
        if place.start + held > length:
            raise ModelError(f"{path}: cut short: {length} of {place.start + held} bytes; fetch it again")
        tensors.append(Tensor(name=name, dtype=kind, shape=place.shape, bytes=held))
    return header.metadata, tuple(tensors)


class _Cursor:
    def __init__(self, data: bytes | mmap.mmap, position: int) -> None:
        self.data = data
        self.position = position

    def integer(self, code: str) -> int:
        return int(self.scalars(code, 1)[0])

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        layout = f"<{self.within(count)}{code}"
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def string(self) -> str:
        end = self.within(self.integer("Q")) + self.position
        text = self.data[self.position : end].decode("utf-8")
        self.position = end
        return text

    def within(self, count: int) -> int:
        """Return a number of things to be read; raise ValueError where they are beyond any header or this file."""
        if self.position + count > min(_LONGEST, len(self.data)):
            raise ValueError(f"cut short, or a header longer than {size(_LONGEST)}")
        return count

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.integer("I"), self.integer("Q")
            if item in _SCALARS:
                return list(self.scalars(_SCALARS[item], count))
            if depth == _NESTED:
                raise ValueError("nested too deeply")
            return [self.value(item, depth + 1) for _ in range(self.within(count))]
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], 1)[0]
        raise ValueError(f"metadata of type {kind}; known: {sorted([*_SCALARS, _STRING, _ARRAY])}")
