"""Whether what is stored of a test can have been measured at all: a gate judges no figure that cannot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from pytest_infer.errors import StorageError
from pytest_infer.metrics import METRICS, Kind, Metric
from pytest_infer.storage.runs import Row, Run
from pytest_infer.storage.schema import Values
from pytest_infer.units import Unit

RESOLUTION_S = 1e-9
"""Of the clock of a run that does not say it: no system's performance counter is finer."""

_SPANS = ("ttft_s", "decode_s", "total_s")
"""Differences of two stamps in every round, which are at least one tick of the clock apart."""
_PER_ROUND = (*_SPANS, "prefill_s", "tpot_s", "itl_p50_s", "itl_p90_s", "itl_p95_s", "itl_p99_s", "itl_max_s")
_SIGNED = {"first_run_extra_s", "rest_bytes", "memory_growth_bytes"}
"""Differences that may be below 0."""
_HELD = {"peak_rss_bytes", "rss_bytes"}
"""What no process is without."""
_ALIKE = 1e-6
"""Sums and medians of the same stamps differ by rounding only."""


def impossible(row: Row) -> str | None:
    """Return why a test's figures cannot have been measured, naming one of them; None where they can."""
    return next(_faults(row), None)


def refuse(run: Run, rows: Iterable[Row] | None = None) -> None:
    """Raise StorageError naming the run, the test and the figure, where one of its rows cannot have been measured."""
    for row in run.rows if rows is None else rows:
        why = impossible(row)
        if why is not None:
            raise StorageError(f"run {run.label}: {row.test}: {why}; measure it again")


def _faults(row: Row) -> Iterator[str]:
    resolution = row.machine.clock_resolution_s or RESOLUTION_S
    if row.timed < 1 and not row.plain:
        yield "it has no timed round"
    for metric in METRICS:
        values = row.metrics.get(metric.key)
        if values is not None and not isinstance(values.value, str):
            yield from _of_figure(metric, values, row, resolution)
    yield from _of_sums(row)


def _of_figure(metric: Metric, values: Values, row: Row, resolution: float) -> Iterator[str]:
    key, unit = metric.key, metric.unit.value
    if values.unit is not None and values.unit != unit:
        yield f"{key} is in {values.unit}, not in {unit}"
    numbers = (float(values.value), *values.rounds)
    bad = next((number for number in numbers if not math.isfinite(number)), None)
    if bad is not None:
        yield f"{key} is {bad}"
        return
    if values.rounds and not _alike(statistics.median(values.rounds), numbers[0]):
        yield f"{key} is {numbers[0]:g} {unit}, and its rounds say {statistics.median(values.rounds):g} {unit}"
    if key in _PER_ROUND and row.timed > 1 and not values.rounds:
        yield f"{key} has no rounds, and {row.timed} were measured"
    least = min(numbers)
    if key in _SPANS and least < resolution * (1 - _ALIKE):
        yield f"{key} is {least:g} s, and the clock tells no less than {resolution:g} s"
    elif (
        metric.kind is Kind.TIMED and key not in _SIGNED and (least < 0 or 0 < least < _least(metric, row, resolution))
    ):
        yield f"{key} is {least:g} {unit}, which the clock cannot tell"
    elif (key in _HELD and least <= 0) or (metric.unit is Unit.BYTES and least < 0 and key not in _SIGNED):
        yield f"{key} is {least:g} B"


def _least(metric: Metric, row: Row, resolution: float) -> float:
    """Return what a time that is a share of a span can be above 0: a step's of all tokens; 0 for a rate."""
    if metric.unit is not Unit.SECONDS:
        return 0.0
    tokens = row.metrics.get("generated_tokens")
    count = 1.0 if tokens is None or isinstance(tokens.value, str) else float(tokens.value)
    # A percentile lies between two gaps, of which one may be 0.
    return resolution / max(100.0, count)


def _of_sums(row: Row) -> Iterator[str]:
    """Yield where parts are longer than the whole, round by round."""
    whole = _numbers(row, "total_s")
    for key in ("ttft_s", "decode_s", "itl_max_s"):
        if _longer(_numbers(row, key), whole):
            yield f"{key} is longer than total_s"
    first, decode = _numbers(row, "ttft_s"), _numbers(row, "decode_s")
    if len(first) == len(decode) and _longer([a + b for a, b in zip(first, decode, strict=True)], whole):
        yield "ttft_s and decode_s together are longer than total_s"
    for key in ("tpot_s", "itl_max_s"):
        if _longer(_numbers(row, key), decode):
            yield f"{key} is longer than decode_s"


def _numbers(row: Row, key: str) -> Sequence[float]:
    values = row.metrics.get(key)
    return () if values is None else values.numbers


def _longer(part: Sequence[float], whole: Sequence[float]) -> bool:
    return len(part) == len(whole) and any(a > b and not _alike(a, b) for a, b in zip(part, whole, strict=True))


def _alike(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_ALIKE)
