"""The first test of each load measured again after its last one: how far the machine drifts while a sweep runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure.heap import Heap
from pytest_infer.measure.rounds import RoundPlan, Runner, measure
from pytest_infer.metrics import timing
from pytest_infer.records import Drift, Round, TokenTrace
from pytest_infer.report.text import printable

_FIGURES: dict[str, Callable[[TokenTrace], float | None]] = {
    "decode_throughput": timing.decode_throughput,
    "ttft_s": timing.ttft_s,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One test that was measured: of which prompt, with what, as what was planned, and its rounds."""

    test: str
    name: str
    runner: Runner
    options: EngineOptions
    plan: RoundPlan
    rounds: Sequence[Round]
    at_ns: int = field(default_factory=time.monotonic_ns)


class Remeasure:
    """Goes back to the first test of each load when its last one is measured and kept.

    Configurations of one load are measured in turns, so what drifts meets them alike. Those of different loads are
    minutes apart, and what the machine did meanwhile looks like a difference between them: it is measured here, on the
    very work that is compared.
    """

    def __init__(self, note: Callable[[str], None], show: Callable[[str], None], heap: Heap) -> None:
        self.last: Collection[str] = ()
        """The last test of each load; empty where nothing is gone back to."""
        self._note, self._show, self._heap = note, show, heap
        self._first: Measurement | None = None

    def measured(self, measurement: Measurement) -> None:
        """Take a test that was measured: the first one since a model was loaded is the one to go back to."""
        if self.last and self._first is None:
            self._first = measurement

    def resumed(self) -> None:
        """Take a test that an earlier run measured: what the machine did since then cannot be measured any more."""
        if self.last:
            self._note("! part of this sweep was measured by an earlier run: no interval holds what changed since then")
        self.last = ()
        self.forget()

    def forget(self) -> None:
        """Let go of the engine, which is about to be closed."""
        self._first = None

    def after(self, test: str, adapt: Callable[[EngineOptions], object]) -> Drift | None:
        """Measure the first test of a load again, if `test` was its last: as often as then, without instruments.

        `adapt` lets the loaded model go on with other options. A failure is noted: `test` is measured, whatever comes.
        """
        first = self._first
        if test not in self.last or first is None or first.test == test:
            return None
        apart_s = (time.monotonic_ns() - first.at_ns) / timing.NS

        def watch(phase: str, done: int, planned: int, last: TokenTrace | None) -> None:  # noqa: ARG001 - Watcher's
            self._show(printable(f"drift: {first.name} again · {phase} {done + 1}/{planned}"))

        try:
            adapt(first.options)
            with self._heap.still():
                again = measure(first.runner, replace(first.plan, profile=False), watch)
        except Exception as error:  # noqa: BLE001 - an engine may raise anything
            self._note(f"! drift was not measured: {first.test} failed when it was measured again: {error}")
            return None
        finally:
            self.forget()
        # A first round without a warm-up has costs that none has later.
        skipped = 0 if first.plan.warmup else 1
        before, after = first.rounds[skipped:], again.rounds[skipped:]
        ratios = {key: _ratio(figure, before, after) for key, figure in _FIGURES.items()}
        return Drift(
            test=first.test,
            apart_s=apart_s,
            ratios={key: ratio for key, ratio in ratios.items() if ratio is not None},
        )


def _ratio(
    figure: Callable[[TokenTrace], float | None], before: Sequence[Round], after: Sequence[Round]
) -> float | None:
    """Return the ratio of geometric means; None where a round does not have the figure, or there is none."""
    means = []
    for rounds in (after, before):
        values = [value for r in rounds if (value := figure(r.trace))]
        if not values or len(values) < len(rounds):
            return None
        means.append(fmean(map(math.log, values)))
    return math.exp(means[0] - means[1])
