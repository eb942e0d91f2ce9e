"""A rule about where the time of a step goes: which part of the model has the most to gain."""

from __future__ import annotations

from pytest_infer.analysis.advice.cpu import COMPUTE_BOUND, MEMORY_BOUND
from pytest_infer.analysis.advice.evidence import AdviceRule, Facts, Finding, Severity
from pytest_infer.analysis.breakdown.shares import MOST_DOUBT
from pytest_infer.metrics.breakdown import DECODE, PREFILL, PhaseParts
from pytest_infer.records import Role
from pytest_infer.units import percent

LARGE = 0.3
"""Share of a step from which a role is worth a line."""
ALIKE = 0.2
"""By so much may a step of the breakdown differ from the timed rounds', which ran at another time."""
_OTHERS = "compare with another --infer-dtype or --infer-quantization, and with --infer-compile for less Python"
_TRIED = ("attention", "compile", "dtype", "experts_implementation", "quantization")
_ELSE = "look there first, and compare what you change with --infer-against"
_TRY: dict[str, str] = {
    Role.EXPERTS: "compare with --infer-experts-implementation grouped_mm and batched_mm, and --infer-quantization",
    Role.SCORES: "compare with --infer-attention sdpa and eager",
    Role.HEAD: "compare with another --infer-dtype or --infer-quantization: the head is one multiplication",
}


def slow_role(facts: Facts) -> Finding | None:
    """Most of a step goes to a role that uses little of what the machine can do in that time."""
    ceiling, read = facts.figure("decode_ceiling"), facts.figure("step_bytes")
    rates = {
        DECODE: None if ceiling is None or read is None else ceiling * read,
        PREFILL: facts.gemm_rate(facts.model.dtype),
    }
    longest = PREFILL if (facts.share_of_total("prefill_s") or 0.0) > 0.5 else DECODE
    parts, rate = facts.breakdown.get(longest), rates[longest]
    if parts is None or rate is None or facts.doubts_probe or not _sound(facts, longest, parts):
        return None
    whole = sum(max(0.0, part.seconds) for part in parts.parts)
    low = COMPUTE_BOUND if longest == PREFILL else MEMORY_BOUND
    found = []
    for part in parts.parts:
        work = part.flops if longest == PREFILL else part.read_bytes
        if work and part.seconds >= LARGE * whole and work < low * rate * part.seconds:
            found.append((part.seconds - work / rate, part.role, part.seconds / whole, work / rate / part.seconds))
    if not found:
        return None
    lost, role, share, used = max(found)
    step, limit = ("prefill", "GEMM rate") if longest == PREFILL else ("decode step", "bandwidth")
    return Finding(
        severity=Severity.INFO,
        evidence=f"{role}: {percent(100 * share)} of a {step}, at {percent(100 * used)} of the machine's {limit}",
        suggestion=_TRY.get(role, _OTHERS) if facts.follows(*_TRIED) else _ELSE,
        weight=lost / whole,
    )


def _sound(facts: Facts, phase: str, parts: PhaseParts) -> bool:
    """Return whether the parts are the step, and the step that of timed rounds which nothing disturbed."""
    timed = facts.figure("tpot_s" if phase == DECODE else "ttft_s")
    if facts.counted.numbers or not timed or not parts.adds_up:
        return False
    doubt = 2 * (parts.remainder_error_s or 0.0)
    return doubt <= MOST_DOUBT * parts.step_s and abs(parts.step_s - timed) <= ALIKE * timed


RULES = (
    AdviceRule(
        key="slow_role",
        needs="`breakdown`, `tpot_s` and `decode_ceiling`, or `ttft_s` and `machine.probe.flops` where most of the "
        "time is prefill's",
        threshold="≥ 30 % of a step at less than half of the machine's limit (own choice); silent if rounds were "
        "disturbed, the parts do not add up or cannot be checked to 5 %, or the step is > 20 % off the timed ones",
        what_to_try="what that role can be run with; only a comparison tells",
        find=slow_role,
    ),
)
