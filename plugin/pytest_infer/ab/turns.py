"""The parent's side: whose turn it is, so that exactly one process measures and the other waits."""

from __future__ import annotations

from dataclasses import replace

from pytest_infer.ab.child_process import ChildProcess
from pytest_infer.ab.loop import Here, Task
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.settling import CoreSchedule, pin, settle
from pytest_infer.errors import AgainstError
from pytest_infer.measure import rounds, warnings
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import PromptRecord, Round


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

    def after(self) -> list[str]:
        """Do nothing after the tests."""
        return []

    def measure(self, task: Task) -> rounds.Measured:
        """Run the rounds of both sides and return ours; those of a test that the other side lacks alone."""
        base = self._other.process
        if task.nodeid in self._other.new or base is None:
            return rounds.measure(task.runner, task.plan, task.watch)
        base.begin(task.nodeid)
        first: Round | None = None
        for number in range(task.plan.warmup):
            task.watch("warm-up", number, task.plan.warmup, None)
            base.warm_up()
            warmed = _timed(task)
            first = first or warmed
        cores = CoreSchedule(task.threads)
        try:
            pairs, kept = self._pairs(task, base, cores)
        finally:
            pin(cores.all)
        profile = None
        if task.plan.profile:
            task.watch("profile", 0, 1, pairs[-1][1].trace)
            base.instrument(experts=task.plan.experts)
            settle()
            profile = task.runner.profile(pairs[0][1].trace, experts=task.plan.experts, trace=task.plan.trace)
        self._records[task.nodeid], why = base.finish(kept)
        if why is not None:
            self._session.note(f"! {task.nodeid} was measured in {self._other.name}, but then {why}")
        return rounds.Measured(
            warmup=task.plan.warmup,
            rounds=tuple(pairs[n][1] for n in kept),
            profile=profile,
            repeated=tuple(after for n, (_, after) in enumerate(pairs) if n not in kept),
            first=first,
        )

    def finished(self, record: PromptRecord) -> None:
        """Put the records of both sides together."""
        self._session.pairs[record.nodeid] = (self._records.pop(record.nodeid, None), record)

    def _pairs(
        self, task: Task, base: ChildProcess, cores: CoreSchedule
    ) -> tuple[list[tuple[Round, Round]], tuple[int, ...]]:
        """Return all pairs, base first, and the numbers of those to keep."""
        settings = self._session.settings
        pairs: list[tuple[Round, Round]] = []
        disturbed: list[bool] = []
        wanted, left = settings.min_pairs, task.plan.repeat
        while True:
            while rounds.needs_more(disturbed, wanted, left):
                task.watch("pair", min(len(pairs), wanted - 1), wanted, pairs[-1][1].trace if pairs else None)
                pairs.append(self._pair(task, base, cores.of(len(pairs)), ours_first=len(pairs) % 2 == 1))
                disturbed.append(any(r.disturbed for r in pairs[-1]))
            kept = rounds.rounds_to_keep(disturbed, wanted)
            before, after = (tuple(pairs[n][side] for n in kept) for side in (0, 1))
            if wanted >= settings.max_rounds or self._session.settled(task.prompt, before, after, task.config):
                return pairs, kept
            wanted = min(wanted + 2, settings.max_rounds)

    def _pair(self, task: Task, base: ChildProcess, cores: tuple[int, ...], *, ours_first: bool) -> tuple[Round, Round]:
        if ours_first:
            after = _timed(task, cores)
            return base.time(cores), after
        return base.time(cores), _timed(task, cores)


def _timed(task: Task, cores: tuple[int, ...] = ()) -> Round:
    pin(cores)
    settle()
    return task.runner.timed()


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
            except AgainstError as error:
                self._errors[nodeid] = str(error)
        self._session.live.clear()
        self._other.stop()

    def measure(self, task: Task) -> rounds.Measured:
        """Run all of our rounds."""
        if task.nodeid in self._errors:
            raise AgainstError(self._errors[task.nodeid])
        count = task.plan.rounds if task.nodeid in self._other.new else self._session.settings.max_rounds
        return rounds.measure(task.runner, replace(task.plan, rounds=count), task.watch)

    def finished(self, record: PromptRecord) -> None:
        """Keep our record until the other side's second half is measured."""
        if record.nodeid in self._other.new:
            self._session.pairs[record.nodeid] = (None, record)

    def after(self) -> list[str]:
        """Run the other side's second half, put the records together, and return what went wrong."""
        finished = self._session.keeper.finished
        left = tuple(
            nodeid for nodeid in self._session.keeper.planned if nodeid in finished and nodeid in self._records
        )
        if not left or self._session.settings.max_rounds == 1:
            self._put_together({nodeid: self._records[nodeid] for nodeid in left})
            return []
        new, missing = self._other.new, self._session.missing
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
        self._other.new, self._session.missing = new, missing
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
            disturbed.append(bool(base.time().disturbed))
        if settings.profile and first:
            base.instrument(experts=settings.experts)
        record, why = base.finish(rounds.rounds_to_keep(disturbed, count))
        if why is not None:
            self._session.note(f"! {nodeid} was measured in {self._other.name}, but then {why}")
        return record


def joined(first: PromptRecord, second: PromptRecord) -> PromptRecord:
    """Return one record of the rounds of two; what is not of a round is the first one's."""
    both, repeated = first.rounds + second.rounds, first.repeated + second.repeated
    difference = warnings.first_difference(both)
    output = replace(first.output, equal=difference is None, first_difference=difference)
    return replace(
        first,
        rounds=both,
        repeated=repeated,
        output=output,
        warnings=warnings.find(both, first.profile, output, repeated),
    )
