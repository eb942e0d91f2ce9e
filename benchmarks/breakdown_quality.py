"""What taking steps apart costs, whether the parts add up, and whether torch's profiler sees the same shares.

    python benchmarks/breakdown_quality.py --model smollm2-moe --model reference-moe --repeats 5

For each model and phase: what an observed step takes beyond a bare one, run in turns (the cost); what idle modules with
the same hooks told of it, knowing nothing of bare steps; what was taken off, the mean of both, weighed; and by how much
the parts then miss the bare step. Below it the share of each role beside that of torch's profiler, which records these
modules as ranges. It is told to leave the operators out: recording them made the steps of small models 1.2 to 1.7 times
as long, where there are many of them most. What a range costs in its place, measured beside bare passes in turns, is
taken off; the shares with it are shown too.

The line above all says what a mark adds to the call of a module that does nothing, in turns: hooks, and a function
around its forward.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import Any

import torch
from torch._C._profiler import RecordScope

from pytest_infer.engines import roles
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine
from pytest_infer.measure import rounds
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.breakdown import folding, taken
from pytest_infer.measure.breakdown.marks import HostStamper, Marks, Site
from pytest_infer.measure.breakdown.observer import Marked
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.machine import description
from pytest_infer.metrics import breakdown
from pytest_infer.prompts import Prompt
from pytest_infer.records import OUTSIDE, Limits, PhaseTimes, Role

_TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. "
_OURS = "role: "
_PREFILLS = 9


@contextmanager
def only_ranges() -> Iterator[None]:
    """Let torch's profiler record user ranges and no operators; of its own there is no option for it."""
    module: Any = torch.autograd.profiler
    enable = module._enable_profiler
    module._enable_profiler = partial(enable, scopes={RecordScope.USER_SCOPE})
    try:
        yield
    finally:
        module._enable_profiler = enable


class Profiled:
    """Ranges of torch's profiler around the modules of a model, by role; microseconds.

    Of each forward pass: how long it was, with ranges and `bare`, and by role the self time of its ranges, with how
    many began or ended in it.
    """

    def __init__(self, model: Any) -> None:
        self.took: list[float] = []
        self.self_us: list[Counter[str]] = []
        self.ranges: list[Counter[str]] = []
        self.bare: list[float] = []
        self._model = model
        self._places = [place for place in roles.places(model) if place.begins]

    def run(self, engine: TransformersEngine, ids: Sequence[int], limits: Limits, *, prefill: bool) -> None:
        """Run one generation bare and one profiled, or some that are but the `prefill`; the first pass is left out."""
        self.bare += self._bare(engine, ids, limits, prefill=prefill)[1:]
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True)
        with ExitStack() as hooks, only_ranges(), profiler as found:
            for place in self._places:
                for hook in self._hooks(place.module, _OURS + place.role):
                    hooks.enter_context(hook)
            _generate(engine, ids, limits, prefill=prefill)
        events = [event for event in found.events() or () if event.name.startswith(_OURS)]
        forwards = sorted(
            (event for event in events if event.name == _OURS + Role.AROUND and event.cpu_parent is None),
            key=lambda event: event.time_range.start,
        )
        for forward in forwards[1:]:
            self._add(
                forward, [e for e in events if forward.time_range.start <= e.time_range.start < forward.time_range.end]
            )

    def _bare(self, engine: TransformersEngine, ids: Sequence[int], limits: Limits, *, prefill: bool) -> list[float]:
        begun: list[int] = []
        took: list[float] = []
        hooks = (
            self._model.register_forward_pre_hook(lambda *_: begun.append(perf_counter_ns())),
            self._model.register_forward_hook(lambda *_: took.append((perf_counter_ns() - begun[-1]) / 1e3)),
        )
        with hooks[0], hooks[1]:
            _generate(engine, ids, limits, prefill=prefill)
        return took

    def _add(self, forward: Any, within: Sequence[Any]) -> None:
        self.took.append(forward.time_range.end - forward.time_range.start)
        own, ranges = Counter[str](), Counter[str]()
        for event in within:
            role = _role(event)
            own[role] += event.self_cpu_time_total
            ranges[role] += 1
            ranges[role if event.cpu_parent is None else _role(event.cpu_parent)] += 1
        self.self_us.append(own)
        self.ranges.append(ranges)

    def _hooks(self, module: Any, name: str) -> tuple[Any, Any]:
        open_ranges: list[Any] = []

        def before(*_: object) -> None:
            open_ranges.append(torch.profiler.record_function(name))
            open_ranges[-1].__enter__()

        def after(*_: object) -> None:
            open_ranges.pop().__exit__(None, None, None)

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)

    def range_us(self) -> float:
        """Return what a range costs in its place: what all of them add to a forward pass, by how many there are."""
        many = statistics.median(ranges.total() / 2 for ranges in self.ranges)
        return (statistics.median(self.took) - statistics.median(self.bare)) / many

    def shares(self, *, less: bool) -> dict[str, float]:
        """Return each role's share of the typical forward passes, `less` what recording costs.

        Half of a range's cost is within it, half in the one around it.
        """
        seen = breakdown.typical(self.took)
        found = {role: statistics.fmean(self.self_us[n][role] for n in seen) for role in self.self_us[0]}
        if less:
            half_us = self.range_us() / 2
            for role in found:
                found[role] -= half_us * statistics.fmean(self.ranges[n][role] for n in seen)
        whole = sum(found.values())
        return {role: us / whole for role, us in found.items()}


