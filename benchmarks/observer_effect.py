"""What measuring costs: bare `generate()` and our timed round of the same work, interleaved, and their ratio.

    python benchmarks/observer_effect.py --model reference-moe --model smollm2-moe --pairs 30

Both sides are timed alike, by the wall around the engine's `generate`: once called bare, without streamer and counters,
and once from `timed_round`, with the clock ticking and the kernel's counters read before and after. Pairs run A B B A.
The second ratio compares the profile round's generation (hooks on the experts, scores, the timeline's helper sampling)
with a timed one; then follow scores alone, a round that follows given tokens, sampling alone, and a timed round beside
the sleeping helper with one before it was started; the last line is the helper's own CPU time.

A ratio of two noisy times cannot show a thousandth. All that a timed round adds inside the timed region is the streamer
with its tick, so that is timed by itself as well, a hundred thousand ticks, and given as a share of the token's time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from pytest_infer.engines.base import Clock, EngineOptions
from pytest_infer.engines.transformers import decoding
from pytest_infer.engines.transformers.engine import TransformersEngine
from pytest_infer.engines.transformers.running import TickStreamer
from pytest_infer.measure import rounds
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.experts.recorder import ExpertRecorder
from pytest_infer.measure.machine import description
from pytest_infer.measure.timeline.recorder import TimelineSampler
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, StopReason

PROMPT = Prompt(name="observer", text="It was a bright")


class Walled(TransformersEngine):
    """The standard engine with the wall time of its last `generate`."""

    wall_s = 0.0

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        """Generate as the engine does, and note how long it took."""
        started = time.perf_counter()
        stopped_by = super().generate(prompt_ids, limits, clock)
        self.wall_s = time.perf_counter() - started
        return stopped_by

    def bare_s(self, prompt_ids: Sequence[int], limits: Limits) -> float:
        """Return the wall time of the model's own generate() with nothing of ours, seconds."""
        model = self.running.model
        config = decoding.limited(self.running.config, limits, ignore_eos=limits.ignore_eos)
        self.reset()
        with rounds.quiet_gc():
            started = time.perf_counter()
            ids = torch.tensor([list(prompt_ids)], device=model.device)
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            return time.perf_counter() - started


