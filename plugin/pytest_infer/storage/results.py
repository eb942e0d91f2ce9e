"""What the end of a stored run showed, figure by figure: its results as they were when it was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from pytest_infer import untrusted
from pytest_infer.metrics import METRICS, Summary, scatter
from pytest_infer.metrics.result import Result
from pytest_infer.metrics.summary import why_not
from pytest_infer.records import (
    ExpertUsage,
    MachineInfo,
    MeasurementWarning,
    ModelInfo,
    Operators,
    PromptInfo,
    SuiteAverages,
)
from pytest_infer.storage import runfile, schema, traces
from pytest_infer.storage.schema import Usage, WholeBlock

_NOT_STORED = "this run did not store it"
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the end of a run showed: its tests in the order of its file, those that failed after measurement last.

    `averages` are those of its suite; older versions stored none.
    """

    results: tuple[Result, ...]
    failed: tuple[str, ...]
    advice: msgspec.Raw
    averages: tuple[SuiteAverages, ...] = ()


def shown(path: Path) -> Shown:
    """Return what the end of a run showed, figure by figure as stored; raise StorageError where it cannot be read."""
    file = runfile.read(path, runfile.ALL)
    try:
        failed = {
            test: untrusted.decode(schema.WHOLE_BLOCK, bytes(block)) for test, block in file.pytest_infer.failed.items()
        }
        for block in failed.values():
            runfile.refuse_newer(path, block.schema)
        tests = [*file.tests(), *((test, block) for test, block in failed.items() if block.phase == schema.TOTAL)]
        results = tuple(traced(result_of(test, block), block, path) for test, block in tests)
    except (ValueError, msgspec.MsgspecError) as error:
        raise runfile.damaged(path, error) from error
    whole = file.pytest_infer
    return Shown(results=results, failed=tuple(failed), advice=whole.advice, averages=whole.averages)


def result_of(nodeid: str, block: WholeBlock) -> Result:
    """Return the result that a `total` row's block was built of; raise msgspec.ValidationError where it is none."""
    rounds = block.rounds or schema.Rounds()
    usage = block.experts or Usage()
    breakdown = block.breakdown or schema.StoredBreakdown()
    stored = msgspec.convert(msgspec.to_builtins(block.warnings), tuple[MeasurementWarning, ...])
    warnings, quiet = scatter.apart(stored, *block.disturbed_totals)
    return Result(
        nodeid=nodeid,
        prompt=_record(block.prompt, PromptInfo),
        model=_record(block.model, ModelInfo),
        machine=_record(block.machine, MachineInfo),
        figures=_figures(block),
        timed_rounds=1 if rounds.timed is None else rounds.timed,
        output=(block.output.text or "") if block.output is not None else "",
        warnings=warnings,
        quiet=quiet,
        unseen=scatter.unseen(*block.disturbed_totals),
        experts=usage_of(usage),
        # Where there was no profile round at all, nobody asked for experts.
        experts_absent=usage.absent if rounds.profile else None,
        config=block.config,
        curve=block.curve,
        ranks=block.ranks,
        fidelity=block.fidelity,
        breakdown=breakdown.phases,
        operators=_operators(breakdown.operators),
        under_load=None if block.under_load is None else block.under_load.level,
    )


def _operators(stored: schema.StoredOperators | None) -> Operators | None:
    """Return what a profiler recorded, whose trace lies beside the run."""
    if stored is None:
        return None
    return Operators(
        prefill=stored.prefill,
        decode=stored.decode,
        prefill_absent=stored.prefill_absent,
        peaks_absent=stored.peaks_absent,
        trace_absent=stored.trace_absent,
        absent=stored.absent,
    )


def traced(result: Result, block: WholeBlock, run_file: Path) -> Result:
    """Return a result with the name of its trace, or that the trace is gone."""
    operators = None if block.breakdown is None else block.breakdown.operators
    if operators is None or operators.trace is None or result.operators is None:
        return result
    name = traces.beside(run_file, operators.trace)
    why = None if name is not None else f"{run_file.stem}.{operators.trace} is not beside the run"
    return replace(result, trace=name, operators=replace(result.operators, trace_absent=why))


def _record(part: msgspec.Struct, kind: type[_Record]) -> _Record:
    """Return the record that a part of a block was stored of: what was None is left out there."""
    return msgspec.convert(msgspec.to_builtins(part), kind)


def _figures(block: WholeBlock) -> dict[str, Summary]:
    stored, absent = block.metrics or {}, block.absent or {}
    found = {}
    for metric in METRICS:
        figure = stored.get(metric.key)
        if figure is None:
            why = why_not(metric, under_load=block.under_load is not None) or _NOT_STORED
            found[metric.key] = Summary(value=None, reason=absent.get(metric.key, why))
            continue
        single = () if isinstance(figure.value, str) else (figure.value,)
        found[metric.key] = Summary(
            value=figure.value,
            mean=figure.mean,
            stdev=figure.stdev,
            rounds=figure.rounds or single,
            quality=figure.quality,
            source=figure.source,
        )
    return found


def usage_of(usage: Usage) -> ExpertUsage | None:
    """Return the expert usage; None where it was not recorded."""
    counts, tokens = usage.counts, usage.tokens
    if counts is None or tokens is None:
        return None
    weights, dropped = usage.weights, usage.dropped
    return ExpertUsage(
        # An older run does not say how many experts a site has.
        sites=tuple(
            replace(site, experts=site.experts or len(row), slots=site.slots or len(row))
            for site, row in zip(usage.sites, counts.decode, strict=True)
        ),
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
