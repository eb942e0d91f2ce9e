"""Stored runs: what a file says of its run as a whole, and its tests for comparisons."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import StorageError
from pytest_infer.metrics import METRICS
from pytest_infer.metrics.breakdown import PhaseParts
from pytest_infer.records import (
    CurvePoint,
    Drift,
    Fidelity,
    Ranks,
)
from pytest_infer.storage import runfile, schema, shared_work
from pytest_infer.storage.code import DETACHED
from pytest_infer.storage.runfile import Mark
from pytest_infer.storage.schema import (
    Block,
    HeadMachine,
    Machine,
    Model,
    StoredAgainst,
    StoredLoad,
    StoredPrompt,
    StoredReference,
    StoredScores,
    Usage,
    Values,
)
from pytest_infer.units import Unit

_NUMBER = re.compile(r"([0-9]{1,18})_")
_NO_COMMIT = ("unversioned", "unknown")
"""What pytest-benchmark calls the commit where there is no git, and where git fails."""
_NO_BRANCH = ("(unknown)", DETACHED)
_IS_TEXT = {metric.key: metric.unit is Unit.TEXT for metric in METRICS}
TELLS_APART = ("total_s", "level_ttft_p50_s")
"""Figures of which every test has one, and which are the same in no two measurements."""
_NAMED = 2
"""So many models of a run are named where it is listed."""
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test of one run. `plain` rows are pytest-benchmark's own, without our block: timing only.

    `prompt`, `model` and `machine` are those of the block, `config` the swept options by axis as they were given, and
    `curve` says where the test stands on a curve. `drift` is that of its model's load, whose last test this was.
    `fidelity` is how far it was from the reference that it followed.
    `disturbed` are the numbers of the rounds that were, counted from 0, of the `timed` ones. `run` is the file that the
    row was read from, None for one that is not stored yet. `against` is the other side's, where the run compared two
    commits. `under_load` is the level of a load test. `scores` says what the sidecar holds of them, and `reference`
    whose tokens were followed. `resumed`: an interrupted run measured it, which may be stored as well.
    """

    test: str
    name: str
    metrics: Mapping[str, Values]
    prompt: StoredPrompt = StoredPrompt()  # noqa: RUF009 - frozen
    model: Model = Model()  # noqa: RUF009
    machine: Machine = Machine()  # noqa: RUF009
    experts: Usage = Usage()  # noqa: RUF009
    plain: bool = False
    config: Mapping[str, str] = field(default_factory=dict)
    curve: CurvePoint | None = None
    drift: Drift | None = None
    ranks: Ranks | None = None
    fidelity: Fidelity | None = None
    disturbed: tuple[int, ...] = ()
    timed: int = 0
    run: Path | None = None
    against: StoredAgainst | None = None
    under_load: StoredLoad | None = None
    scores: StoredScores = StoredScores()  # noqa: RUF009
    reference: StoredReference | None = None
    resumed: bool = False

    @property
    def measured(self) -> float | str | None:
        """Return the figure that is the same in no other measurement of the test; None where it is not known."""
        return next((self.metrics[key].value for key in TELLS_APART if key in self.metrics), None)

    def again(self, other: Row) -> bool:
        """Return whether it is a measurement of another row of the same test, taken from the run that made it."""
        return (self.resumed or other.resumed) and self.measured is not None and self.measured == other.measured

    @property
    def title(self) -> str:
        """Return how people call the test: its prompt, and the configuration where something is swept."""
        if not self.config:
            return self.name
        return " ".join((self.name, *(f"{axis}={value}" for axis, value in self.config.items())))

    @property
    def served(self) -> bool:
        """Return whether a server ran the model."""
        return "prompt_cache" in (self.model.generation or {})

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the prompt's tags."""
        return self.prompt.tags or ()


def row_of(test: str, name: str, block: Mapping[str, Any]) -> Row:
    """Return the row of a block that is not stored yet."""
    return _row(test, name, schema.of_block(block, schema.BLOCK))


