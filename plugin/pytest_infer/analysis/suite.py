"""A suite as a whole: means and deviations over its prompts, and what they used of the machine's limit."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_infer.analysis import alike
from pytest_infer.metrics import METRICS, Summary
from pytest_infer.metrics.result import Result
from pytest_infer.records import Average, MachineProbe, ModelInfo, SuiteAverages
from pytest_infer.storage.schema import Model, Values

_ALL = tuple(metric.key for metric in METRICS)


def average(values: Iterable[float | None]) -> Average | None:
    """Return the average of the known values, None for none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    stdev = statistics.stdev(known) if len(known) > 1 else None
    return Average(mean=statistics.fmean(known), stdev=stdev, prompts=len(known))


def averages(suite: Iterable[Mapping[str, Summary | Values]], keys: Iterable[str]) -> dict[str, Average]:
    """Return the average of each metric over the prompts that have it; a metric that none has is left out."""
    rows = list(suite)
    found = {key: average(_number(row.get(key)) for row in rows) for key in keys}
    return {key: of for key, of in found.items() if of is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTest:
    """What a test adds to its suite: its configuration and model, its figures and the other side's by metric key."""

    config: Mapping[str, str]
    model: ModelInfo | Model
    figures: Mapping[str, Summary | Values]
    against: Mapping[str, Summary | Values] = field(default_factory=dict)


def of_tests(tests: Iterable[OneTest]) -> tuple[SuiteAverages, ...]:
    """Return the averages of every metric that is a number, of each model and configuration in the tests' order."""
    return tuple(
        SuiteAverages(
            config=dict(found[0].config),
            model=alike.named(found[0].model),
            metrics=averages((test.figures for test in found), _ALL),
            against=averages((test.against for test in found), _ALL),
        )
        for found in alike.groups(tests)
    )


def of_results(
    results: Iterable[Result], against: Mapping[str, Mapping[str, Values]] | None = None
) -> tuple[SuiteAverages, ...]:
    """Return the averages of what a run shows: of its own side, and of the other's figures, by test, if there are."""
    others = against or {}
    return of_tests(
        OneTest(
            config=result.config,
            model=result.model,
            figures=result.figures,
            against=others.get(result.nodeid, {}),
        )
        for result in results
        if result.under_load is None
    )


def of_run(
    results: Iterable[Result],
    stored: Sequence[SuiteAverages],
    against: Mapping[str, Mapping[str, Values]] | None = None,
) -> tuple[SuiteAverages, ...]:
    """Return the averages that a run stored; worked out where it stored none, or an older version mixed its models."""
    own = of_results(results, against)
    models = {tuple(one.config.items()): one.model for one in own}
    if len(stored) != len(own):
        return own
    return tuple(replace(one, model=one.model or models.get(tuple(one.config.items()), {})) for one in stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedLimit:
    """How much of the machine's limit a suite's prompts used: the least and the most of `mbu` and `mfu`.

    `step_bytes` and `ceiling` are the prompts' medians: what a decode step reads, and how many tokens per second that
    allows.
    """

    mbu: tuple[float, float]
    step_bytes: float
    ceiling: float
    mfu: tuple[float, float] | None
    probe: MachineProbe | None


def used_limit(results: Iterable[Result]) -> UsedLimit | None:
    """Return what the prompts used of the limit, None where none tells it."""
    # Above 1 it is the probe that was slowed; an older version stored that nevertheless.
    known = [result for result in results if 0 <= (_number(result.figures["mbu"]) or -1) <= 1]
    if not known:
        return None

    def values(key: str) -> list[float]:
        return [value for result in known if (value := _number(result.figures[key])) is not None]

    multiplied = [value for value in values("mfu") if value <= 1]
    return UsedLimit(
        mbu=(min(values("mbu")), max(values("mbu"))),
        step_bytes=statistics.median(values("step_bytes")),
        ceiling=statistics.median(values("decode_ceiling")),
        mfu=(min(multiplied), max(multiplied)) if multiplied else None,
        probe=known[0].machine.probe,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakParts:
    """The highest peak of a suite's prompts, bytes, and what of it the kernel can drop: pages of mapped files.

    `weights` are those of the model's own files; None where that is not told.
    """

    peak: float
    file_backed: float
    weights: float | None


def peak_parts(results: Iterable[Result]) -> PeakParts | None:
    """Return the parts of the highest peak, None where none tells them."""
    told = [
        PeakParts(peak=peak, file_backed=files, weights=_number(result.figures.get("mapped_weights_bytes")))
        for result in results
        if (peak := _number(result.figures.get("peak_rss_bytes"))) is not None
        and (files := _number(result.figures.get("peak_file_bytes"))) is not None
    ]
    return max(told, key=lambda parts: parts.peak, default=None)


def _number(figure: Summary | Values | None) -> float | None:
    return float(figure.value) if figure is not None and isinstance(figure.value, int | float) else None
