"""The loop of a comparison whose sides are processes of their own, in several launches: this one measures nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from pytest_infer.ab import apart, divergence, passes, protocol
from pytest_infer.ab.child_process import ChildProcess
from pytest_infer.ab.launch import Launch, disturbed, pipes
from pytest_infer.ab.loop import Task
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.settling import CoreSchedule, most_threads
from pytest_infer.ab.turns import joined
from pytest_infer.errors import AgainstError
from pytest_infer.measure import rounds
from pytest_infer.measure.breakdown.taken import OFF
from pytest_infer.measure.machine import host
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import PromptInfo, PromptRecord, Reference, Turns
from pytest_infer.storage import launch_spreads

ROOM = 0.8
"""So much of the memory that is available further launches may take."""


class Launches:
    """Starts the launches, lets each test be measured in all of them, and puts their records together."""

    def __init__(self, session: InferSession, commit: OtherCommit) -> None:
        self._session = session
        self._commit = commit
        self._launches: list[Launch] = []
        self._wanted = session.settings.launches
        self._bases: dict[str, tuple[PromptRecord | None, Turns | None]] = {}

    def start(self) -> None:
        """Start the first launch; the others when it is known what memory and time a prompt takes."""
        self._launches.append(self._launch())

    def before(self) -> None:
        """Do nothing before the tests."""

    def after(self) -> list[str]:
        """End all processes, and keep how far launches lay apart; nothing can go wrong any more."""
        # Imported late: numpy and scipy are for runs that compare.
        from pytest_infer.analysis.compare import launches  # noqa: PLC0415

        self.close()
        told = {
            launch_spreads.key(self._session.pairs[nodeid][1], turns): launches.told_by(turns)
            for nodeid, turns in self._session.turns.items()
        }
        launch_spreads.save({key: spreads for key, spreads in told.items() if spreads})
        return []

    def close(self) -> None:
        """End all processes."""
        for launch in self._launches:
            launch.hang_up()
        for launch in self._launches:
            launch.close()
        self._launches = []

    def _launch(self) -> Launch:
        planned = self._session.keeper.planned
        with pipes() as (before, after):
            ours, base = self._commit.start_own(after), None
            try:
                # Both collect at the same time.
                ours.greet(protocol.Hello(planned=planned))
                base = self._commit.start(planned, before)
                _wait(ours)
            except BaseException:
                for process in (ours, base):
                    if process is not None:
                        process.close()
                raise
        return Launch(before=base, after=ours)

    def elsewhere(
        self, nodeid: str, prompt: PromptInfo, plan: rounds.RoundPlan, config: Mapping[str, str]
    ) -> PromptRecord | None:
        """Measure a test on both sides, and return this checkout's record."""
        try:
            if nodeid in self._commit.new:
                return self._alone(nodeid, plan)
            return self._record(nodeid, prompt, plan, config)
        finally:
            self._session.live.clear()
            whole = [launch for launch in self._launches if not launch.broken]
            # With none left every later test says why.
            kept = whole or self._launches[:1]
            for launch in self._launches:
                if launch not in kept:
                    launch.close()
            self._launches = kept

    def _record(self, nodeid: str, info: PromptInfo, plan: rounds.RoundPlan, config: Mapping[str, str]) -> PromptRecord:
        first = self._launches[0]
        self._say(info, "warm-up")
        begun = first.begin(nodeid)
        threads, takes_turns = most_threads(*(one.threads for one in begun)), all(one.turns for one in begun)
        cores = CoreSchedule(threads)
        first.warm_up(plan.warmup)
        first.time(cores.of(0), after_first=False)
        first.holds = sum(one.private_bytes or 0 for one in begun)
        windows = takes_turns and all(one.windows for one in begun) and first.tells_tokens

        def fitting(launches: int) -> passes.Parts:
            return passes.Cost.of(first.pairs[0]).parts(
                self._session.settings.time_s, launches, plan.rounds, turns=takes_turns, windows=windows
            )

        used = self._used(begun, fitting(self._wanted).launches)
        parts = fitting(len(used))
        whole, others = used[: parts.whole], used[parts.whole :]
        for number, launch in enumerate(used[1:], 2):
            self._say(info, f"warm-up · launch {number} of {len(used)}")
            launch.begin(nodeid)
            launch.holds = first.holds
            if takes_turns and (plan.warmup or number > parts.whole):
                passes.warm_up(launch, threads)
            else:
                launch.warm_up(plan.warmup)
        started = time.monotonic()
        reference = self._whole_or_followed(info, plan, parts, used, begun, cores)
        for launch in others:
            launch.adopt(first)
        if plan.profile:
            self._say(info, "profile")
            self._profile(first, plan, reference)
        cost = passes.Cost.of(first.pairs[0])
        left = self._session.settings.time_s - (time.monotonic() - started)
        if takes_turns:
            found = passes.measure(
                used,
                cost,
                fitting(len(used)).windows,
                threads=threads,
                rounds=parts.rounds,
                budget_s=left,
                enough=lambda turns: self._enough(info, config, turns, left - turns.seconds),
            )
        else:
            self._session.note(f"{info.name}: this engine takes no turns of a token: whole rounds were compared")
            found = self._more_rounds(info, config, used, parts.rounds, cores, started)
        found = self._taken_apart(info, used, cost, found, threads)
        found = self._whole_text(info, whole, found)
        if found.undisturbed:
            self._session.note(
                "something else took cores now and then: where turns that waited for none tell a time more exactly, "
                "they alone were compared"
            )
        for launch in others:
            # One that is gone is told of with the next test.
            with suppress(AgainstError):
                launch.abandon()
        return self._finish(nodeid, whole, found)

    def _whole_or_followed(
        self,
        info: PromptInfo,
        plan: rounds.RoundPlan,
        parts: passes.Parts,
        used: Sequence[Launch],
        begun: Sequence[protocol.Begun],
        cores: CoreSchedule,
    ) -> Reference:
        """Run the whole rounds of a prompt, and return the base's output; where the other's differs, run them again,
        and from now on both sides follow the base's."""
        whole = used[: parts.whole]
        self._whole_rounds(info, whole, parts.rounds, plan.repeat, cores)
        able = all(one.follows for one in begun)
        tokens, others = (one.trace.token_ids for one in used[0].pairs[0])
        known = begun[1].vocabulary
        reference = divergence.of(self._commit.name, tokens, others, follow=able, vocabulary=known)
        if able and reference.problem is None and any(launch.differs_from(tokens) for launch in whole):
            # Times of different work say nothing: both sides do the base's.
            for launch in used:
                launch.follow(reference)
            self._whole_rounds(info, whole, parts.rounds, plan.repeat, cores)
        return reference

    def _whole_text(self, info: PromptInfo, whole: Sequence[Launch], found: Turns) -> Turns:
        """Return what passes said; without steps, if they were of parts of the text and whole rounds tell another
        change."""
        # Imported late: numpy and scipy are for runs that compare.
        from pytest_infer.analysis.compare import launches  # noqa: PLC0415

        if found.tokens is not None:
            rounds_ = [[launch.pairs[number] for number in launch.kept(found.rounds)] for launch in whole]
            beside = launches.beside_parts([[(a.trace, b.trace) for a, b in pairs] for pairs in rounds_], found)
            if beside is not None:
                told = [f"{100 * math.expm1(one):+.1f} %".replace("-", "−") for one in beside]
                self._session.note(
                    f"! {info.name}: a step changed by {told[0]} in whole rounds, by {told[1]} in the two parts of the "
                    "text that there was time for: whole rounds count; give it more --infer-time"
                )
                first = {key: one for key, one in found.ratios.items() if key == launches.FIRST}
                shares = {key: one for key, one in found.undisturbed.items() if key in first}
                return replace(found, ratios=first, undisturbed=shares)
            self._session.note(
                f"--infer-time {self._session.settings.time_s:g}s is too short to measure each prompt whole: steps "
                "were compared in two parts of its text"
            )
        if launches.STEPS in found.ratios:
            self._session.note(
                f"{info.name}: not all steps changed alike: TPOT and decode count all of them, ITL p50 the middle"
            )
        return found

    def _profile(self, first: Launch, plan: rounds.RoundPlan, reference: Reference) -> None:
        files = divergence.Files.within(self._commit.scratch)
        files.remove()
        trace = plan.experts and divergence.traceable(first.pairs[0][0])
        first.before.instrument(experts=plan.experts, trace=trace, reference=reference, full=files.before)
        first.after.instrument(experts=plan.experts, trace=trace or plan.trace, reference=reference, full=files.after)

    def _taken_apart(
        self, info: PromptInfo, used: Sequence[Launch], cost: passes.Cost, found: Turns, threads: int | None
    ) -> Turns:
        """Return what turns said, with the steps by role where they are to be taken apart."""
        settings = self._session.settings
        if settings.breakdown != OFF:
            found = replace(found, parts=apart.tokenised(used))
        if not found.every or len(used) < 2 or not apart.wanted(found, settings.breakdown):
            return found
        self._say(info, "where the time goes")
        parts, why = apart.measure(used, cost, found, threads=threads, time_s=settings.time_s)
        if why is not None:
            self._session.note(f"{info.name}: steps were not taken apart: {why}")
        return replace(found, parts={**found.parts, **parts})

    def _say(self, info: PromptInfo, what: str) -> None:
        self._session.live.show(f"{info.name} · {what}")

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

    def _used(self, begun: Sequence[protocol.Begun], in_time: int) -> list[Launch]:
        """Return the launches for a prompt, as many as were asked for and fit the time; start what fits the memory."""
        if in_time < self._wanted:
            self._session.note(
                f"--infer-time {self._session.settings.time_s:g}s is too short to measure each prompt in "
                f"{self._wanted} launches: in fewer, how far they differ is known less well"
            )
        wanted = min(self._wanted, in_time)
        private = [one.private_bytes for one in begun]
        if None not in private and (available := host.available_bytes()) is not None:
            wanted = self._fitting(wanted, sum(filter(None, private)), ROOM * available)
        wanted = self._fitting_device(wanted, begun)
        while len(self._launches) < wanted:
            self._session.live.show(f"starting launch {len(self._launches) + 1} of {wanted} …")
            self._launches.append(self._launch())
        return self._launches[:wanted]

    def _fitting(self, wanted: int, need: int, room: float) -> int:
        """Return how many of the launches wanted fit the memory, now that it is known what one needs; all in bytes.

        Of a sweep this may be for another model than before, which the other launches still hold: where there is too
        little `room` for them to load this one, some are ended.
        """
        asked = wanted
        while wanted > 1 and (wanted - 1) * need - sum(one.holds for one in self._launches[1:wanted]) > room:
            if len(self._launches) <= wanted:
                wanted -= 1
            if len(self._launches) > wanted:
                last = self._launches.pop()
                last.close()
                room += last.holds
        if wanted < asked:
            self._session.note(
                f"{wanted} of {asked} launches fit the memory: how far launches differ is known less well"
            )
        return wanted

    def _fitting_device(self, wanted: int, begun: Sequence[protocol.Begun]) -> int:
        """Return how many of the launches wanted fit an accelerator, with those that are open already."""
        need = sum(one.device_bytes or 0 for one in begun)
        free = min((one.device_free for one in begun if one.device_free is not None), default=None)
        fitting = wanted if not need or free is None else len(self._launches) + int(ROOM * free // need)
        if fitting < wanted:
            self._session.note(
                f"{fitting} of {wanted} launches fit the accelerator's memory: how far they differ is known less well"
            )
        return min(wanted, fitting)

    def _whole_rounds(
        self, info: PromptInfo, used: Sequence[Launch], each: int, repeat: int, cores: CoreSchedule
    ) -> None:
        """Run `each` whole rounds a launch, in turns; up to `repeat` disturbed pairs are run again, in their launch."""
        for number, launch in enumerate(used):
            self._say(info, f"whole rounds · launch {number + 1} of {len(used)}")
            asked = max(each, len(launch.pairs))
            while rounds.needs_more([disturbed(pair) for pair in launch.pairs], each, repeat):
                turn = number + len(launch.pairs)
                launch.time(cores.of(turn), after_first=turn % 2 == 1)
            repeat -= max(0, len(launch.pairs) - asked)

    def _more_rounds(
        self,
        info: PromptInfo,
        config: Mapping[str, str],
        used: Sequence[Launch],
        each: int,
        cores: CoreSchedule,
        started: float,
    ) -> Turns:
        """Run more whole rounds until they are settled or the time is up."""
        settings = self._session.settings
        while True:
            pairs = [launch.pairs[number] for launch in used for number in launch.kept(each)]
            before, after = (tuple(pair[side] for pair in pairs) for side in (0, 1))
            settled = len(pairs) >= settings.min_pairs and self._session.settled(info, before, after, config)
            spent = time.monotonic() - started
            if settled or len(pairs) >= settings.max_rounds or spent * (1 + 1 / each) > settings.time_s:
                return Turns(every=0, cycles=0, seconds=spent, ratios={}, rounds=each)
            each += 1
            self._whole_rounds(info, used, each, 0, cores)

    def _enough(self, info: PromptInfo, config: Mapping[str, str], turns: Turns, left_s: float) -> bool:
        """Return whether a prompt's interval is as narrow as it needs to be, or as passes can make it."""
        # Imported late: numpy and scipy are for runs that compare.
        from pytest_infer.analysis.compare import gate, launches  # noqa: PLC0415

        found = gate.precision(self._session.settings.gate or (), info.name, turns, config)
        known = "" if found is None else f" · ±{100 * found.half:.2g} % for {100 * found.threshold:g} %"
        self._say(info, f"turns of a token{known} · {max(0.0, left_s):.0f} s left")
        return (found is not None and found.enough) or launches.limited(turns)

    def _finish(self, nodeid: str, used: Sequence[Launch], found: Turns) -> PromptRecord:
        sides: tuple[list[PromptRecord], list[PromptRecord]] = ([], [])
        for launch in used:
            records, reasons = launch.finish(launch.kept(found.rounds))
            for side, record in zip(sides, records, strict=True):
                side.append(record)
            for why in reasons:
                self._session.note(f"! {nodeid} was measured in a process of its own, but then {why}")
        if found.strayed:
            self._session.note(f"! {nodeid} generated other tokens in {found.strayed} passes than in its whole rounds")
        base, ours = (_whole(records) for records in sides)
        files = divergence.Files.within(self._commit.scratch)
        ours = divergence.compared(base, ours, files)
        files.remove()
        self._bases[nodeid] = (base, replace(found, earlier=launch_spreads.earlier(launch_spreads.key(ours, found))))
        return ours

    def compared(self, record: PromptRecord) -> PromptRecord:
        """Return it as it is: `elsewhere` compared it."""
        return record

    def measure(self, task: Task) -> rounds.Measured:
        """Refuse: nothing is measured in this process."""
        raise AgainstError(f"{task.nodeid} is measured in processes of its own")

    def finished(self, record: PromptRecord) -> None:
        """Put the records of both sides together."""
        base, found = self._bases.pop(record.nodeid, (None, None))
        self._session.pairs[record.nodeid] = (base, record)
        if found is not None:
            self._session.turns[record.nodeid] = found


def _wait(ours: ChildProcess) -> None:
    ready = ours.ready()
    if ready.new:
        raise AgainstError(f"a process of this checkout's own does not collect {', '.join(ready.new)}")


def _whole(records: Sequence[PromptRecord]) -> PromptRecord:
    whole = records[0]
    for record in records[1:]:
        whole = joined(whole, record)
    return whole