def _generate(engine: TransformersEngine, ids: Sequence[int], limits: Limits, *, prefill: bool) -> None:
    for _ in range(_PREFILLS if prefill else 1):
        engine.reset()
        engine.prepare(ids, limits)
        clock = TokenClock()
        clock.start()
        engine.generate(ids, limits, clock)


def _role(event: Any) -> str:
    return str(event.name.removeprefix(_OURS))


class Told:
    """What idle modules told of the cost of hooks, ns a step, of each phase that was put together."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._scale = folding._scale
        folding._scale = self._noted

    def _noted(self, observed: Sequence[folding.Step], bare: Sequence[folding.Step], *, known: bool) -> float:
        self.seen.append(statistics.fmean(sum(step.cost_ns.values()) for step in observed))
        return self._scale(observed, bare, known=known)


def shares_of(phases: Sequence[breakdown.PhaseParts]) -> dict[str, float]:
    """Return each role's share of the time within the model, the median over breakdowns; the cache's, which the
    profiler has no range for, is the attention's."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for phase in phases:
        own: Counter[str] = Counter()
        for part in phase.parts:
            if part.role not in OUTSIDE:
                own[Role.SCORES if part.role == Role.CACHE else part.role] += part.seconds  # type: ignore[assignment]
        for role, seconds in own.items():
            found[role].append(seconds / sum(own.values()))
    return {role: statistics.median(shares) for role, shares in found.items()}


