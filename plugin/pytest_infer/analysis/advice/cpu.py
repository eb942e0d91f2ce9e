"""Rules about cores, threads and dtypes: what the processor was seen to do, and what it was probed to do."""

from __future__ import annotations

from pytest_infer.analysis.advice.evidence import AdviceRule, Facts, Finding, Severity
from pytest_infer.units import flops, percent, rate, significant, size

LOW, HIGH = 50.0, 90.0
"""Utilisation of the usable cores, percent (the guide: below 50 % is a bottleneck, near 100 % is good)."""
BUSY_THREAD = 0.9
"""Share of its time for which a thread must have run to count as busy."""
ONE_CORE = (0.85, 1.2)
"""Cores used by one thread at work, and others that hardly are."""
WAITED = 0.05
"""Share of its time waiting for a core beyond which threads are in each other's way (own choice)."""
SLOWER = 0.8
"""A dtype below this share of another's GEMM rate is slower beyond the probe's spread."""
READ_BYTES = 2**20
"""Bytes a round from the device: with everything in memory it reads none, to the byte."""
STALLED = 0.01
"""Share of the time stalled, beyond which the disturbance check doubts a round."""
MEMORY_BOUND = 0.5
"""MBU of a kernel that reads as fast as it can: float32 with one token reaches 0.57 where it was measured."""
COMPUTE_BOUND = 0.5
"""MFU of prefill below which something else than multiplying takes most of its time: a faster rate cannot help much."""


def threads_over_cores(facts: Facts) -> Finding | None:
    """More threads than cores: they take turns, and wait for each other at every barrier."""
    threads, cores = facts.threads, facts.usable_cores
    if threads is None or cores is None or not facts.on_cpu or threads <= max(1.0, cores):
        return None
    waited = _waited(facts)
    seen = "" if waited is None else f"; they waited {percent(100 * waited)} of their time for a core"
    return Finding(
        severity=Severity.CRITICAL if waited is not None and waited > WAITED else Severity.WARNING,
        evidence=f"{threads} threads on {cores:g} usable cores{seen}",
        suggestion=_of_threads(facts, max(1, int(cores))),
        weight=threads / cores,
    )


def threads_under_cores(facts: Facts) -> Finding | None:
    """Fewer threads than cores, all of them busy: the rest of the machine could help."""
    threads, cores, used = facts.threads, facts.usable_cores, facts.figure("cores_used")
    if threads is None or cores is None or used is None or not facts.on_cpu:
        return None
    physical = facts.machine.physical_cores
    useful = int(min(cores, physical)) if physical is not None else int(cores)
    if threads >= useful or used < BUSY_THREAD * threads:
        return None
    return Finding(
        severity=Severity.INFO,
        evidence=f"{threads} of {useful} usable cores have a thread, busy {percent(100 * used / threads)} of the time",
        suggestion=f"compare with {_of_threads(facts, useful)}",
        weight=useful / threads,
    )


def crowded_threads(facts: Facts) -> Finding | None:
    """Threads that wait for each other while a neighbour holds a core: OpenMP spins meanwhile."""
    threads, cores, waited = facts.threads, facts.usable_cores, _waited(facts)
    if threads is None or cores is None or waited is None or threads < 2 or threads > cores or waited <= WAITED:
        return None
    return Finding(
        severity=Severity.WARNING,
        evidence=f"{threads} threads on {cores:g} usable cores waited {percent(100 * waited)} of their time for one",
        suggestion=f"stop what else runs; else OMP_WAIT_POLICY=PASSIVE, or {_of_threads(facts, threads - 1)}",
        weight=waited,
    )


def slow_dtype(facts: Facts) -> Finding | None:
    """A dtype that this processor emulates: measured by the probe, not assumed."""
    dtype, own, full = facts.model.dtype, facts.gemm_rate(facts.model.dtype), facts.gemm_rate("float32")
    if own is None or full is None or dtype == "float32" or own >= SLOWER * full or _other_limit(facts):
        return None
    if not facts.follows("dtype"):
        return None
    weights, limit = facts.figure("model_bytes"), facts.machine.memory_limit_bytes
    held = max(weights or 0, facts.figure("peak_rss_bytes") or 0)
    if weights is not None and limit is not None and weights + held > limit:
        return None  # float32 would not fit: the weights once more beside all that there was
    needs = "" if weights is None else f", with weights of {size(2 * weights)} instead of {size(weights)}"
    return Finding(
        severity=Severity.WARNING,
        evidence=f"{dtype} multiplies {significant(full / own, 2)}× slower than float32 here "
        f"({significant(own / 1e9)} and {significant(full / 1e9)} GFLOP/s)",
        suggestion=f"compare with --infer-dtype float32{needs}",
        weight=full / own,
    )


