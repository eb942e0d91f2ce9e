"""The tests of a stored run and their figures, as far as comparisons read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer.errors import StorageError
from pytest_infer.records import CurvePoint, Drift
from pytest_infer.storage.block import SCHEMA


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
    """A place of the model where tokens are routed to experts, as `records.ExpertSite` says.

    `experts`, `slots` and `k` are 0 where a run does not say.
    """

    name: str
    layer: int
    kind: str = "mlp"
    experts: int = 0
    slots: int = 0
    k: int = 0
    expert_bytes: int | None = None
    shared: int = 0
    shared_bytes: int | None = None


class Counts(msgspec.Struct, frozen=True):
    """Selections per site and slot."""

    prefill: tuple[tuple[int, ...], ...]
    decode: tuple[tuple[int, ...], ...]


class Weights(msgspec.Struct, frozen=True):
    """Sums of gate weights per site and slot, to four significant digits."""

    prefill: tuple[tuple[float, ...], ...]
    decode: tuple[tuple[float, ...], ...]


class Dropped(msgspec.Struct, frozen=True):
    """Selections that were refused for want of capacity, per site."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]


class Tokens(msgspec.Struct, frozen=True):
    """How many tokens went through each site."""

    prefill: int
    decode: int


class Usage(msgspec.Struct, frozen=True):
    """Expert usage of one test; without counts where it was not recorded, for the reason `absent` gives.

    `check` is "passed", or the sums that are not tokens x k; `trace`: the sidecar holds each selection.
    """

    sites: tuple[Site, ...] = ()
    counts: Counts | None = None
    tokens: Tokens | None = None
    weights: Weights | None = None
    dropped: Dropped | None = None
    check: str | None = None
    note: str | None = None
    trace: bool = False
    absent: str | None = None


class _Timed(msgspec.Struct, frozen=True):
    disturbed: dict[str, tuple[str, ...]] = {}


class _Block(msgspec.Struct, frozen=True):
    schema: int
    phase: str
    prompt: dict[str, Any] = {}
    model: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    metrics: dict[str, Values] = {}
    experts: Usage = Usage()
    config: dict[str, str] = {}
    curve: CurvePoint | None = None
    drift: Drift | None = None
    rounds: _Timed = _Timed()


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


_BLOCK = msgspec.json.Decoder(_Block)
_ROWS = msgspec.json.Decoder(_Rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test of one run. `plain` rows are pytest-benchmark's own, without our block: timing only.

    `prompt`, `model` and `machine` are the block's tables, `config` the swept options by axis as they were given, and
    `curve` says where the test stands on a curve. `drift` is that of its model's load, whose last test this was.
    `disturbed` are the numbers of the rounds that were, counted from 0.
    """

    test: str
    name: str
    metrics: Mapping[str, Values]
    prompt: Mapping[str, Any]
    model: Mapping[str, Any]
    machine: Mapping[str, Any]
    experts: Usage = field(default_factory=Usage)
    plain: bool = False
    config: Mapping[str, str] = field(default_factory=dict)
    curve: CurvePoint | None = None
    drift: Drift | None = None
    disturbed: tuple[int, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """Return the prompt's tags; none where the file holds no list of them."""
        found = self.prompt.get("tags")
        return tuple(map(str, found)) if isinstance(found, list | tuple) else ()


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
        config=block.config,
        curve=block.curve,
        drift=block.drift,
        disturbed=tuple(int(number) for number in block.rounds.disturbed if number.isdecimal()),
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
        refuse_newer(path, block.schema)
        if block.phase == "total":
            yield _row(native.fullname, native.name, block)


def refuse_newer(path: Path, schema: int) -> None:
    """Raise StorageError for a schema that this version does not know."""
    if schema > SCHEMA:
        raise StorageError(f"{path}: schema {schema} is newer than this pytest-infer reads; upgrade it")
