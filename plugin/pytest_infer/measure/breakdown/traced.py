"""From a trace of torch's profiler to operators and memory: what ran in each step and role, and what was allocated."""

from __future__ import annotations

import gzip
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec

from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.records import Operators, OperatorTimes, PhaseOperators, Role
from pytest_infer.units import size

BOUNDARY = "pytest-infer: token"
"""The range that marks where the first step begins and where each ends."""
MOST_ROWS = 30
"""So many operators are kept of a phase, those with the largest self time."""
MOST_TRACE_BYTES = 2**25
_MOST_TENSORS = 4
_KERNELS = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_STEPS = {"ph": "M", "name": "thread_name", "tid": 0, "args": {"name": "steps of the generation"}}


class _Args(msgspec.Struct):
    """What is read of an event's arguments; each may be of any type in an event of another kind."""

    launched_by: Any = msgspec.field(default=None, name="External id")
    dims: Any = msgspec.field(default=None, name="Input Dims")
    size: Any = msgspec.field(default=0, name="Bytes")
    address: Any = msgspec.field(default=None, name="Addr")
    total: Any = msgspec.field(default=0, name="Total Allocated")
    device: Any = msgspec.field(default=None, name="Device Type")


class _Event(msgspec.Struct):
    """An event of a Chrome trace; times in microseconds."""

    name: str = ""
    ph: str = ""
    cat: str = ""
    ts: float = 0.0
    dur: float = 0.0
    pid: Any = 0
    tid: Any = 0
    args: _Args = msgspec.field(default_factory=_Args)

    @property
    def end(self) -> float:
        return self.ts + self.dur


