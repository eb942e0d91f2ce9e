"""The measuring loop: warm-up, timed rounds that carry no instrument, and one profile round that carries them all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Protocol

from pytest_infer import untrusted
from pytest_infer.engines.base import Engine
from pytest_infer.measure import disturbance, following
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.breakdown import operators, taken
from pytest_infer.measure.clock import TokenClock, TurnClock, TurnTaker
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.heap import no_collections
from pytest_infer.measure.instrumentation import suspended
from pytest_infer.measure.profile_round import profile_round
from pytest_infer.measure.timeline.recorder import TimelineSampler
from pytest_infer.records import (
    Breakdown,
    Limits,
    Operators,
    Pass,
    Profile,
    Reference,
    Round,
    TextScore,
    TokenTrace,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """How often a prompt runs: untimed first, then timed, then perhaps once with instruments."""

    warmup: int
    rounds: int
    profile: bool
    experts: bool
    trace: bool = False
    """Whether the selections of each token are recorded, not only their counts."""
    repeat: int = 0
    """How many rounds may be added for disturbed ones."""
    reference: Reference | None = None
    """Whose tokens the profile round follows, and the timed rounds too if the free output is another."""
    breakdown: str = taken.OFF
    """When steps are taken apart after the profile round: "on", "auto", "off", or "ops"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the loop saw of one prompt; `repeated` are disturbed rounds that were re-measured.

    `first` is the first warm-up round. `profile_absent` is why a planned profile round gave nothing. `reference` says
    whose tokens were followed, and what the free ones are.
    """

    warmup: int
    rounds: tuple[Round, ...]
    profile: Profile | None
    repeated: tuple[Round, ...] = ()
    first: Round | None = None
    profile_absent: str | None = None
    reference: Reference | None = None
    breakdown: Breakdown | None = None
    breakdown_absent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """What a prompt's rounds run with."""

    engine: Engine
    asking: Asking
    limits: Limits
    system: SystemCounters
    usable_cores: float
    timeline: TimelineSampler | None = None
    text: Callable[[], tuple[TextScore | None, str | None]] | None = None
    """Scores the text of --infer-text, if there is one, or says why it cannot."""
    encode: Callable[[], object] = lambda: None
    """Encodes the prompt once more."""

    def encoded(self, times: int) -> tuple[int, ...]:
        """Return how long the tokeniser takes, nanoseconds, each time."""
        took = []
        for _ in range(times):
            begun = perf_counter_ns()
            self.encode()
            took.append(perf_counter_ns() - begun)
        return tuple(took)

    def timed(self, follow: Sequence[int] | None = None) -> Round:
        """Run a timed round, which generates the tokens given if any are, and say whether it was disturbed."""
        following.steer(self.engine, follow)
        raw = timed_round(self.engine, self.asking, self.limits, self.system)
        following.obeyed(raw.trace, follow)
        return replace(raw, disturbed=disturbance.reasons(raw.counters, self.usable_cores))

    def in_turns(
        self,
        turns: TurnTaker,
        tokens: int | None = None,
        follow: Sequence[int] | None = None,
        observed: taken.InTurns | None = None,
        behind: Sequence[int] = (),
    ) -> Pass:
        """Run a round without counters in turns with another process, its steps `observed` or bare.

        `tokens` is a limit of its own. The prompt goes on with the ids of `behind`.
        """
        limits = self.limits if tokens is None else replace(self.limits, max_new_tokens=tokens)
        following.steer(self.engine, None if follow is None else follow[: limits.max_new_tokens])
        self.engine.reset()
        request = self.asking.next(behind)
        self.engine.ready(request, limits)
        clocks = nullcontext(TurnClock(turns)) if observed is None else observed.clock(turns)
        with suspended(), quiet_gc(), clocks as clock:
            self.engine.synchronize()
            turns.await_first()
            clock.start()
            self.engine.respond(request, limits, clock)
            # What follows the last token of an accelerator belongs to no turn of the other side's.
            self.engine.synchronize()
        self.engine.settle()
        trace = clock.trace(prompt_tokens=len(request.ids), requested_tokens=limits.max_new_tokens, stopped_by=None)
        return Pass(
            start_ns=trace.start_ns,
            stamps_ns=trace.stamps_ns,
            tick_sizes=trace.tick_sizes,
            token_ids=tuple(trace.token_ids),
        )

    def profile(
        self,
        expected: TokenTrace,
        *,
        experts: bool,
        trace: bool = False,
        follow: Sequence[int] | None = None,
        full: Path | None = None,
    ) -> Profile:
        """Run the round with instruments; `expected` is the trace of a timed one. Then score the text, if there is one.

        `kept_apart` is the same for whoever has timed rounds to lose.

        `full` is a file for whole distributions, as `Engine.keep_scores` has it.
        """
        following.steer(self.engine, follow)
        profile = profile_round(
            self.engine,
            partial(timed_round, self.engine, self.asking, self.limits, self.system),
            self.system,
            prompt_tokens=len(self.asking.ids),
            sequences=self.limits.sequences,
            expected=expected,
            experts=experts,
            trace=trace,
            timeline=self.timeline,
            full=full,
        )
        text, why = (None, "no text: --infer-text") if self.text is None else self.text()
        return replace(profile, text=text, text_absent=why)

    def kept_apart(
        self,
        expected: TokenTrace,
        *,
        experts: bool,
        trace: bool = False,
        follow: Sequence[int] | None = None,
        full: Path | None = None,
    ) -> tuple[Profile | None, str | None]:
        """Return the profile, or None and why there is none: what was timed is valid, whatever instruments do."""
        try:
            return self.profile(expected, experts=experts, trace=trace, follow=follow, full=full), None
        except Exception as error:  # noqa: BLE001 - of whatever an instrument meets
            return None, f"the profile round failed: {failure(error)}"

    def taken_apart(
        self, like: TokenTrace, when: str, *, follow: Sequence[int] | None = None
    ) -> tuple[Breakdown | None, str | None]:
        """Return the breakdown of the steps, or None and why there is none; `like` is the trace of a timed round.

        With "ops" it has the operators too, or why there are none.
        """
        try:
            why = taken.absent(self.engine, like, when)
            if why is not None:
                return None, why
            found = taken.take(self.engine, self.asking, self.limits, like, follow)
        except Exception as error:  # noqa: BLE001 - of whatever an instrument meets
            return None, f"taking steps apart failed: {failure(error)}"
        return (replace(found, operators=self._operators(follow)) if when == taken.OPS else found), None

    def _operators(self, follow: Sequence[int] | None) -> Operators:
        try:
            return operators.take(self.engine, self.asking, self.limits, follow)
        except Exception as error:  # noqa: BLE001 - of whatever an instrument meets
            return Operators(absent=f"recording operators failed: {failure(error)}")


