"""The limit of the machine: what a decode step must read and a prefill must multiply; formulas in docs/roofline.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from pytest_infer import units
from pytest_infer.metrics import timing
from pytest_infer.records import (
    ExpertSite,
    ExpertUsage,
    MachineProbe,
    Profile,
    PromptRecord,
    Quality,
    Reading,
    Round,
    Work,
    absent,
)

# formulas


def step_bytes(dense_bytes: float, expert_reads: Iterable[tuple[float, float]], kv_bytes: float) -> float:
    """Return the bytes that a decode step must read.

    `expert_reads` are (distinct experts read in a step, bytes of one expert) of each site, `dense_bytes` all weights
    except the routed experts', `kv_bytes` the keys and values of the positions before it.
    """
    return dense_bytes + sum(distinct * size for distinct, size in expert_reads) + kv_bytes


def mbu(step_bytes: float, tpot_s: float, bandwidth: float) -> float:
    """Return the model-bandwidth utilisation: the rate at which a step reads what it must / the machine's bytes/s.

    Between 0 and 1 unless the model fits into the caches (Databricks, "LLM Inference Performance Engineering", 2023).
    """
    return step_bytes / (tpot_s * bandwidth)


def ceiling(bandwidth: float, step_bytes: float) -> float:
    """Return the most decode steps per second that the bandwidth (bytes/s) allows."""
    return bandwidth / step_bytes


def mfu(flops: float, prefill_s: float, peak: float) -> float:
    """Return the model-FLOPs utilisation: operations that the model needs / those that `peak` FLOP/s allow.

    Chowdhery et al. 2022 (PaLM), appendix B; here of the forward pass alone.
    """
    return flops / (prefill_s * peak)


def mean_cache_bytes(cache_bytes: float, prompt_tokens: int, generated_tokens: int) -> float:
    """Return the bytes of a KV cache that a decode step reads on average, from those it holds after the last one.

    After n tokens it holds prompt + n - 1 positions, as the last token is not fed back. Step i of the n - 1 reads
    prompt + i positions, on average prompt + n / 2.
    """
    return cache_bytes * (prompt_tokens + generated_tokens / 2) / (prompt_tokens + generated_tokens - 1)


def attended_pairs(tokens: int, window: int | None = None, *, chunked: bool = False) -> int:
    """Return how many (query, key) pairs causal attention has over a text: each position sees itself and those before.

    With a window, itself and the window - 1 before it; of a text in chunks, those of its chunk.
    """
    if chunked and window:
        return tokens // window * attended_pairs(window) + attended_pairs(tokens % window)
    full = min(tokens, window or tokens)
    return full * (full + 1) // 2 + (tokens - full) * full


def prefill_flops(work: Work, usage: ExpertUsage | None, prompt_tokens: int, sequences: int = 1) -> float | None:
    """Return the operations of a prompt's forward pass, 2 for each multiplication with a weight; None if unknown.

    `usage` and the result are of all sequences of a batch, `prompt_tokens` of one.

    Kaplan et al. 2020, section 2.1 (2 N a token, and attention), with attention counted causally, experts by their
    measured selections, and the output head for the last position.
    """
    if work.parameters is None or work.pair_flops is None:
        return None
    multiplied: float = sequences * (work.parameters * prompt_tokens + work.head_parameters)
    for site, counts in zip(usage.sites, usage.prefill, strict=True) if usage is not None else ():
        if site.name not in work.expert_parameters:
            return None
        held = work.expert_parameters[site.name]
        multiplied += held / site.experts * sum(islice(counts, site.experts)) - held * sequences * prompt_tokens
    attention = work.pair_flops * attended_pairs(prompt_tokens)
    attention += work.window_pair_flops * attended_pairs(prompt_tokens, work.window, chunked=work.chunked)
    return 2 * multiplied + sequences * attention


# a record's values


def step(record: PromptRecord) -> Reading:
    """Return the bytes that a decode step of the profile round had to read, the mean over its steps."""
    work, profile = record.model.work, record.profile
    if work is None:
        return absent(record.model.uncounted or "the engine does not tell which weights a forward pass reads")
    if profile is None:
        return absent(record.profile_absent or "no profile round")
    refusal = _refusal(record, profile, work)
    if refusal is not None:
        return absent(refusal)
    cache = profile.kv_cache_bytes
    if cache.value is None:
        return cache
    usage = profile.experts
    sites: Sequence[ExpertSite] = usage.sites if usage is not None else ()
    reads = [(distinct(usage, number), site.expert_bytes) for number, site in enumerate(sites)] if usage else []
    known = [(distinct, size) for distinct, size in reads if size is not None]
    dense_bytes = work.read_bytes - sum(site.experts * (site.expert_bytes or 0) for site in sites)
    if len(known) < len(reads) or dense_bytes < 0:
        return absent("the size of one expert is not known")
    trace = profile.trace
    kv_bytes = mean_cache_bytes(cache.value, trace.prompt_tokens, timing.generated_tokens(trace))
    source = "modules, experts of the profile round, " + cache.source
    return Reading(value=step_bytes(dense_bytes, known, kv_bytes), source=source, quality=cache.quality)


def _refusal(record: PromptRecord, profile: Profile, work: Work) -> str | None:
    """Return why the bytes of a step are unknown."""
    sizes = profile.trace.tick_sizes
    reasons = (
        (len(sizes) < 2, "all tokens came at once: there is no decode step"),
        (max(sizes, default=0) > 1, "ticks bring several tokens: how often the weights were read for them is not told"),
        (not profile.trace.prompt_tokens, _NO_PROMPT),
        (record.model.generation.get("use_cache") is False, "without a KV cache every step runs the whole text"),
    )
    found = next((reason for holds, reason in reasons if holds), None)
    if found is not None or (not work.expert_parameters and profile.experts is None):
        return found
    if record.prompt.limits.sequences > 1:
        return "how many distinct experts a step of a batch reads is not counted"
    return _unusable(profile)


def _unusable(profile: Profile) -> str | None:
    """Return why the expert usage of a model that routes cannot be used."""
    if profile.experts is None:
        return profile.experts_absent or "not recorded"
    return None if profile.experts.check == "passed" else "the expert selections do not add up"


def distinct(usage: ExpertUsage, number: int) -> float:
    """Return the experts with weights that a step reads at one site: one token selects no expert twice.

    Where every expert is computed, whatever is selected, these are all experts.
    """
    site = usage.sites[number]
    if site.computes_all:
        return site.experts
    return sum(islice(usage.decode[number], site.experts)) / usage.decode_tokens


def bandwidth(record: PromptRecord) -> Reading:
    """Return the probed bandwidth of the model's device, bytes/s; none where a round shows that there is more."""
    probe, seen = _probe(record), read_rate(record)
    if probe is None:
        return absent(_not_probed(record))
    if seen is not None and seen > probe.read_bandwidth:
        told = f"a round read {units.bandwidth(seen)}, more than the probe's {units.bandwidth(probe.read_bandwidth)}"
        return absent(f"{told}: {'the weights fit into the caches' if fits_caches(record) else _SLOWED}")
    return Reading(value=probe.read_bandwidth, source="the machine's probe", quality=Quality.SAMPLED)


