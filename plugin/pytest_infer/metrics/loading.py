"""Metrics of loading the model, and the extra time of its first run."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from pytest_infer.metrics import timing
from pytest_infer.records import CacheState, Loading, PromptRecord, Reading, Round, absent
from pytest_infer.units import percent

COLD_BELOW, WARM_ABOVE = 0.01, 0.99
"""Shares of the files' pages in the page cache: below the one a load is cold, above the other warm."""

_NOT_LOADED = absent("the run did not load the model itself")


def state(cached: Reading) -> CacheState | None:
    """Return the state of a load with that share of cached pages; None where the share is not known."""
    if cached.value is None:
        return None
    if cached.value < COLD_BELOW:
        return CacheState.COLD
    return CacheState.WARM if cached.value > WARM_ABOVE else CacheState.MIXED


def stayed_cached(cached: Reading) -> str:
    """Return the line for files whose pages are still cached after dropping them, or whose state is unknown."""
    if cached.value is None:
        return f"whether the load was cold is not known: {cached.reason}"
    return (
        f"the load was not cold, {percent(100 * cached.value)} of the model's files stayed in the page cache: another "
        "process maps them, or they lie in a file system in memory"
    )


def reading(read: Callable[[Loading], Reading]) -> Callable[[PromptRecord], Reading]:
    """Read a value of the load, or why there is none."""
    return lambda record: _NOT_LOADED if record.model.load is None else read(record.model.load)


def cache(record: PromptRecord) -> str | Reading:
    """Return "cold", "warm" or "mixed"."""
    load = record.model.load
    if load is None:
        return _NOT_LOADED
    found = state(load.cached)
    return load.cached if found is None else found.value


def cached_percent(load: Loading) -> Reading:
    """Return the share of cached pages as a percentage."""
    value, source = load.cached.value, load.cached.source
    return load.cached if value is None else Reading(value=100 * value, source=source)


def first_run_extra(record: PromptRecord) -> Reading | float:
    """Return the first warm-up's total minus the rounds' median total, seconds; noise can make it negative."""
    first = _first(record)
    if isinstance(first, Reading):
        return first
    lengths = {timing.generated_tokens(r.trace) for r in (first, *record.rounds)}
    if len(lengths) > 1:
        return absent("the first run and the rounds did not generate equally many tokens")
    totals = [timing.total_s(r.trace) for r in (first, *record.rounds)]
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return absent("no token was generated")
    return known[0] - statistics.median(known[1:])


def first_run_read(record: PromptRecord) -> Reading:
    """Return what the first warm-up read from the device, bytes."""
    first = _first(record)
    return first if isinstance(first, Reading) else first.counters.read_bytes


def _first(record: PromptRecord) -> Round | Reading:
    if record.first_run is not None:
        return record.first_run
    if not record.warmup_rounds:
        return absent("there was no warm-up round, so the first run is among the timed ones")
    return absent("this version of pytest-infer did not keep the first warm-up round")
