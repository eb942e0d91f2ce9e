"""The loop of a comparison whose sides are processes of their own, in several launches: this one measures nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from pytest_infer.ab import divergence, protocol
from pytest_infer.ab.child_process import ChildProcess
from pytest_infer.ab.launch import Launch, pipes
from pytest_infer.ab.loop import Task
from pytest_infer.ab.one_prompt import OnePrompt
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.turns import joined
from pytest_infer.errors import AgainstError, SkippedError
from pytest_infer.measure import rounds
from pytest_infer.measure.machine import host
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import PromptInfo, PromptRecord, Turns
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
        self._refused = 0
        self._serials = itertools.count()
        self._bases: dict[str, tuple[PromptRecord | None, Turns | None]] = {}

    def start(self) -> None:
        """Start the first launch; the others when it is known what memory and time a prompt takes."""
        self._launches.append(self._launch())

    def before(self) -> None:
        """Do nothing before the tests."""

    def after(self, *, interrupted: bool) -> list[str]:  # noqa: ARG002
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
        return Launch(serial=next(self._serials), before=base, after=ours)

    def elsewhere(
        self, nodeid: str, prompt: PromptInfo, plan: rounds.RoundPlan, config: Mapping[str, str]
    ) -> PromptRecord | None:
        """Measure a test on both sides, and return this checkout's record."""
        one = OnePrompt(self._session, self._commit, prompt, plan, config)
        # What still loaded when an earlier test failed may have ended by now, or never will.
        self._abandon(loading=True)
        self._drop_broken()
        try:
            begun = self._begun(nodeid, one)
            if begun is None:
                return self._alone(nodeid, plan)
            whole, found = one.measure(nodeid, begun, self._launches[0], self._used)
            return self._finish(nodeid, whole, found)
        except (Exception, pytest.fail.Exception) as error:
            # A limit on the test's time, perhaps: no later test is to wait for what hangs.
            self._abandon(loading=not isinstance(error, AgainstError))
            raise
        finally:
            self._session.live.clear()
            self._drop_broken()

    def _abandon(self, *, loading: bool) -> None:
        for launch in self._launches:
            if not launch.broken and (why := launch.abandon(loading=loading)) is not None:
                self._session.note(f"! {why}")

    def _drop_broken(self) -> None:
        whole = [launch for launch in self._launches if not launch.broken]
        # With none left every later test says why.
        kept = whole or self._launches[:1]
        for launch in self._launches:
            if launch not in kept:
                launch.close()
        self._launches = kept

    def has(self, nodeid: str) -> bool:
        """Return whether the other side measures a test that was not measured here."""
        try:
            return self._launches[0].before.measures(nodeid)
        finally:
            self._drop_broken()

    def _begun(self, nodeid: str, prompt: OnePrompt) -> tuple[protocol.Begun, protocol.Begun] | None:
        """Let a test begin in the first launch; return None where it begins here alone, as the other side lacks it."""
        first = self._launches[0]
        if nodeid in self._commit.new:
            first.after.begin(nodeid)
            return None
        try:
            return prompt.begin(nodeid, first)
        except SkippedError:
            if not first.after.running:
                raise
            self._commit.new |= {nodeid}
            return None

    def _alone(self, nodeid: str, plan: rounds.RoundPlan) -> PromptRecord:
        """Measure a test that has begun here and that the other side lacks."""
        ours = self._launches[0].after
        for _ in range(plan.warmup):
            ours.warm_up()
        for _ in range(plan.rounds):
            ours.time()
        if plan.profile:
            ours.instrument(experts=plan.experts, trace=plan.trace)
        record, why = ours.finish(tuple(range(plan.rounds)))
        self._ended(nodeid, why)
        self._bases[nodeid] = (None, None)
        return record

    def _ended(self, nodeid: str, why: str | None) -> None:
        if why is not None:
            self._session.note(f"! {nodeid} was measured in a process of its own, but then {why}")

    def _used(self, begun: Sequence[protocol.Begun], in_time: int) -> list[Launch]:
        """Return the launches for a prompt, as many as were asked for and fit the time; start what fits the memory."""
        wanted = min(self._wanted, in_time)
        private = [one.private_bytes for one in begun]
        if None not in private and (available := host.available_bytes()) is not None:
            wanted = self._fitting(wanted, sum(filter(None, private)), ROOM * available)
        wanted = self._fitting_device(wanted, begun)
        while len(self._launches) < wanted:
            self._session.live.show(f"starting launch {len(self._launches) + 1} of {wanted} …")
            try:
                self._launches.append(self._launch())
                self._refused = 0
            except AgainstError as error:
                if not self._refused:
                    self._session.note(
                        f"! {len(self._launches)} of {wanted} launches started: how far they differ is known less "
                        f"well: {error}"
                    )
                self._refused += 1
                wanted = len(self._launches)
                if self._refused > 1:
                    # It would be so at every prompt.
                    self._wanted = wanted
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

    def _finish(self, nodeid: str, used: Sequence[Launch], found: Turns) -> PromptRecord:
        sides: tuple[list[PromptRecord], list[PromptRecord]] = ([], [])
        for launch in used:
            ended = launch.finish(launch.kept(found.rounds), tell=launch is used[0])
            for side, (record, _) in zip(sides, ended, strict=True):
                side.append(record)
            (_, theirs), (_, own) = ended
            self._commit.ended(nodeid, theirs)
            self._ended(nodeid, own)
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