_SLOWED = "something else slowed the probe"
_NO_PROMPT = "neither the engine nor a server tells how many tokens the prompt has"


def read_rate(record: PromptRecord) -> float | None:
    """Return the bytes per second that the fastest round must have read; None where that is not known."""
    read = step(record)
    times = [found for r in record.rounds if (found := timing.tpot_s(r.trace))]
    return read.value / min(times) if read.value is not None and times else None


def fits_caches(record: PromptRecord) -> bool:
    """Return whether what a step reads fits into the machine's last caches, so that memory is not its limit."""
    read, probe = step(record), _probe(record)
    return read.value is not None and probe is not None and read.value <= max(probe.caches.values(), default=0)


def multiply_rate(record: PromptRecord) -> float | None:
    """Return the operations per second of the fastest prefill; None where they are not known."""
    flops = prefill_operations(record)
    times = [found for r in record.rounds if (found := timing.prefill_s(r.trace))]
    return flops.value / min(times) if flops.value is not None and times else None


NOT_PROBED = "the machine was not probed: by --infer-no-probe, in a comparison of two commits, or without torch"


def _not_probed(record: PromptRecord) -> str:
    if record.model.split:
        return f"the weights are on several devices ({record.model.device}), which have no limit in common"
    if record.model.threads is None:
        return "the engine does not tell with how many threads it runs (ModelInfo.threads)"
    if record.machine.probe_absent is not None:
        return f"the probe of the machine is not used: {record.machine.probe_absent}"
    return NOT_PROBED


def _probe(record: PromptRecord) -> MachineProbe | None:
    probe = record.machine.probe
    return probe if probe is not None and probe.device == (record.model.device or "cpu") else None


def utilization(record: PromptRecord, r: Round) -> Reading:
    """Return a round's MBU."""
    step_s, read, rate = timing.tpot_s(r.trace), step(record), bandwidth(record)
    if read.value is None or rate.value is None:
        return read if read.value is None else rate
    if not step_s:
        return absent("all tokens came at once: there is no second tick")
    return _sampled(mbu(read.value, step_s, rate.value), read)


def decode_ceiling(record: PromptRecord) -> Reading:
    """Return the most tokens per second that the probed bandwidth allows for this prompt."""
    read, rate = step(record), bandwidth(record)
    if read.value is None or rate.value is None:
        return read if read.value is None else rate
    return _sampled(ceiling(rate.value, read.value), read)


def _sampled(value: float, read: Reading) -> Reading:
    return Reading(value=value, source=f"{read.source}, the machine's probe", quality=Quality.SAMPLED)


def prefill_utilization(record: PromptRecord, r: Round) -> Reading:
    """Return a round's MFU of prefill; none where a round shows that the machine multiplies faster than its probe."""
    flops, probe, prefill_s = prefill_operations(record), _probe(record), timing.prefill_s(r.trace)
    peak = None if probe is None else probe.flops.get(record.model.dtype or "")
    if flops.value is None:
        return flops
    if peak is None:
        return absent(_not_probed(record) if probe is None else f"the probe has no rate for {record.model.dtype}")
    if not prefill_s:
        return absent("no token was generated")
    seen = multiply_rate(record)
    if seen is not None and seen > peak:
        return absent(f"a round did {units.flops(seen)}, more than the probe's {units.flops(peak)}: {_SLOWED}")
    return Reading(value=mfu(flops.value, prefill_s, peak), source=flops.source, quality=Quality.SAMPLED)


def prefill_operations(record: PromptRecord) -> Reading:
    """Return the operations that the prompt needs."""
    work, profile = record.model.work, record.profile
    if work is None:
        return absent(record.model.uncounted or "the engine does not tell what a forward pass multiplies")
    if work.expert_parameters and (profile is None or _unusable(profile)):
        return absent((record.profile_absent if profile is None else _unusable(profile)) or "no profile round")
    usage = profile.experts if profile is not None else None
    tokens = record.rounds[0].trace.prompt_tokens
    if not tokens:
        return absent(_NO_PROMPT)
    flops = prefill_flops(work, usage, tokens, record.prompt.limits.sequences)
    if flops is None:
        return absent("what the attention or packed weights multiply is not told")
    return Reading(value=flops, source="modules, config, the machine's probe")
