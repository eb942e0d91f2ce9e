"""What rounds are observed with: the counters and the sampler of this process, or of those that do an engine's work."""

from __future__ import annotations

from collections.abc import Callable

from pytest_infer.engines.base import Engine
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.timeline.recorder import TimelineSampler
from pytest_infer.records import Observed


def nothing() -> None:
    """Tell nothing, as what is no server does."""


class Observing:
    """Opens counters and samplers on first use, those of other processes until they are forgotten.

    `usable_cores` tells how often a timeline may be sampled; `timeline`: whether there is one at all.
    """

    def __init__(self, usable_cores: Callable[[], float], *, timeline: bool) -> None:
        self._usable_cores, self._timeline = usable_cores, timeline
        self._counters: dict[Observed | None, SystemCounters] = {}
        self._samplers: dict[Observed | None, TimelineSampler] = {}

    def counters(self, engine: Engine | None = None) -> SystemCounters:
        """Return the counters of the processes that do an engine's work, by default of this one."""
        observed = None if engine is None else engine.observed()
        if observed not in self._counters:
            text = nothing if engine is None or observed is None else engine.metrics_text
            self._counters[observed] = SystemCounters(observed=observed, text=text)
        return self._counters[observed]

    def sampler(self, engine: Engine | None = None) -> TimelineSampler | None:
        """Return the sampler of profile rounds, whose helper starts with the first of them; None when switched off."""
        observed = None if engine is None else engine.observed()
        if self._timeline and observed not in self._samplers:
            self._samplers[observed] = TimelineSampler(usable_cores=self._usable_cores(), observed=observed)
        return self._samplers.get(observed)

    def forget(self) -> None:
        """Let go of other processes, which are about to end."""
        for observed in [key for key in (*self._counters, *self._samplers) if key is not None]:
            self._close(observed)

    def close(self) -> None:
        """Give back what was opened."""
        for observed in (*self._counters, *self._samplers):
            self._close(observed)

    def _close(self, observed: Observed | None) -> None:
        for opened in (self._counters.pop(observed, None), self._samplers.pop(observed, None)):
            if opened is not None:
                opened.close()
