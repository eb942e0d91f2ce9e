"""Rules about memory and about the speed that a person notices."""

from __future__ import annotations

from pytest_infer.analysis.advice.evidence import AdviceRule, Facts, Finding, Severity
from pytest_infer.units import percent, rate, seconds, size

SLOW, GOOD_ON_CPU, GOOD = 5.0, 15.0, 20.0
"""Decode rates of the guide, tok/s: needs work, good on a CPU, good for interactive use."""
GOOD_TTFT_S = 2.0
"""The guide's limit of a good time to first token."""
ROOM, FULL = 80.0, 90.0
"""The guide's percentages of memory: good below, risk of swapping above."""
LARGE, COPIED = 0.25, 0.5
"""Shares: of the peak that mapped weights must be to be worth a line, and of the weights that is a copy of them."""
STALLED = 0.01
"""Share of the time stalled for memory, beyond which the disturbance check doubts a round."""


def swapping(facts: Facts) -> Finding | None:
    """Part of the process lies in swap."""
    swapped, faults = facts.figure("swap_bytes"), facts.figure("major_faults")
    if not swapped:
        return None
    read = bool(faults)
    seen = f", {faults:g} faults waited for a device in a round" if read else ""
    return Finding(
        severity=Severity.CRITICAL if read else Severity.WARNING,
        evidence=f"{size(swapped)} of the process are swapped out{seen}",
        suggestion="stop what else needs memory, or take a smaller model or dtype, then measure again",
        weight=swapped,
    )


def memory_pressure(facts: Facts) -> Finding | None:
    """Tasks stalled because memory had to be made free first."""
    stalled = facts.share_of_total("pressure_memory_s", disturbance=True)
    if stalled is None or stalled <= STALLED:
        return None
    return Finding(
        severity=Severity.WARNING,
        evidence=f"some task was stalled for memory {percent(100 * stalled)} of the time",
        suggestion="stop what else needs memory, raise the container's limit, or take a smaller model or dtype",
        weight=stalled,
    )


def memory_full(facts: Facts) -> Finding | None:
    """The process fills what it may use, or everyone together fills the machine."""
    own, whole = facts.figure("memory_percent"), facts.figure("system_memory_percent")
    if max(own or 0.0, whole or 0.0) <= FULL:
        return None
    mine = own is not None and own > FULL
    evidence = (
        f"{percent(own or 0.0)} of the memory that this process may use is taken by it{_evictable(facts)}"
        if mine
        else f"{percent(whole or 0.0)} of the machine's memory is in use"
    )
    if mine and (kept := _kept_percent(facts, own or 0.0)) is not None and kept <= FULL:
        return Finding(
            severity=Severity.INFO,
            evidence=f"{evidence}: without them {percent(kept)}",
            suggestion="watch major_faults: what is dropped and used again is read from the disk",
            weight=own or 0.0,
        )
    cache, rss = facts.figure("kv_cache_bytes"), facts.figure("rss_bytes")
    large = mine and cache is not None and rss is not None and cache > rss / 10
    suggestion = "a smaller model or dtype" if mine else "stop what else needs memory"
    if large:
        suggestion += f", or a shorter text: the KV cache takes {size(cache or 0.0)}"
    return Finding(
        severity=Severity.WARNING, evidence=evidence, suggestion=suggestion, weight=max(own or 0.0, whole or 0.0)
    )


def _evictable(facts: Facts) -> str:
    files = facts.figure("peak_file_bytes")
    return "" if files is None else f", {size(files)} of that pages of mapped files, which the kernel can drop"


def _kept_percent(facts: Facts, own: float) -> float | None:
    """Return the percentage that is left of the process's own when the kernel has dropped all pages of files."""
    files, rss = facts.figure("peak_file_bytes"), facts.figure("rss_bytes")
    return None if files is None or not rss else own * max(0.0, 1 - files / rss)


