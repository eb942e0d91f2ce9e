"""The versioned block of extra_info: a record as JSON, driven by the table of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from pytest_infer.measure.warnings import hash_ids
from pytest_infer.metrics import METRICS, Summary, load, summarize
from pytest_infer.metrics.breakdown import DECODE, PREFILL, phases
from pytest_infer.metrics.summary import why_not
from pytest_infer.records import (
    ExpertUsage,
    Operators,
    PromptRecord,
    Quality,
    Reference,
    Round,
    SuiteAverages,
)
from pytest_infer.storage.schema import SCHEMA, TOTAL
from pytest_infer.storage.traces import name_for


def build(record: PromptRecord, figures: Mapping[str, Summary] | None = None) -> dict[str, Any]:
    """Return the block of a prompt's `total` row; unknown figures are left out and named under `absent`.

    `figures` are the record's, where they have been worked out already.
    """
    summaries = summarize(record) if figures is None else figures
    metrics: dict[str, Any] = {}
    for metric in METRICS:
        summary = summaries[metric.key]
        if summary.value is None:
            continue
        entry: dict[str, Any] = {
            "value": summary.value,
            "unit": metric.unit.value,
            "mean": summary.mean,
            "stdev": summary.stdev,
        }
        entry["rounds"] = list(summary.rounds) if len(summary.rounds) > 1 else None
        entry["quality"] = None if summary.quality is Quality.EXACT else summary.quality.value
        entry["source"] = summary.source
        metrics[metric.key] = _without_none(entry)
    swept: dict[str, Any] = {"config": record.config} if record.config else {}
    swept |= {"curve": msgspec.to_builtins(record.curve)} if record.curve is not None else {}
    swept |= {"drift": msgspec.to_builtins(record.drift)} if record.drift is not None else {}
    ranks = {} if record.ranks is None else {"ranks": msgspec.to_builtins(record.ranks)}
    swept |= {"fidelity": _without_none(msgspec.to_builtins(record.fidelity))} if record.fidelity is not None else {}
    return {
        "schema": SCHEMA,
        "phase": TOTAL,
        **swept,
        **ranks,
        "prompt": _without_none(msgspec.to_builtins(record.prompt)),
        # Without the load: its figures are metrics, with their sources.
        "model": _without_none(msgspec.to_builtins(record.model) | {"load": None}),
        "machine": _without_none(msgspec.to_builtins(record.machine)),
        "metrics": metrics,
        "absent": {
            metric.key: summaries[metric.key].reason
            for metric in METRICS
            if summaries[metric.key].value is None and why_not(metric, under_load=record.under_load is not None) is None
        },
        **_under_load(record),
        "experts": _experts(record),
        "timeline": _timeline(record),
        "scores": _scores(record),
        **_reference(record.reference),
        "breakdown": _breakdown(record),
        "output": _output(record),
        "rounds": _rounds(record),
        "cautions": [msgspec.to_builtins(warning) for warning in record.warnings],
    }


def of_phase(phase: str, fullname: str) -> dict[str, Any]:
    """Return the small block of a phase's row, which points to the `total` row that holds everything."""
    return {"schema": SCHEMA, "phase": phase, "of": fullname}


def of_suite(found: Iterable[SuiteAverages]) -> list[dict[str, Any]]:
    """Return the averages of a suite for the run's own block; what is empty is left out."""
    tables = (_without_none(msgspec.to_builtins(averages)) for averages in found)
    return [{key: part for key, part in table.items() if part} for table in tables]


def _experts(record: PromptRecord) -> dict[str, Any]:
    profile = record.profile
    if profile is None:
        return {"absent": record.profile_absent or "no profile round"}
    if profile.experts is None:
        return {"absent": profile.experts_absent or "not recorded"}
    usage: ExpertUsage = profile.experts
    table: dict[str, Any] = {
        "check": usage.check,
        "tokens": {"prefill": usage.prefill_tokens, "decode": usage.decode_tokens},
        "sites": [_without_none(msgspec.to_builtins(site)) for site in usage.sites],
        "counts": {"prefill": [list(row) for row in usage.prefill], "decode": [list(row) for row in usage.decode]},
        "note": usage.note,
    }
    if usage.prefill_weights is not None and usage.decode_weights is not None:
        table["weights"] = {"prefill": _four(usage.prefill_weights), "decode": _four(usage.decode_weights)}
    if usage.prefill_dropped is not None and usage.decode_dropped is not None:
        table["dropped"] = {"prefill": list(usage.prefill_dropped), "decode": list(usage.decode_dropped)}
    if usage.trace is not None:
        table["trace"] = True
    return _without_none(table)


def _four(rows: tuple[tuple[float, ...], ...]) -> list[list[float]]:
    """Return sums of gate weights to four significant digits: all that float16 weights are good for."""
    return [[float(f"{value:.4g}") for value in row] for row in rows]


