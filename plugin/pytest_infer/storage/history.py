"""Stored runs: which there are, in the order of time, and the figures of one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.errors import StorageError
from pytest_infer.storage.block import SCHEMA
from pytest_infer.storage.code import resolve

if TYPE_CHECKING:
    from pytest_infer.storage.index import Index

_NUMBER = re.compile(r"(\d+)_")
_DIGITS = re.compile(r"[0-9]{1,18}")  # Python refuses to read numbers of thousands of digits
_UNVERSIONED = "unversioned"  # what pytest-benchmark calls the commit where there is no git
_HEX = re.compile(r"[0-9a-f]{4,40}")


class Values(msgspec.Struct, frozen=True):
    """One metric of one test: the median, and the rounds' values where there were several."""

    value: float | str
    rounds: tuple[float, ...] = ()
    quality: str = "exact"

    @property
    def numbers(self) -> tuple[float, ...]:
        """Return the values of all rounds, or the single one; nothing for text."""
        return self.rounds or ((float(self.value),) if not isinstance(self.value, str) else ())


class Site(msgspec.Struct, frozen=True):
    """A place of the model where tokens are routed to experts."""

    name: str
    layer: int


class Counts(msgspec.Struct, frozen=True):
    """Selections per site and expert."""

    prefill: tuple[tuple[int, ...], ...]
    decode: tuple[tuple[int, ...], ...]


class Usage(msgspec.Struct, frozen=True):
    """Expert usage of one test; without counts where it was not recorded."""

    sites: tuple[Site, ...] = ()
    counts: Counts | None = None


class _Block(msgspec.Struct, frozen=True):
    schema: int
    phase: str
    prompt: dict[str, Any] = {}
    model: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    metrics: dict[str, Values] = {}
    experts: Usage = Usage()


class _Extra(msgspec.Struct, frozen=True):
    pytest_infer: _Block | None = None


class _Stats(msgspec.Struct, frozen=True):
    median: float
    data: tuple[float, ...] = ()


class _Native(msgspec.Struct, frozen=True):
    fullname: str
    name: str
    stats: _Stats
    extra_info: _Extra = _Extra()


class _Rows(msgspec.Struct, frozen=True):
    benchmarks: tuple[_Native, ...]


class Mark(msgspec.Struct, frozen=True):
    """What a gate said of a run, kept in its file; a run that did not pass is no baseline."""

    result: str
    against: str | None = None
    rules: tuple[str, ...] = ()


class _Whole(msgspec.Struct, frozen=True):
    """What our block says of the run as a whole."""

    schema: int = SCHEMA
    gate: Mark | None = None
    failed: dict[str, msgspec.Raw] = {}
    unmeasured: tuple[str, ...] = ()


class _Commit(msgspec.Struct, frozen=True):
    id: str | None = None
    branch: str | None = None
    dirty: bool | None = None


class _Model(msgspec.Struct, frozen=True):
    name: str | None = None
    dtype: str | None = None


class _Machine(msgspec.Struct, frozen=True):
    cpu: str | None = None
    usable_cores: float | None = None


class _HeadBlock(msgspec.Struct, frozen=True):
    schema: int
    model: _Model | None = None
    machine: _Machine | None = None


class _HeadExtra(msgspec.Struct, frozen=True):
    pytest_infer: _HeadBlock | None = None


class _HeadStats(msgspec.Struct, frozen=True):
    median: float


class _HeadRow(msgspec.Struct, frozen=True):
    """As much of a row as tells that it is one: its figures are read later."""

    fullname: str
    name: str
    stats: _HeadStats
    extra_info: _HeadExtra = _HeadExtra()


class _NativeMachine(msgspec.Struct, frozen=True):
    node: str | None = None


class _Head(msgspec.Struct, frozen=True):
    datetime: str
    benchmarks: tuple[_HeadRow, ...]
    commit_info: _Commit = _Commit()
    machine_info: _NativeMachine = _NativeMachine()
    pytest_infer: _Whole = _Whole()


class _Schema(msgspec.Struct, frozen=True):
    schema: int = 0


class _SchemaExtra(msgspec.Struct, frozen=True):
    pytest_infer: _Schema | None = None


class _SchemaRow(msgspec.Struct, frozen=True):
    extra_info: _SchemaExtra = _SchemaExtra()


class _Schemas(msgspec.Struct, frozen=True):
    """What a file of any later version will still hold."""

    benchmarks: tuple[_SchemaRow, ...] = ()
    pytest_infer: _Schema | None = None