def mapped_copy(facts: Facts) -> Finding | None:
    """The model's files stay mapped and resident beside a copy of the weights."""
    peak, files, own = (facts.figure(key) for key in ("peak_rss_bytes", "peak_file_bytes", "mapped_weights_bytes"))
    weights, copied = facts.figure("model_bytes"), facts.figure("loaded_anon_bytes")
    if peak is None or files is None or own is None or weights is None or copied is None:
        return None
    # What the kernel cannot drop (a file in shared memory) is not to be left out of any plan.
    own = min(own, files)
    if own < peak * LARGE or own < weights * COPIED or copied < weights * COPIED:
        return None
    return Finding(
        severity=Severity.INFO,
        evidence=f"the peak of {size(peak)} counts weights twice: {size(own)} of the model's mapped files are resident "
        f"beside the {size(copied)} that the load copied, for a model of {size(weights)}",
        suggestion=f"plan for {size(peak - own)}: when memory is short the kernel drops the files' pages",
        weight=own,
    )


def slow_decode(facts: Facts) -> Finding | None:
    """Slower than one reads."""
    speed = facts.figure("decode_throughput")
    if speed is None or speed >= SLOW:
        return None
    most = facts.figure("decode_ceiling")
    if most is not None:
        limit = f"; the memory allows {rate(most)}"
        suggestion = (
            "the memory is too slow for these weights: a smaller or quantised model, or another machine"
            if most < SLOW
            else "the memory allows more: see the other advice for what holds it back"
        )
    else:
        limit, suggestion = "", "a smaller model, or an accelerator"
        if facts.machine.probe is None and facts.machine.probe_absent is None:
            suggestion += "; let the probe run to see the memory's limit"
    return Finding(
        severity=Severity.WARNING, evidence=f"decode {rate(speed)}{limit}", suggestion=suggestion, weight=-speed
    )


def slow_first_token(facts: Facts) -> Finding | None:
    """A wait before anything is seen."""
    ttft, tokens = facts.figure("ttft_s"), facts.figure("prompt_tokens")
    if ttft is None or ttft < GOOD_TTFT_S:
        return None
    mfu, speed = facts.figure("mfu"), facts.figure("prefill_throughput")
    seen = "" if tokens is None else f" for {tokens:g} prompt tokens"
    seen += "" if speed is None else f" at {rate(speed)}"
    seen += "" if mfu is None else f", {percent(100 * mfu)} of the GEMM rate"
    return Finding(
        severity=Severity.WARNING,
        evidence=f"time to first token {seconds(ttft)}{seen}",
        suggestion="shorter prompts, or keep the KV cache of a common beginning",
        weight=ttft,
    )


def idle_accelerator(facts: Facts) -> Finding | None:
    """A slow figure on the processor, while the machine has an accelerator."""
    names, ttft, speed = facts.machine.accelerators, facts.figure("ttft_s"), facts.figure("decode_throughput")
    if not names or not facts.on_cpu or not facts.follows("device"):
        return None
    slow = [f"time to first token {seconds(ttft)}"] if ttft is not None and ttft >= GOOD_TTFT_S else []
    slow += [f"decode {rate(speed)}"] if speed is not None and speed < SLOW else []
    if not slow:
        return None
    return Finding(
        severity=Severity.INFO,
        evidence=f"{' and '.join(slow)} on the processor; {', '.join(names)} is not used",
        suggestion="compare with --infer-device (cuda, mps, …)",
    )


def good_decode(facts: Facts) -> Finding | None:
    """Fast enough to read along."""
    speed = facts.figure("decode_throughput")
    wanted = GOOD_ON_CPU if facts.on_cpu else GOOD
    if speed is None or speed < wanted:
        return None
    what = "good for interactive use" if speed >= GOOD else "good on a processor"
    return Finding(severity=Severity.INFO, evidence=f"decode {rate(speed)}: {what}", weight=-speed)


