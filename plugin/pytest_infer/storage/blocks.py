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