def _timeline(record: PromptRecord) -> dict[str, Any]:
    """Say what the sidecar holds of the profile round's timeline, and what sampling it cost."""
    profile = record.profile
    if profile is None:
        return {"absent": record.profile_absent or "no profile round"}
    if profile.timeline is None:
        return {"absent": profile.timeline_absent or "not recorded"}
    timeline = profile.timeline
    return {
        "samples": len(timeline.at_ns),
        "interval_s": timeline.interval_s,
        "helper_cpu_s": timeline.helper_cpu_s,
        "not_read": timeline.absent,
    }


def _scores(record: PromptRecord) -> dict[str, Any]:
    """Say what the sidecar holds of the scores, and of which text the perplexity is."""
    profile = record.profile
    if profile is None:
        return {"absent": record.profile_absent or "no profile round"}
    text = profile.text
    read = ("name", "sha256", "tokens", "window", "stride")
    of_text = {} if text is None else {"text": {name: getattr(text, name) for name in read}}
    if profile.scores is None:
        return {"absent": profile.scores_absent or "not recorded", **of_text}
    kept = ("positions", "sequences", "width", "vocabulary")
    return {name: getattr(profile.scores, name) for name in kept} | of_text


def _reference(reference: Reference | None) -> dict[str, Any]:
    """Say whose tokens were followed."""
    if reference is None:
        return {}
    told = {
        "name": reference.name,
        "tokens": len(reference.tokens),
        "sha256": hash_ids(reference.tokens),
        "timed": reference.timed,
        "free": len(reference.free) if reference.timed else None,
        "problem": reference.problem,
    }
    return {"reference": _without_none(told)}


def _breakdown(record: PromptRecord) -> dict[str, Any]:
    """Return a typical step of each phase, by role; the sidecar has it by layer."""
    if record.breakdown is None:
        return {"absent": record.breakdown_absent or "not recorded"}
    stored: dict[str, Any] = {"clock": record.breakdown.clock}
    for name, phase in phases(record).items():
        table = _without_none(msgspec.to_builtins(phase))
        stored[name] = {**table, "parts": [_without_none(part) for part in table["parts"]]}
    if record.breakdown.operators is not None:
        stored["operators"] = _operators(record.nodeid, record.breakdown.operators)
    return stored


def _operators(nodeid: str, found: Operators) -> dict[str, Any]:
    """Return the largest operators of each phase, and the name of the trace after that of the run."""
    table = _without_none(msgspec.to_builtins(replace(found, trace=None)))
    for phase in (PREFILL, DECODE):
        if phase in table:
            table[phase]["operators"] = [_without_none(row) for row in table[phase]["operators"]]
    return table | ({} if found.trace is None else {"trace": name_for(nodeid)})


def _under_load(record: PromptRecord) -> dict[str, Any]:
    """Say at which level, and what became of its requests; the sidecar has the stamps of each."""
    of = record.under_load
    if of is None:
        return {}
    told = {
        "level": _without_none(msgspec.to_builtins(of.level)),
        "objectives": _without_none(msgspec.to_builtins(of.objectives)),
        "generator": of.generator,
        "data": of.data,
        "requests": [len(repetition.requests) for repetition in of.repetitions],
        "marks": [warning.kind.value for warning in record.warnings],
        "errors": load.errors(r for repetition in of.repetitions for r in repetition.requests),
    }
    return {"under_load": _without_none(told)}


def _output(record: PromptRecord) -> dict[str, Any]:
    output: dict[str, Any] = _without_none(msgspec.to_builtins(record.output))
    stopped_by = record.rounds[0].trace.stopped_by if record.rounds else None
    if stopped_by is not None:
        output["stopped_by"] = stopped_by.value
    return output


def _rounds(record: PromptRecord) -> dict[str, Any]:
    def disturbed(rounds: tuple[Round, ...]) -> dict[str, list[str]]:
        return {str(number): list(r.disturbed) for number, r in enumerate(rounds) if r.disturbed}

    return {
        "warmup": record.warmup_rounds,
        "timed": len(record.rounds if record.under_load is None else record.under_load.repetitions),
        "profile": record.profile is not None,
        "disturbed": disturbed(record.rounds),
        "repeated": len(record.repeated),
        "resumed": record.resumed,
        **_reported(record.rounds),
    }


def _reported(rounds: tuple[Round, ...]) -> dict[str, Any]:
    """Return what a server counted of each round, where one did."""
    said = [{} if r.trace.reported is None else _without_none(msgspec.to_builtins(r.trace.reported)) for r in rounds]
    return {"reported": said} if any(said) else {}


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is unknown; NaN and infinities are no JSON and no figures either."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
