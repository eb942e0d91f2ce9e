"""What a sweep recommends: the best configuration for each goal, those no other beats, and how they compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from pytest_infer.analysis.sweep import axes, distances
from pytest_infer.analysis.sweep.distances import Distance
from pytest_infer.analysis.sweep.ratios import CONFIDENCE, Key, Ratio, Samples, mean_log, of_memory, ratio_of
from pytest_infer.metrics import Direction, by_key
from pytest_infer.records import Drift
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Values

DECODE, TOTAL_DECODE, TTFT, PEAK = "decode_throughput", "total_decode_throughput", "ttft_s", "peak_rss_bytes"

_Config = tuple[tuple[str, str], ...]
_Between = Callable[[str, int, int], "Ratio | None"]
"""Metric, the number of a configuration, and that of the one to divide by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeValue:
    """One metric of a configuration: the geometric mean over the prompts, and its ratio to the first configuration."""

    value: float
    ratio: Ratio | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationSummary:
    """One configuration of a sweep. `figures` are by metric key, of the prompts that it shares with the first one.

    `distance` is how far its predictions are from the configuration whose tokens it followed, where that is known.
    """

    config: dict[str, str]
    label: str
    options: str
    workloads: int
    figures: dict[str, RelativeValue]
    pareto: bool = False
    distance: Distance | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is best by one metric: the number of a configuration, and of those that cannot be told from it."""

    metric: str
    best: int
    ties: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What a sweep says; the first configuration is the one that the others are compared with.

    `left_out` are configurations that share no measured prompt with the first one. `options` set the best for the first
    goal, which is decode where that was measured.
    `loads` are how many models were loaded, and `drift` what each of their first tests had become when it was measured
    again after the last, by metric: intervals between different loads hold it. `models` are those whose tests are
    together in one configuration, as tests with models of their own are; none where each has one.
    """

    configurations: tuple[ConfigurationSummary, ...]
    goals: tuple[Goal, ...]
    options: str
    confidence: float = CONFIDENCE
    left_out: tuple[str, ...] = ()
    loads: int = 1
    drift: dict[str, tuple[float, ...]] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    @property
    def undecided(self) -> bool:
        """Return whether the best for the first goal cannot be told from the first configuration."""
        return bool(self.goals) and self.goals[0].best != 0 and 0 in self.goals[0].ties

    def goal(self, metric: str) -> Goal | None:
        """Return the goal of that metric, if it was measured."""
        return next((goal for goal in self.goals if goal.metric == metric), None)


def recommend(rows: Iterable[Row]) -> Recommendation | None:
    """Compare the configurations of a sweep; None where fewer than two were measured.

    Rows of the same prompt and the same workload (prompt and generated length) are matched. A ratio is the geometric
    mean over them of the ratio of the rounds' geometric means. Its interval is Student's t on logarithms, with the
    larger of two errors: of the rounds within each prompt (Welch 1947, combined by Satterthwaite's degrees of
    freedom), and, from three prompts on, of the prompts' ratios among each other, which holds what drifted from prompt
    to prompt. Between configurations of different loads, which are measured minutes apart, comes the root mean square
    of the changes that the loads' first tests showed when measured again, with as many degrees of freedom as loads
    were. A configuration is in the Pareto set unless another beats it: behind in none of decode, TTFT, peak memory and
    fidelity, whether distinctly or not, and distinctly better in one or ahead in all.
    """
    grouped: dict[_Config, list[Row]] = {}
    drifts: list[Drift] = []
    for row in rows:
        if row.config:
            grouped.setdefault(tuple(axes.choices(row.config).items()), []).append(row)
            drifts += [row.drift] if row.drift is not None else []
    if len(grouped) < 2:
        return None
    decode = TOTAL_DECODE if any(TOTAL_DECODE in row.metrics for found in grouped.values() for row in found) else DECODE
    metrics = (decode, TTFT, PEAK)
    measured: dict[_Config, dict[str, Samples]] = {}
    for config, found in grouped.items():
        samples = {metric: _samples(found, metric) for metric in metrics}
        if any(samples.values()):
            measured[config] = samples
    if len(measured) < 2:
        return None
    first = next(iter(measured.values()))
    kept = {config: samples for config, samples in measured.items() if _shared(first, samples)}
    if len(kept) < 2:
        return None
    left_out = tuple(axes.label(dict(config)) for config in grouped if config not in kept)
    apart = distances.of([grouped[config] for config in kept])
    made = _recommendation(kept, metrics, _drift(drifts, metrics), apart, left_out)
    models = [{row.model.name for row in grouped[config]} - {None} for config in kept]
    together = {str(name) for names in models if len(names) > 1 for name in names}
    return replace(made, models=tuple(sorted(together)))