def failure(error: Exception) -> str:
    """Return what an instrument's failure says; raise pytest's requests to end again, which are no instrument's."""
    if type(error).__module__.startswith("_pytest."):
        raise error
    return untrusted.failure(error)


class Watcher(Protocol):
    """Called between rounds with the loop's progress; never inside one."""

    def __call__(self, phase: str, done: int, planned: int, last: TokenTrace | None) -> None:
        """Take `phase` ("warm-up", "round", "repeat", "profile", …), how many of it are done, and the newest trace."""


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Collect garbage now, and none until the block ends."""
    gc.collect()
    with no_collections():
        yield


def measure(runner: Runner, plan: RoundPlan, watch: Watcher) -> Measured:
    """Run one prompt as planned and return its rounds, in order."""
    first: Round | None = None
    last: TokenTrace | None = None
    # What is generated freely is known before it is decided whether the timed rounds follow.
    warmup = max(plan.warmup, 0 if plan.reference is None else 1)
    for number in range(warmup):
        watch("warm-up", number, warmup, last)
        warmed = runner.timed()
        first, last = first or warmed, warmed.trace
    reference = None
    if plan.reference is not None and first is not None:
        reference = following.decide(plan.reference, runner.engine, first.trace.token_ids)
    follow = following.timed(reference)
    rounds: list[Round] = []
    while needs_more([bool(r.disturbed) for r in rounds], plan.rounds, plan.repeat):
        again = len(rounds) - plan.rounds
        watch(*(("round", len(rounds), plan.rounds) if again < 0 else ("repeat", again, plan.repeat)), last)
        rounds.append(runner.timed(follow))
        last = rounds[-1].trace
    kept = rounds_to_keep([bool(r.disturbed) for r in rounds], plan.rounds)
    profile, why = None, None
    breakdown, breakdown_absent = None, None
    if plan.profile:
        watch("profile", 0, 1, last)
        followed = following.profiled(reference, runner.engine)
        profile, why = runner.kept_apart(rounds[0].trace, experts=plan.experts, trace=plan.trace, follow=followed)
        watch("breakdown", 0, 1, last)
        breakdown, breakdown_absent = runner.taken_apart(rounds[0].trace, plan.breakdown, follow=follow)
    return Measured(
        warmup=warmup,
        rounds=tuple(rounds[n] for n in kept),
        profile=profile,
        repeated=tuple(r for n, r in enumerate(rounds) if n not in kept),
        first=first,
        profile_absent=why,
        reference=reference,
        breakdown=breakdown,
        breakdown_absent=breakdown_absent,
    )


def needs_more(disturbed: Sequence[bool], wanted: int, repeat: int) -> bool:
    """Return whether another round is due: until enough are undisturbed, but no more than `repeat` beyond `wanted`."""
    return disturbed.count(False) < wanted and len(disturbed) < wanted + repeat


def rounds_to_keep(disturbed: Sequence[bool], wanted: int) -> tuple[int, ...]:
    """Return the numbers of the rounds to keep, in order: undisturbed ones, then the first disturbed ones to fill up.

    With fewer than `wanted`, all are kept.
    """
    best = sorted(range(len(disturbed)), key=lambda n: disturbed[n])  # stable: in order within each kind
    return tuple(sorted(best[:wanted]))


def timed_round(engine: Engine, asking: Asking, limits: Limits, system: SystemCounters) -> Round:
    """Run one generation and nothing else; the kernel's counters are read just before and just after."""
    clock, request = TokenClock(), asking.next()
    engine.reset()
    engine.ready(request, limits)
    with suspended(), quiet_gc():
        before = system.begin()
        engine.synchronize()
        clock.start()
        stopped_by = engine.respond(request, limits, clock)
        counters = system.end(before)
    engine.settle()
    trace = clock.trace(prompt_tokens=len(request.ids), requested_tokens=limits.max_new_tokens, stopped_by=stopped_by)
    return Round(trace=trace, counters=counters)