Peaks = dict[str, tuple[int, dict[str, int]]]
"""By phase: the most bytes at one moment, and those of each role."""
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call of an operator, in a step counted from 0; microseconds."""

    step: int
    role: str
    name: str
    shapes: Shapes
    self_us: float
    device_us: float


def read(trace: bytes, roles: Mapping[str, str], *, accelerator: bool, prefill: bool = True) -> Operators:
    """Return what a Chrome trace of torch's profiler says; `roles` are those of its ranges, by their names.

    `prefill` says whether the first step is that. What is returned holds the trace, with the steps drawn in and without
    the names of this machine and its files. Raises msgspec.MsgspecError for what is no trace.
    """
    whole = msgspec.json.decode(trace, type=dict[str, msgspec.Raw])
    events = msgspec.json.decode(whole["traceEvents"], type=list[_Event])
    # Ranges of the host alone: an accelerator may repeat them on its own track, at its own times.
    tokens = sorted((e for e in events if e.name == BOUNDARY and e.cat == "user_annotation"), key=lambda e: e.ts)
    ends = [event.end for event in tokens]
    phases = [DECODE] * (len(ends) - 1)
    if prefill and phases:
        phases[0] = PREFILL
    calls = [call for call in _calls(events, ends, roles) if 0 <= call.step < len(phases)]
    if not calls:
        return Operators(absent="no operator of torch ran in this thread")
    peaks, why = _peaks(events, ends, phases, roles, accelerator=accelerator)
    drawn = gzip.compress(_drawn(whole, tokens, phases))
    small = len(drawn) <= MOST_TRACE_BYTES
    return Operators(
        prefill=_phase(calls, PREFILL, phases, peaks),
        decode=_phase(calls, DECODE, phases, peaks),
        peaks_absent=why,
        trace=drawn if small else None,
        trace_absent=None if small else f"it has {size(len(drawn))}, and at most {size(MOST_TRACE_BYTES)} are kept",
    )


def _drawn(whole: Mapping[str, msgspec.Raw], tokens: Sequence[_Event], phases: Sequence[str]) -> bytes:
    """Return the trace with a track of its own for the steps."""
    pid = tokens[0].pid
    names = [f"decode step {phases[: n + 1].count(DECODE)}" if p == DECODE else p for n, p in enumerate(phases)]
    steps = [
        {"ph": "X", "cat": "step", "name": name, "pid": pid, "tid": 0, "ts": before.end, "dur": after.ts - before.end}
        for name, (before, after) in zip(names, pairwise(tokens), strict=True)
    ]
    more = msgspec.json.encode([_STEPS | {"pid": pid, "ts": tokens[0].end}, *steps])
    events = bytes(whole["traceEvents"]).rstrip().removesuffix(b"]").rstrip() + b",\n" + more[1:]
    kept = {key: held for key, held in whole.items() if key not in ("host_name", "traceName")}
    return msgspec.json.encode({**kept, "traceEvents": msgspec.Raw(events)})


# operators


def _calls(events: Iterable[_Event], ends: Sequence[float], roles: Mapping[str, str]) -> Iterator[_Call]:
    """Yield each call of an operator with its self time: that of operators and ranges within is not part of it."""
    threads: defaultdict[Any, list[_Event]] = defaultdict(list)
    kernels: Counter[Any] = Counter()
    for event in events:
        if event.ph == "X" and event.cat in ("cpu_op", "user_annotation"):
            threads[event.tid].append(event)
        elif event.cat in _KERNELS:
            kernels[event.args.launched_by] += event.dur  # type: ignore[assignment]
    for thread in threads.values():
        for event, self_us, role in _swept(thread, roles):
            if event.cat == "cpu_op":
                yield _Call(
                    step=_step(event.ts, ends),
                    role=role,
                    name=event.name,
                    shapes=_shapes(event.args.dims),
                    self_us=self_us,
                    device_us=kernels[event.args.launched_by],
                )


def _swept(events: Iterable[_Event], roles: Mapping[str, str]) -> Iterator[tuple[_Event, float, str]]:
    """Yield the events of a thread with their self time and the role of the innermost range they are in."""
    own: list[float] = []
    found: list[tuple[_Event, str]] = []
    around: list[int] = []
    for number, event in enumerate(sorted(events, key=lambda e: (e.ts, -e.dur))):
        while around and found[around[-1]][0].end <= event.ts:
            around.pop()
        role = found[around[-1]][1] if around else str(Role.LOOP)
        if around:
            own[around[-1]] -= event.dur
        own.append(event.dur)
        found.append((event, roles.get(event.name, role) if event.cat == "user_annotation" else role))
        around.append(number)
    for (event, role), self_us in zip(found, own, strict=True):
        yield event, max(0.0, self_us), role


def _step(at: float, ends: Sequence[float]) -> int:
    """Return the number of the step in which a moment lies, -1 before the first."""
    return bisect_right(ends, at) - 1


def _shapes(dims: Any) -> Shapes:
    """Return the shapes of the first tensors, those of lists of tensors too; scalars have none."""
    found: list[tuple[int, ...]] = []
    for one in dims if isinstance(dims, list) else ():
        if isinstance(one, list) and one:
            found += [tuple(d) for d in one if d] if isinstance(one[0], list) else [tuple(one)]
    return tuple(found[:_MOST_TENSORS])


@dataclass(slots=True, kw_only=True)
class _Row:
    shapes: list[Shapes]
    steps: set[int]
    calls: int = 0
    self_us: float = 0.0
    device_us: float = 0.0


def _phase(calls: Iterable[_Call], name: str, phases: Sequence[str], peaks: Peaks) -> PhaseOperators | None:
    """Return the operators of a phase; None where no step of it was recorded."""
    times = phases.count(name)
    if not times:
        return None
    every = [call for call in calls if phases[call.step] == name]
    device = any(call.device_us for call in calls)
    rows = [
        OperatorTimes(
            name=operator,
            role=role,
            shapes=_told(row.shapes),
            calls=row.calls / times,
            self_s=row.self_us / times / 1e6,
            device_s=row.device_us / times / 1e6 if device else None,
        )
        for (role, operator, _), row in _rows(every, times).items()
    ]
    rows.sort(key=lambda row: (-(row.device_s or 0.0), -row.self_s))
    whole, of_roles = peaks.get(name, (None, {}))
    return PhaseOperators(
        steps=times,
        self_s=sum(call.self_us for call in every) / times / 1e6,
        device_s=sum(call.device_us for call in every) / times / 1e6 if device else None,
        operators=tuple(rows[:MOST_ROWS]),
        peak_bytes=whole,
        peaks=of_roles,
    )


def _rows(calls: Iterable[_Call], steps: int) -> dict[tuple[str, str, Any], _Row]:
    """Return the calls put together by role, name and shapes.

    Shapes that not every step has are one row where they have as many dimensions: a text grows from step to step.
    """
    exact: dict[tuple[str, str, Any], _Row] = {}
    for call in calls:
        row = exact.setdefault((call.role, call.name, call.shapes), _Row(shapes=[call.shapes], steps=set()))
        row.steps.add(call.step)
        row.calls += 1
        row.self_us += call.self_us
        row.device_us += call.device_us
    found: dict[tuple[str, str, Any], _Row] = {}
    for (role, name, shapes), row in exact.items():
        growing = len(row.steps) < steps
        key = (role, name, tuple(map(len, shapes)) if growing else shapes)
        before = found.setdefault(key, _Row(shapes=[], steps=row.steps))
        before.shapes += row.shapes
        before.calls += row.calls
        before.self_us += row.self_us
        before.device_us += row.device_us
    return found


def _told(shapes: Sequence[Shapes]) -> str:
    """Return shapes as torch writes them, a size that differs with both ends."""
    tensors = []
    for same in zip(*shapes, strict=True):
        sizes = [(min(d), max(d)) for d in zip(*same, strict=True)]
        tensors.append(f"[{', '.join(f'{low}-{high}' if low < high else f'{low}' for low, high in sizes)}]")
    return ", ".join(tensors)


# memory


def _peaks(
    events: Sequence[_Event],
    ends: Sequence[float],
    phases: Sequence[str],
    roles: Mapping[str, str],
    *,
    accelerator: bool,
) -> tuple[Peaks, str | None]:
    """Return, by phase, the most bytes that were held at a moment, of all and of each role, or why that is unknown."""
    memory = [e for e in events if e.name == "[memory]" and (e.args.device not in (0, None)) is accelerator]
    memory.sort(key=lambda e: e.ts)
    if not memory:
        return {}, "torch's allocator reported nothing"
    if memory[-1].args.total - memory[0].args.total != sum(e.args.size for e in memory[1:]):
        return {}, "torch's allocator reported less than it counted"
    at, whose = _role_at(events, roles)
    live: dict[int, tuple[str, int]] = {}
    held: Counter[str] = Counter()
    found: Peaks = {}
    for event in memory:
        step = _step(event.ts, ends)
        if not 0 <= step < len(phases):
            continue
        # An address that is given again was freed where nobody saw it.
        before = live.pop(event.args.address, None)
        if before is not None:
            held[before[0]] -= before[1]
        if event.args.size > 0:
            role = whose[bisect_right(at, event.ts)]
            live[event.args.address] = (role, event.args.size)
            held[role] += event.args.size
        most, of_roles = found.get(phases[step], (0, {}))
        found[phases[step]] = (max(most, held.total()), {r: max(n, of_roles.get(r, 0)) for r, n in held.items()})
    return {p: (most, {r: n for r, n in own.items() if n}) for p, (most, own) in found.items()}, None


def _role_at(events: Iterable[_Event], roles: Mapping[str, str]) -> tuple[list[float], list[str]]:
    """Return when the role changes that is at work, and which it is before the first change and after each."""
    ranges = [e for e in events if e.cat == "user_annotation" and e.ph == "X" and e.name in roles]
    at: list[float] = []
    whose: list[str] = [Role.LOOP]
    around: list[_Event] = []

    def close(until: float) -> None:
        while around and around[-1].end <= until:
            at.append(around.pop().end)
            whose.append(roles[around[-1].name] if around else Role.LOOP)

    for event in sorted(ranges, key=lambda e: (e.ts, -e.dur)):
        close(event.ts)
        around.append(event)
        at.append(event.ts)
        whose.append(roles[event.name])
    close(float("inf"))
    return at, whose
