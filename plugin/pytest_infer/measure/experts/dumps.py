"""Counts of selections in the `.pt` files that SGLang's expert distribution recorder writes and ktransformers reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infer import untrusted
from pytest_infer.errors import StorageError

if TYPE_CHECKING:
    import numpy as np

KEY = "logical_count"
"""Selections by (forward pass, layer, logical expert), or by (layer, logical expert)."""


def read(path: Path) -> np.ndarray:
    """Return the counts of such a file summed over its passes, int64, shape (layers, experts).

    Source: `_StatAccumulator.dump` in python/sglang/srt/eplb/expert_distribution.py of SGLang; a tensor alone is what
    kt_ep_wrapper.py of ktransformers' SGLang takes as well.

    Raises:
        StorageError: it cannot be read, or holds something else (a recording by pass or by token).
    """
    import torch  # noqa: PLC0415

    try:
        with untrusted.opened(path) as file:
            held: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except Exception as error:
        raise StorageError(f"{path}: no file of torch.save: {untrusted.reason(error)[:120]}") from error
    counts = held.get(KEY) if isinstance(held, dict) else held
    if not isinstance(counts, torch.Tensor) or counts.dim() not in (2, 3) or counts.is_complex():
        raise StorageError(
            f"{path}: no `{KEY}` of layers and experts in it: record with --expert-distribution-recorder-mode stat"
        )
    summed = counts.sum(dim=0) if counts.dim() == 3 else counts
    if not bool(torch.isfinite(summed.double()).all()) or bool((summed < 0).any()):
        raise StorageError(f"{path}: counts that are negative or no numbers")
    found: np.ndarray = summed.round().to(torch.int64).numpy() if summed.is_floating_point() else summed.long().numpy()
    return found


def content(counts: np.ndarray) -> bytes:
    """Return what such a file holds of counts of shape (layers, experts), with one pass."""
    import torch  # noqa: PLC0415

    file = io.BytesIO()
    torch.save({KEY: torch.from_numpy(counts)[None]}, file)
    return file.getvalue()