def _row(test: str, name: str, block: Block, run: Path | None = None) -> Row:
    rounds = block.rounds or schema.Rounds()
    metrics = _mapping(block.metrics)
    for key in metrics.keys() & _IS_TEXT.keys():
        if isinstance(metrics[key].value, str) is not _IS_TEXT[key]:
            raise untrusted.Damaged(f"{test}: {key} is {'no text' if _IS_TEXT[key] else 'text'}")
    several = max((len(values.rounds) for values in metrics.values()), default=0)
    return Row(
        test=test,
        name=name if block.prompt.name is None else block.prompt.name,
        metrics=metrics,
        prompt=block.prompt,
        model=block.model,
        machine=block.machine,
        experts=block.experts if isinstance(block.experts, Usage) else Usage(),
        config=block.config,
        curve=block.curve,
        drift=block.drift,
        ranks=block.ranks,
        fidelity=block.fidelity,
        disturbed=rounds.numbers,
        timed=max(1, several) if rounds.timed is None else rounds.timed,
        against=block.against,
        scores=block.scores or StoredScores(),
        reference=block.reference,
        under_load=block.under_load,
        run=run,
        resumed=rounds.resumed,
    )


def _mapping(metrics: Mapping[str, Values] | msgspec.Struct | None) -> Mapping[str, Values]:
    """Return metrics by key; those of `runfile.rows_with` are decoded as a struct."""
    if not isinstance(metrics, msgspec.Struct):
        return metrics or {}
    return {key: values for key in metrics.__struct_fields__ if (values := getattr(metrics, key)) is not None}


def rows(path: Path, metrics: frozenset[str] | None = None) -> tuple[Row, ...]:
    """Return the tests of a run file, rows without our block as timing only.

    With `metrics` they have these alone, and no expert usage: faster, and no damage of the others is seen.

    Raises StorageError for a file that is none, or that holds two rows of a test: nobody knows which one counts.
    """
    file = runfile.read(path, runfile.ROWS if metrics is None else runfile.rows_with(metrics))
    try:
        found = tuple(_rows_of(file, path))
    except ValueError as error:
        raise runfile.damaged(path, error) from error
    seen: set[str] = set()
    for row in found:
        if row.test in seen:
            raise StorageError(f"{path}: two rows of one test, {row.test}; measure it again")
        seen.add(row.test)
    return found


def breakdowns(path: Path) -> dict[str, Mapping[str, PhaseParts]]:
    """Return of each test of a run file the phases whose steps were taken apart, by name; others are left out.

    Raises StorageError for a file that is none.
    """
    tests = runfile.read(path, runfile.PARTS).tests()
    return {test: block.breakdown.phases for test, block in tests if block.breakdown is not None}


def _rows_of(file: runfile.RunFile[Block], path: Path) -> Iterator[Row]:
    for native in file.benchmarks:
        block = native.block
        if block is None:
            total = Values(value=native.stats.median, rounds=native.stats.rounds())
            yield Row(test=native.fullname, name=native.name, metrics={"total_s": total}, plain=True, run=path)
        elif block.phase == schema.TOTAL:
            yield _row(native.fullname, native.name, block, path)


