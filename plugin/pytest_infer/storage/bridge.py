"""The one adapter to pytest-benchmark: replays measured durations through its fixture and adds a row per phase."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.stats import Stats

from pytest_infer.errors import StorageError
from pytest_infer.measure.instrumentation import suspended
from pytest_infer.storage import block as blocks
from pytest_infer.storage.schema import KEY, TOTAL


class ReplayClock:
    """The timer that pytest-benchmark reads in a replay: each round lasts what was measured.

    Until durations are loaded it is the real clock, for a test that uses `benchmark` itself.
    """

    __module__ = "pytest_infer"
    __name__ = "perf_counter_ns, replayed"

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._now: float | None = None

    def __call__(self) -> float:
        """Return the virtual time, seconds."""
        return time.perf_counter() if self._now is None else self._now

    def load(self, durations: list[float]) -> None:
        """Queue the durations, seconds."""
        self._durations = list(reversed(durations))

    def rewind(self) -> None:
        """Set the time to 0 before a round, so that end - start is the duration to the last bit."""
        self._now = 0.0

    def step(self) -> None:
        """Let one measured duration pass."""
        self._now = self._durations.pop()


class Bridge:
    """Hands finished measurements to one pytest-benchmark session.

    `note` is called with a line when the rows of the phases could not be added to the live session: they are then
    appended to the saved file only, which loses `--benchmark-compare-fail` for them.
    """

    def __init__(self, config: Any, note: Callable[[str], None]) -> None:
        self._config = config
        self._note = note
        self._late_rows: list[tuple[BenchmarkFixture, Callable[[], dict[str, Any]]]] = []

    @property
    def _session(self) -> Any:
        # Set by pytest-benchmark's own pytest_configure, which runs last.
        return self._config._benchmarksession

    @property
    def available(self) -> bool:
        """Whether pytest-benchmark's plugin is loaded."""
        return hasattr(self._config, "_benchmarksession")

    @property
    def disabled(self) -> bool:
        """Whether --benchmark-disable (or something that implies it) is on."""
        return bool(self._session.disabled)

    @property
    def off(self) -> bool:
        """Whether nothing is to be measured: --benchmark-skip, or what makes benchmarks disabled."""
        return self.available and bool(self._session.skip or self._session.disabled)

    @property
    def saving(self) -> bool:
        """Whether this run will write a file."""
        return bool(self._session.save or self._session.autosave or self._session.json)

    @property
    def storage(self) -> object:
        """Return pytest-benchmark's storage."""
        return self._session.storage

    @property
    def json_path(self) -> Path | None:
        """Return the file of --benchmark-json."""
        return Path(self._session.json) if self._session.json else None

    @property
    def parallel(self) -> bool:
        """Whether xdist spreads the tests over processes."""
        return bool(self._session.xdist_worker or self._session.config.getoption("dist", "no") != "no")

    def mute(self) -> None:
        """Let pytest-benchmark neither write, compare nor say anything: another process does."""
        session = self._session
        session.save = session.autosave = session.json = session.histogram = session.compare = None
        session.compare_fail = []
        session.logger.level = session.logger.QUIET

    def leave_out_of_tables(self) -> None:
        """Keep our rows out of what pytest-benchmark is about to print; those of other tests stay."""
        groups = [
            (name, [row for row in rows if KEY not in row["extra_info"]]) for name, rows in self._session.groups or ()
        ]
        self._session.groups = [group for group in groups if group[1]]

    def save_with(self, make: Callable[[Any], Callable[[Any, str], None]]) -> None:
        """Replace the storage's `save` by one made for it."""
        self._session.storage.save = make(self._session.storage)

    def save_json_with(self, make: Callable[[Any], Callable[[Any], None]]) -> None:
        """Replace what writes the file of --benchmark-json by what is made for it."""
        self._session.save_json = make(self._session)

    def hand_over(
        self,
        benchmark: object,
        clock: ReplayClock,
        phases: Mapping[str, list[float]],
        block: dict[str, Any],
        *,
        params: dict[str, Any],
        group: str | None,
    ) -> None:
        """Make the rows of one test: `phases["total"]` through the fixture itself, each other phase beside it.

        Raises:
            StorageError: the `benchmark` fixture is not pytest-benchmark's, or was already used by the test.
        """
        fixture = checked(benchmark)
        fixture.group = group_name(TOTAL, group)
        fixture.params = {**params, "phase": TOTAL}
        fixture.extra_info[KEY] = block
        fixture.cprofile = False  # would call the replay once more, for which there is no duration
        durations = phases[TOTAL]
        clock.load(durations)
        # pytest-benchmark takes profilers off as well, and before Python 3.12 it cannot put cProfile back.
        with suspended():
            fixture.pedantic(clock.step, setup=clock.rewind, rounds=len(durations))
        if list(fixture.stats.stats.data) != durations:
            raise StorageError(
                "pytest-benchmark did not record the replayed durations; is another plugin changing its timer?"
            )
        for phase, values in phases.items():
            if phase != TOTAL and values:
                self._add_row(fixture, phase, values, params, group)

    def check(self, benchmark: object) -> None:
        """Raise StorageError unless the fixture is pytest-benchmark's and unused."""
        checked(benchmark)

    def mark_failed(self, benchmark: object) -> None:
        """Keep the rows of a failed test out of what is saved: pytest-benchmark drops rows with an error."""
        if isinstance(benchmark, BenchmarkFixture):
            benchmark.has_error = True

    def spend(self, benchmark: object) -> None:
        """Use the fixture without recording, as a disabled run does."""
        with suspended():
            checked(benchmark).pedantic(lambda: None)

    def _add_row(
        self, fixture: BenchmarkFixture, phase: str, values: list[float], params: dict[str, Any], group: str | None
    ) -> None:
        row = phase_row(fixture, phase, values, params, group)
        try:
            row.as_dict(include_data=True)  # the self-check: what saving and comparing will ask of it
            self._session.benchmarks.append(row)
        except (AttributeError, TypeError, ValueError) as error:
            self._note(f"rows of the phases are saved but not gated by --benchmark-compare-fail: {error}")
            total = fixture.stats

            def make() -> dict[str, Any]:
                return late_row(total.as_dict(include_data=True), phase, values, params, group)

            self._late_rows.append((fixture, make))

    def complete(self, output_json: dict[str, Any]) -> None:
        """Append the rows that could not be added to the live session, but for those of failed tests, as live ones."""
        output_json["benchmarks"] += [make() for fixture, make in self._late_rows if not fixture.has_error]


