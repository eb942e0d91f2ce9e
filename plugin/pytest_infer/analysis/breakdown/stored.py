"""The steps of stored tests taken apart, read when something asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_infer.errors import StorageError
from pytest_infer.metrics.breakdown import PhaseParts, phases
from pytest_infer.records import PromptRecord
from pytest_infer.storage.runs import Row, breakdowns

Phases = Mapping[str, PhaseParts]


@dataclass(frozen=True, slots=True)
class Taken:
    """The steps of tests by phase. `fresh` are the records of a run that is not stored yet; files are read once."""

    fresh: Mapping[str, PromptRecord] = field(default_factory=dict)
    _read: dict[Path, Mapping[str, Phases]] = field(default_factory=dict)

    def both(self, before: Row, after: Row) -> tuple[Phases, Phases]:
        """Return those of both sides of a comparison; empty where there are none."""
        return self._of(before), self._of(after)

    def _of(self, row: Row) -> Phases:
        if row.run is None:
            record = self.fresh.get(row.test)
            return {} if record is None else phases(record)
        return self.of_run(row.run).get(row.test, {})

    def of_run(self, path: Path) -> Mapping[str, Phases]:
        """Return those of a run file, by test; none where it is damaged: what needs them has read its figures."""
        if path not in self._read:
            try:
                self._read[path] = breakdowns(path)
            except StorageError:
                self._read[path] = {}
        return self._read[path]