@dataclass(frozen=True)
class Run:
    """A stored run: what its file says of it as a whole; `rows` are read when they are asked for.

    `tell` takes the line that says why they cannot be read, once, where the run is then left out.
    """

    path: Path
    time: datetime
    commit: str | None = None
    branch: str | None = None
    dirty: bool | None = None
    model: str | None = None
    machine: str | None = None
    tests: int = 0
    plain: bool = False
    gate: Mark | None = None
    failed: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    suite: str | None = None
    typed_prompts: tuple[str, ...] = ()
    tell: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    # Whether it is damaged is found out once; the run itself stays what it is.
    _damage: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    _told: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def number(self) -> str | None:
        """Return the run number that pytest-benchmark put in front of the name, as written there."""
        return number_of(self.path)

    @property
    def label(self) -> str:
        """Return how people call it: "0007 1a2b3c4d (main)", or the file's name."""
        name = self.number or self.path.name
        commit = f" {self.commit[:8]}{'+' if self.dirty else ''}" if self.commit else ""
        return f"{name}{commit}{f' ({self.branch})' if self.branch else ''}"

    @property
    def identity(self) -> tuple[datetime, str | None]:
        """Return what copies of a run's file have in common."""
        return self.time, self.commit

    @property
    def regressed(self) -> bool:
        """Return whether its gate failed: then it is no baseline. One that was inconclusive, or the first, may be."""
        return self.gate is not None and self.gate.result == "regressed"

    @property
    def lost(self) -> tuple[str, ...]:
        """Return the tests that were to be measured and were not; one that skipped itself was not to be."""
        return self._not_skipped(self.unmeasured)

    @property
    def broken(self) -> tuple[str, ...]:
        """Return the tests that failed after they were measured; one that then skipped itself, or failed as expected,
        did not."""
        return self._not_skipped(self.failed)

    def _not_skipped(self, tests: Sequence[str]) -> tuple[str, ...]:
        skipped = frozenset(self.skipped)
        return tuple(test for test in tests if test not in skipped)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Return the tests of the run; raise StorageError where they cannot be read."""
        try:
            return rows(self.path)
        except StorageError as error:
            self._damage.append(str(error))
            raise

    @property
    def damage(self) -> str | None:
        """Return why its tests cannot be read; None where they can."""
        if not self._damage:
            with suppress(StorageError):
                _ = self.rows
        return self._damage[0] if self._damage else None

    @property
    def known_damage(self) -> str | None:
        """Return the same, so far as somebody has asked: nothing is read."""
        return self._damage[0] if self._damage else None

    @property
    def readable(self) -> bool:
        """Return whether its tests can be read, and tell that it is left out if they cannot."""
        if self.damage is not None:
            self._leave_out()
        return self.damage is None

    def passing(self) -> tuple[Row, ...]:
        """Return the tests without keeping them, since a thousand runs do not fit into memory; none if damaged."""
        if not self._damage:
            try:
                return rows(self.path)
            except StorageError as error:
                self._damage.append(str(error))
        self._leave_out()
        return ()

    def forget(self) -> None:
        """Let go of the tests, for the same reason: they are read again when they are asked for."""
        for kept in ("rows", "_by_test"):
            vars(self).pop(kept, None)

    def leave_out(self, damage: str) -> None:
        """Remember why its tests cannot be read, as somebody else found out, and tell that it is left out."""
        if not self._damage:
            self._damage.append(damage)
        self._leave_out()

    def _leave_out(self) -> None:
        if self.tell is not None and not self._told:
            self._told.append(self._damage[0])
            self.tell(f"left out: {self._damage[0]}")

    @cached_property
    def _by_test(self) -> dict[str, Row]:
        return {row.test: row for row in self.rows}

    def row(self, test: str) -> Row | None:
        """Return the row of that test."""
        return self._by_test.get(test)


def of_each(runs: Sequence[Run], work: Callable[[Run], _Found]) -> list[_Found]:
    """Return what `work` makes of each run, in their order, worked on by all cores where there is much to read.

    It returns what can be pickled, and what it changes of a run may be lost.
    """

    def of_part(part: Sequence[Run]) -> list[_Found]:
        return [work(run) for run in part]

    return shared_work.by_all_cores(of_part, runs, shared_work.bytes_of([run.path for run in runs]))


def number_of(path: Path) -> str | None:
    """Return the run number that pytest-benchmark put in front of a file's name, as written there."""
    found = _NUMBER.match(path.name)
    return found.group(1) if found else None


def read(path: Path) -> Run:
    """Return a run without its tests; raise StorageError with one line for a file that is none."""
    file = runfile.read(path, runfile.HEAD)
    try:
        time = _moment(file.datetime)
    except (ValueError, OverflowError) as error:
        raise runfile.damaged(path, error) from error
    blocks = [native.block for native in file.benchmarks]
    ours = [(block.model, block.machine) for block in blocks if block is not None and block.model is not None]
    machine = ours[0][1] if ours else None
    commit, whole = file.commit_info, file.pytest_infer
    return Run(
        path=path,
        time=time,
        commit=None if commit.id in _NO_COMMIT else commit.id,
        branch=None if commit.branch in _NO_BRANCH else commit.branch,
        dirty=commit.dirty,
        model=model_names([model for model, _ in ours]),
        machine=_machine(machine) or file.machine_info.node,
        tests=len(ours) or len(file.benchmarks),
        plain=not any(block is not None for block in blocks) and bool(file.benchmarks),
        gate=whole.gate,
        failed=tuple(whole.failed),
        unmeasured=whole.unmeasured,
        skipped=whole.skipped,
        suite=whole.suite,
        typed_prompts=whole.typed_prompts,
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def model_names(models: Sequence[schema.HeadModel | schema.Model]) -> str | None:
    """Return the models of tests, each once; of many the first two."""
    named = (" ".join(part for part in (of.name, of.dtype) if part) for of in models)
    found = [*dict.fromkeys(filter(None, named))]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(found[:_NAMED])}{more}" or None


def _machine(machine: HeadMachine | None) -> str | None:
    if machine is None or machine.cpu is None:
        return None
    cores = machine.usable_cores
    return machine.cpu if cores is None else f"{machine.cpu} × {cores:g}"