def short_first_token(facts: Facts) -> Finding | None:
    """Something is seen at once."""
    ttft = facts.figure("ttft_s")
    if ttft is None or ttft >= GOOD_TTFT_S:
        return None
    return Finding(severity=Severity.INFO, evidence=f"time to first token {seconds(ttft)}", weight=ttft)


def memory_room(facts: Facts) -> Finding | None:
    """Memory to spare, for the process and for the machine."""
    own, whole = facts.figure("memory_percent"), facts.figure("system_memory_percent")
    if own is None or own >= ROOM or (whole is not None and whole >= ROOM):
        return None
    evidence = f"{percent(own)} of the memory that this process may use"
    return Finding(severity=Severity.INFO, evidence=evidence, weight=own)


RULES = (
    AdviceRule(
        key="swapping",
        needs="`swap_bytes`; `major_faults` for the severity",
        threshold="any; critical with major faults in a round",
        what_to_try="free memory; a smaller model or dtype",
        find=swapping,
    ),
    AdviceRule(
        key="memory_pressure",
        needs="`pressure_memory_s`, `total_s`",
        threshold="> 1 % of the time (system counters, disturbance limit)",
        what_to_try="free memory; a higher limit; a smaller model or dtype",
        find=memory_pressure,
    ),
    AdviceRule(
        key="memory_full",
        needs="`memory_percent` or `system_memory_percent`; `kv_cache_bytes`, `rss_bytes`, `peak_file_bytes` if known",
        threshold="> 90 % (the guide: risk of swapping); only a remark if ≤ 90 % without pages of mapped files",
        what_to_try="a smaller model or dtype; a shorter text if the KV cache is > 10 %",
        find=memory_full,
    ),
    AdviceRule(
        key="mapped_copy",
        needs="`peak_rss_bytes`, `peak_file_bytes`, `mapped_weights_bytes`, `loaded_anon_bytes`, `model_bytes`",
        threshold="mapped weights ≥ a quarter of the peak and ≥ half of the model; anonymous memory of ≥ half of the "
        "model that the load added (own choice)",
        what_to_try="nothing; plan memory without the pages that the kernel can drop",
        find=mapped_copy,
    ),
    AdviceRule(
        key="slow_decode",
        needs="`decode_throughput`; `decode_ceiling` where known",
        threshold="< 5 tok/s (the guide: needs optimisation or a GPU)",
        what_to_try="a smaller or quantised model where the memory is the limit; else what the other rules say",
        find=slow_decode,
    ),
    AdviceRule(
        key="slow_first_token",
        needs="`ttft_s`; `prompt_tokens`, `mfu` where known",
        threshold="≥ 2 s (the guide)",
        what_to_try="shorter prompts; a kept KV cache",
        find=slow_first_token,
    ),
    AdviceRule(
        key="idle_accelerator",
        needs="`machine.accelerators`, `model.device`, `ttft_s` or `decode_throughput`",
        threshold="on the processor, TTFT ≥ 2 s or decode < 5 tok/s (the guide)",
        what_to_try="compare with the accelerator (the guide: GPU for prefill)",
        find=idle_accelerator,
    ),
    AdviceRule(
        key="good_decode",
        needs="`decode_throughput`",
        threshold="≥ 15 tok/s on a CPU, ≥ 20 tok/s elsewhere (the guide)",
        what_to_try="nothing: a good sign",
        find=good_decode,
        sign="decode_throughput",
    ),
    AdviceRule(
        key="short_first_token",
        needs="`ttft_s`",
        threshold="< 2 s (the guide)",
        what_to_try="nothing: a good sign",
        find=short_first_token,
        sign="ttft_s",
    ),
    AdviceRule(
        key="memory_room",
        needs="`memory_percent`; `system_memory_percent` where known",
        threshold="each < 80 % (the guide)",
        what_to_try="nothing: a good sign",
        find=memory_room,
        sign="memory_percent",
    ),
)
