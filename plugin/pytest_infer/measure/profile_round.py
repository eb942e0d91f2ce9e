"""The one round that carries instruments: expert counts, scores, logits that are not finite, memory over time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pytest_infer import untrusted
from pytest_infer.engines.base import Engine
from pytest_infer.errors import ExpertCaptureError
from pytest_infer.measure import answers, logits
from pytest_infer.measure.counters import memory
from pytest_infer.measure.counters.kernel_files import growth
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.timeline.recorder import TimelineSampler
from pytest_infer.records import (
    ExpertUsage,
    Profile,
    Reading,
    Round,
    Scores,
    TokenTrace,
    absent,
)

if TYPE_CHECKING:
    import torch

    from pytest_infer.measure.experts.recorder import ExpertRecorder


def profile_round(
    engine: Engine,
    run: Callable[[], Round],
    system: SystemCounters,
    *,
    prompt_tokens: int,
    sequences: int,
    expected: TokenTrace,
    experts: bool,
    trace: bool = False,
    timeline: TimelineSampler | None = None,
    full: Path | None = None,
) -> Profile:
    """Let `run` run the prompt once more with a trimmed heap, hooks on the experts and a process that samples.

    The prompt has so many tokens, in so many sequences.
    Scores are kept in what the engine prepares before the counters are read: they are no part of the memory measured.
    """
    recorder, experts_absent = _recorder(engine) if experts else (None, "switched off with --infer-experts=off")
    one = sequences == 1  # a trace is of one sequence
    engine.reset()
    if system.observed is None:
        memory.trim_heap()
    engine.keep_scores(keep=True, full=full)
    try:
        with ExitStack() as instruments:
            if recorder is not None:
                try:
                    instruments.enter_context(recorder.recording(prompt_tokens=prompt_tokens, trace=trace and one))
                except Exception as error:  # noqa: BLE001 - of whatever the model's modules are
                    recorder, experts_absent = None, _told(error)
            seen = instruments.enter_context(logits.watching(engine.logits_module(), _no_experts(engine)))
            window = None if timeline is None else instruments.enter_context(timeline.sampling())
            raw = run()
        cache_bytes = _cache_bytes(engine)
        scores, scores_absent = _scores(engine)
    finally:
        # Rounds that follow are timed ones, of the next test.
        engine.keep_scores(keep=False)
    pss, uss = system.footprint()
    usage = None
    if recorder is not None:
        usage, experts_absent = _usage(recorder, raw.trace, sequences)
    return Profile(
        trace=raw.trace,
        counters=raw.counters,
        memory_growth_bytes=growth(raw.counters.rss_before_bytes, raw.counters.peak_rss_bytes),
        pss_bytes=pss,
        uss_bytes=uss,
        kv_cache_bytes=cache_bytes,
        tokens_equal=engine.varied() is not None or raw.trace.said == expected.said,
        experts=usage,
        experts_absent=experts_absent,
        timeline=None if window is None else window.timeline,
        nonfinite_logits=seen.reading(),
        mapped_weights_bytes=system.mapped(engine.files()),
        passes=seen.passes,
        timeline_absent="switched off with --infer-timeline=off" if window is None else window.absent,
        scores=scores,
        scores_absent=scores_absent,
    )


def _cache_bytes(engine: Engine) -> Reading:
    try:
        size = None if (told := engine.cache_bytes()) is None else int(told)
    except Exception as error:  # noqa: BLE001 - of whatever a model keeps there
        return absent(_told(error), "engine")
    if size is None:
        return absent("the engine keeps no cache that can be counted")
    return Reading(value=size, source="engine")


def _scores(engine: Engine) -> tuple[Scores | None, str | None]:
    try:
        found = engine.scores()
        return found, None if found is not None else answers.words(engine.scores_absent(), "Engine.scores_absent")
    except Exception as error:  # noqa: BLE001 - as above
        return None, _told(error)


def _no_experts(engine: Engine) -> str:
    try:
        return answers.words(engine.experts_absent(), "Engine.experts_absent") or "the engine does not say why"
    except Exception as error:  # noqa: BLE001 - as above
        return _told(error)


def _told(error: Exception) -> str:
    """Return what an instrument's failure says: one of our own is a reason by itself."""
    return str(error) if isinstance(error, ExpertCaptureError) else untrusted.failure(error)


def _recorder(engine: Engine) -> tuple[ExpertRecorder | None, str | None]:
    """Return a recorder for the engine's model, or None and why there is none."""
    try:
        module = engine.experts_module()
        if module is None:
            return None, _no_experts(engine)
        # Imported late: the only part of the loop that needs torch.
        from pytest_infer.measure.experts.recorder import ExpertRecorder  # noqa: PLC0415

        recorder = ExpertRecorder(cast("torch.nn.Module", module))
    # An instrument that cannot be attached marks the record; it does not fail the round.
    except Exception as error:  # noqa: BLE001
        return None, _told(error)
    return (recorder, None) if recorder.sites else (None, "the model is dense: it routes to no experts")


def _usage(recorder: ExpertRecorder, trace: TokenTrace, sequences: int) -> tuple[ExpertUsage | None, str | None]:
    """Return the recorded usage, checked against the clock's own token numbers, or None and why there is none."""
    try:
        usage = recorder.usage(
            prompt_tokens=sequences * trace.prompt_tokens,
            generated_tokens=sequences * sum(trace.tick_sizes),
            sequences=sequences,
        )
    except Exception as error:  # noqa: BLE001 - as above
        return None, _told(error)
    return usage, None
