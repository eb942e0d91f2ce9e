"""Launches: pairs of processes, one a side, in each of which a prompt is measured in turns of a token."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from msgspec.structs import replace

from pytest_infer.ab import protocol
from pytest_infer.ab.child_process import ChildProcess
from pytest_infer.ab.loop import Task
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.settling import CoreSchedule
from pytest_infer.ab.turns import joined
from pytest_infer.errors import AgainstError
from pytest_infer.measure import rounds
from pytest_infer.measure.machine import host
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import Pass, PromptInfo, PromptRecord, Round, Turns

PAUSE_S = 0.012
"""Before each turn of an engine with several threads: the other side's spin for up to 11 ms after their last work."""
_PASSES = (*((1, begins) for begins in (False, True, True, False) * 2), (None, True), (None, False))
"""The passes of a launch in a cycle: their tokens, and whether this checkout begins; every other cycle is the reverse.

Passes of one token are short, and have no neighbours within to average over. Who ended a pass finds its own weights in
the caches if it begins the next one: in this order either side does so equally often.
"""
ROOM = 0.8
"""So much of the memory that is available further launches may take."""
_LEAST_QUADS = 4
"""Turns are short enough for so many quads in a pass, whatever that costs."""
_MOST_OVERHEAD = 2.0
"""A turn may cost so many times what is computed in it; else it takes several tokens."""


@dataclass(slots=True)
class Launch:
    """Two processes of the same age, the commit's and this checkout's; what they measured of the test at hand."""

    before: ChildProcess
    after: ChildProcess
    pairs: list[tuple[Round, Round]] = field(default_factory=list)
    passes: list[tuple[Pass, Pass]] = field(default_factory=list)
    first_tokens: list[tuple[Pass, Pass]] = field(default_factory=list)

    def begin(self, nodeid: str) -> tuple[protocol.Begun, protocol.Begun]:
        """Let both sides run a test up to its first round, at the same time."""
        self.pairs, self.passes, self.first_tokens = [], [], []
        self.before.go(nodeid)
        self.after.go(nodeid)
        return self.before.begun(), self.after.begun()

    def time(self, cores: tuple[int, ...], *, after_first: bool) -> None:
        """Run a whole round on each side."""
        if after_first:
            after = self.after.time(cores)
            self.pairs.append((self.before.time(cores), after))
        else:
            before = self.before.time(cores)
            self.pairs.append((before, self.after.time(cores)))

    def turns(self, asked: protocol.TakeTurns) -> tuple[protocol.TookTurns, protocol.TookTurns]:
        """Run a pass; `asked` is what this checkout's side does, which begins or not."""
        self.before.take_turns(replace(asked, begins=not asked.begins))
        self.after.take_turns(asked)
        took = self.before.took_turns(), self.after.took_turns()
        kept = self.passes if asked.tokens is None else self.first_tokens
        kept.append((took[0].taken, took[1].taken))
        return took

    def close(self) -> None:
        """End both processes."""
        self.before.close()
        self.after.close()


