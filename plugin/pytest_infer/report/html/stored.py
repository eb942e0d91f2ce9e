"""A stored run as the report reads it: its tests with their whole blocks, and the arrays beside its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pytest_infer.analysis import axes
from pytest_infer.errors import StorageError
from pytest_infer.storage import blocks, sidecar
from pytest_infer.storage.heads import Run
from pytest_infer.storage.rows import Row

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Test:
    """One measured test: its row, its whole block, and how people call it."""

    row: Row
    block: Block
    title: str
    number: int

    @property
    def key(self) -> str:
        """Return the anchor of the test in the page: names are untrusted, numbers are not."""
        return f"prompt-{self.number}"

    def value(self, key: str) -> float | None:
        """Return the median of a metric, None where it is absent or text."""
        found = self.row.metrics.get(key)
        return None if found is None or isinstance(found.value, str) else float(found.value)

    def part(self, *keys: str) -> Any:
        """Return a part of the block, None where any of the keys is missing."""
        found: Any = self.block
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


@dataclass(frozen=True)
class Stored:
    """A run with its tests; those that pytest-benchmark measured without us are counted as `plain`."""

    run: Run
    tests: tuple[Test, ...]
    plain: int
    gate: Mapping[str, Any] | None = None

    @cached_property
    def sidecar(self) -> tuple[Mapping[str, Any], str | None]:
        """Return the arrays beside the run file, and why there are none."""
        path = sidecar.path_for(self.run.path)
        try:
            arrays = sidecar.read(self.run.path)
        except StorageError as error:
            return {}, str(error)
        return arrays, None if arrays else f"{path.name} is not beside the run file"


def read(run: Run) -> Stored:
    """Return a run with all that its file holds; raise StorageError where it cannot be read."""
    rows = [row for row in run.rows if not row.plain]
    found = blocks.of_run(run.path)
    names = [_named(row) for row in rows]
    times = Counter(names)
    tests = tuple(
        Test(row=row, block=block, title=name if times[name] == 1 else row.test, number=number)
        for number, (row, name, block) in enumerate(zip(rows, names, found, strict=True), 1)
    )
    return Stored(run=run, tests=tests, plain=len(run.rows) - len(rows), gate=blocks.gate_of(run.path))


def _named(row: Row) -> str:
    """Return a test's name, with its configuration where it is one of a sweep."""
    return f"{row.name} {axes.label(row.config)}".rstrip()
