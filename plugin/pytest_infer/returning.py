"""The first test of each load measured again after its last one: how far the machine drifts while a sweep runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import InferError
from pytest_infer.measure.rounds import Plan, Runner, measure, still_heap
from pytest_infer.metrics import timing
from pytest_infer.records import Drift, Round, TokenTrace

_FIGURES: dict[str, Callable[[TokenTrace], float | None]] = {
    "decode_throughput": timing.decode_throughput,
    "ttft_s": timing.ttft_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One test that was measured: with what, and what its rounds were."""

    test: str
    runner: Runner
    options: EngineOptions
    rounds: Sequence[Round]


class Returning:
    """Goes back to the first test of each load when its last one is measured.

    Configurations of one load are measured in turns, so what drifts meets them alike. Those of different loads are
    minutes apart, and what the machine did meanwhile looks like a difference between them: it is measured here, on the
    very work that is compared.
    """

    def __init__(self, note: Callable[[str], None], show: Callable[[str], None]) -> None:
        self.last: Collection[str] = ()
        """The last test of each load."""
        self._note, self._show = note, show
        self._first: Visit | None = None
        self._at_ns = 0
        self._again = ""

    def after(self, visit: Visit, plan: Plan, adapt: Callable[[EngineOptions], object]) -> Drift | None:
        """Take a test that was measured; if it was the last of its load, return what became of the first.

        That one is measured as often as the `plan` says, without instruments. `adapt` lets the loaded model go on with
        other options. A failure is noted: it must not cost the test its own measurement.
        """
        first = self._first
        if first is None or first.runner.engine is not visit.runner.engine:
            first, self._first, self._at_ns = visit, visit, time.monotonic_ns()
        if visit.test not in self.last or first is visit:
            return None
        apart_s = (time.monotonic_ns() - self._at_ns) / timing.NS
        self._first, self._again = None, first.test
        try:
            adapt(first.options)
            with still_heap():
                again = measure(first.runner, replace(plan, profile=False), self._watch)
        except (InferError, RuntimeError, MemoryError) as error:
            self._note(f"! drift was not measured: {first.test} failed when it was measured again: {error}")
            return None
        ratios = {key: _ratio(figure, first.rounds, again.rounds) for key, figure in _FIGURES.items()}
        return Drift(
            test=first.test,
            apart_s=apart_s,
            ratios={key: ratio for key, ratio in ratios.items() if ratio is not None},
        )

    def _watch(self, phase: str, done: int, planned: int, last: TokenTrace | None) -> None:  # noqa: ARG002 - Watcher's
        self._show(f"{self._again} again, for the drift · {phase} {done + 1}/{planned}")


def _ratio(
    figure: Callable[[TokenTrace], float | None], before: Sequence[Round], after: Sequence[Round]
) -> float | None:
    """Return the ratio of geometric means; None where a round does not have the figure."""
    means = []
    for rounds in (after, before):
        values = [value for r in rounds if (value := figure(r.trace))]
        if not values or len(values) < len(rounds):
            return None
        means.append(fmean(map(math.log, values)))
    return math.exp(means[0] - means[1])