@contextmanager
def _pipes() -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the ends of two pipes, a pair of ends for each side, and close them here: their processes have them."""
    (read_a, write_b), (read_b, write_a) = os.pipe(), os.pipe()
    try:
        yield (read_a, write_a), (read_b, write_b)
    finally:
        for end in (read_a, write_b, read_b, write_a):
            os.close(end)


class Launches:
    """The loop of a comparison whose two sides are processes of their own: this one measures nothing itself."""

    def __init__(self, session: InferSession, commit: OtherCommit) -> None:
        self._session = session
        self._commit = commit
        self._launches: list[Launch] = []
        self._wanted = session.settings.launches
        self._number = 0
        self._bases: dict[str, tuple[PromptRecord | None, Turns | None]] = {}

    def start(self) -> None:
        """Start the first launch; the others when it is known how much memory a model takes."""
        self._launches.append(self._launch())

    def before(self) -> None:
        """Do nothing before the tests."""

    def after(self) -> list[str]:
        """End all processes; nothing can go wrong any more."""
        self.close()
        return []

    def close(self) -> None:
        """End all processes."""
        for launch in self._launches:
            launch.close()
        self._launches = []

    def _launch(self) -> Launch:
        planned = self._session.keeper.planned
        with _pipes() as (before, after):
            ours = self._commit.start_own(after)
            try:
                base = self._commit.start(planned, before)
                ready = ours.greet(protocol.Hello(planned=planned))
            except BaseException:
                ours.close()
                raise
        if ready.new:
            raise AgainstError(f"a process of this checkout's own does not collect {', '.join(ready.new)}")
        return Launch(before=base, after=ours)

    def elsewhere(self, nodeid: str, prompt: PromptInfo, plan: rounds.RoundPlan) -> PromptRecord | None:
        """Measure a test on both sides, and return this checkout's record."""
        try:
            return self._record(nodeid, prompt, plan)
        finally:
            whole = [launch for launch in self._launches if not (launch.before.broken or launch.after.broken)]
            for launch in self._launches:
                if launch not in whole:
                    launch.close()
            # With none left every later test says why.
            self._launches = whole or self._launches[:1]

    def _record(self, nodeid: str, info: PromptInfo, plan: rounds.RoundPlan) -> PromptRecord:
        if nodeid in self._commit.new:
            return self._alone(nodeid, plan)
        show = self._session.live.show
        show(f"{info.name} · launch 1 of {self._wanted}")
        begun = self._launches[0].begin(nodeid)
        self._fill(begun)
        for number, launch in enumerate(self._launches[1:], 2):
            show(f"{info.name} · launch {number} of {len(self._launches)}")
            launch.begin(nodeid)
        started = time.monotonic()
        each = math.ceil(plan.rounds / len(self._launches))
        self._whole_rounds(info, plan, each, CoreSchedule(begun[1].threads))
        if plan.profile:
            show(f"{info.name} · profile")
            self._launches[0].before.instrument(experts=plan.experts)
            self._launches[0].after.instrument(experts=plan.experts, trace=plan.trace)
        found = None
        if all(one.turns for one in begun):
            found = self._turns(info, begun[1].threads, started)
        else:
            self._session.note(f"{info.name}: this engine takes no turns of a token: whole rounds were compared")
        self._session.live.clear()
        return self._finish(nodeid, each, found)

    def _alone(self, nodeid: str, plan: rounds.RoundPlan) -> PromptRecord:
        """Measure a test that the other side lacks."""
        ours = self._launches[0].after
        ours.begin(nodeid)
        for _ in range(plan.warmup):
            ours.warm_up()
        for _ in range(plan.rounds):
            ours.time()
        if plan.profile:
            ours.instrument(experts=plan.experts, trace=plan.trace)
        record, why = ours.finish(tuple(range(plan.rounds)))
        if why is not None:
            raise AgainstError(f"{nodeid} was measured in a process of its own, but then {why}")
        self._bases[nodeid] = (None, None)
        return record

    def _fill(self, begun: Sequence[protocol.Begun]) -> None:
        """Start as many launches as were asked for and fit the memory, once it is known what one takes."""
        private = [one.private_bytes for one in begun]
        available = host.available_bytes()
        fits = self._wanted
        if None not in private and available is not None:
            fits = len(self._launches) + int(ROOM * available / max(1, sum(filter(None, private))))
        if fits < self._wanted:
            self._session.note(
                f"{fits} of {self._wanted} launches fit the memory: how far launches differ is known less well"
            )
            self._wanted = fits
        while len(self._launches) < self._wanted:
            self._session.live.show(f"starting launch {len(self._launches) + 1} of {self._wanted} …")
            self._launches.append(self._launch())

    def _whole_rounds(self, info: PromptInfo, plan: rounds.RoundPlan, each: int, cores: CoreSchedule) -> None:
        """Run warm-ups and `each` whole rounds a launch, in turns; disturbed pairs are run again in the same launch."""
        for number, launch in enumerate(self._launches):
            self._session.live.show(f"{info.name} · whole rounds · launch {number + 1} of {len(self._launches)}")
            for _ in range(plan.warmup):
                launch.before.warm_up()
                launch.after.warm_up()
            left = plan.repeat // len(self._launches)
            while rounds.needs_more([_disturbed(pair) for pair in launch.pairs], each, left):
                turn = number + len(launch.pairs)
                launch.time(cores.of(turn), after_first=turn % 2 == 1)

    def _turns(self, info: PromptInfo, threads: int | None, started: float) -> Turns:
        """Run passes in all launches until the interval is narrow enough or the time is up, and return the ratios."""
        # Imported late: numpy and scipy are for runs that compare.
        from pytest_infer.analysis.compare import gate  # noqa: PLC0415
        from pytest_infer.analysis.compare import launches as estimates  # noqa: PLC0415

        budget = self._session.settings.time_s
        one_thread = threads == 1
        asked = protocol.TakeTurns(
            number=0,
            begins=False,
            every=1,
            cores=CoreSchedule(None).all if one_thread else (),
            pause_s=0.0 if one_thread else PAUSE_S,
        )
        asked = replace(asked, every=_ticks_a_turn(self._pass(self._launches[0], asked)))
        self._launches[0].passes.clear()
        cycles = 0
        while True:
            begun = time.monotonic()
            for launch in self._launches:
                for tokens, begins in _PASSES:
                    self._pass(launch, replace(asked, tokens=tokens, begins=begins is (cycles % 2 == 0)))
            cycles += 1
            spent = time.monotonic() - started
            found = Turns(
                every=asked.every,
                cycles=cycles,
                seconds=spent,
                ratios=estimates.ratios([(one.first_tokens, one.passes) for one in self._launches], asked.every),
            )
            width = gate.width(self._session.settings.gate or (), info.name, found)
            self._session.live.show(f"{info.name} · {_said(width)} · {max(0, budget - spent):.0f} s left")
            if (width is not None and width <= 1) or spent + time.monotonic() - begun > budget:
                return found

    def _pass(self, launch: Launch, asked: protocol.TakeTurns) -> tuple[protocol.TookTurns, protocol.TookTurns]:
        self._number += 1
        return launch.turns(replace(asked, number=self._number))

    def _finish(self, nodeid: str, each: int, found: Turns | None) -> PromptRecord:
        sides: list[PromptRecord] = []
        for side in ("before", "after"):
            records = []
            for launch in self._launches:
                disturbed = [_disturbed(pair) for pair in launch.pairs]
                keep = rounds.rounds_to_keep(disturbed, each)
                record, why = getattr(launch, side).finish(keep)
                if why is not None:
                    self._session.note(f"! {nodeid} was measured in a process of its own, but then {why}")
                records.append(record)
            whole = records[0]
            for record in records[1:]:
                whole = joined(whole, record)
            sides.append(whole)
        self._bases[nodeid] = (sides[0], found)
        return sides[1]

    def measure(self, task: Task) -> rounds.Measured:
        """Refuse: nothing is measured in this process."""
        raise AgainstError(f"{task.nodeid} is measured in processes of its own")

    def finished(self, record: PromptRecord) -> None:
        """Put the records of both sides together."""
        base, found = self._bases.pop(record.nodeid, (None, None))
        self._session.pairs[record.nodeid] = (base, record)
        if found is not None:
            self._session.turns[record.nodeid] = found


def _disturbed(pair: tuple[Round, Round]) -> bool:
    return any(one.disturbed for one in pair)


def _ticks_a_turn(took: Sequence[protocol.TookTurns]) -> int:
    """Return how many ticks a turn should have, by what handing over cost in a pass with one tick a turn."""
    own = [(one.taken.stamps_ns[-1] - one.taken.start_ns) for one in took]
    ticks = sum(len(one.taken.stamps_ns) for one in took)
    overhead = max(0, max(one.wall_ns for one in took) - sum(own)) / ticks
    most = (min(len(one.taken.stamps_ns) for one in took) - 1) // (2 * _LEAST_QUADS)
    return max(1, min(most, math.ceil(overhead / (_MOST_OVERHEAD * sum(own) / ticks))))


def _said(width: float | None) -> str:
    return "in turns" if width is None else f"interval {width:.1f} × the rule's threshold"
