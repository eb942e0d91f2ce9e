"""The steps of stored tests taken apart, read when something asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_infer.errors import StorageError
from pytest_infer.metrics.breakdown import PhaseParts, phases
from pytest_infer.records import PromptRecord
from pytest_infer.storage import results
from pytest_infer.storage.runs import Row

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
        if row.run not in self._read:
            try:
                self._read[row.run] = {one.nodeid: one.breakdown for one in results.shown(row.run).results}
            except StorageError:
                self._read[row.run] = {}
        return self._read[row.run].get(row.test, {})