_HEAD = msgspec.json.Decoder(_Head)
_SCHEMAS = msgspec.json.Decoder(_Schemas)
_BLOCK = msgspec.json.Decoder(_Block)
_ROWS = msgspec.json.Decoder(_Rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test of one run. `plain` rows are pytest-benchmark's own, without our block: timing only.

    `prompt`, `model` and `machine` are the block's tables.
    """

    test: str
    name: str
    metrics: Mapping[str, Values]
    prompt: Mapping[str, Any]
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    experts: Usage = field(default_factory=Usage)
    plain: bool = False


@dataclass(frozen=True)
class Run:
    """A stored run: what its file says of it as a whole; `rows` are read when they are asked for."""

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

    @property
    def number(self) -> str | None:
        """Return the run number that pytest-benchmark put in front of the name, as written there."""
        found = _NUMBER.match(self.path.name)
        return found.group(1) if found else None

    @property
    def label(self) -> str:
        """Return how people call it: "0007 1a2b3c4d (main)", or the file's name."""
        name = self.number or self.path.name
        commit = f" {self.commit[:8]}{'+' if self.dirty else ''}" if self.commit else ""
        return f"{name}{commit}{f' ({self.branch})' if self.branch else ''}"

    @property
    def regressed(self) -> bool:
        """Return whether its gate failed: then it is no baseline. One that was inconclusive, or the first, may be."""
        return self.gate is not None and self.gate.result == "regressed"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Return the tests of the run; raise StorageError when the file cannot be read any more."""
        return rows(self.path)

    @cached_property
    def _by_test(self) -> dict[str, Row]:
        return {row.test: row for row in self.rows}

    def row(self, test: str) -> Row | None:
        """Return the row of that test."""
        return self._by_test.get(test)


def row_of(test: str, name: str, block: Mapping[str, Any]) -> Row:
    """Return the row of a block that is not stored yet."""
    return _row(test, name, _BLOCK.decode(msgspec.json.encode(block)))


def _row(test: str, name: str, block: _Block) -> Row:
    return Row(
        test=test,
        name=str(block.prompt.get("name", name)),
        metrics=block.metrics,
        prompt=block.prompt,
        model=block.model,
        machine=block.machine,
        experts=block.experts,
    )


def rows(path: Path) -> tuple[Row, ...]:
    """Return the tests of a run file; rows without our block as timing only."""
    try:
        natives = _ROWS.decode(path.read_bytes()).benchmarks
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"{path}: not a run of pytest-benchmark: {error}") from error
    return tuple(_rows_of(natives, path))


def _rows_of(natives: Iterable[_Native], path: Path) -> Iterator[Row]:
    for native in natives:
        block = native.extra_info.pytest_infer
        if block is None:
            total = Values(value=native.stats.median, rounds=native.stats.data)
            yield Row(
                test=native.fullname,
                name=native.name,
                metrics={"total_s": total},
                prompt={},
                model={},
                machine={},
                plain=True,
            )
            continue
        _refuse_newer(path, block.schema)
        if block.phase == "total":
            yield _row(native.fullname, native.name, block)


def _refuse_newer(path: Path, schema: int) -> None:
    if schema > SCHEMA:
        raise StorageError(f"{path}: schema {schema} is newer than this pytest-infer reads; upgrade it")


def _newest_schema(content: bytes) -> int:
    """Return the highest schema in a file whose shape is not ours; 0 for none."""
    try:
        found = _SCHEMAS.decode(content)
    except msgspec.MsgspecError:
        return 0
    blocks = [found.pytest_infer, *(row.extra_info.pytest_infer for row in found.benchmarks)]
    return max((block.schema for block in blocks if block is not None), default=0)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment.astimezone(timezone.utc) if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def read(path: Path) -> Run:
    """Return a run's head; raise StorageError with one line for a file that is none."""
    content = b""
    try:
        content = path.read_bytes()
        head = _HEAD.decode(content)
        time = _moment(head.datetime)
    except (OSError, msgspec.MsgspecError, ValueError, OverflowError) as error:
        _refuse_newer(path, _newest_schema(content))
        raise StorageError(f"{path}: not a run of pytest-benchmark: {error}") from error
    blocks = [row.extra_info.pytest_infer for row in head.benchmarks]
    _refuse_newer(path, max([head.pytest_infer.schema, *(block.schema for block in blocks if block is not None)]))
    ours = [block for block in blocks if block is not None and block.model is not None]
    model = ours[0].model if ours else None
    machine = ours[0].machine if ours else None
    return Run(
        path=path,
        time=time,
        commit=None if head.commit_info.id == _UNVERSIONED else head.commit_info.id,
        branch=None if head.commit_info.branch == "(unknown)" else head.commit_info.branch,
        dirty=head.commit_info.dirty,
        model=" ".join(part for part in (model.name, model.dtype) if part) if model else None,
        machine=_machine(machine) or head.machine_info.node,
        tests=len(ours) or len(head.benchmarks),
        plain=not any(block is not None for block in blocks) and bool(head.benchmarks),
        gate=head.pytest_infer.gate,
        failed=tuple(head.pytest_infer.failed),
        unmeasured=head.pytest_infer.unmeasured,
    )


def _machine(machine: _Machine | None) -> str | None:
    if machine is None or machine.cpu is None:
        return None
    cores = machine.usable_cores
    return machine.cpu if cores is None else f"{machine.cpu} × {cores:g}"


@dataclass(frozen=True)
class History:
    """All runs of a storage folder, oldest first, and a line for each file that could not be read."""

    folder: Path
    runs: tuple[Run, ...]
    warnings: tuple[str, ...] = ()

    def before(self, run: Run) -> tuple[Run, ...]:
        """Return the runs made earlier."""
        return tuple(r for r in self.runs if r.time < run.time and r.path != run.path)

    def select(self, selector: str) -> Run:
        """Return the run that a selector names, the newest where it names several; raise StorageError for none.

        A path; a number (7, 0007); `latest`, `latest~1`; `commit:`, `branch:`, `tag:` and `baseline:NAME`; without a
        prefix whatever of them fits first: path, number, latest, baseline, commit, branch, and what git can resolve.
        """
        if selector.endswith(".json") and _is_file(selector):
            return read(Path(selector))
        kind, colon, name = selector.partition(":")
        if colon and kind not in _SELECTORS:
            raise StorageError(f"unknown selector {kind}:…; known: {', '.join(f'{k}:' for k in _SELECTORS)}")
        tried = (kind,) if colon else tuple(_SELECTORS)
        for how in tried:
            found = _SELECTORS[how](self, name if colon else selector)
            if found is not None:
                return found
        raise StorageError(
            f"no run {selector!r} among the {len(self.runs)} in {self.folder}; `pytest-infer history` lists them"
        )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:
        return False  # a name too long for the file system


def load(folder: Path) -> History:
    """Read the heads of all runs under a storage folder; damaged files are left out with one warning each."""
    from pytest_infer.storage.index import Index  # noqa: PLC0415 - it keeps what this module reads

    if not folder.is_dir():
        raise StorageError(f"{folder}: no such folder; name the storage with --storage")
    index = Index(folder)
    runs, warnings = [], []
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            runs.append(_known_or_read(path, index))
        except StorageError as error:
            warnings.append(f"left out: {error}")
    index.save()
    runs.sort(key=lambda run: (run.time, run.path.name))
    return History(folder=folder, runs=tuple(runs), warnings=tuple(warnings))


def _known_or_read(path: Path, index: Index) -> Run:
    try:
        state = path.stat()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    known = index.get(path, state.st_size, state.st_mtime_ns)
    if known is None:
        known = read(path)
        index.put(known, state.st_size, state.st_mtime_ns)
    return known


def _newest(runs: Iterable[Run]) -> Run | None:
    return max(runs, key=lambda run: run.time, default=None)


def _by_number(history: History, name: str) -> Run | None:
    if not _DIGITS.fullmatch(name):
        return None
    return _newest(r for r in history.runs if r.number is not None and int(r.number) == int(name))


def _by_age(history: History, name: str) -> Run | None:
    word, _, back = name.partition("~")
    if word != "latest" or (back and not _DIGITS.fullmatch(back)):
        return None
    index = len(history.runs) - 1 - int(back or 0)
    return history.runs[index] if index >= 0 else None


def _by_commit(history: History, name: str) -> Run | None:
    if not _HEX.fullmatch(name.lower()):
        return None
    return _newest(r for r in history.runs if r.commit is not None and r.commit.startswith(name.lower()))


def _by_branch(history: History, name: str) -> Run | None:
    return _newest(r for r in history.runs if r.branch == name)


def _by_revision(history: History, name: str) -> Run | None:
    commit = resolve(name)
    return None if commit is None else _newest(r for r in history.runs if r.commit == commit)


def _by_baseline(history: History, name: str) -> Run | None:
    from pytest_infer.storage import baselines  # noqa: PLC0415 - it names runs, and reads them through this module

    path = baselines.path_of(history.folder, name)
    return None if path is None else read(path)


_SELECTORS = {
    "number": _by_number,
    "latest": _by_age,
    "baseline": _by_baseline,
    "commit": _by_commit,
    "branch": _by_branch,
    "tag": _by_revision,
}