def faster_dtype(facts: Facts) -> Finding | None:
    """A half-size dtype that multiplies faster here, where multiplying is what prefill does, as far as that is told."""
    full = facts.gemm_rate("float32")
    if facts.model.dtype != "float32" or full is None or _other_limit(facts) or not facts.follows("dtype"):
        return None
    known = [(found, dtype) for dtype in ("bfloat16", "float16") if (found := facts.gemm_rate(dtype)) is not None]
    best, name = max(known, default=(0.0, ""))
    if full >= SLOWER * best:
        return None
    mfu, share = facts.figure("mfu"), facts.share_of_total("prefill_s")
    seen = "" if mfu is None else f"; prefill reaches {percent(100 * mfu)} of the latter"
    seen += "" if mfu is None or share is None else f" in {percent(100 * share)} of the time"
    return Finding(
        severity=Severity.INFO,
        evidence=f"large matrices multiply with {flops(best)} in {name} and {flops(full)} in float32 here{seen}",
        suggestion=f"compare with --infer-dtype {name}: only a run tells what a model gains; the output may differ",
        weight=mfu or 0.0,
    )


def _other_limit(facts: Facts) -> bool:
    """Return whether MFU shows that multiplying is not what limits prefill, or cannot be trusted to show that it is."""
    mfu = facts.figure("mfu")
    return facts.holds("mfu") if mfu is None else mfu < COMPUTE_BOUND


def experts_implementation(facts: Facts) -> Finding | None:
    """Experts run one after the other from Python while cores and memory bandwidth are left over."""
    name, cores, used = facts.model.experts_implementation, facts.usable_cores, facts.figure("cores_used")
    routed = facts.figure("expert_selections")
    if name != "eager" or not routed or cores is None or used is None or cores < 2 or not facts.on_cpu:
        return None
    mbu = facts.figure("mbu")
    if used > ONE_CORE[1] or facts.doubts_probe or (mbu is not None and mbu >= MEMORY_BOUND):
        return None
    if not facts.follows("experts_implementation"):
        return None
    return Finding(
        severity=Severity.INFO,
        evidence=f"eager experts, one after the other, used {significant(used)} of {cores:g} usable cores"
        + ("" if mbu is None else f" and {percent(100 * mbu)} of the memory bandwidth"),
        suggestion="compare with --infer-experts-implementation grouped_mm and batched_mm",
        weight=cores / used if used else 0.0,
    )


def stalled_on_io(facts: Facts) -> Finding | None:
    """Cores idle while bytes come from the device: the weights do not stay in memory."""
    used, read = facts.figure("cpu_utilization"), facts.figure("read_bytes")
    if used is None or read is None or used >= LOW or read < READ_BYTES:
        return None
    stalled = facts.share_of_total("pressure_io_s", disturbance=True)
    if stalled is not None and stalled <= STALLED:
        return None
    seen = "" if stalled is None else f", stalled for I/O {percent(100 * stalled)} of the time"
    return Finding(
        severity=Severity.WARNING,
        evidence=f"{percent(used)} of the usable cores used, {size(read)} read from the device in a round{seen}",
        suggestion="free memory so that the weights stay in the page cache, or take a model or dtype with fewer bytes",
        weight=read,
    )


def one_core(facts: Facts) -> Finding | None:
    """One core at work, the others idle: Python, or a kernel that has no threads."""
    threads, cores, used = facts.threads, facts.usable_cores, facts.figure("cores_used")
    if threads is None or cores is None or used is None or threads < 2 or cores < 2 or not facts.on_cpu:
        return None
    if not ONE_CORE[0] <= used <= ONE_CORE[1]:
        return None
    mbu = facts.figure("mbu")
    if facts.doubts_probe or (mbu is not None and mbu >= MEMORY_BOUND):
        return None  # one core can do no more: memory_bound says so
    return Finding(
        severity=Severity.INFO,
        evidence=f"{significant(used)} of {cores:g} usable cores used with {threads} threads"
        + ("" if mbu is None else f", {percent(100 * mbu)} of the memory bandwidth")
        + ": Python, or a kernel without threads (float32 linear layers of one token are such)",
        suggestion=f"compare with {_of_threads(facts, 1)}, which leaves the other cores free"
        + ("; and with --infer-compile for less Python" if facts.follows("compile") else ""),
        weight=cores / used,
    )


