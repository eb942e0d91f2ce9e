"""What a breakdown comes to: the parts of a step with what each must read and multiply, and what is left over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from types import MappingProxyType

from pytest_infer.metrics import roofline, timing
from pytest_infer.metrics.metric import Fact
from pytest_infer.records import ExpertUsage, PhaseTimes, PromptRecord, Role, Work

PREFILL, DECODE = "prefill", "decode"
PHASES = {Fact.PREFILL: PREFILL, Fact.DECODE: DECODE}
"""The phase whose typical step explains a fact; tails and totals are more than that."""
TOKENISE = "tokenise"
"""What comes before the prefill, in a comparison of two commits."""
_CLOSE = 0.02
"""The parts add up if they miss the step by no more than this share of it, beyond what chance does."""
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""How many standard errors chance misses by in a case of twenty: Student's, for 1, 2, … degrees of freedom; then 2."""


def typical(totals: Sequence[float]) -> list[int]:
    """Return the numbers of the steps in the middle half by length, in order: a mean of these has no outliers.

    Unlike medians of parts, means of parts over the same steps add up to the mean of the whole.
    """
    ranked = sorted(range(len(totals)), key=totals.__getitem__)
    edge = len(ranked) // 4
    return sorted(ranked[edge : len(ranked) - edge])


