"""A prompt's steps taken apart, in generations of their own: some steps with hooks, others without, in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pytest_infer.engines import roles
from pytest_infer.engines.base import Engine
from pytest_infer.errors import EngineError
from pytest_infer.measure import following
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.breakdown import folding
from pytest_infer.measure.breakdown.marks import DeviceStamper, HostStamper, Marks, Stamper
from pytest_infer.measure.breakdown.observer import Observer, StepClock
from pytest_infer.measure.clock import TurnTaker
from pytest_infer.measure.heap import no_collections
from pytest_infer.measure.instrumentation import suspended
from pytest_infer.metrics import timing
from pytest_infer.records import Breakdown, Limits, PassParts, Role, TokenTrace

ON, AUTO, OFF, OPS = "on", "auto", "off", "ops"
"""When steps are taken apart: always, where that is cheap, never; always, and then operator by operator."""
CHEAP_S = 10.0
"""It is cheap where a round takes no longer than this."""
MOST_STEPS = 64
"""So many decode steps are observed at most, spread over the whole generation, and as many bare ones beside them."""
_MOST_PREFILLS, _PREFILLS_S = 16, 1.0
"""Prefills, half of them bare, fill about this time, but are no more than this."""
_FEWEST_PREFILLS = 6
"""Nor fewer, while they take no longer than a cheap round: of two observed ones the interval is eight times as wide as
of three, so that they tell only a role that doubles the step."""


def take(
    engine: Engine,
    asking: Asking,
    limits: Limits,
    like: TokenTrace,
    follow: Sequence[int] | None = None,
) -> Breakdown:
    """Take the steps of a prompt apart; `like` is the trace of a timed round of it, which followed these tokens.

    Raises whatever the engine raises.
    """
    seen = Seen(engine)
    marks, observer = seen.marks, seen.observer

    def run(tokens: int, wanted: Callable[[int], bool]) -> list[folding.Step]:
        how = replace(limits, max_new_tokens=tokens)
        following.steer(engine, None if follow is None else follow[:tokens])
        marks.clear()
        clock = StepClock(marks, observer, lambda clock, step: observer.before(clock, observed=wanted(step)))
        observer.calibrate()
        engine.reset()
        request = asking.next()
        engine.ready(request, how)
        with suspended(), no_collections():
            engine.synchronize()
            clock.start()
            try:
                engine.respond(request, how, clock)
            finally:
                observer.leave()
        return seen.steps()

    gc.collect()
    prefills: list[folding.Step] = []
    for number in range(_prefills(like)):
        observed = number % 4 in (1, 2)
        prefills += run(1, lambda _, observed=observed: observed)[:1]  # type: ignore[misc]
    schedule = spread(len(like.stamps_ns) - 1)
    decoded = run(limits.max_new_tokens, lambda step: schedule.get(step - 1, False))[1:] if schedule else []
    steps = [step for number, step in enumerate(decoded) if number in schedule]
    return seen.breakdown(prefills, steps)


class Seen:
    """What is observed of an engine: its marks, and who sets them."""

    def __init__(self, engine: Engine) -> None:
        module: Any = engine.logits_module()
        places = () if module is None else tuple(place for place in roles.places(module) if place.begins)
        self.marks = Marks(_stamper(module))
        self.observer = Observer(engine, places, self.marks)
        self._routed = any(place.routed for place in places)

    def steps(self) -> list[folding.Step]:
        """Return the steps that are marked, with experts that ran past the hooks as the router's."""
        found = folding.steps(self.marks, self.observer.cost())
        seen = {role for step in found for role, _ in step.self_ns}
        if self._routed and Role.ROUTER in seen and Role.EXPERTS not in seen:
            for step in found:
                step.rename(Role.ROUTER, Role.UNSEEN_EXPERTS)
        return found

    def breakdown(self, prefills: Sequence[folding.Step], decoded: Sequence[folding.Step]) -> Breakdown:
        """Return steps put together."""
        cost = self.observer.cost()
        return Breakdown(
            clock=self.marks.stamper.name, prefill=folding.phase(prefills, cost), decode=folding.phase(decoded, cost)
        )


