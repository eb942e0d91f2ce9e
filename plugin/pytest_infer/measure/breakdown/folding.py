"""From marks to self times: what each role took in each step, and in each layer."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pytest_infer.measure.breakdown.marks import ENDED, RESUMED, TICKED, Marks, Site
from pytest_infer.metrics.breakdown import middle_mean, typical
from pytest_infer.records import PassParts, PhaseTimes, Role, RoleTimes

Part = tuple[str, int | None]
"""A role and the number of a layer, None outside numbered ones."""
_LOOP: Part = (Role.LOOP, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What marking costs, nanoseconds each time: within what is marked, and around it.

    `known` is False where this says only how the cost is divided.
    """

    hook: tuple[float, float] = (0.5, 0.5)
    span: tuple[float, float] = (0.5, 0.5)
    known: bool = False

    def of(self, site: Site) -> tuple[float, float]:
        """Return what it costs to mark this site."""
        return self.hook if site.hooked else self.span


@dataclass(slots=True, kw_only=True)
class Step:
    """One step: how long it was, and of an observed one the self time of each part, what of it marking cost, and how
    often each came."""

    observed: bool = False
    total_ns: int = 0
    self_ns: defaultdict[Part, float] = field(default_factory=lambda: defaultdict(float))
    cost_ns: defaultdict[Part, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[Part] = field(default_factory=Counter)

    def rename(self, role: str, to: str) -> None:
        """Give the parts of a role another one's name, which no part has yet."""
        for part in [part for part in self.self_ns if part[0] == role]:
            named = (to, part[1])
            self.self_ns[named] = self.self_ns.pop(part)
            self.cost_ns[named] = self.cost_ns.pop(part, 0.0)
            self.calls[named] = self.calls.pop(part, 0)


def steps(marks: Marks, cost: Cost) -> list[Step]:
    """Return the steps that ended."""
    stamps = marks.stamper.ns(marks.stamps)
    sites = [(site.role, site.layer, *cost.of(site)) for site in marks.sites]
    observed = iter(marks.observed)
    found: list[Step] = []
    around: list[Part] = []
    step, begun, last = Step(), 0, 0
    for code, at in zip(marks.codes, stamps, strict=True):
        if code == RESUMED:
            step, begun, last = Step(), at, at
            continue
        part = around[-1] if around else _LOOP
        step.self_ns[part] += at - last
        last = at
        if code >= 0:
            role, layer, within, outside = sites[code]
            inner = (role, part[1] if layer is None else layer)
            around.append(inner)
            step.calls[inner] += 1
            step.cost_ns[part] += outside
            step.cost_ns[inner] += within
        elif code == ENDED and around:  # one that began unseen may end: hooks came while it ran
            around.pop()
        elif code == TICKED:
            step.total_ns, step.observed = at - begun, next(observed)
            found.append(step)
    return found


def phase(found: Iterable[Step], cost: Cost) -> PhaseTimes | None:
    """Return the steps of one phase put together, the cost of marking taken off; None where none was observed."""
    every = list(found)
    observed, bare = [s for s in every if s.observed], [s for s in every if not s.observed]
    if not observed:
        return None
    scale = _scale(observed, bare, known=cost.known)
    for step in observed:
        for part, taken in step.cost_ns.items():
            step.cost_ns[part] = scale * taken
            step.self_ns[part] -= scale * taken
    found_in = {part for step in observed for part in step.self_ns}
    parts = sorted(found_in, key=lambda part: (part[0], -1 if part[1] is None else part[1]))
    roles = dict.fromkeys(role for role, _ in parts)
    middle = [observed[n] for n in typical([s.total_ns for s in observed])]
    return PhaseTimes(
        observed_ns=tuple(s.total_ns for s in observed),
        cost_ns=tuple(round(sum(s.cost_ns.values())) for s in observed),
        bare_ns=tuple(s.total_ns for s in bare),
        roles=tuple(_role(role, [p for p in parts if p[0] == role], observed, middle) for role in roles),
    )


def of_pass(found: Sequence[Step]) -> PassParts:
    """Return all steps of a pass part by part, without what marking cost."""
    parts = list(dict.fromkeys(part for step in found for part in step.self_ns))
    return PassParts(
        parts=tuple(parts),
        self_ns=tuple(tuple(round(step.self_ns[part] - step.cost_ns[part]) for step in found) for part in parts),
    )


def _scale(observed: Sequence[Step], bare: Sequence[Step], *, known: bool) -> float:
    """Return by what to multiply the cost of marking that was measured on idle modules.

    It may be wrong by half, as caches differ from module to module. What observed steps take beyond the bare ones
    beside them is the cost too, as exactly as steps repeat: the mean of both, each weighed by the inverse of its
    variance.
    """
    told = fmean(sum(step.cost_ns.values()) for step in observed)
    more, error = middle_mean([a.total_ns - b.total_ns for a, b in zip(observed, bare, strict=False)])
    if error is None or not told:
        return 1.0 if known else 0.0
    doubt = (told / 2) ** 2 if known else math.inf
    weight = 1.0 if math.isinf(doubt) else doubt / (doubt + error**2)
    return max(0.0, told + weight * (more - told)) / told


def _role(role: str, parts: Sequence[Part], observed: Sequence[Step], middle: Sequence[Step]) -> RoleTimes:
    numbered = [part for part in parts if part[1] is not None]
    return RoleTimes(
        role=role,
        calls=fmean(sum(step.calls[part] for part in parts) for step in observed),
        self_ns=tuple(round(sum(step.self_ns[part] for part in parts)) for step in observed),
        layers=tuple(layer for _, layer in numbered if layer is not None),
        layer_ns=tuple(round(fmean(step.self_ns[part] for step in middle), 1) for part in numbered),
    )
