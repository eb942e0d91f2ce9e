"""Puts hooks on a model's modules for some steps and takes them off for others, and measures what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from inspect import isfunction
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from pytest_infer.engines.base import Engine
from pytest_infer.measure.breakdown.folding import Cost
from pytest_infer.measure.breakdown.marks import Marks, Site, Span
from pytest_infer.measure.clock import TokenClock

if TYPE_CHECKING:
    from pytest_infer.engines.roles import Place

_TIMES = 32
"""So many hooked modules and spans tell what one costs."""
_NOTHING = nullcontext()


class StepClock(TokenClock):
    """A token clock that marks ticks and spans, and between steps lets something else happen, outside all times.

    `between(clock, step)` is called before each step, counted from 0, which ends with the first tick: an observer comes
    or goes, or another process has its turn.
    """

    __slots__ = ("_between", "_marks", "_numbers", "_observer", "_waited_ns")

    def __init__(self, marks: Marks, observer: Observer, between: Callable[[StepClock, int], object]) -> None:
        super().__init__()
        self._marks = marks
        self._observer = observer
        self._between = between
        self._waited_ns = 0
        self._numbers: dict[tuple[str, int | None], int] = {}

    def start(self) -> None:
        """Read the clock, once what comes before the first step is over."""
        self._waited_ns = 0
        self._between(self, 0)
        self._marks.resume()
        super().start()

    def _stamp(self) -> None:
        """Stamp the moment; what happens before the next step belongs to no token."""
        now = self._now()
        self._marks.tick(observed=self._observer.there)
        self._stamps.append(now - self._waited_ns)
        self._between(self, len(self._stamps))
        self._waited_ns += self._now() - now
        self._marks.resume()

    def span(self, role: str, layer: int | None = None) -> AbstractContextManager[object]:
        """Return a context that is marked in observed steps."""
        if not self._observer.there:
            return _NOTHING
        number = self._numbers.get((role, layer))
        if number is None:
            number = self._numbers[role, layer] = self._marks.number(Site(role, layer, hooked=False))
        return Span(self._marks, number)


class Observer:
    """Hooks on the modules of `places`, and the engine's own spans, while a step is observed.

    What a hook and a span cost is measured by `calibrate`, which leaves the caches cold: between two generations.
    """

    def __init__(self, engine: Engine, places: Sequence[Place], marks: Marks) -> None:
        self.there = False
        self._engine = engine
        self._marked = [Marked(marks, p.module, marks.number(Site(p.role, p.layer, hooked=True))) for p in places]
        self._while_there = ExitStack()
        self._calibration = Calibration(marks, len(places)) if marks.stamper.name == "host" else None

    def calibrate(self) -> None:
        """Measure once more what a hook and a span cost."""
        if self._calibration is not None:
            self._calibration.repeat()

    def before(self, clock: StepClock, *, observed: bool) -> None:
        """Come or go before a step."""
        if observed is self.there:
            return
        if not observed:
            self.leave()
            return
        for module in self._marked:
            module.mark(self._while_there)
        self._while_there.enter_context(self._engine.spans(clock))
        self.there = True

    def leave(self) -> None:
        """Take the hooks off."""
        self._while_there.close()
        self.there = False

    def cost(self) -> Cost:
        """Return what a hook and a span cost."""
        return Cost() if self._calibration is None else self._calibration.cost()


class Marked:
    """A module, and what marks its forward: a forward around its own, or hooks where it has some already.

    One that torch.jit made takes no hooks, and its class has no forward. The time of its own hooks is its own too.
    """

    def __init__(self, marks: Marks, module: Any, number: int) -> None:
        self._module = module
        self._hooks = marks.hooks(number)
        hooked = module._forward_hooks or module._forward_pre_hooks
        own = getattr(type(module), "forward", None)
        plain = own is None or isfunction(own) or "forward" in vars(module)
        self._forward = None if hooked or not plain else marks.around(number, module.forward)

    def mark(self, until: ExitStack) -> None:
        """Begin to mark, until the stack is closed."""
        attributes = vars(self._module)
        if self._forward is None:
            until.enter_context(self._module.register_forward_pre_hook(self._hooks[0]))
            until.enter_context(self._module.register_forward_hook(self._hooks[1]))
        elif "forward" in attributes:
            until.callback(attributes.__setitem__, "forward", attributes["forward"])
        else:
            until.callback(attributes.pop, "forward")
        if self._forward is not None:
            attributes["forward"] = self._forward


class Calibration:
    """Calls modules that do nothing, with hooks and without, and enters spans, each where caches are cold.

    In a step the hooks of a module are met after its weights and kernels went through the caches, which makes them
    dearer than in a loop by half and more: so a sum over some memory goes before each call.
    """

    def __init__(self, like: Marks, modules: int) -> None:
        self._marks = Marks(like.stamper)
        self._number = self._marks.number(Site("nothing", None, hooked=True))
        self._bare, self._hooked = _idle(modules), _idle(modules)
        for module in self._hooked:
            Marked(self._marks, module, self._number).mark(ExitStack())
        self._memory = _memory() if modules else ()
        self._seen: list[Cost] = []

    def repeat(self) -> None:
        """Measure once more."""
        hook = self._difference([partial(m, None) for m in self._hooked], [partial(m, None) for m in self._bare])
        span = self._difference([self._span] * _TIMES, [_nothing] * _TIMES)
        self._seen.append(Cost(hook=hook, span=span))

    def cost(self) -> Cost:
        """Return the medians."""
        if not self._seen:
            return Cost()
        return Cost(
            hook=(median(c.hook[0] for c in self._seen), median(c.hook[1] for c in self._seen)),
            span=(median(c.span[0] for c in self._seen), median(c.span[1] for c in self._seen)),
            known=True,
        )

    def _difference(
        self, marked: Sequence[Callable[[], object]], bare: Sequence[Callable[[], object]]
    ) -> tuple[float, float]:
        """Return what marking costs within what is marked and around it, nanoseconds each time."""
        if not marked:
            return 0.0, 0.0
        took = [0, 0]
        for number, both in enumerate(zip(marked, bare, strict=True)):
            for which in (0, 1) if number % 2 else (1, 0):  # neither is always the first
                if self._memory:
                    self._memory[number % len(self._memory)].sum()
                begun = perf_counter_ns()
                both[which]()
                took[which] += perf_counter_ns() - begun
        stamps = self._marks.stamper.ns(self._marks.stamps)
        self._marks.clear()
        within = max(0.0, (sum(stamps[1::2]) - sum(stamps[::2]) - took[1]) / len(marked))
        return within, max(0.0, (took[0] - took[1]) / len(marked) - within)

    def _span(self) -> None:
        with Span(self._marks, self._number):
            pass


def _nothing() -> None:
    with _NOTHING:
        pass


def _idle(modules: int) -> list[Any]:
    if not modules:
        return []
    import torch  # noqa: PLC0415 - a round of an engine without torch needs none

    return [torch.nn.Identity() for _ in range(_TIMES)]


def _memory() -> Sequence[Any]:
    """Return parts of 16 MiB, each of which pushes other things out of the inner caches."""
    import torch  # noqa: PLC0415

    return list(torch.ones(16, 2**18))
