"""What a run shows of one test: read from its record, or restored from its stored block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pytest_infer.metrics import breakdown, scatter
from pytest_infer.metrics.breakdown import PhaseParts
from pytest_infer.metrics.summary import Summary, summarize
from pytest_infer.records import (
    CurvePoint,
    ExpertUsage,
    Fidelity,
    Level,
    MachineInfo,
    MeasurementWarning,
    ModelInfo,
    Operators,
    PromptInfo,
    PromptRecord,
    Ranks,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A test's metrics and what they belong to; `figures` holds every metric of the table by its key.

    `quiet` are warnings of disturbed rounds that do not show in its times, which need no second look, or are `unseen`:
    its only round was disturbed.
    `experts` has no trace; where usage was not recorded, it has no counts, for the reason in `experts_absent`.
    `breakdown` holds the phases whose steps were taken apart. `operators` has no trace: `trace` is the name of its
    file, which a run that is not stored has none of.
    """

    nodeid: str
    prompt: PromptInfo
    model: ModelInfo
    machine: MachineInfo
    figures: Mapping[str, Summary]
    timed_rounds: int
    output: str
    warnings: tuple[MeasurementWarning, ...] = ()
    quiet: tuple[MeasurementWarning, ...] = ()
    unseen: bool = False
    experts: ExpertUsage | None = None
    experts_absent: str | None = None
    ranks: Ranks | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    curve: CurvePoint | None = None
    fidelity: Fidelity | None = None
    breakdown: Mapping[str, PhaseParts] = field(default_factory=dict)
    operators: Operators | None = None
    trace: str | None = None
    under_load: Level | None = None


def of_record(record: PromptRecord, figures: Mapping[str, Summary] | None = None) -> Result:
    """Return what is shown of a record; `figures` are its own, where they have been worked out already."""
    profile = record.profile
    operators = None if record.breakdown is None else record.breakdown.operators
    usage = profile.experts if profile is not None else None
    shown = summarize(record) if figures is None else figures
    disturbed = [number for number, r in enumerate(record.rounds) if r.disturbed]
    warnings, quiet = scatter.apart(record.warnings, shown["total_s"].rounds, disturbed)
    return Result(
        nodeid=record.nodeid,
        prompt=record.prompt,
        model=record.model,
        machine=record.machine,
        figures=shown,
        timed_rounds=len(record.rounds if record.under_load is None else record.under_load.repetitions),
        output=record.output.text,
        warnings=warnings,
        quiet=quiet,
        unseen=scatter.unseen(shown["total_s"].rounds, disturbed),
        experts=None if usage is None else replace(usage, trace=None),
        experts_absent=profile.experts_absent if profile is not None else None,
        ranks=record.ranks,
        config=record.config,
        curve=record.curve,
        fidelity=record.fidelity,
        breakdown=breakdown.phases(record),
        operators=None if operators is None else replace(operators, trace=None),
        under_load=None if record.under_load is None else record.under_load.level,
    )
