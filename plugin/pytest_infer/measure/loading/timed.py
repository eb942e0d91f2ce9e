"""Loading the model: cold if requested, timed, with the kernel's counters and what was cached before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from pytest_infer.engines.base import Engine
from pytest_infer.measure import answers
from pytest_infer.measure.counters.elsewhere.loading import loaded
from pytest_infer.measure.counters.kernel_files import growth
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.loading import page_cache
from pytest_infer.metrics import loading, timing
from pytest_infer.records import CacheState, Loading, ModelInfo, Observed, Reading


def measured(engine: Engine, system: SystemCounters, *, cold: bool, note: Callable[[str], None]) -> ModelInfo:
    """Load the engine's model and return its description with the load's measurements.

    `cold`: drop the page cache of the model's files first, and report it if they stay. Errors for a wrong model
    are raised before anything is dropped. Of a model in other processes the engine itself tells `load_s`, where it
    started them.
    """
    engine.check()
    engine.fetch()
    files = engine.files()
    problem = page_cache.drop(files) if cold else None
    cached = page_cache.cached(files)
    if cold and loading.state(cached) is not CacheState.COLD:
        note(f"! --infer-cold-load: {problem or loading.stayed_cached(cached)}")
    before = system.begin()
    started = time.perf_counter_ns()
    info = engine.load()
    load_s = (time.perf_counter_ns() - started) / timing.NS
    counters = system.end(before)
    info = answers.model(info, "Engine.load")
    # As str(tensor.dtype) has it; a name that is not torch's stays as it is.
    info = replace(info, dtype=None if info.dtype is None else info.dtype.removeprefix("torch."))
    observed = engine.observed()
    if observed is not None:
        return _elsewhere(info, observed, cached)
    read = counters.read_bytes
    return replace(
        info,
        load_s=load_s,
        load_read_bytes=None if read.value is None else int(read.value),
        load=Loading(
            cached=cached,
            read_bytes=read,
            rss_anon_bytes=counters.rss_anon_bytes,
            rss_file_bytes=counters.rss_file_bytes,
            peak_rss_bytes=counters.peak_rss_bytes,
            anon_growth_bytes=growth(counters.rss_anon_before_bytes, counters.rss_anon_bytes),
        ),
    )


def _elsewhere(info: ModelInfo, observed: Observed, cached: Reading) -> ModelInfo:
    """Return the description with the load of the processes that were started for it, which the engine timed."""
    load = loaded(observed, cached)
    read = None if load is None else load.read_bytes.value
    return replace(info, load_read_bytes=None if read is None else int(read), load=load)


def weights_sha256(engine: Engine) -> str | None:
    """Return the engine's hash of the weights, after a load that was timed.

    A file is hashed once in its life, which reads all of it. What the load left unread must be read by the first
    run, so pages that hashing brought in are dropped again; pages that the load has mapped stay.
    """
    files = engine.files()
    before = page_cache.cached(files)
    found = answers.words(engine.weights_sha256(), "Engine.weights_sha256")
    after = page_cache.cached(files)
    grew = before.value is not None and after.value is not None and after.value > before.value
    if grew and loading.state(before) is not CacheState.WARM:
        page_cache.drop(files)
    return found
