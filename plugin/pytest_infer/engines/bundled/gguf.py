"""Reading a GGUF file: its metadata, and its tensors as float32 (the three storage types that SmolLM2 uses)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_infer.engines.checkpoint import gguf_header

Floats = NDArray[np.float32]

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

    Raises:
        ValueError: it is no such file, or a tensor has a storage type other than F32, Q4_1 and Q8_0.
        struct.error: it is cut short.
    """
    header = gguf_header.parse(data)
    for name, place in header.places.items():
        if place.kind not in _DEQUANTISE:
            raise ValueError(f"tensor {name} has storage type {place.kind}; known: {sorted(_DEQUANTISE)}")
    places = {name: (place.shape, place.kind, place.start) for name, place in header.places.items()}
    return GGUF(metadata=header.metadata, data=data, places=places)


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