def _recommendation(
    kept: Mapping[_Config, Mapping[str, Samples]],
    metrics: Sequence[str],
    drift: Mapping[str, tuple[float, ...]],
    apart: Sequence[Distance | None],
    left_out: tuple[str, ...],
) -> Recommendation:
    samples = list(kept.values())
    loads = [tuple(axes.loaded(dict(config)).items()) for config in kept]

    def ratio(metric: str, number: int, of: int) -> Ratio | None:
        before, after = samples[of][metric], samples[number][metric]
        if metric == PEAK and number != of:
            return of_memory(ratio_of(before, after), before)
        return ratio_of(before, after, () if loads[number] == loads[of] else drift.get(metric, ()))

    goals = tuple(goal for metric in metrics if (goal := _goal(metric, samples, ratio)) is not None)
    front = _pareto(metrics, ratio, apart)
    front |= {goal.best for goal in goals} if not front else set()
    configurations = tuple(
        ConfigurationSummary(
            config=dict(config),
            label=axes.label(dict(config)),
            options=axes.options(dict(config)),
            workloads=len(_shared(samples[0], found)),
            figures=_figures(samples, number, metrics, ratio),
            pareto=number in front,
            distance=apart[number],
        )
        for number, (config, found) in enumerate(kept.items())
    )
    best = configurations[goals[0].best].options if goals else ""
    return Recommendation(
        configurations=configurations,
        goals=goals,
        options=best,
        left_out=left_out,
        loads=len(set(loads)),
        drift=dict(drift),
    )


def _samples(rows: Iterable[Row], metric: str) -> Samples:
    """Return the rounds' values of each workload, those that are above 0."""
    found: dict[Key, tuple[float, ...]] = {}
    for row in rows:
        values = _values(row, metric)
        if values is not None and values.numbers and min(values.numbers) > 0:
            found[_workload(row)] = values.numbers
    return found


def _values(row: Row, metric: str) -> Values | None:
    # A single sequence has no total of its own.
    return row.metrics.get(metric) or (row.metrics.get(DECODE) if metric == TOTAL_DECODE else None)


def _workload(row: Row) -> Key:
    """Return what two configurations must share to be compared: the test without its configuration, and its lengths."""
    test = axes.without(row.test, row.config)
    if test == row.test:
        test = row.test.partition("[")[0]
    return (test, row.name, *(f"{axis}={value}" for axis, value in axes.workload(row.config).items()))


def _shared(first: Mapping[str, Samples], other: Mapping[str, Samples]) -> set[Key]:
    return {key for metric in first for key in first[metric].keys() & other[metric].keys()}


def _drift(drifts: Iterable[Drift], metrics: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Return by metric what the loads' first tests became; memory does not drift."""
    found = {}
    for metric in metrics:
        # All sequences of a batch drift as one does.
        key = DECODE if metric == TOTAL_DECODE else metric
        ratios = tuple(ratio for drift in drifts if (ratio := drift.ratios.get(key)) is not None)
        if ratios:
            found[metric] = ratios
    return found


def _figures(
    samples: Sequence[Mapping[str, Samples]], number: int, metrics: Iterable[str], between: _Between
) -> dict[str, RelativeValue]:
    figures = {}
    first, own = samples[0], samples[number]
    for metric in metrics:
        logs = [mean_log(values) for key, values in own[metric].items() if key in first[metric]]
        if logs:
            figures[metric] = RelativeValue(value=math.exp(fmean(logs)), ratio=between(metric, number, 0))
    return figures


def _better(metric: str, ratio: float) -> bool:
    return ratio > 1 if by_key(metric).direction is Direction.HIGHER else ratio < 1


def _goal(metric: str, samples: Sequence[Mapping[str, Samples]], between: _Between) -> Goal | None:
    """Return the configuration that is better than every one before it, over the prompts that the two share.

    Each has the figure in a prompt of the first one, which all are compared with; None where the first one has none.
    """
    numbers = [n for n, found in enumerate(samples) if found[metric].keys() & samples[0][metric].keys()]
    if not numbers:
        return None
    best = 0
    for number in numbers:
        ratio = between(metric, number, best)
        if ratio is not None and _better(metric, ratio.value):
            best = number
    others = ((number, between(metric, number, best)) for number in numbers if number != best)
    ties = tuple(number for number, ratio in others if ratio is not None and not ratio.distinct)
    return Goal(metric=metric, best=best, ties=ties)


def _pareto(metrics: Sequence[str], between: _Between, apart: Sequence[Distance | None]) -> set[int]:
    def beats(one: int, other: int) -> bool:
        better, everywhere = False, 0
        for metric in metrics:
            ratio = between(metric, one, other)
            if ratio is None:
                continue
            ahead = _better(metric, ratio.value)
            # Peaks that are not distinct differ by what libraries took; a rate that is lower may well be lower.
            if not ahead and (ratio.distinct if metric == PEAK else ratio.value != 1):
                return False
            better |= ahead and ratio.distinct
            everywhere += ahead
        better |= everywhere > 1 and everywhere == sum(between(metric, one, other) is not None for metric in metrics)
        ours, theirs = apart[one], apart[other]
        if ours is None or theirs is None or not ours.comparable(theirs):
            return better
        return not ours.worse(theirs) and (better or ours.distinct(theirs))

    numbers = range(len(apart))
    return {n for n in numbers if not any(beats(other, n) for other in numbers if other != n)}
