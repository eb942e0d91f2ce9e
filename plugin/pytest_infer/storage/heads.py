"""What a run file says of its run as a whole; its tests are read when they are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

import msgspec

from pytest_infer.errors import StorageError
from pytest_infer.storage.block import SCHEMA
from pytest_infer.storage.rows import Row, refuse_newer, rows

_NUMBER = re.compile(r"(\d+)_")
_UNVERSIONED = "unversioned"  # what pytest-benchmark calls the commit where there is no git


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


def read(path: Path) -> Run:
    """Return a run's head; raise StorageError with one line for a file that is none."""
    content = b""
    try:
        content = path.read_bytes()
        head = _HEAD.decode(content)
        time = _moment(head.datetime)
    except (OSError, msgspec.MsgspecError, ValueError, OverflowError) as error:
        refuse_newer(path, _newest_schema(content))
        raise StorageError(f"{path}: not a run of pytest-benchmark: {error}") from error
    blocks = [row.extra_info.pytest_infer for row in head.benchmarks]
    refuse_newer(path, max([head.pytest_infer.schema, *(block.schema for block in blocks if block is not None)]))
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


def _machine(machine: _Machine | None) -> str | None:
    if machine is None or machine.cpu is None:
        return None
    cores = machine.usable_cores
    return machine.cpu if cores is None else f"{machine.cpu} × {cores:g}"
