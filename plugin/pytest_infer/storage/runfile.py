"""A run file as pytest-benchmark writes it, with what we put into it, decoded as far as a reader asks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import StorageError
from pytest_infer.records import SuiteAverages
from pytest_infer.storage.schema import SCHEMA, TOTAL, B, Block, HeadBlock, PartsBlock, Values, WholeBlock


class Mark(msgspec.Struct, frozen=True):
    """What a gate said of a run, kept in its file; a run that did not pass is no baseline."""

    result: str
    against: str | None = None
    rules: tuple[str, ...] = ()
    headline: str | None = None


class JudgedMark(Mark, frozen=True):
    """The same with the judgements that a gate of pytest's own keeps, not decoded: their shape is the analysis's.

    `suite` are those of the whole suite.
    """

    judgements: msgspec.Raw = msgspec.Raw(b"[]")
    suite: msgspec.Raw = msgspec.Raw(b"[]")


class Whole(msgspec.Struct, frozen=True):
    """What our block says of the run as a whole; `failed` holds the blocks of tests that failed after measurement.

    `suite` names the prompts' file that was asked for, empty where each test took its own; older versions tell none.
    `typed_prompts` are the names in one that was typed, for this run alone. Of the tests that were `unmeasured`
    or `failed` those `skipped` left themselves out, or failed as expected.
    """

    schema: int = SCHEMA
    suite: str | None = None
    typed_prompts: tuple[str, ...] = ()
    gate: Mark | None = None
    failed: dict[str, msgspec.Raw] = {}
    unmeasured: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class AllOfWhole(Whole, frozen=True):
    """The same with all judgements, the suite's averages, and the advice of that day, not decoded either.

    Older versions stored no averages.
    """

    gate: JudgedMark | None = None
    averages: tuple[SuiteAverages, ...] = ()
    advice: msgspec.Raw = msgspec.Raw(b"[]")


class Commit(msgspec.Struct, frozen=True):
    """pytest-benchmark's own note of the commit."""

    id: str | None = None
    branch: str | None = None
    dirty: bool | None = None


class NativeMachine(msgspec.Struct, frozen=True):
    """pytest-benchmark's own note of the machine."""

    node: str | None = None


_SECONDS: msgspec.json.Decoder[tuple[float, ...]] = msgspec.json.Decoder(tuple[float, ...])


class Stats(msgspec.Struct, frozen=True):
    """pytest-benchmark's own figures of a row."""

    median: float
    data: msgspec.Raw = msgspec.Raw(b"[]")

    def rounds(self) -> tuple[float, ...]:
        """Return the seconds of each round; raise untrusted.Damaged where they are none."""
        return untrusted.decode(_SECONDS, bytes(self.data))


class Extra(msgspec.Struct, Generic[B], frozen=True):
    """The `extra_info` of a row."""

    pytest_infer: B | None = None


class Native(msgspec.Struct, Generic[B], frozen=True):
    """A row of pytest-benchmark."""

    fullname: str
    name: str
    stats: Stats
    extra_info: Extra[B] = Extra()

    @property
    def block(self) -> B | None:
        """Return our block; None in a row that is pytest-benchmark's alone."""
        return self.extra_info.pytest_infer


class RunFile(msgspec.Struct, Generic[B], frozen=True):
    """A run file."""

    datetime: str
    benchmarks: tuple[Native[B], ...]
    commit_info: Commit = Commit()
    machine_info: NativeMachine = NativeMachine()
    pytest_infer: Whole = Whole()

    def tests(self) -> Iterator[tuple[str, B]]:
        """Yield the tests measured with `infer`, with the block of each."""
        for native in self.benchmarks:
            block = native.block
            if block is not None and block.phase == TOTAL:
                yield native.fullname, block


class WholeFile(RunFile[WholeBlock], frozen=True):
    """A run file with all that any reader wants of it."""

    pytest_infer: AllOfWhole = AllOfWhole()


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