def memory_bound(facts: Facts) -> Finding | None:
    """Decode reads near what the memory allows: fewer bytes a step make it faster, more threads do not."""
    mbu, step, most = facts.figure("mbu"), facts.figure("step_bytes"), facts.figure("decode_ceiling")
    if mbu is None or step is None or mbu < MEMORY_BOUND:
        return None
    limit = "" if most is None else f", at most {rate(most)}"
    # The bandwidth is what so many threads read: where cores are left, more may read more.
    all_used = facts.threads is None or facts.usable_cores is None or facts.threads >= int(facts.usable_cores)
    more = "; not more threads" if all_used else ""
    return Finding(
        severity=Severity.INFO,
        evidence=f"decode uses {percent(100 * mbu)} of the probed memory bandwidth ({size(step)} a step{limit})",
        suggestion=f"fewer bytes a step: quantised weights, or fewer or smaller active experts{more}",
        weight=mbu,
    )


def cores_busy(facts: Facts) -> Finding | None:
    """All usable cores at work: bound by computing or by memory bandwidth, not by anything beside."""
    used = facts.figure("cpu_utilization")
    if used is None or used < HIGH:
        return None
    return Finding(severity=Severity.INFO, evidence=f"{percent(used)} of the usable cores used", weight=-used)


def _of_threads(facts: Facts, number: int) -> str:
    """Return how to have so many threads."""
    if facts.follows("threads"):
        return f"--infer-threads {number}"
    return f"{number} thread{'' if number == 1 else 's'}, as the engine lets one set them"


def _waited(facts: Facts) -> float | None:
    """Return the share of its running and waiting time that the process waited for a core."""
    waited, cpu = facts.disturbance("run_queue_wait_s"), facts.disturbance("cpu_s")
    return None if waited is None or cpu is None or waited + cpu <= 0 else waited / (waited + cpu)


RULES = (
    AdviceRule(
        key="threads_over_cores",
        needs="`model.threads`, `machine.usable_cores`; `run_queue_wait_s` for the severity",
        threshold="more threads than usable cores; critical when they waited > 5 % (own choice)",
        what_to_try="as many threads as cores",
        find=threads_over_cores,
    ),
    AdviceRule(
        key="threads_under_cores",
        needs="`model.threads`, `machine.usable_cores`, `cores_used`",
        threshold="fewer threads than usable physical cores, each busy ≥ 90 % of the time (own choice)",
        what_to_try="compare with a thread a core",
        find=threads_under_cores,
    ),
    AdviceRule(
        key="crowded_threads",
        needs="`model.threads`, `run_queue_wait_s`, `cpu_s`",
        threshold="waited > 5 % of the time (a two-thread matmul was 17× slower beside neighbours, measured)",
        what_to_try="an idle machine; passive waiting, or a thread less",
        find=crowded_threads,
    ),
    AdviceRule(
        key="slow_dtype",
        needs="`machine.probe.flops` of the dtype in use and of float32; `mfu` where known",
        threshold="less than 0.8 of float32's GEMM rate, measured by the probe; silent if prefill's MFU < 0.5 (another "
        "limit) or float32 does not fit",
        what_to_try="compare with float32",
        find=slow_dtype,
    ),
    AdviceRule(
        key="faster_dtype",
        needs="`machine.probe.flops` of float32 and of a half-size dtype; `mfu`, `prefill_s` where known",
        threshold="float32 below 0.8 of the other's GEMM rate, measured by the probe; silent if prefill's MFU < 0.5 "
        "(another limit)",
        what_to_try="compare with that dtype (the guide: lower precision)",
        find=faster_dtype,
    ),
    AdviceRule(
        key="experts_implementation",
        needs="`model.experts_implementation`, `model.device`, `expert_selections`, `cores_used`; `mbu` where known",
        threshold="eager on the processor, ≤ 1.2 cores used of 2 or more, MBU < 0.5",
        what_to_try="compare with grouped_mm and batched_mm",
        find=experts_implementation,
    ),
    AdviceRule(
        key="stalled_on_io",
        needs="`cpu_utilization`, `read_bytes`; `pressure_io_s` where known",
        threshold="< 50 % of the usable cores (the guide), ≥ 1 MiB a round from the device, I/O pressure > 1 %",
        what_to_try="memory for the page cache, or fewer bytes",
        find=stalled_on_io,
    ),
    AdviceRule(
        key="one_core",
        needs="`model.threads`, `machine.usable_cores`, `cores_used`; `mbu` where known",
        threshold="0.85 to 1.2 cores used of 2 or more, with 2 threads or more, MBU < 0.5",
        what_to_try="compare with one thread, and with compilation",
        find=one_core,
    ),
    AdviceRule(
        key="memory_bound",
        needs="`mbu`, `step_bytes`",
        threshold="MBU ≥ 0.5 (float32 kernels reach 0.57 of the probed bandwidth, measured)",
        what_to_try="fewer bytes a step",
        find=memory_bound,
    ),
    AdviceRule(
        key="cores_busy",
        needs="`cpu_utilization`",
        threshold="≥ 90 % (the guide: near 100 % is good)",
        what_to_try="nothing: a good sign",
        find=cores_busy,
        sign="cpu_utilization",
    ),
)