def middle_mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of the middle half by size, 0 of nothing, and its standard error; None for less than two values.

    That of a trimmed mean from its winsorised variance (Tukey and McLaughlin 1963): the values cut off count as the
    outermost kept ones.
    """
    middle = sorted(values[n] for n in typical(values))
    if len(values) < 2:
        return fmean(middle) if middle else 0.0, None
    cut = (len(values) - len(middle)) // 2
    winsorised = [middle[0]] * cut + middle + [middle[-1]] * cut
    return fmean(middle), math.sqrt(variance(winsorised) * len(values)) / len(middle)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePart:
    """One role's part of a step: its self time in seconds, how often it is called, and what it has to do.

    `error_s` is the standard error of its self time, None for a single step. `read_bytes` are those that it must read
    in a decode step, `flops` its operations in a prefill; None where unknown.
    """

    role: str
    seconds: float
    calls: float = 0.0
    error_s: float | None = None
    read_bytes: float | None = None
    flops: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseParts:
    """A typical step of a phase, seconds, without the instrument, and its parts, the largest first.

    `observed` and `bare` steps were run in turns; `step_s` is that of bare ones. `cost_s` is what the instrument took
    of an observed one, which the parts are without. `remainder_s` is what of the step is in no part, below 0 where the
    parts are too long, and `remainder_error_s` its standard error; both None without bare steps.
    """

    observed: int
    bare: int
    step_s: float
    cost_s: float
    remainder_s: float | None = None
    remainder_error_s: float | None = None
    parts: tuple[RolePart, ...] = ()

    @property
    def adds_up(self) -> bool | None:
        """Return whether the parts are the step within 2 %, as far as chance lets one tell; None if nothing tells."""
        if self.remainder_s is None or self.remainder_error_s is None:
            return None
        freedom = self.observed + self.bare - 2
        errors = _STUDENT[freedom - 1] if 1 <= freedom <= len(_STUDENT) else 2.0
        return abs(self.remainder_s) <= _CLOSE * self.step_s + errors * self.remainder_error_s


def phases(record: PromptRecord) -> dict[str, PhaseParts]:
    """Return the phases of a record that was broken down, by name."""
    if record.breakdown is None:
        return {}
    found = {PREFILL: record.breakdown.prefill, DECODE: record.breakdown.decode}
    work = {PREFILL: _prefill_flops(record), DECODE: step_bytes(record)}
    return {name: phase(times, name, work[name]) for name, times in found.items() if times is not None}


def phase(times: PhaseTimes, name: str = DECODE, work: Mapping[str, float] = MappingProxyType({})) -> PhaseParts:
    """Return a typical step of a phase; `work` is what each role must read or multiply in it."""
    seen = typical(times.observed_ns)
    parts = [
        RolePart(
            role=one.role,
            seconds=fmean(one.self_ns[n] for n in seen) / 1e9,
            calls=one.calls,
            error_s=None if (error := middle_mean(one.self_ns)[1]) is None else error / 1e9,
            **{"read_bytes" if name == DECODE else "flops": work.get(one.role)},
        )
        for one in times.roles
    ]
    observed = [times.observed_ns[n] - times.cost_ns[n] for n in seen]
    step, whole = middle_mean(times.bare_ns)[0] if times.bare_ns else fmean(observed), fmean(observed)
    errors = (middle_mean(times.observed_ns)[1], middle_mean(times.bare_ns)[1])
    return PhaseParts(
        observed=len(times.observed_ns),
        bare=len(times.bare_ns),
        step_s=step / 1e9,
        cost_s=fmean(times.cost_ns[n] for n in seen) / 1e9,
        remainder_s=(step - whole) / 1e9 if times.bare_ns else None,
        remainder_error_s=None if None in errors else math.hypot(*(error or 0.0 for error in errors)) / 1e9,
        parts=tuple(sorted(parts, key=lambda part: -part.seconds)),
    )


def step_bytes(record: PromptRecord) -> Mapping[str, float]:
    """Return what `roofline.step` counts, by role; empty where it is unknown."""
    work, profile = record.model.work, record.profile
    if work is None or not work.roles or profile is None or roofline.step(record).value is None:
        return {}
    found: dict[str, float] = {role: own.read_bytes for role, own in work.roles.items()}
    usage = profile.experts
    for number, site in enumerate(usage.sites if usage is not None else ()):
        if usage is not None and site.expert_bytes is not None:
            found[Role.EXPERTS] = found.get(Role.EXPERTS, 0) - site.experts * site.expert_bytes
            found[Role.EXPERTS] += roofline.distinct(usage, number) * site.expert_bytes
    trace = profile.trace
    kept = profile.kv_cache_bytes.value or 0
    keys = roofline.mean_cache_bytes(kept, trace.prompt_tokens, timing.generated_tokens(trace))
    return {**found, Role.SCORES: found.get(Role.SCORES, 0) + keys}


def _prefill_flops(record: PromptRecord) -> Mapping[str, float]:
    """Return what `roofline.prefill_flops` counts, by role; empty where it is unknown."""
    work = record.model.work
    if work is None or not work.roles or roofline.prefill_operations(record).value is None:
        return {}
    usage = record.profile.experts if record.profile is not None else None
    return flops_by_role(work, usage, record.rounds[0].trace.prompt_tokens, record.prompt.limits.sequences)


def flops_by_role(work: Work, usage: ExpertUsage | None, prompt_tokens: int, sequences: int = 1) -> dict[str, float]:
    """Return the operations of a prompt's forward pass by role: `roofline.prefill_flops` is their sum, and known."""
    tokens = sequences * prompt_tokens
    found = {role: 2.0 * (own.parameters or 0) * tokens for role, own in work.roles.items() if role != Role.HEAD}
    found[Role.HEAD] = 2.0 * work.head_parameters * sequences
    for site, counts in zip(usage.sites, usage.prefill, strict=True) if usage is not None else ():
        held = work.expert_parameters[site.name]
        found[Role.EXPERTS] = found.get(Role.EXPERTS, 0) + 2 * held * (
            sum(counts[: site.experts]) / site.experts - tokens
        )
    pairs = (work.pair_flops or 0) * roofline.attended_pairs(prompt_tokens)
    pairs += work.window_pair_flops * roofline.attended_pairs(prompt_tokens, work.window, chunked=work.chunked)
    found[Role.SCORES] = found.get(Role.SCORES, 0) + sequences * pairs
    return {role: flops for role, flops in found.items() if flops}