class InTurns:
    """Passes in turns of a token with another process, with every step observed; `like` is a trace of a timed round.

    `absent` says why there are none. The engine is first looked at in a pass: the other process waits for its end.
    """

    def __init__(self, engine: Engine, like: TokenTrace) -> None:
        self.absent: str | None = None
        self._engine, self._like = engine, like
        self._seen: Seen | None = None
        self._prefills: list[folding.Step] = []
        self._decoded: list[folding.Step] = []

    @contextmanager
    def clock(self, turns: TurnTaker) -> Iterator[StepClock]:
        """Yield the clock of one pass; the hooks come before it and go after.

        Raises EngineError where steps cannot be taken apart.
        """
        seen = self._ready()
        seen.marks.clear()
        clock = StepClock(seen.marks, seen.observer, lambda _, step: step and turns.after(step - 1))
        seen.observer.calibrate()
        try:
            seen.observer.before(clock, observed=True)
            yield clock
        finally:
            seen.observer.leave()

    def _ready(self) -> Seen:
        if self._seen is None:
            self.absent = absent(self._engine, self._like, ON)
            if self.absent is not None:
                raise EngineError(self.absent)
            self._seen = Seen(self._engine)
        return self._seen

    def taken(self) -> PassParts:
        """Return the steps of the pass that has just ended, and keep them."""
        steps = self._ready().steps()
        self._prefills += steps[:1]
        self._decoded += steps[1:]
        return folding.of_pass(steps)

    def breakdown(self) -> Breakdown | None:
        """Return the steps of all passes put together; None where there are none."""
        return None if not self._prefills else self._ready().breakdown(self._prefills, self._decoded)


def absent(engine: Engine, like: TokenTrace, mode: str) -> str | None:
    """Return why the steps of a prompt are not taken apart; None where they can be, and are to be.

    `like` is the trace of a timed round.
    """
    if mode == OFF:
        return "switched off with --infer-breakdown=off"
    took = timing.total_s(like) or 0.0
    if mode == AUTO and took > CHEAP_S:
        return f"a round takes {took:.0f} s: steps are taken apart up to {CHEAP_S:.0f} s, or with --infer-breakdown"
    module: Any = engine.logits_module()
    if module is None:
        return None if like.spanned else f"{engine.experts_absent()}, and it reports no spans"
    return _unobservable(module)


def _unobservable(module: Any) -> str | None:
    """Return why hooks on the modules of a model tell nothing."""
    if not hasattr(module, "register_forward_hook"):
        return "the engine's module takes no hook"
    from pytest_infer.measure.experts.sites import compiled_part  # noqa: PLC0415 - needs torch

    compiled = compiled_part(module)
    if compiled is not None:
        return f"{compiled or 'the model'} is compiled, and hooks do not fire in compiled code"
    devices = _devices(module)
    if any(device.type == "meta" for device in devices):
        return "weights are offloaded: they come to the device while a module runs, past its marks"
    if len(devices) > 1:
        return "the weights are on several devices, whose clocks have nothing in common"
    return None


def _stamper(module: Any) -> Stamper:
    devices = set() if module is None else _devices(module)
    accelerators = [device for device in devices if device.type != "cpu"]
    return DeviceStamper(accelerators[0]) if accelerators else HostStamper()


def _devices(module: Any) -> set[Any]:
    return {tensor.device for tensor in module.parameters()}


def _prefills(like: TokenTrace) -> int:
    """Return how many prefills to run, half of them observed: two in all at least."""
    each = max(timing.ttft_s(like) or 0.0, 1e-9)
    fewest = min(_FEWEST_PREFILLS, 2 * int(CHEAP_S / each / 2))
    return min(_MOST_PREFILLS, max(2, fewest, 4 * int(_PREFILLS_S / each / 4)))


def spread(steps: int) -> dict[int, bool]:
    """Return which of so many decode steps are looked at, counted from 0, and whether with the instrument.

    They come in pairs, one with and one without it, which of them first in turns; a single step is observed.
    """
    if steps < 2:
        return dict.fromkeys(range(steps), True)
    pairs = min(MOST_STEPS, steps // 2)
    found: dict[int, bool] = {}
    for pair in range(pairs):
        first = 2 * (pair * (steps // 2) // pairs)
        found |= {first: pair % 2 == 0, first + 1: pair % 2 == 1}
    return found
