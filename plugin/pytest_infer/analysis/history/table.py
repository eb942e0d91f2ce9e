"""Stored runs as one flat table: a row a figure (long), a test (wide), an average of the suite, or a part of a step."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_infer.analysis import alike
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.metrics.breakdown import PhaseParts
from pytest_infer.records import SuiteAverages
from pytest_infer.storage.runs import Row, Run
from pytest_infer.storage.schema import Values
from pytest_infer.units import Unit

RUN = ("run", "file", "time", "commit", "branch", "dirty", "gate")
TEST = ("model", "dtype", "device", "threads", "cpu", "test", "prompt", "group", "tags")
AVERAGE = ("metric", "unit", "better", "mean", "stdev", "n", "against_mean", "against_stdev", "against_n")
PART = ("phase", "role", "seconds", "error_s", "share", "calls", "read_bytes", "flops")
MODEL = {field: "model" if field == "name" else field for field in alike.NAMES}
"""The columns of what tells a model from others, by its fields."""
CONFIG = "config."
"""Begins the columns of what was swept over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the table is laid out: figures or rounds, long or wide, of these metrics and of tests that hold `keyword`."""

    wide: bool = False
    rounds: bool = False
    keyword: str | None = None
    metrics: tuple[Metric, ...] = field(default=METRICS)


def columns(runs: Sequence[Run], shape: Shape) -> tuple[str, ...]:
    """Return the columns in their order; all but those of swept options are the same for any runs."""
    axes = {axis for run in runs for row in _rows(run, shape) for axis in row.config}
    about = (*RUN, *TEST, *(f"{CONFIG}{axis}" for axis in sorted(axes)))
    if shape.wide:
        counted = ("round", "disturbed") if shape.rounds else ("n",)
        return (*about, *counted, *(metric.key for metric in shape.metrics))
    if shape.rounds:
        return (*about, "metric", "unit", "better", "round", "disturbed", "value", "quality")
    return (*about, "metric", "unit", "better", "value", "text", "mean", "stdev", "n", "quality")


def table(runs: Iterable[Run], shape: Shape) -> Iterator[dict[str, Any]]:
    """Yield the rows; a metric that a test does not have has no row in the long form, and no cell in the wide one.

    Values are in the metric's unit. `n` is how many rounds `value`, their median, is of, 1 for what is measured once a
    prompt; `round` counts from 0 and is None for the latter.
    """
    make = {(False, False): _figures, (False, True): _rounds, (True, False): _test, (True, True): _wide_rounds}[
        shape.wide, shape.rounds
    ]
    for run in runs:
        for row in _rows(run, shape):
            about = {**_of_run(run), **_of_test(row)}
            for cells in make(row, shape.metrics):
                yield {**about, **cells}


def _rows(run: Run, shape: Shape) -> Iterator[Row]:
    return (row for row in run.passing() if shape.keyword is None or shape.keyword in row.test)


def _of_run(run: Run) -> dict[str, Any]:
    found = (
        run.number or run.path.name,
        str(run.path),
        run.time,
        run.commit,
        run.branch,
        run.dirty,
        run.gate.result if run.gate is not None else None,
    )
    return dict(zip(RUN, found, strict=True))


def _of_test(row: Row) -> dict[str, Any]:
    found = (
        row.model.name,
        row.model.dtype,
        row.model.device,
        row.model.threads,
        row.machine.cpu,
        row.test,
        row.name,
        row.prompt.group,
        row.tags,
    )
    about = dict(zip(TEST, found, strict=True))
    return {**about, **{f"{CONFIG}{axis}": value for axis, value in row.config.items()}}


def _named(metric: Metric) -> dict[str, Any]:
    return {"metric": metric.key, "unit": metric.unit.value, "better": metric.direction.value}


def _known(row: Row, metrics: Iterable[Metric]) -> Iterator[tuple[Metric, Values]]:
    return ((metric, row.metrics[metric.key]) for metric in metrics if metric.key in row.metrics)


def _figures(row: Row, metrics: Iterable[Metric]) -> Iterator[dict[str, Any]]:
    for metric, values in _known(row, metrics):
        numbers = values.numbers
        yield {
            **_named(metric),
            "value": None if isinstance(values.value, str) else values.value,
            "text": values.value if isinstance(values.value, str) else None,
            "mean": statistics.fmean(numbers) if numbers else None,
            "stdev": statistics.stdev(numbers) if len(numbers) > 1 else None,
            "n": max(1, len(numbers)),
            "quality": values.quality,
        }


def _rounds(row: Row, metrics: Iterable[Metric]) -> Iterator[dict[str, Any]]:
    for metric, values in _known(row, metrics):
        for number, value in enumerate(values.numbers):
            timed = bool(values.rounds)
            yield {
                **_named(metric),
                "round": number if timed else None,
                "disturbed": number in row.disturbed if timed else None,
                "value": value,
                "quality": values.quality,
            }


def _test(row: Row, metrics: Iterable[Metric]) -> Iterator[dict[str, Any]]:
    known = list(_known(row, metrics))
    most = max((len(values.numbers) for _, values in known), default=0)
    yield {"n": max(1, most), **{metric.key: values.value for metric, values in known}}


def _wide_rounds(row: Row, metrics: Iterable[Metric]) -> Iterator[dict[str, Any]]:
    """Yield a row a round; what is measured once a prompt stands in each of them."""
    known = list(_known(row, metrics))
    for number in range(max((len(values.numbers) for _, values in known), default=0)):
        figures = {
            metric.key: values.rounds[number] if number < len(values.rounds) else values.value
            for metric, values in known
            if number < len(values.rounds) or not values.rounds
        }
        yield {"round": number, "disturbed": number in row.disturbed, **figures}


def suite_columns(suites: Sequence[tuple[Run, Sequence[SuiteAverages]]]) -> tuple[str, ...]:
    """Return the columns of `suite_table`."""
    axes = {axis for _, found in suites for averages in found for axis in averages.config}
    return (*RUN, *MODEL.values(), *(f"{CONFIG}{axis}" for axis in sorted(axes)), *AVERAGE)


def suite_table(
    suites: Iterable[tuple[Run, Sequence[SuiteAverages]]], metrics: Iterable[Metric]
) -> Iterator[dict[str, Any]]:
    """Yield a row a run, model, configuration and metric: the prompts' mean, their sample deviation, how many they are.

    Those of the other side, where the run compared two, stand in the same row.
    """
    wanted = tuple(metrics)
    for run, found in suites:
        for averages in found:
            about = _of_run(run) | {column: averages.model.get(field) for field, column in MODEL.items()}
            about |= {f"{CONFIG}{axis}": value for axis, value in averages.config.items()}
            for metric in wanted:
                if (own := averages.metrics.get(metric.key)) is not None:
                    cells = {"mean": own.mean, "stdev": own.stdev, "n": own.prompts}
                    other = averages.against.get(metric.key)
                    if other is not None:
                        cells |= {"against_mean": other.mean, "against_stdev": other.stdev, "against_n": other.prompts}
                    yield {**about, **_named(metric), **cells}


def parts_columns(runs: Iterable[Run]) -> tuple[str, ...]:
    """Return the columns of `parts_table`."""
    axes = {axis for run in runs for row in run.passing() for axis in row.config}
    return (*RUN, *TEST, *(f"{CONFIG}{axis}" for axis in sorted(axes)), *PART)


def parts_table(run: Run, shape: Shape, taken: Mapping[str, Mapping[str, PhaseParts]]) -> Iterator[dict[str, Any]]:
    """Yield a row a test, phase and role, the largest first; `taken` are the steps of each test, by phase."""
    for row in _rows(run, shape):
        for phase, found in taken.get(row.test, {}).items():
            whole = sum(part.seconds for part in found.parts)
            for part in found.parts:
                cells = {name: getattr(part, name) for name in PART if hasattr(part, name)}
                share = part.seconds / whole if whole else None
                yield {**_of_run(run), **_of_test(row), "phase": phase, "share": share, **cells}


def is_text(column: str) -> bool:
    """Return whether a column of the wide form holds text."""
    return any(metric.key == column and metric.unit is Unit.TEXT for metric in METRICS)