HEAD: msgspec.json.Decoder[RunFile[HeadBlock]] = msgspec.json.Decoder(RunFile[HeadBlock])
"""What the list of runs needs."""
PARTS: msgspec.json.Decoder[RunFile[PartsBlock]] = msgspec.json.Decoder(RunFile[PartsBlock])
"""What tells where the time of a step went."""
ROWS: msgspec.json.Decoder[RunFile[Block]] = msgspec.json.Decoder(RunFile[Block])
"""What comparisons need."""
ALL: msgspec.json.Decoder[WholeFile] = msgspec.json.Decoder(WholeFile)
"""What any reader needs."""

_SCHEMAS = msgspec.json.Decoder(_Schemas)


@cache
def rows_with(metrics: frozenset[str]) -> msgspec.json.Decoder[RunFile[Block]]:
    """Return what decodes rows with these metrics alone and without expert usage: a third of the time of all of it."""
    some = [(key, Values | None, None) for key in sorted(metrics)]
    narrow = msgspec.defstruct("Metrics", some, frozen=True)
    fields = [("metrics", narrow | None, None), ("experts", msgspec.Raw, msgspec.Raw(b"null"))]
    block = msgspec.defstruct("NarrowBlock", fields, bases=(Block,), frozen=True)
    return msgspec.json.Decoder(RunFile[block])  # type: ignore[valid-type]


_OF_PYTHON = re.compile(rb"NaN|Infinity|\\u[dD]")
"""What stands in JSON that Python writes and others refuse: no numbers, and halves of surrogate pairs."""
T = TypeVar("T")
F = TypeVar("F", RunFile[HeadBlock], RunFile[PartsBlock], RunFile[Block], WholeFile)


def read(path: Path, depth: msgspec.json.Decoder[F]) -> F:
    """Return a run file, decoded as far as `depth` (HEAD, PARTS, ROWS or ALL) says.

    Raises StorageError with one line for a file that is none, and for one of a newer schema.
    """
    content = b""
    try:
        content = untrusted.read(path, untrusted.RUN_BYTES)
        file = _decoded(depth, content)
    except (OSError, ValueError) as error:
        refuse_newer(path, _newest_schema(content))
        raise damaged(path, error) from error
    newest: int = file.pytest_infer.schema
    for native in file.benchmarks:
        if native.block is not None:
            newest = max(newest, native.block.schema)
    refuse_newer(path, newest)
    return file


def _decoded(depth: untrusted.Decoder[T], content: bytes) -> T:
    """Return what a decoder makes of a run; of what Python alone writes NaN and infinities count as null.

    These, and half a character, any test may have in its `extra_info`.
    """
    try:
        return untrusted.decode(depth, content)
    except untrusted.Damaged:
        if not _OF_PYTHON.search(content):
            raise
    try:
        run = json.loads(untrusted.text(content), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise untrusted.Damaged(untrusted.reason(error)) from None
    return untrusted.decode(depth, json.dumps(run, ensure_ascii=False).encode(errors="replace"))


def damaged(path: Path, error: Exception) -> StorageError:
    """Return what is said of a file that is no run, or a damaged one."""
    return StorageError(f"{path}: not a run of pytest-benchmark: {untrusted.reason(error)}")


def refuse_newer(path: Path, schema: int) -> None:
    """Raise StorageError for a schema that this version does not know."""
    if schema > SCHEMA:
        raise StorageError(f"{path}: schema {schema} is newer than this pytest-infer reads; upgrade it")


def _newest_schema(content: bytes) -> int:
    """Return the highest schema in a file whose shape is not ours; 0 for none."""
    try:
        found = _decoded(_SCHEMAS, content)
    except untrusted.Damaged:
        return 0
    blocks = [found.pytest_infer, *(row.extra_info.pytest_infer for row in found.benchmarks)]
    return max((block.schema for block in blocks if block is not None), default=0)
