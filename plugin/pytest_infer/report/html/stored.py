"""A stored run as the report reads it: its tests with their whole blocks, and the arrays beside its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import StorageError
from pytest_infer.metrics import scatter
from pytest_infer.report.html import anchors
from pytest_infer.storage import runfile, sidecar
from pytest_infer.storage.runfile import JudgedMark
from pytest_infer.storage.runs import Row, Run
from pytest_infer.storage.schema import Machine, Model, StoredWarning, WholeBlock
from pytest_infer.units import plural


@dataclass(frozen=True)
class Test:
    """One measured test: its row, its whole block, and how people call it."""

    row: Row
    block: WholeBlock
    title: str
    name: str
    """What the page's anchors call it."""

    @property
    def config(self) -> Mapping[str, str]:
        """Return the swept options, by axis."""
        return self.row.config

    @property
    def model(self) -> Model:
        """Return what was measured."""
        return self.row.model

    @cached_property
    def warnings(self) -> tuple[StoredWarning, ...]:
        """Return the warnings that ask for a second look."""
        return scatter.apart(self.block.warnings, *self.block.disturbed_totals)[0]

    @property
    def key(self) -> str:
        """Return the anchor of the test in the page."""
        return f"prompt-{self.name}"

    def value(self, key: str) -> float | None:
        """Return the median of a metric, None where it is absent or text; an older run may have beaten its probe."""
        found = self.row.metrics.get(key)
        if found is None or isinstance(found.value, str) or (key in ("mbu", "mfu") and found.value > 1):
            return None
        return float(found.value)

    def absent(self, key: str) -> str | None:
        """Return why the test has no such metric, if the run says so."""
        return (self.block.absent or {}).get(key)


@dataclass(frozen=True)
class StoredRun:
    """A run with its tests; those that pytest-benchmark measured without us are counted as `plain`."""

    run: Run
    tests: tuple[Test, ...]
    plain: int
    gate: JudgedMark | None = None
    levels: tuple[Test, ...] = ()
    """The levels of load tests, which are no prompts."""

    @property
    def measured(self) -> tuple[Test, ...]:
        """Return the tests and the levels of load."""
        return (*self.tests, *self.levels)

    @property
    def nothing(self) -> str:
        """Return why a run without tests has none."""
        if self.levels:
            alone = "no test but levels of load passed" if self.run.failed else "the run measured levels of load alone"
            return f"{alone}, which are under Load"
        return "every test measured with `infer` failed" if self.run.failed else "no test was measured with `infer`"

    @property
    def cores_known(self) -> bool:
        """Return whether the run's machine is told with its usable cores; without a CPU it is but the host's name."""
        told = next((test.block.machine for test in self.measured if test.block.model != Model()), Machine())
        return told.cpu is not None and told.usable_cores is not None

    @property
    def size(self) -> str:
        """Return how many tests and prompts there are: a sweep has several tests of a prompt."""
        tests = len(self.tests)
        if self.levels:
            levels = plural(len(self.levels), "level") + " of load"
            return f"{plural(tests, 'test')}, {levels}" if tests else levels
        if not tests:
            return plural(self.plain, "test") if self.plain else "no test"
        prompts = len({(test.row.name, test.row.prompt.content_sha256) for test in self.tests})
        return plural(prompts, "prompt") if prompts == tests else f"{tests} tests of {plural(prompts, 'prompt')}"

    @cached_property
    def sidecar(self) -> tuple[Mapping[str, Any], str | None]:
        """Return the arrays beside the run file, and why there are none."""
        path = sidecar.path_for(self.run.path)
        try:
            arrays = sidecar.read(self.run.path)
        except StorageError as error:
            return {}, str(error)
        return arrays, None if arrays else f"{path.name} is not beside the run file"


def read(run: Run) -> StoredRun:
    """Return a run with all that its file holds; raise StorageError where it cannot be read."""
    rows = [row for row in run.rows if not row.plain]
    file = runfile.read(run.path, runfile.ALL)
    titles = axes.titles(rows)
    names = anchors.of_tests([titles[row.test] for row in rows])
    tests = tuple(
        Test(row=row, block=block, title=titles[row.test], name=name)
        for name, row, (_, block) in zip(names, rows, file.tests(), strict=True)
    )
    levels = tuple(test for test in tests if test.row.under_load is not None)
    prompts = tuple(test for test in tests if test.row.under_load is None)
    plain = len(run.rows) - len(rows)
    return StoredRun(run=run, tests=prompts, plain=plain, gate=file.pytest_infer.gate, levels=levels)
