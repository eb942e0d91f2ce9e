"""What each role takes of a step, over the tests of one model, and how much of the machine's limit it uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_infer.metrics.breakdown import DECODE, PREFILL, PhaseParts, RolePart
from pytest_infer.metrics.result import Result
from pytest_infer.records import OUTSIDE

MOST_DOUBT = 0.05
"""Where steps scatter so that two standard errors of what the parts miss are more than this share, nothing is shown."""

_TIMED = {DECODE: ("tpot_s", "itl_p50_s"), PREFILL: ("ttft_s",)}
"""What a step of the timed rounds took: of several tokens as the gap says, with a few long ones as their mean does."""
_FAR = 2.0
"""Steps so many times as long as those of the timed rounds, or as short, are others: the machine did something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleShare:
    """A role's mean self time of a step, seconds, its share of all parts, and what share of the limit it uses.

    The limit is the machine's read bandwidth in decode and its GEMM rate in prefill. `used` is None where it is
    unknown, and where it would be above 1: such weights come from the caches.
    """

    role: str
    seconds: float
    share: float
    used: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Far:
    """A test whose step is far from that of its timed rounds, seconds: the furthest of so many tests."""

    step_s: float
    timed_s: float
    tests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseShares:
    """The mean step of a phase, seconds, and its parts, the largest first: those of the model, and those outside it.

    `cost` and `missed` are shares of the step: what hooks took, which the parts are without, and by how much the parts
    miss that of the `judged` tests; `adds_up` says whether chance explains what goes beyond 2 %. Where it does not, in
    `off` of these tests, they are missed by that much in the worst of them. `doubt` is two standard errors of what they
    miss, as a share. All are None where no bare step tells.
    """

    phase: str
    tests: int
    step_s: float
    model: tuple[RoleShare, ...]
    outside: tuple[RoleShare, ...]
    cost: float
    missed: float | None
    adds_up: bool | None
    doubt: float | None = None
    judged: int = 0
    off: int = 0
    far: Far | None = None

    @property
    def checked(self) -> bool:
        """Return whether steps repeat well enough for `missed` to say something."""
        return self.adds_up is False or (self.doubt is not None and self.doubt <= MOST_DOUBT)


def of(results: Sequence[Result], phase: str) -> PhaseShares | None:
    """Return the shares in a phase of the tests that have it; None for none, or if they are of several models."""
    found = [(result, result.breakdown[phase]) for result in results if phase in result.breakdown]
    if not found or len({result.model.name for result, _ in found}) > 1:
        return None
    steps = [parts for _, parts in found]
    step_s = fmean(parts.step_s for parts in steps)
    every = _roles(found, phase)
    judged = [parts for parts in steps if parts.adds_up is not None and parts.step_s > 0]
    off = [abs(parts.remainder_s or 0.0) / parts.step_s for parts in judged if not parts.adds_up]
    # Of their own mean step: those that are not judged may be far longer.
    judged_s = fmean(parts.step_s for parts in judged) if judged else 0.0
    missed = abs(fmean(parts.remainder_s or 0.0 for parts in judged)) / judged_s if judged else None
    errors = [parts.remainder_error_s or 0.0 for parts in judged]
    return PhaseShares(
        phase=phase,
        tests=len(found),
        step_s=step_s,
        model=tuple(one for one in every if one.role not in OUTSIDE),
        outside=tuple(one for one in every if one.role in OUTSIDE),
        cost=fmean(parts.cost_s for parts in steps) / step_s if step_s else 0.0,
        missed=max(off, default=missed),
        adds_up=not off if judged else None,
        doubt=2 * math.hypot(*errors) / len(errors) / judged_s if judged else None,
        judged=len(judged),
        off=len(off),
        far=_far(found, phase),
    )


def _far(found: Sequence[tuple[Result, PhaseParts]], phase: str) -> Far | None:
    """Return the test whose step is furthest from its timed rounds; None where none is far from them."""
    pairs = []
    for result, parts in found:
        timed = [value for key in _TIMED[phase] if (value := _value(result, key))]
        nearest = min(timed, key=lambda one: abs(math.log(max(parts.step_s, 1e-9) / one)), default=parts.step_s)
        pairs += [] if parts.step_s / _FAR <= nearest <= _FAR * parts.step_s else [(parts.step_s, nearest)]
    if not pairs:
        return None
    step_s, timed_s = max(pairs, key=lambda pair: max(pair) / max(min(pair), 1e-9))
    return Far(step_s=step_s, timed_s=timed_s, tests=len(pairs))


def _roles(found: Sequence[tuple[Result, PhaseParts]], phase: str) -> list[RoleShare]:
    parts: dict[str, list[tuple[Result, RolePart]]] = {}
    for result, of_test in found:
        for part in of_test.parts:
            parts.setdefault(part.role, []).append((result, part))
    seconds = {role: sum(max(0.0, part.seconds) for _, part in those) / len(found) for role, those in parts.items()}
    whole = sum(seconds.values())
    ranked = sorted(parts, key=lambda role: -seconds[role])
    return [
        RoleShare(
            role=role,
            seconds=seconds[role],
            share=seconds[role] / whole if whole else 0.0,
            used=_used(parts[role], phase),
        )
        for role in ranked
    ]


def _used(parts: Iterable[tuple[Result, RolePart]], phase: str) -> float | None:
    """Return the work that a role did / what the machine could have done in that time; None where it is unknown."""
    done = possible = 0.0
    for result, part in parts:
        work = part.read_bytes if phase == DECODE else part.flops
        limit = _bandwidth(result) if phase == DECODE else _gemm_rate(result)
        if work is None or limit is None:
            return None
        done += work
        possible += limit * part.seconds
    return done / possible if 0 < done <= possible else None


def _bandwidth(result: Result) -> float | None:
    """Return the bytes per second that the test was held against; None where they are not known."""
    ceiling, read = _value(result, "decode_ceiling"), _value(result, "step_bytes")
    return None if ceiling is None or read is None else ceiling * read


def _gemm_rate(result: Result) -> float | None:
    probe = result.machine.probe
    known = probe is not None and _value(result, "mfu") is not None
    return probe.flops.get(result.model.dtype or "") if probe is not None and known else None


def _value(result: Result, key: str) -> float | None:
    value = result.figures[key].value
    return float(value) if isinstance(value, int | float) else None
