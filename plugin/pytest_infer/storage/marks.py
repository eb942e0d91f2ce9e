"""The mark of a gate in a run file: what it said, so that a run that failed is never taken as a baseline."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pytest_infer.errors import StorageError
from pytest_infer.storage import block
from pytest_infer.storage.files import dumps, replacing
from pytest_infer.storage.heads import Mark


def write(run_file: Path, mark: Mark) -> None:
    """Put the mark into a run file, which is replaced as a whole or not at all; raise StorageError if it cannot be."""
    try:
        run = json.loads(run_file.read_text(encoding="utf-8"))
        run.setdefault(block.KEY, {"schema": block.SCHEMA})["gate"] = msgspec.to_builtins(mark)
        mode = run_file.stat().st_mode
        with replacing(run_file) as file:
            file.write(dumps(run).encode())
        run_file.chmod(mode)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise StorageError(f"{run_file} could not be marked with the gate's result: {error}") from error
