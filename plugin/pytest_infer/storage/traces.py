"""Chrome traces beside a run file, one a test: `<run>.<test>-<hash>.trace.json.gz`, which Perfetto opens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from pytest_infer.records import PromptRecord
from pytest_infer.storage.files import replacing

_SUFFIX = ".trace.json.gz"
_LONGEST = 60
_NAME = re.compile(r"[\w-]*-[0-9a-f]{8}" + re.escape(_SUFFIX), re.ASCII)


def name_for(nodeid: str) -> str:
    """Return what follows the run's own name in that of a test's trace: the test's, safe in every file system.

    The hash is of the whole node id, which two tests of a name differ in. There is no dot before the suffix.
    """
    test = re.sub(r"\W+", "-", nodeid.rpartition("::")[2], flags=re.ASCII).strip("-")[:_LONGEST]
    return f"{test}-{hashlib.sha256(nodeid.encode()).hexdigest()[:8]}{_SUFFIX}"


def path_for(run_file: Path, name: str) -> Path:
    """Return where a trace of a run lies."""
    return run_file.with_name(f"{run_file.stem}.{name}")


def beside(run_file: Path, name: str) -> str | None:
    """Return the name of the file of a trace that a run names; None where there is none, or none of ours."""
    path = path_for(run_file, name) if _NAME.fullmatch(name) else None
    return path.name if path is not None and path.is_file() else None


def write(run_file: Path, records: Iterable[PromptRecord]) -> None:
    """Write the traces of a run's records beside its file, and remove those of a run that had this file before."""
    kept = set()
    for record in records:
        operators = None if record.breakdown is None else record.breakdown.operators
        if operators is None or operators.trace is None:
            continue
        path = path_for(run_file, name_for(record.nodeid))
        kept.add(path.name)
        with replacing(path) as file:
            file.write(operators.trace)
        path.chmod(0o644)
    begin = f"{run_file.stem}."
    for path in list(run_file.parent.iterdir()):
        mine = path.name.startswith(begin) and _NAME.fullmatch(path.name.removeprefix(begin))
        if mine and path.name not in kept:
            path.unlink(missing_ok=True)
