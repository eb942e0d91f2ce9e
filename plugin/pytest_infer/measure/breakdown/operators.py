"""Lets torch's profiler record the prefill and a few decode steps of a prompt, with the modules' roles as ranges."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pytest_infer.engines import roles
from pytest_infer.engines.base import Engine
from pytest_infer.measure import following
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.breakdown import traced
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.heap import no_collections
from pytest_infer.measure.instrumentation import suspended
from pytest_infer.records import Limits, Operators

MOST_STEPS = 4
"""So many decode steps are recorded, the first ones: a trace of a whole generation would have no bound."""
SHORT, MOST_OPERATORS = 256, 200_000
"""A prefill of more tokens is recorded if it runs no more operators: some models loop over the tokens of a prompt."""


def take(engine: Engine, asking: Asking, limits: Limits, follow: Sequence[int] | None = None) -> Operators:
    """Record the operators of a prompt in a generation of its own, which followed these tokens in a timed round.

    The prefill of a long prompt runs once more before, and is left out where that has too many operators.
    Raises whatever the engine and the profiler raise.
    """
    if "torch" not in sys.modules:
        return Operators(absent="the engine runs without torch")
    how = replace(limits, max_new_tokens=min(limits.max_new_tokens, 1 + MOST_STEPS))
    given = None if follow is None else follow[: how.max_new_tokens]
    count = 0
    if len(asking.ids) * limits.sequences > SHORT:
        following.steer(engine, None if given is None else given[:1])
        count = _counted(engine, asking, replace(how, max_new_tokens=1))
    following.steer(engine, given)
    if count <= MOST_OPERATORS:
        return _recorded(engine, asking, how, prefill=True)
    why = f"it runs {count} operators, and at most {MOST_OPERATORS} are recorded"
    if how.max_new_tokens == 1:
        return Operators(absent=f"there is only a prefill: {why}")
    return replace(_recorded(engine, asking, how, prefill=False), prefill_absent=why)


def _counted(engine: Engine, asking: Asking, limits: Limits) -> int:
    """Return how many operators a generation runs."""
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415 - as below

    count = 0

    class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal count
            count += 1
            return func(*args, **(kwargs or {}))

    clock = TokenClock()
    engine.reset()
    request = asking.next()
    engine.ready(request, limits)
    with suspended(), no_collections(), Counting():  # type: ignore[no-untyped-call]
        clock.start()
        engine.respond(request, limits, clock)
    return count


def _recorded(engine: Engine, asking: Asking, how: Limits, *, prefill: bool) -> Operators:
    module: Any = engine.logits_module()
    devices = set() if module is None else {tensor.device.type for tensor in module.parameters()}
    accelerators = sorted(devices - {"cpu", "meta"})
    ranges, profiler = Ranges(), _profiler(accelerators)
    engine.reset()
    request = asking.next()
    engine.ready(request, how)
    gc.collect()
    with suspended(), no_collections(), Recording(profiler) as recording, ExitStack() as hooks:
        if prefill:
            recording.begin()
        clock = RangeClock(ranges, how.max_new_tokens, recording)
        for place in () if module is None else roles.places(module):
            if place.begins:
                for hook in ranges.hooks(place.module, place.role, place.layer):
                    hooks.enter_context(hook)
        hooks.enter_context(engine.spans(clock))
        engine.synchronize()
        clock.start()
        engine.respond(request, how, clock)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return traced.read(path.read_bytes(), ranges.roles, accelerator=bool(accelerators), prefill=prefill)


def _profiler(accelerators: Sequence[str]) -> Any:
    """Return a profiler of the host, and of the accelerators that torch can profile here."""
    # Else it tells on the terminal that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch import profiler  # noqa: PLC0415 - a round of an engine without torch needs none

    supported_activities: Any = profiler.supported_activities
    supported = {activity.name: activity for activity in supported_activities()}
    wanted = ["CPU", *(name.upper() for name in accelerators)]
    activities = [supported[name] for name in wanted if name in supported]
    return profiler.profile(activities=activities, record_shapes=True, profile_memory=True)


class Recording:
    """A context in which a profiler records between `begin` and `end`, or until it is left."""

    def __init__(self, profiler: Any) -> None:
        self._profiler = profiler
        self._on = False

    def __enter__(self) -> Self:
        """Record nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End, if that was not done."""
        self.end()

    def begin(self) -> None:
        """Record from now on, if that was not begun."""
        if not self._on:
            self._profiler.start()
            self._on = True

    def end(self) -> None:
        """Record no more."""
        if self._on:
            self._on = False
            self._profiler.stop()


class Ranges:
    """Named ranges in the profiler's trace; `roles` has the role of each, by its name."""

    def __init__(self) -> None:
        from torch.profiler import record_function  # noqa: PLC0415 - as above

        self.roles: dict[str, str] = {}
        self._range = record_function

    def of(self, role: str, layer: int | None = None) -> AbstractContextManager[object]:
        """Return a context that is a range of a role, in a layer or outside of numbered ones."""
        name = str(role) if layer is None else f"{role}, layer {layer}"
        self.roles[name] = str(role)
        return self._range(name)

    def token(self) -> None:
        """Mark that a step ends and the next one begins."""
        with self._range(traced.BOUNDARY):
            pass

    def hooks(self, module: Any, role: str, layer: int | None) -> tuple[Any, Any]:
        """Put a range around a module's forward, and return what takes it off."""
        within: list[AbstractContextManager[object]] = []

        def before(*_: object) -> None:
            within.append(self.of(role, layer))
            within[-1].__enter__()

        def after(*_: object) -> None:
            within.pop().__exit__(None, None, None)

        return module.register_forward_pre_hook(before), module.register_forward_hook(after)


class RangeClock(TokenClock):
    """A token clock that marks ticks and spans in the trace.

    Recording begins with the first tick if it was not begun before, and ends with the last one that is wanted.
    """

    __slots__ = ("_most", "_ranges", "_recording")

    def __init__(self, ranges: Ranges, most: int, recording: Recording) -> None:
        super().__init__()
        self._ranges = ranges
        self._most = most
        self._recording = recording

    def start(self) -> None:
        """Read the clock, and mark where the prefill begins."""
        super().start()
        self._ranges.token()

    def _stamp(self) -> None:
        """Stamp the moment, and mark it in the trace."""
        super()._stamp()
        if len(self._stamps) == 1:
            self._recording.begin()
        self._ranges.token()
        if len(self._stamps) == self._most:
            self._recording.end()

    def span(self, role: str, layer: int | None = None) -> AbstractContextManager[object]:
        """Return a context that is a range in the trace."""
        return self._ranges.of(role, layer)