def interval(ratios: Sequence[float], resamples: int = 10_000) -> tuple[float, float, float]:
    """Return the median and its 95 % interval by the percentile bootstrap (Efron 1979)."""
    values = np.asarray(ratios)
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, (resamples, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(np.median(values)), float(high)


def tick_s(ticks: int = 100_000) -> float:
    """Return the time that the streamer and the clock take for one token, the copy to the host included, seconds."""
    clock, token = TokenClock(), torch.tensor([1])
    streamer = TickStreamer(clock)
    clock.start()
    streamer.put(token)  # the prompt
    with rounds.quiet_gc():
        started = time.perf_counter()
        for _ in range(ticks):
            streamer.put(token.cpu())
        return (time.perf_counter() - started) / ticks


def paired(first: Callable[[], float], second: Callable[[], float], pairs: int) -> list[float]:
    """Return second / first for each pair, run A B B A so that drift favours neither."""
    ratios = []
    for number in range(pairs):
        if number % 2:
            b = second()
            a = first()
        else:
            a = first()
            b = second()
        ratios.append(b / a)
    return ratios


@dataclass(frozen=True)
class Rounds:
    """Rounds of one prompt, each with one thing more than a bare one; all return `generate`'s wall time, seconds."""

    engine: Walled
    ids: list[int]
    limits: Limits
    system: SystemCounters
    sampler: TimelineSampler
    shares: list[float] = field(default_factory=list)

    def timed(self) -> float:
        """Run a timed round."""
        rounds.timed_round(self.engine, Asking(prompt=PROMPT, ids=self.ids), self.limits, self.system)
        return self.engine.wall_s

    def bare(self) -> float:
        """Run `generate()` alone."""
        return self.engine.bare_s(self.ids, self.limits)

    def sampled(self) -> float:
        """Run a timed round while the helper samples, and keep how much of a core it used."""
        with self.sampler.sampling() as window:
            wall_s = self.timed()
        if window.timeline is not None:
            self.shares.append(window.timeline.helper_cpu_s / wall_s)
        return wall_s

    def scored(self) -> float:
        """Run a round that keeps scores."""
        self.engine.keep_scores(keep=True)
        wall_s = self.timed()
        self.engine.keep_scores(keep=False)
        return wall_s

    def profiled(self) -> float:
        """Run a round with all that a profile round has."""
        recorder = ExpertRecorder(self.engine.running.model)
        with recorder.recording(prompt_tokens=len(self.ids)), self.sampler.sampling():
            return self.scored()

    def following(self, tokens: Sequence[int]) -> float:
        """Run a round that is fed these tokens."""
        self.engine.follow(tokens)
        wall_s = self.timed()
        self.engine.follow(None)
        return wall_s


def observe(name: str, pairs: int, tokens: int, threads: int | None) -> None:
    """Print all ratios for one model."""
    engine = Walled(EngineOptions(model=name, threads=threads))
    info = engine.load()
    sampler = TimelineSampler(usable_cores=description.describe().usable_cores)
    one = Rounds(
        engine=engine,
        ids=engine.encode(PROMPT),
        limits=Limits(max_new_tokens=tokens, ignore_eos=True),
        system=SystemCounters(),
        sampler=sampler,
    )
    free = rounds.timed_round(engine, Asking(prompt=PROMPT, ids=one.ids), one.limits, one.system).trace.token_ids
    for _ in range(3):
        one.bare()
        one.timed()
    token_s = statistics.median(one.bare() for _ in range(10)) / tokens
    print(f"{name}: {info.dtype}, {info.threads} threads, {len(one.ids)} + {tokens} tokens, {pairs} pairs")
    report("timed round / bare generate()", paired(one.bare, one.timed, pairs))
    tick = tick_s()
    print(f"  a tick takes {1e6 * tick:.2f} µs, {100 * tick / token_s:.4f} % of {1e3 * token_s:.2f} ms a token")
    report("profile round / timed round", paired(one.timed, one.profiled, pairs))
    report("scored / timed round", paired(one.timed, one.scored, pairs))
    report("following / timed round", paired(one.timed, partial(one.following, free), pairs))
    report("sampled / timed round", paired(one.timed, one.sampled, pairs))
    sampler.close()  # or its helper would sleep beside both sides
    report("timed, helper asleep / none", asleep_pairs(engine, one.timed, pairs))
    if one.shares:
        print(f"  the helper used {100 * statistics.median(one.shares):.2f} % of a core while it sampled")
    one.system.close()
    engine.close()


def asleep_pairs(engine: Walled, ours: Callable[[], float], pairs: int) -> list[float]:
    """Return timed rounds beside a sleeping helper / without one; each has a helper of its own, started before it."""

    def asleep() -> float:
        sampler = TimelineSampler(usable_cores=description.describe().usable_cores)
        with sampler.sampling():
            pass
        try:
            ours()
            return engine.wall_s
        finally:
            sampler.close()

    return paired(ours, asleep, pairs)


def report(what: str, ratios: Sequence[float]) -> None:
    """Print one ratio with its interval and the pairs' own spread."""
    low, middle, high = interval(ratios)
    print(f"  {what:<30} {middle:.4f} [{low:.4f}, {high:.4f}]  spread of a pair ± {statistics.stdev(ratios):.3f}")


def main() -> None:
    """Parse the arguments and observe each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be given several times; default: both bundled MoE models")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args()
    here = description.describe()
    print(f"{here.cpu}, {here.usable_cores} usable cores, {here.system}, torch {torch.__version__}")
    for name in given.model or ["reference-moe", "smollm2-moe"]:
        observe(name, given.pairs, given.tokens, given.threads)


if __name__ == "__main__":
    main()
