"""Writing a safetensors file, where a full disk is an error that the user can mend."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pytest_infer.errors import ModelError


def save(state: dict[str, Tensor], folder: Path) -> None:
    """Write `state` as `folder`/model.safetensors; no two tensors may share memory.

    Raises:
        ModelError: the file cannot be written.
    """
    try:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # of its own kind: safetensors does not raise OSError
        raise ModelError(f"cannot write weights below {folder.parent}: {error}. Is the disk full?") from error
