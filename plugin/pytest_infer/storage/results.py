"""Results restored from a run file: what the end of that run showed, figure by figure as they were stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pytest_infer.errors import StorageError
from pytest_infer.metrics import METRICS, Summary
from pytest_infer.metrics.result import Result
from pytest_infer.records import (
    CurvePoint,
    ExpertSite,
    ExpertUsage,
    MachineInfo,
    MeasurementWarning,
    ModelInfo,
    PromptInfo,
    Quality,
    Work,
)
from pytest_infer.storage.block import KEY
from pytest_infer.storage.rows import Usage, refuse_newer

_NOT_STORED = "this run did not store it"
_Record = TypeVar("_Record")


class _Row(msgspec.Struct, frozen=True):
    fullname: str
    extra_info: dict[str, Any] = {}


class _File(msgspec.Struct, frozen=True):
    benchmarks: tuple[_Row, ...]
    pytest_infer: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A run's tests in the order of its file, those that failed after their measurement last; `whole` is its block."""

    results: tuple[Result, ...]
    failed: tuple[str, ...] = ()
    whole: Mapping[str, Any] = field(default_factory=dict)


def of_run(path: Path) -> Stored:
    """Return what a run file holds; raise StorageError with one line where it cannot be read."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        blocks = {row.fullname: row.extra_info.get(KEY) for row in file.benchmarks}
        failed = dict(file.pytest_infer.get("failed", {}))
        found = []
        for nodeid, block in (*blocks.items(), *failed.items()):
            if isinstance(block, dict):
                refuse_newer(path, int(block.get("schema", 0)))
                if block.get("phase") == "total":
                    found.append(of_block(nodeid, block))
    except (OSError, msgspec.MsgspecError, TypeError, ValueError, KeyError) as error:
        raise StorageError(f"{path}: not a run of pytest-infer: {error}") from error
    return Stored(results=tuple(found), failed=tuple(failed), whole=file.pytest_infer)


def of_block(nodeid: str, block: Mapping[str, Any]) -> Result:
    """Return the result that a `total` row's block was built of; raise msgspec.ValidationError where it is none."""
    usage, experts_absent = _usage(_table(block, "experts"))
    rounds = _table(block, "rounds")
    model = dict(block["model"])
    if "work" in model:
        model["work"] = _record(model["work"], Work)
    return Result(
        nodeid=nodeid,
        prompt=_record(block["prompt"], PromptInfo),
        model=_record(model, ModelInfo),
        machine=_record(block["machine"], MachineInfo),
        figures=_figures(_table(block, "metrics"), _table(block, "absent")),
        timed_rounds=int(rounds.get("timed", 1)),
        output=str(_table(block, "output").get("text", "")),
        warnings=msgspec.convert(block.get("cautions", []), tuple[MeasurementWarning, ...]),
        experts=usage,
        # Where there was no profile round at all, nobody asked for experts.
        experts_absent=experts_absent if rounds.get("profile", True) else None,
        config=msgspec.convert(block.get("config", {}), dict[str, str]),
        curve=msgspec.convert(block.get("curve"), CurvePoint | None),
    )


def _table(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a part of a block, empty where it is missing or null."""
    return msgspec.convert(block.get(key) or {}, dict[str, Any])


def _record(table: Mapping[str, Any], kind: type[_Record]) -> _Record:
    """Return a record of a stored table, in which what was None is left out."""
    unknown = {
        f.name: None
        for f in fields(kind)  # type: ignore[arg-type]  # a TypeVar cannot be bound to "a dataclass"
        if f.default is MISSING and f.default_factory is MISSING
    }
    return msgspec.convert({**unknown, **table}, kind)


def _figures(stored: Mapping[str, Any], absent: Mapping[str, str]) -> dict[str, Summary]:
    found = {}
    for metric in METRICS:
        entry = stored.get(metric.key)
        if entry is None:
            found[metric.key] = Summary(value=None, reason=absent.get(metric.key, _NOT_STORED))
            continue
        value = entry["value"]
        single = () if isinstance(value, str) else (value,)
        found[metric.key] = Summary(
            value=value,
            mean=entry.get("mean"),
            stdev=entry.get("stdev"),
            rounds=tuple(entry.get("rounds") or single),
            quality=Quality(entry.get("quality", Quality.EXACT.value)),
            source=entry.get("source"),
        )
    return found


def _usage(table: Mapping[str, Any]) -> tuple[ExpertUsage | None, str | None]:
    """Return the expert usage, or None and the reason."""
    usage = msgspec.convert(table, Usage)
    counts, tokens = usage.counts, usage.tokens
    if counts is None or tokens is None:
        return None, usage.absent
    sites = tuple(
        # An older run does not say how many experts a site has.
        ExpertSite(
            name=site.name,
            layer=site.layer,
            kind=site.kind,
            experts=site.experts or len(row),
            slots=site.slots or len(row),
            k=site.k,
            expert_bytes=site.expert_bytes,
            shared=site.shared or None,
            shared_bytes=site.shared_bytes,
        )
        for site, row in zip(usage.sites, counts.decode, strict=True)
    )
    weights, dropped = usage.weights, usage.dropped
    restored = ExpertUsage(
        sites=sites,
        prefill_tokens=tokens.prefill,
        decode_tokens=tokens.decode,
        prefill=counts.prefill,
        decode=counts.decode,
        check=usage.check or "not checked",
        prefill_weights=None if weights is None else weights.prefill,
        decode_weights=None if weights is None else weights.decode,
        prefill_dropped=None if dropped is None else dropped.prefill,
        decode_dropped=None if dropped is None else dropped.decode,
        note=usage.note,
    )
    return restored, None
