"""The whole blocks of a stored run's tests, for what reads more of them than comparisons do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pytest_infer.errors import StorageError
from pytest_infer.storage.block import KEY
from pytest_infer.storage.rows import refuse_newer


class _Row(msgspec.Struct, frozen=True):
    extra_info: dict[str, Any] = {}


class _Rows(msgspec.Struct, frozen=True):
    benchmarks: tuple[_Row, ...]


class _Whole(msgspec.Struct, frozen=True):
    gate: dict[str, Any] | None = None


class _Run(msgspec.Struct, frozen=True):
    pytest_infer: _Whole = _Whole()


def of_run(path: Path) -> tuple[dict[str, Any], ...]:
    """Return the blocks of the `total` rows in a run file; raise StorageError for a file that is none."""
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=_Rows).benchmarks
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"{path}: not a run of pytest-benchmark: {error}") from error
    found = [block for row in rows if isinstance(block := row.extra_info.get(KEY), dict)]
    for block in found:
        refuse_newer(path, int(block.get("schema", 0)))
    return tuple(block for block in found if block.get("phase") == "total")


def gate_of(path: Path) -> dict[str, Any] | None:
    """Return the whole mark of a run's gate, with the judgements that pytest's own keeps; None where it had none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Run).pytest_infer.gate
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"{path}: not a run of pytest-benchmark: {error}") from error
