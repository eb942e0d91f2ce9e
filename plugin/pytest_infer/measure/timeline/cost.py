"""What the timeline costs: the same work with the sampler on and off, interleaved, and the helper's own CPU time."""

# Run it with `python -m pytest_infer.measure.timeline.cost`.

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from pytest_infer.errors import InferError
from pytest_infer.measure.counters.cpu import cores
from pytest_infer.measure.timeline.recorder import TimelineSampler

_TRIED = 5
"""So often the loop is tried before it is known how long it takes: the core may be another's for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Times with the sampler / without it, one ratio per pair, and the helper's CPU time / the time sampled."""

    ratios: tuple[float, ...]
    helper_share: float
    interval_s: float

    def line(self) -> str:
        """Return it for people."""
        quartiles = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else list(self.ratios) * 3
        return (
            f"sampling every {1000 * self.interval_s:g} ms: work takes {statistics.median(self.ratios):.4f} times as "
            f"long (quartiles {quartiles[0]:.4f} to {quartiles[2]:.4f}, {len(self.ratios)} pairs); "
            f"the helper used {100 * self.helper_share:.2f} % of a core"
        )


def self_test(pairs: int = 30, work_s: float = 0.1, *, sampler: TimelineSampler | None = None) -> Cost:
    """Run a loop of Python, about `work_s` seconds long, with the sampler on and off, interleaved (A B B A).

    Raises:
        InferError: there is no timeline here.
    """
    own = TimelineSampler(usable_cores=cores().usable) if sampler is None else sampler
    try:
        return _compared(own, _work(work_s), pairs)
    finally:
        if sampler is None:
            own.close()


def _compared(sampler: TimelineSampler, work: Callable[[], object], pairs: int) -> Cost:
    ratios: list[float] = []
    helper_s = sampled_s = 0.0

    def timed(*, on: bool) -> float:
        nonlocal helper_s, sampled_s
        with sampler.sampling() if on else nullcontext() as window:
            started = time.perf_counter()
            work()
            took = time.perf_counter() - started
        if window is not None:
            if window.timeline is None:
                raise InferError(f"there is no timeline here: {window.absent}")
            helper_s += window.timeline.helper_cpu_s
            sampled_s += took
        return took

    timed(on=True)  # starts the helper
    helper_s = sampled_s = 0.0
    for number in range(pairs):
        with_it, without = (timed(on=True), timed(on=False)) if number % 2 else (0.0, timed(on=False))
        ratios.append((with_it or timed(on=True)) / without)
    return Cost(ratios=tuple(ratios), helper_share=helper_s / sampled_s, interval_s=sampler.interval_s)


def _work(work_s: float) -> Callable[[], object]:
    """Return a loop that takes about so long on a quiet core."""
    steps, took = 20_000, []
    for _ in range(_TRIED):
        started = time.perf_counter()
        sum(range(steps))
        took.append(time.perf_counter() - started)
    times = max(1, round(work_s / min(took)))

    def work() -> None:
        for _ in range(times):
            sum(range(steps))

    return work


if __name__ == "__main__":
    sys.stdout.write(self_test().line() + "\n")
