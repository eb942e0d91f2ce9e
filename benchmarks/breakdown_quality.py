"""What taking steps apart costs, whether the parts add up, and whether torch's profiler sees the same shares.

    python benchmarks/breakdown_quality.py --model smollm2-moe --model reference-moe --repeats 5

For each model and phase: what an observed step takes beyond a bare one, run in turns (the cost), what of that idle
modules with the same hooks told (the cost taken off), and by how much the parts then miss the bare step. Below it the
share of each role beside that of torch's profiler, which sees the same modules as ranges around its operators. The
profiler's own cost is several microseconds an operator, so the shares are compared in prefills of many tokens and in
decode steps that are long against it; small models show the profiler and not themselves.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from pytest_infer.engines import roles
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine
from pytest_infer.measure import rounds
from pytest_infer.measure.breakdown import taken
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.machine import description
from pytest_infer.metrics import breakdown
from pytest_infer.prompts import Prompt
from pytest_infer.records import OUTSIDE, Limits, PhaseTimes, Role

_TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. "
_OURS = "role: "


class Profiled:
    """Ranges of torch's profiler around the modules of a model, by role, in every second step."""

    def __init__(self, model: Any) -> None:
        self.self_us: defaultdict[str, float] = defaultdict(float)
        self._places = [place for place in roles.places(model) if place.begins]

    def run(self, engine: TransformersEngine, ids: Sequence[int], limits: Limits, *, prefill: bool) -> None:
        """Profile one generation, of which the first step is left out unless it is the `prefill`."""
        engine.reset()
        engine.prepare(ids, limits)
        clock = TokenClock()
        clock.start()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with ExitStack() as hooks, torch.profiler.profile(activities=activities, acc_events=True) as profiler:
            for place in self._places:
                for hook in self._hooks(place.module, _OURS + place.role):
                    hooks.enter_context(hook)
            engine.generate(ids, limits, clock)
        events = [event for event in profiler.events() or () if event.name.startswith(_OURS) or event.cpu_parent]
        forwards = sorted(
            (event for event in events if event.name == _OURS + Role.AROUND and _role(event.cpu_parent) is None),
            key=lambda event: event.time_range.start,
        )
        kept = forwards[:1] if prefill else forwards[1:]
        spans = [(event.time_range.start, event.time_range.end) for event in kept]
        for event in events:
            role = _role(event)
            if role is not None and any(start <= event.time_range.start < end for start, end in spans):
                self.self_us[role] += event.self_cpu_time_total

    def _hooks(self, module: Any, name: str) -> tuple[Any, Any]:
        open_ranges: list[Any] = []

        def before(*_: object) -> None:
            open_ranges.append(torch.profiler.record_function(name))
            open_ranges[-1].__enter__()

        def after(*_: object) -> None:
            open_ranges.pop().__exit__(None, None, None)

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)

    def shares(self) -> dict[str, float]:
        """Return each role's share of the forward passes."""
        whole = sum(self.self_us.values())
        return {role: us / whole for role, us in self.self_us.items()}


def _role(event: Any) -> str | None:
    """Return the role of the innermost range around an event, its own if it is one."""
    while event is not None:
        if event.name.startswith(_OURS):
            return str(event.name.removeprefix(_OURS))
        event = event.cpu_parent
    return None


def shares_of(phases: Sequence[breakdown.PhaseParts]) -> dict[str, float]:
    """Return each role's share of the time within the model; the cache's, which the profiler has no range for, is the
    attention's."""
    found: defaultdict[str, float] = defaultdict(float)
    for phase in phases:
        for part in phase.parts:
            if part.role not in OUTSIDE:
                found[Role.SCORES if part.role == Role.CACHE else part.role] += part.seconds
    whole = sum(found.values())
    return {role: seconds / whole for role, seconds in found.items()}


def observe(name: str, prompt_tokens: int, tokens: int, repeats: int, threads: int | None) -> float:
    """Print what one model shows, and return the largest difference of two shares, in points."""
    engine = TransformersEngine(EngineOptions(model=name, threads=threads))
    info = engine.load()
    ids = engine.encode(Prompt(name="breakdown", text=_TEXT * (prompt_tokens // 8 + 1)))[:prompt_tokens]
    limits = Limits(max_new_tokens=tokens, ignore_eos=True)
    system = SystemCounters()
    for _ in range(2):
        like = rounds.timed_round(engine, ids, limits, system).trace
    print(f"{name}: {info.dtype}, {info.threads} threads, {len(ids)} + {tokens} tokens, {repeats} breakdowns")
    seen: dict[str, list[PhaseTimes]] = {"prefill": [], "decode": []}
    profiled = {phase: Profiled(engine.running.model) for phase in seen}
    for _ in range(repeats):
        found = taken.take(engine, ids, limits, like)
        for phase in seen:
            times = getattr(found, phase)
            seen[phase] += [] if times is None else [times]
        profiled["prefill"].run(engine, ids, replace(limits, max_new_tokens=1), prefill=True)
        profiled["decode"].run(engine, ids, limits, prefill=False)
    worst = 0.0
    for phase, times in seen.items():
        worst = max(worst, tell(phase, [breakdown.phase(one) for one in times], times, profiled[phase].shares()))
    system.close()
    engine.close()
    return worst


def tell(
    phase: str, parts: Sequence[breakdown.PhaseParts], times: Sequence[PhaseTimes], profiler: dict[str, float]
) -> float:
    """Print one phase; return the largest difference of two shares, in points."""
    step = statistics.fmean(one.step_s for one in parts)
    observed = [statistics.fmean(t.observed_ns[n] for n in breakdown.typical(t.observed_ns)) / 1e9 for t in times]
    cost = statistics.median(o / one.step_s - 1 for o, one in zip(observed, parts, strict=True))
    off = statistics.median(one.cost_s / one.step_s for one in parts)
    missed = [(one.remainder_s or 0.0) / one.step_s for one in parts]
    print(
        f"  {phase} {1e3 * step:.2f} ms: hooks cost {100 * cost:.2f} %, taken off {100 * off:.2f} %, the parts miss "
        f"the step by {100 * statistics.median(missed):+.2f} % ({', '.join(f'{100 * m:+.2f}' for m in missed)})"
    )
    ours = shares_of(parts)
    worst = 0.0
    for role in sorted(ours, key=lambda role: -ours[role]):
        other = profiler.get(role, 0.0)
        worst = max(worst, 100 * abs(ours[role] - other))
        print(f"    {role:<24} {100 * ours[role]:6.2f} %   profiler {100 * other:6.2f} %")
    return worst


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
    for name in given.model or ["reference-moe", "smollm2-moe"]:
        worst = observe(name, given.prompt_tokens, given.tokens, given.repeats, given.threads)
        print(f"  shares differ by {worst:.1f} points at most")


if __name__ == "__main__":
    main()