def checked(benchmark: object) -> BenchmarkFixture:
    """Return pytest-benchmark's fixture; raise StorageError for another plugin's or a used one."""
    if not isinstance(benchmark, BenchmarkFixture):
        raise StorageError(
            f"the `benchmark` fixture is {type(benchmark).__module__}.{type(benchmark).__qualname__}, "
            "not pytest-benchmark's; disable the plugin that replaces it (-p no:NAME)"
        )
    if benchmark._mode:
        raise StorageError(
            "`infer` measures once a test, and `benchmark` was already used in this one; parametrize the test instead"
        )
    return benchmark


def group_name(phase: str, group: str | None) -> str:
    """Return the native group of a row: its phase, behind the prompt's own group if it has one."""
    return f"{group}: {phase}" if group else phase


def _phase_fields(name: str, fullname: str, phase: str, params: dict[str, Any], group: str | None) -> dict[str, Any]:
    return {
        "name": f"{name}:{phase}",
        "fullname": f"{fullname}:{phase}",
        "group": group_name(phase, group),
        "params": {**params, "phase": phase},
        "extra_info": {KEY: blocks.of_phase(phase, fullname)},
    }


def _stats_of(values: list[float]) -> Stats:
    stats = Stats()
    for value in values:
        stats.update(value)
    return stats


def phase_row(
    fixture: BenchmarkFixture, phase: str, values: list[float], params: dict[str, Any], group: str | None
) -> Any:
    """Return a live row like the fixture's own, with the phase's durations and names."""
    row = copy.copy(fixture.stats)
    for key, value in _phase_fields(fixture.name, fixture.fullname, phase, params, group).items():
        setattr(row, key, value)
    row.stats = _stats_of(values)
    return row


def late_row(
    total: dict[str, Any], phase: str, values: list[float], params: dict[str, Any], group: str | None
) -> dict[str, Any]:
    """Return the same row as JSON."""
    stats = {**_stats_of(values).as_dict(), "iterations": 1, "data": values}
    return {**total, **_phase_fields(total["name"], total["fullname"], phase, params, group), "stats": stats}