def observe(name: str, prompt_tokens: int, tokens: int, repeats: int, threads: int | None) -> float:
    """Print what one model shows, and return the largest difference of two shares, in points."""
    engine = TransformersEngine(EngineOptions(model=name, threads=threads))
    info = engine.load()
    prompt = Prompt(name="breakdown", text=_TEXT * (prompt_tokens // 8 + 1))
    ids = engine.encode(prompt)[:prompt_tokens]
    asking = Asking(prompt=prompt, ids=ids)
    limits = Limits(max_new_tokens=tokens, ignore_eos=True)
    system = SystemCounters()
    for _ in range(2):
        like = rounds.timed_round(engine, asking, limits, system).trace
    print(f"{name}: {info.dtype}, {info.threads} threads, {len(ids)} + {tokens} tokens, {repeats} breakdowns")
    seen: dict[str, list[PhaseTimes]] = {"prefill": [], "decode": []}
    profiled = {phase: Profiled(engine.running.model) for phase in seen}
    told = Told()
    for _ in range(repeats):
        found = taken.take(engine, asking, limits, like)
        for phase in seen:
            times = getattr(found, phase)
            seen[phase] += [] if times is None else [times]
        profiled["prefill"].run(engine, ids, replace(limits, max_new_tokens=1), prefill=True)
        profiled["decode"].run(engine, ids, limits, prefill=False)
    worst = 0.0
    for phase, times in seen.items():
        idle_ns = statistics.median(told.seen[list(seen).index(phase) :: 2])
        worst = max(worst, tell(phase, [breakdown.phase(one) for one in times], times, profiled[phase], idle_ns))
    system.close()
    engine.close()
    return worst


def tell(
    phase: str, parts: Sequence[breakdown.PhaseParts], times: Sequence[PhaseTimes], profiled: Profiled, idle_ns: float
) -> float:
    """Print one phase; return the largest difference of two shares, in points."""
    step = statistics.fmean(one.step_s for one in parts)
    observed = [statistics.fmean(t.observed_ns[n] for n in breakdown.typical(t.observed_ns)) / 1e9 for t in times]
    cost = statistics.median(o / one.step_s - 1 for o, one in zip(observed, parts, strict=True))
    off = statistics.median(one.cost_s / one.step_s for one in parts)
    missed = [(one.remainder_s or 0.0) / one.step_s for one in parts]
    print(
        f"  {phase} {1e3 * step:.2f} ms: hooks cost {100 * cost:.2f} %, idle modules told "
        f"{100 * idle_ns / 1e9 / step:.2f} %, taken off {100 * off:.2f} %, the parts miss the step by "
        f"{100 * statistics.median(missed):+.2f} % ({', '.join(f'{100 * m:+.2f}' for m in missed)})"
    )
    ours = shares_of(parts)
    raw, less = profiled.shares(less=False), profiled.shares(less=True)
    longer = statistics.median(profiled.took) / statistics.median(profiled.bare)
    print(f"    with ranges a forward pass takes {longer:.2f} times as long: {profiled.range_us():.2f} us each")
    for role in sorted(ours, key=lambda role: -ours[role]):
        other = f"{100 * less.get(role, 0.0):6.2f} %, with its cost {100 * raw.get(role, 0.0):6.2f} %"
        print(f"    {role:<24} {100 * ours[role]:6.2f} %   profiler {other}")
    return max(100 * abs(share - less.get(role, 0.0)) for role, share in ours.items())


def marking_ns(blocks: int = 200, calls: int = 300) -> tuple[float, float]:
    """Return what hooks, and what a function around its forward, add to a call of an idle module, nanoseconds."""
    marks = Marks(HostStamper())
    number = marks.number(Site("idle", None, hooked=True))
    bare, hooked, wrapped = (torch.nn.Identity() for _ in range(3))
    before, after = marks.hooks(number)
    hooked.register_forward_pre_hook(before)
    hooked.register_forward_hook(after)
    took: dict[Any, list[float]] = {bare: [], hooked: [], wrapped: []}
    with ExitStack() as until:
        Marked(marks, wrapped, number).mark(until)
        for block in range(blocks):
            for module in list(took)[:: 1 if block % 2 else -1]:
                begun = perf_counter_ns()
                for _ in range(calls):
                    module(None)
                took[module].append((perf_counter_ns() - begun) / calls)
            marks.clear()
    middle = {module: statistics.median(times) for module, times in took.items()}
    return middle[hooked] - middle[bare], middle[wrapped] - middle[bare]


def main() -> None:
    """Parse the arguments and observe each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be given several times; default: both bundled MoE models")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    here = description.describe()
    print(f"{here.cpu}, {here.usable_cores} usable cores, {here.system}, torch {torch.__version__}")
    hooks, around = marking_ns()
    print(
        f"a mark adds {hooks:.0f} ns to a call as hooks, {around:.0f} ns around the forward: {around / hooks:.2f} times"
    )
    for name in given.model or ["reference-moe", "smollm2-moe"]:
        worst = observe(name, given.prompt_tokens, given.tokens, given.repeats, given.threads)
        print(f"  shares differ by {worst:.1f} points at most")


if __name__ == "__main__":
    main()
