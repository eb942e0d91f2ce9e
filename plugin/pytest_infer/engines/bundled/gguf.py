"""Reading a GGUF file: its metadata, and its tensors as float32 (the three storage types that SmolLM2 uses)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK = 32  # weights that share one scale, in every quantised type here


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUF:
    """The metadata of a file, and where each tensor lies in it: name → (shape, storage type, first byte)."""

    metadata: dict[str, Any]
    data: bytes = field(repr=False)
    places: dict[str, tuple[tuple[int, ...], int, int]]

    def tensors(self) -> Iterator[tuple[str, Floats]]:
        """Every tensor in the order of the file, dequantised to float32, rows first as torch has them."""
        for name, (shape, kind, start) in self.places.items():
            yield name, _DEQUANTISE[kind](self.data, start, prod(shape)).reshape(shape)


def parse(data: bytes) -> GGUF:
    """Parse a little-endian GGUF file of version 2 or 3 that is held in memory.

    Source: the GGUF specification (docs/gguf.md of ggml).

    Raises:
        ValueError: it is no such file, or a tensor has a storage type other than F32, Q4_1 and Q8_0.
        struct.error: it is cut short.
    """
    magic, version, tensor_count, key_count = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"not a GGUF file of version 2 or 3: {magic!r}, version {version}")
    cursor = _Cursor(data, struct.calcsize("<4sIQQ"))
    metadata = {cursor.string(): cursor.value(cursor.integer("I")) for _ in range(key_count)}
    places = {}
    for _ in range(tensor_count):
        name = cursor.string()
        # The file gives the fastest-running dimension first.
        shape = tuple(reversed([cursor.integer("Q") for _ in range(cursor.integer("I"))]))
        kind, offset = cursor.integer("I"), cursor.integer("Q")
        if kind not in _DEQUANTISE:
            raise ValueError(f"tensor {name} has storage type {kind}; known: {sorted(_DEQUANTISE)}")
        places[name] = (shape, kind, offset)
    alignment = metadata.get("general.alignment", 32)
    start = -(-cursor.position // alignment) * alignment
    placed = {name: (shape, kind, start + offset) for name, (shape, kind, offset) in places.items()}
    return GGUF(metadata=metadata, data=data, places=placed)


class _Cursor:
    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    def integer(self, code: str) -> int:
        return int(self.scalars(code, 1)[0])

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        values = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return values

    def string(self) -> str:
        end = self.integer("Q") + self.position
        text = self.data[self.position : end].decode("utf-8")
        self.position = end
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.integer("I"), self.integer("Q")
            if item in _SCALARS:
                return list(self.scalars(_SCALARS[item], count))
            return [self.value(item) for _ in range(count)]
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], 1)[0]
        raise ValueError(f"metadata of type {kind}; known: {sorted([*_SCALARS, _STRING, _ARRAY])}")


def _f32(data: bytes, start: int, count: int) -> Floats:
    return np.frombuffer(data, "<f4", count, start).astype(np.float32)


def _q8_0(data: bytes, start: int, count: int) -> Floats:
    """A block is a float16 scale and 32 signed bytes: weight = scale · byte."""
    block = np.dtype([("scale", "<f2"), ("levels", "i1", _BLOCK)])
    blocks = np.frombuffer(data, block, count // _BLOCK, start)
    return blocks["scale"].astype(np.float32)[:, None] * blocks["levels"].astype(np.float32)


def _q4_1(data: bytes, start: int, count: int) -> Floats:
    """A block is a float16 scale and minimum and 16 bytes, low halves first: weight = scale · half + minimum."""
    block = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("halves", "u1", _BLOCK // 2)])
    blocks = np.frombuffer(data, block, count // _BLOCK, start)
    levels = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32)
    # In place, as two roundings: a fused multiply-add would give other bits than every other reader.
    levels *= blocks["scale"].astype(np.float32)[:, None]
    levels += blocks["minimum"].astype(np.float32)[:, None]
    return levels


_DEQUANTISE = {_F32: _f32, _Q4_1: _q4_1, _Q8_0: _q8_0}
