"""The parent's side: whose turn it is, so that exactly one process measures and the other waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from pytest_infer.ab import divergence
from pytest_infer.ab.child_process import ChildProcess
from pytest_infer.ab.loop import Here, Task
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.settling import CoreSchedule, most_threads, pin, settle
from pytest_infer.errors import AgainstError, SkippedError
from pytest_infer.measure import following, rounds, warnings
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import Profile, PromptRecord, Reference, Round


class LockStep(Here):
    """Both models are loaded; the rounds of a pair follow each other, and each block of two pairs is A B B A."""

    def __init__(self, session: InferSession, other: OtherCommit) -> None:
        self._session = session
        self._other = other
        self._records: dict[str, PromptRecord] = {}

    def start(self) -> None:
        """Start the other side, before a model is loaded here."""
        self._other.start(self._session.keeper.planned)

    def before(self) -> None:
        """Do nothing before the tests."""

    def after(self, *, interrupted: bool) -> list[str]:  # noqa: ARG002
        """Do nothing after the tests."""
        return []

    def measure(self, task: Task) -> rounds.Measured:
        """Run the rounds of both sides and return ours; those of a test that the other side lacks alone."""
        base = self._other.process
        if task.nodeid in self._other.new or base is None:
            return rounds.measure(task.runner, task.plan, task.watch)
        try:
            begun = base.begin(task.nodeid)
        except SkippedError:
            self._other.new |= {task.nodeid}
            return rounds.measure(task.runner, task.plan, task.watch)
        first: Round | None = None
        for number in range(task.plan.warmup):
            task.watch("warm-up", number, task.plan.warmup, None)
            base.warm_up()
            warmed = _timed(task)
            first = first or warmed
        cores, engine = CoreSchedule(most_threads(begun.threads, task.threads)), task.runner.engine
        try:
            reference, pairs, kept = self._pairs(task, base, cores, follow=begun.follows and engine.follows())
        finally:
            pin(cores.all)
        profile, absent = self._profile(task, base, reference, pairs) if task.plan.profile else (None, None)
        self._records[task.nodeid], why = base.finish(kept)
        self._other.ended(task.nodeid, why)
        return rounds.Measured(
            warmup=task.plan.warmup,
            rounds=tuple(pairs[n][1] for n in kept),
            profile=profile,
            repeated=tuple(after for n, (_, after) in enumerate(pairs) if n not in kept),
            first=first,
            profile_absent=absent,
            reference=reference,
        )

    def has(self, nodeid: str) -> bool:
        """Return whether the other side measures a test that was not measured here."""
        return self._other.process is not None and self._other.process.measures(nodeid)

    def compared(self, record: PromptRecord) -> PromptRecord:
        """Return our record with all that its reference is compared by."""
        base = self._records.get(record.nodeid)
        files = divergence.Files.within(self._other.scratch)
        found = record if base is None else divergence.compared(base, record, files)
        files.remove()
        return found

    def finished(self, record: PromptRecord) -> None:
        """Put the records of both sides together."""
        self._session.pairs[record.nodeid] = (self._records.pop(record.nodeid, None), record)

    def _profile(
        self, task: Task, base: ChildProcess, reference: Reference, pairs: Sequence[tuple[Round, Round]]
    ) -> tuple[Profile | None, str | None]:
        plan, files = task.plan, divergence.Files.within(self._other.scratch)
        files.remove()
        task.watch("profile", 0, 1, pairs[-1][1].trace)
        traced = plan.experts and divergence.traceable(pairs[0][0])
        base.instrument(experts=plan.experts, trace=traced, reference=reference, full=files.before)
        settle()
        return task.runner.kept_apart(
            pairs[0][1].trace,
            experts=plan.experts,
            trace=traced or plan.trace,
            follow=following.profiled(reference, task.runner.engine),
            full=files.after,
        )

    def _pairs(
        self, task: Task, base: ChildProcess, cores: CoreSchedule, *, follow: bool
    ) -> tuple[Reference, list[tuple[Round, Round]], tuple[int, ...]]:
        """Return whose tokens were followed, all pairs, base first, and the numbers of those to keep.

        If the first pair generated different tokens it does not count: all others follow those of the base, so that
        both sides do the same work.
        """
        settings = self._session.settings
        reference: Reference | None = None
        pairs: list[tuple[Round, Round]] = []
        disturbed: list[bool] = []
        wanted, left = settings.min_pairs, task.plan.repeat
        while True:
            while rounds.needs_more(disturbed, wanted, left):
                task.watch("pair", min(len(pairs), wanted - 1), wanted, pairs[-1][1].trace if pairs else None)
                ours_first = len(pairs) % 2 == 1
                pair = self._pair(task, base, cores.of(len(pairs)), following.timed(reference), ours_first=ours_first)
                if reference is None:
                    theirs, own = (one.trace.token_ids for one in pair)
                    known, limits = task.vocabulary, [one.trace.requested_tokens for one in pair]
                    reference = divergence.of(
                        self._other.name, theirs, own, follow=follow, vocabulary=known, asked=limits
                    )
                    reference = following.decide(reference, task.runner.engine, own)
                    if reference.timed:
                        base.follow(reference)
                        continue
                pairs.append(pair)
                disturbed.append(any(r.disturbed for r in pairs[-1]))
            kept = rounds.rounds_to_keep(disturbed, wanted)
            before, after = (tuple(pairs[n][side] for n in kept) for side in (0, 1))
            if wanted >= settings.max_rounds or self._session.settled(task.prompt, before, after, task.config):
                return cast("Reference", reference), pairs, kept
            wanted = min(wanted + 2, settings.max_rounds)

    def _pair(
        self,
        task: Task,
        base: ChildProcess,
        cores: tuple[int, ...],
        follow: tuple[int, ...] | None,
        *,
        ours_first: bool,
    ) -> tuple[Round, Round]:
        if ours_first:
            after = _timed(task, cores, follow)
            return base.time(cores), after
        return base.time(cores), _timed(task, cores, follow)


def _timed(task: Task, cores: tuple[int, ...] = (), follow: tuple[int, ...] | None = None) -> Round:
    pin(cores)
    settle()
    return task.runner.timed(follow)


class Sequential(Here):
    """One model is loaded at a time: half of the other side's rounds, all of ours, the other half."""

    def __init__(self, session: InferSession, other: OtherCommit) -> None:
        self._session = session
        self._other = other
        self._records: dict[str, PromptRecord] = {}
        self._errors: dict[str, str] = {}

    def start(self) -> None:
        """Start the other side, before a model is loaded here."""
        self._other.start(self._session.keeper.planned)

    def before(self) -> None:
        """Run the other side's first half and end it."""
        planned = [nodeid for nodeid in self._session.keeper.planned if nodeid not in self._other.new]
        for nodeid in planned:
            try:
                self._records[nodeid] = self._block(nodeid, first=True)
            except SkippedError:
                self._other.new |= {nodeid}
            except AgainstError as error:
                self._errors[nodeid] = str(error)
        self._session.live.clear()
        self._other.stop()

    def measure(self, task: Task) -> rounds.Measured:
        """Run all of our rounds."""
        if task.nodeid in self._errors:
            raise AgainstError(self._errors[task.nodeid])
        count = task.plan.rounds if task.nodeid in self._other.new else self._session.settings.max_rounds
        plan, base = replace(task.plan, rounds=count), self._records.get(task.nodeid)
        if base is not None:
            first = base.rounds[0]
            tokens, known = first.trace.token_ids, task.vocabulary
            limits = (first.trace.requested_tokens, task.runner.limits.max_new_tokens)
            # What this checkout generates is not known yet.
            reference = divergence.of(self._other.name, tokens, (), follow=True, vocabulary=known, asked=limits)
            traced = plan.trace or (plan.experts and divergence.traceable(first))
            plan = replace(plan, reference=reference, trace=traced)
        return rounds.measure(task.runner, plan, task.watch)

    def has(self, nodeid: str) -> bool:
        """Return whether the other side measured a test, which passed."""
        return nodeid in self._records and nodeid not in self._other.unpassed

    def compared(self, record: PromptRecord) -> PromptRecord:
        """Return our record with what the other side's first half says of the same tokens."""
        base = self._records.get(record.nodeid)
        return record if base is None else divergence.compared(base, record, None)

    def finished(self, record: PromptRecord) -> None:
        """Keep our record until the other side's second half is measured."""
        if record.nodeid in self._other.new:
            self._session.pairs[record.nodeid] = (None, record)

    def after(self, *, interrupted: bool) -> list[str]:
        """Run the other side's second half, put the records together, and return what went wrong.

        Whoever interrupts a run does not wait for that half, and drift is not cancelled without it.
        """
        if interrupted:
            return []
        finished = self._session.keeper.finished
        left = tuple(
            nodeid for nodeid in self._session.keeper.planned if nodeid in finished and nodeid in self._records
        )
        if not left or self._session.settings.max_rounds == 1:
            self._put_together({nodeid: self._records[nodeid] for nodeid in left})
            return []
        whole: dict[str, PromptRecord] = {}
        errors: dict[str, None] = {}
        try:
            self._other.start(left)
            for nodeid in left:
                try:
                    whole[nodeid] = joined(self._records[nodeid], self._block(nodeid, first=False))
                except AgainstError as error:
                    errors[str(error)] = None
        except AgainstError as error:
            errors[str(error)] = None
        self._session.live.clear()
        self._put_together(whole)
        return list(errors)

    def _put_together(self, bases: dict[str, PromptRecord]) -> None:
        for nodeid, base in bases.items():
            self._session.pairs[nodeid] = (base, self._session.keeper.finished[nodeid].record)

    def _block(self, nodeid: str, *, first: bool) -> PromptRecord:
        base, settings = self._other.process, self._session.settings
        if base is None:
            raise AgainstError(f"{self._other.name} is not running")
        all_rounds, repeat = settings.max_rounds, settings.repeat_disturbed
        # The first half is the larger one.
        count, repeat = (
            (all_rounds - all_rounds // 2, repeat - repeat // 2) if first else (all_rounds // 2, repeat // 2)
        )
        self._session.live.show(f"{self._other.name} · {nodeid} · {count} rounds")
        base.begin(nodeid)
        for _ in range(settings.warmup):
            base.warm_up()
        disturbed: list[bool] = []
        while rounds.needs_more(disturbed, count, repeat):
            taken = base.time()
            disturbed.append(bool(taken.disturbed))
        if settings.profile and first:
            base.instrument(experts=settings.experts, trace=settings.experts and divergence.traceable(taken))
        record, why = base.finish(rounds.rounds_to_keep(disturbed, count), tell=first)
        self._other.ended(nodeid, why)
        return record


def joined(first: PromptRecord, second: PromptRecord) -> PromptRecord:
    """Return one record of the rounds of two; what is not of a round is the first one's."""
    both, repeated = first.rounds + second.rounds, first.repeated + second.repeated
    difference = None if first.output.varied else warnings.first_difference(both)
    output = replace(first.output, equal=difference is None, first_difference=difference)
    return replace(
        first,
        rounds=both,
        repeated=repeated,
        output=output,
        warnings=warnings.find(both, first.profile, output, repeated),
    )
