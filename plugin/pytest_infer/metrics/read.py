"""Where a metric's values lie in a record: one value per timed round, or a single one for the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_infer.metrics import experts as usage_figures
from pytest_infer.metrics import timing
from pytest_infer.records import (
    Counters,
    ExpertUsage,
    Profile,
    PromptRecord,
    Quality,
    Reading,
    Reported,
    Round,
    TokenTrace,
    absent,
)

MetricValue = Reading | float | str | None
"""What a metric reads: a reading with its source, or a bare value whose source is the table's."""

Read = Callable[[PromptRecord], list[MetricValue]]
_NOT_COUNTED = absent("no counter was read")


@dataclass(frozen=True, slots=True)
class trace:  # noqa: N801 - a function as the others here, which also tells what it reads
    """Read a value from each timed round's trace."""

    of: Callable[[TokenTrace], float | None]

    def __call__(self, record: PromptRecord) -> list[MetricValue]:
        """Return the values."""
        return [self.of(r.trace) for r in record.rounds]


def reported(read: Callable[[Reported], float | None]) -> Read:
    """Read what a server counted from each timed round, or that there is none that did."""

    def value(_record: PromptRecord, r: Round) -> MetricValue:
        said = r.trace.reported
        return absent("no server told") if said is None else read(said)

    return per_round(value)


def output(record: PromptRecord) -> MetricValue:
    """Read the hash of the output, where the rounds of the prompt have one output."""
    return record.output.sha256 if record.output.varied is None else absent(record.output.varied)


def percentile(percent: int) -> Read:
    """Read a percentile of each timed round's inter-token latencies."""
    return trace(lambda trace: timing.percentile(timing.inter_token_latencies_s(trace), percent))


def counter(read: Callable[[Counters], Reading]) -> Read:
    """Read a counter of each timed round, or of each repetition of a load test."""

    def values(record: PromptRecord) -> list[MetricValue]:
        windows = record.rounds if record.under_load is None else record.under_load.repetitions
        return [_NOT_COUNTED if window.counters is None else read(window.counters) for window in windows]

    return values


def once(read: Callable[[PromptRecord], MetricValue]) -> Read:
    """Read one value of the prompt as a whole."""
    return lambda record: [read(record)]


def profile(read: Callable[[Profile], MetricValue]) -> Read:
    """Read one value of the profile round, or why there was none."""

    def value(record: PromptRecord) -> MetricValue:
        if record.profile is None:
            return absent(record.profile_absent or "no profile round")
        return read(record.profile)

    return once(value)


def experts(read: Callable[[ExpertUsage], float | str | None]) -> Read:
    """Read one value of the expert usage, or why it was not recorded."""

    def value(profile: Profile) -> MetricValue:
        if profile.experts is None:
            return absent(profile.experts_absent or "not recorded")
        return read(profile.experts)

    return profile(value)


def derived(value: float, *readings: Reading) -> Reading:
    """Return a value derived from readings: no more exact than the least exact of them, with the sources of all."""
    quality = next((r.quality for r in readings if r.quality is not Quality.EXACT), Quality.EXACT)
    return Reading(value=value, source=", ".join(dict.fromkeys(r.source for r in readings)), quality=quality)


def cores_used(_record: PromptRecord, r: Round) -> Reading:
    """Return CPU time / wall time of a round."""
    cpu = r.counters.cpu_s
    return cpu if cpu.value is None else derived(cpu.value / r.counters.wall_s, cpu)


def client_cores(_record: PromptRecord, r: Round) -> Reading:
    """Return the CPU time of this process / wall time of a round, where another one does the work."""
    cpu = r.counters.client_cpu_s
    return cpu if cpu.value is None else derived(cpu.value / r.counters.wall_s, cpu)


def utilization(record: PromptRecord, r: Round) -> Reading:
    """Return the cores used as a percentage of the usable ones."""
    used = cores_used(record, r)
    return used if used.value is None else derived(100 * used.value / record.machine.usable_cores, used)


def memory_percent(_record: PromptRecord, r: Round) -> Reading:
    """Return resident memory as a percentage of what the process may use."""
    rss, limit = r.counters.rss_bytes, r.counters.memory_limit_bytes
    if rss.value is None or limit.value is None:
        return rss if rss.value is None else limit
    return derived(100 * rss.value / limit.value, rss, limit) if limit.value else absent("the limit reads 0")


def file_backed(_record: PromptRecord, r: Round) -> Reading:
    """Return the pages of files of a round's peak, as they are right after it; shared memory is not of files."""
    file, shared, peak = r.counters.rss_file_bytes, r.counters.rss_shmem_bytes, r.counters.peak_rss_bytes
    if file.value is None or shared.value is None or peak.value is None:
        return next(reading for reading in (file, shared, peak) if reading.value is None)
    value = min(max(0, file.value - shared.value), peak.value)
    # Of whichever process it is: what is left of both lines is the first.
    return Reading(value=value, source=file.source.replace(" + RssShmem", ""), quality=file.quality)


def per_round(read: Callable[[PromptRecord, Round], MetricValue]) -> Read:
    """Read a value from each timed round and the record it belongs to."""
    return lambda record: [read(record, r) for r in record.rounds]


class all_sequences(trace):  # noqa: N801 - as above
    """Read a rate of all sequences of a batch together: that of the trace, which is of one, times their number."""

    def __call__(self, record: PromptRecord) -> list[MetricValue]:
        """Return the values."""
        sequences = record.prompt.limits.sequences
        if sequences == 1:
            return [absent("one sequence at a time: its own rate is the total")] * len(record.rounds)
        return [None if own is None else sequences * own for own in map(self.of, (r.trace for r in record.rounds))]


def rest(record: PromptRecord, r: Round) -> Reading:
    """Return peak minus weights, buffers and cache: activations, the interpreter, libraries."""
    peak = r.counters.peak_rss_bytes
    cache = record.profile.kv_cache_bytes if record.profile is not None else None
    if cache is None or cache.value is None or record.model.parameter_bytes is None:
        return absent(record.model.uncounted or "the engine tells neither its tensors' nor its cache's size")
    if (record.model.device or "cpu") != "cpu":
        return absent(f"the weights are on {record.model.device}, not in this process's memory")
    if peak.value is None:
        return peak
    weights = record.model.parameter_bytes + (record.model.buffer_bytes or 0)
    return derived(peak.value - weights - cache.value, peak, cache)


def model_bytes(record: PromptRecord) -> float | None:
    """Return parameters and buffers, bytes."""
    if record.model.parameter_bytes is None:
        return None
    return record.model.parameter_bytes + (record.model.buffer_bytes or 0)


def hottest(usage: ExpertUsage) -> str:
    """Return the short names of the three experts with the largest shares."""
    return " ".join(usage_figures.label(share) for share in usage_figures.hottest(usage, 3))
