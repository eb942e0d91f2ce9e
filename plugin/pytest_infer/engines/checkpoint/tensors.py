"""Names, shapes and sizes of a model folder's tensors, read from safetensors headers without loading a weight."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines.checkpoint import hashes
from pytest_infer.errors import ModelError

_LONGEST = 100_000_000  # bytes: the maximum that the format's own reader allows for a header
_METADATA = "__metadata__"
_ADAPTER = "adapter_"

EXPERT = re.compile(
    r"(?:^|\.)experts\.(?:(\d+)\.)?"  # most models; the number where each expert has tensors of its own
    r"|(?:^|\.)(?:block_sparse_moe|mlp)\.(?:in|out)put_linear\."  # granitemoe, jetmoe
    r"|(?:^|\.)ffn_(?:gate_up|gate|up|down)_exps(?:\.|$)"  # GGUF
)
"""Finds the tensors of experts by their names; those of shared ones too, which `SHARED` distinguishes."""
SHARED = re.compile(r"(?:^|\.)(?:shared_experts?|share_expert|shared_mlp)\.|(?:^|\.)ffn_(?:gate|up|down)_shexp(?:\.|$)")
IN_LAYER = re.compile(r"^((?:[^.\d][^.]*\.)*)(\d+)\.")
"""Finds the first number in the way to a tensor, which is its layer's, and what stands in front of it."""
DRAFT = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")
"""Finds the tensors of draft heads (multi-token prediction), which transformers does not load."""

_Length = Annotated[int, msgspec.Meta(ge=0)]


class _HeaderEntry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[_Length, ...]
    data_offsets: tuple[_Length, _Length]

    def __post_init__(self) -> None:
        """Raise ValueError for a tensor that ends before it begins."""
        if self.data_offsets[1] < self.data_offsets[0]:
            raise ValueError("a tensor ends before it begins")


_HEADER = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint, as it is stored there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


def of_folder(folder: Path) -> tuple[Tensor, ...]:
    """Return every tensor of the files from which transformers would load this folder; adapters are left out.

    Source: the safetensors format, a little-endian 64-bit length and so many bytes of JSON in front of the data.

    Raises:
        ModelError: there are no safetensors files, or one is missing, damaged or cut short.
    """
    try:
        paths = [path for path in hashes.files(folder) if not path.name.startswith(_ADAPTER)]
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}") from error
    if not paths or any(path.suffix != ".safetensors" for path in paths):
        kinds = ", ".join(sorted({path.suffix for path in paths})) or "none"
        raise ModelError(f"{folder}: sizes are read from .safetensors files only (found: {kinds}); leave out --model")
    return tuple(tensor for path in paths for tensor in _of_file(path))


def _of_file(path: Path) -> list[Tensor]:
    try:
        with untrusted.opened(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST:
                raise ModelError(f"{path}: not a safetensors file: its header would be {length} bytes long")
            entries = untrusted.decode(_HEADER, file.read(length))
        entries.pop(_METADATA, None)
        found = {name: msgspec.convert(entry, _HeaderEntry) for name, entry in entries.items()}
        end = 8 + length + max((entry.data_offsets[1] for entry in found.values()), default=0)
        if path.stat().st_size < end:
            raise ModelError(f"{path}: cut short: {path.stat().st_size} of {end} bytes; fetch it again")
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (struct.error, ValueError, msgspec.MsgspecError) as error:
        raise ModelError(f"{path}: not a safetensors file: {untrusted.reason(error)}") from error
    return [
        Tensor(name=name, dtype=e.dtype, shape=e.shape, bytes=e.data_offsets[1] - e.data_offsets[0])
        for name, e in found.items()
    ]
