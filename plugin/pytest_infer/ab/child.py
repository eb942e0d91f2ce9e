"""The child's side: a pytest run that measures the other commit, round by round, when it is told to."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from pytest_infer import untrusted
from pytest_infer.ab import protocol
from pytest_infer.ab.arguments import adopt_sweep, neutralise
from pytest_infer.ab.baton import Baton, TokenTurns, Waits
from pytest_infer.ab.loop import Here, Task
from pytest_infer.ab.settling import CoreSchedule, pin, settle
from pytest_infer.checkouts.imports import imported_from
from pytest_infer.engines.base import Engine
from pytest_infer.measure import following, rounds
from pytest_infer.measure.breakdown import taken
from pytest_infer.measure.counters import accelerator, memory
from pytest_infer.pytest_face import options
from pytest_infer.pytest_face.preflight import measuring
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import PromptRecord, Reading, Reference, Round, TokenTrace

Expected = TypeVar("Expected", bound=protocol.WireMessage)
REPEATS = ("rerunfailures", "pytest_rerunfailures")
"""The names of pytest-rerunfailures, which repeats a test that fails; one of a comparison runs once on each side."""
_GONE = "the run that compares with this one is over"


def adopt(config: pytest.Config) -> protocol.Channel[protocol.FromParent] | None:
    """Return the connection to the parent, if this run is a child, after undoing what a child must not do."""
    number = os.environ.pop(options.CHILD, None)
    if number is None:
        return None
    # Neither a test's own pytest nor a program that it starts is the child.
    os.set_inheritable(int(number), False)
    neutralise(config)
    adopt_sweep(config)
    return protocol.childs_end(Connection(int(number)))


class Child(Here):
    """Obeys the parent: pytest's plugin for the order of tests, and the loop of their rounds."""

    def __init__(self, session: InferSession, channel: protocol.Channel[protocol.FromParent]) -> None:
        self._session = session
        self._channel = channel
        self._baton = Baton.inherited()
        self._hello = protocol.Hello()
        self._ready: protocol.Ready | None = None
        self._doubtful: list[pytest.Item] = []
        self._next: str | None = None
        self._why: str | None = None
        self._failed = False

    # the order of tests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep what the parent plans, in its order, and what it cannot run: it may be possible here."""
        self._hello = self._greeting()
        found = {item.nodeid: item for item in measuring(items)}
        doubtful = [found[nodeid] for nodeid in self._hello.impossible if nodeid in found]
        planned = [found[nodeid] for nodeid in self._hello.planned if nodeid in found]
        self._doubtful = doubtful
        self._ready = protocol.Ready(
            new=tuple(nodeid for nodeid in self._hello.planned if nodeid not in found),
            missing=tuple(untrusted.writable(name) for name, item in found.items() if item not in planned + doubtful),
            foreign={},
        )
        config.hook.pytest_deselected(items=[item for item in items if item not in planned and item not in doubtful])
        items[:] = planned + doubtful

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Say that everything is checked and collected, or end: the log then says why."""
        # An ini file or a marker may ask for it.
        for name in REPEATS:
            session.config.pluginmanager.unregister(name=name)
        if self._ready is not None and not session.testsfailed:
            possible = tuple(item.nodeid for item in measuring(self._doubtful))
            session.items[:] = [item for item in session.items if item not in self._doubtful]
            self._send(
                msgspec.structs.replace(self._ready, missing=self._ready.missing + possible, foreign=self._foreign())
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Wait until the parent has come to this test; skip it when it has come to a later one."""
        if self._next is None:
            self._next = self._expect(protocol.Go).nodeid
        self._why, self._failed = None, False
        if self._next == item.nodeid:
            self._next = None
        else:
            # Not passed over: pytest tears down between tests by what follows each.
            item.add_marker(pytest.mark.skip(reason="not measured on the other side"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note why a test did not pass."""
        self._failed |= report.failed
        if not report.passed and self._why is None:
            why = f"{_OUTCOMES.get(report.outcome, report.outcome)} in {report.when}: {_reason(report)}"
            self._why = untrusted.writable(why)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Say that a test is over, unless it was only skipped on the way to a later one."""
        if self._next is None:
            skipped = self._why is not None and not self._failed
            self._send(protocol.Ended(nodeid=nodeid, why=self._why, skipped=skipped))

    # the rounds of a test

    def measure(self, task: Task) -> rounds.Measured:
        """Run rounds as the parent asks for them; whatever ends them, all cores are there for what follows."""
        all_cores = CoreSchedule(None).all
        try:
            return self._obey(task, all_cores)
        finally:
            pin(all_cores)

    def _obey(self, task: Task, all_cores: tuple[int, ...]) -> rounds.Measured:
        timed: list[Round] = []
        first: Round | None = None
        reference: Reference | None = None
        warmup, profile, absent, engine, text = 0, None, None, task.runner.engine, _Text()
        on_device = accelerator.share()
        self._send(
            protocol.Begun(
                turns=self._baton is not None and bool(engine.takes_turns()),
                windows=bool(engine.continues()) and task.runner.limits.sequences == 1,
                follows=bool(engine.follows()),
                vocabulary=task.vocabulary,
                threads=task.threads,
                private_bytes=_whole(memory.footprint()[1]),
                device_bytes=None if on_device is None else on_device.held,
                device_free=None if on_device is None else on_device.free,
            )
        )
        while True:
            match self._receive():
                case protocol.WarmUp():
                    settle()
                    warmed = task.runner.timed()
                    first = first or warmed
                    warmup += 1
                    self._send(protocol.Warmed())
                case protocol.Time(cores=cores):
                    pin(cores)
                    settle()
                    timed.append(task.runner.timed(following.timed(reference)))
                    text.like = timed[0].trace
                    pin(all_cores)
                    self._send(protocol.TimedRound(round=timed[-1]))
                case protocol.Adopt(trace=trace):
                    text.like = trace
                    self._send(protocol.Adopted())
                case protocol.TakeTurns() as asked:
                    told = self._passed(task, asked, following.timed(reference), text)
                    pin(all_cores)
                    self._send(told)
                case protocol.Encode(times=times):
                    self._send(protocol.Encoded(took_ns=task.runner.encoded(times)))
                case protocol.Follow(reference=given):
                    reference = replace(given, free=text.ids, timed=True)
                    timed.clear()
                    self._send(protocol.Follows())
                case protocol.RunProfile() as asked:
                    settle()
                    reference = reference or text.compared(asked.reference, engine)
                    profile, absent = task.runner.kept_apart(
                        timed[0].trace,
                        experts=asked.experts,
                        trace=asked.trace,
                        follow=following.profiled(reference, engine),
                        full=None if asked.full is None else Path(asked.full),
                    )
                    self._send(protocol.Instrumented())
                case protocol.Finish(keep=keep):
                    return rounds.Measured(
                        warmup=warmup,
                        rounds=tuple(timed[n] for n in keep),
                        profile=profile,
                        repeated=tuple(r for n, r in enumerate(timed) if n not in keep),
                        first=first,
                        profile_absent=absent,
                        reference=reference,
                        **text.taken_apart(),
                    )
                case _:
                    pytest.skip("the other side did not finish its rounds")

    def _passed(
        self, task: Task, asked: protocol.TakeTurns, follow: tuple[int, ...] | None, text: _Text
    ) -> protocol.TookTurns | protocol.TookApart:
        if asked.observe and (observed := text.observe(task.runner.engine)) is not None:
            return self._observed(task, asked, follow, observed)
        if asked.skip is None:
            return self._turns(task, asked, follow)
        return self._turns(task, asked, text.ids[asked.skip :], behind=text.ids[: asked.skip])

    def _turns(
        self,
        task: Task,
        asked: protocol.TakeTurns,
        follow: tuple[int, ...] | None,
        observed: taken.InTurns | None = None,
        behind: tuple[int, ...] = (),
    ) -> protocol.TookTurns:
        if self._baton is None:
            pytest.exit("there is nobody to take turns with", returncode=pytest.ExitCode.INTERNAL_ERROR)
        self._baton.begin(asked.number, asked.partner)
        waits = Waits()
        turns = TokenTurns(
            baton=self._baton,
            begins=asked.begins,
            waits=waits,
            every=asked.every,
            cores=asked.cores,
            shift=asked.number // 2,
            idle=task.runner.engine.synchronize,
        )
        begun = time.perf_counter_ns()
        try:
            took = task.runner.in_turns(turns, asked.tokens, follow, observed, behind)
        finally:
            self._baton.end()
            waits.close()
        took = replace(took, waited_ns=tuple(waits.turns_ns), begins=asked.begins)
        return protocol.TookTurns(taken=took, wall_ns=time.perf_counter_ns() - begun)

    def _observed(
        self, task: Task, asked: protocol.TakeTurns, follow: tuple[int, ...] | None, observed: taken.InTurns
    ) -> protocol.TookApart:
        """Take the steps of a pass apart; where that fails, the other side goes on alone, and nothing is lost."""
        try:
            self._turns(task, asked, follow, observed)
            return protocol.TookApart(parts=observed.taken())
        except Exception as error:  # noqa: BLE001 - as in `measure.rounds`
            observed.absent = observed.absent or f"taking steps apart failed: {rounds.failure(error)}"
            return protocol.TookApart(absent=observed.absent)

    def finished(self, record: PromptRecord) -> None:
        """Send the record, with what failed beside the timed rounds."""
        told = [line for line in self._session.notes if line.startswith(f"! {record.nodeid}: ")]
        notes = tuple(map(untrusted.writable, told))
        self._send(protocol.FinishedTest(record=record, foreign=self._foreign(), notes=notes))

    # the connection

    def _greeting(self) -> protocol.Hello:
        try:
            hello = self._receive()
        except msgspec.DecodeError:
            hello = protocol.Hello(protocol=0)
        if not isinstance(hello, protocol.Hello) or hello.protocol != protocol.PROTOCOL:
            self._send(protocol.OtherProtocol(protocol=protocol.PROTOCOL))
            pytest.exit("the parent speaks another protocol", returncode=pytest.ExitCode.USAGE_ERROR)
        return hello

    def _expect(self, kind: type[Expected]) -> Expected:
        message = self._receive()
        while isinstance(message, protocol.Abandon):  # it crossed the end of the test
            message = self._receive()
        if not isinstance(message, kind):
            pytest.exit(f"expected {kind.__name__}, not {message}", returncode=pytest.ExitCode.INTERNAL_ERROR)
        return message

    def _receive(self) -> protocol.FromParent:
        try:
            return self._channel.receive()
        except (EOFError, OSError):
            pytest.exit(_GONE)

    def _send(self, message: protocol.WireMessage) -> None:
        try:
            self._channel.send(message)
        except OSError:
            pytest.exit(_GONE)

    def _foreign(self) -> dict[str, str]:
        if self._hello.checkout is None:
            return {}
        worktree = [] if self._hello.worktree is None else [Path(self._hello.worktree)]
        found = imported_from(Path(self._hello.checkout), but=worktree)
        return {module: untrusted.writable(file) for module, file in found.items()}


@dataclass(slots=True)
class _Text:
    """What the passes of a test generate: the tokens of a whole round; and their steps, once these are observed."""

    like: TokenTrace | None = None
    observed: taken.InTurns | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the tokens; none before the first whole round."""
        return () if self.like is None else self.like.token_ids

    def taken_apart(self) -> dict[str, Any]:
        """Return what `Measured` has of the steps."""
        seen = self.observed
        return {} if seen is None else {"breakdown": seen.breakdown(), "breakdown_absent": seen.absent}

    def compared(self, reference: Reference | None, engine: Engine) -> Reference | None:
        """Return a reference, if there is one, with what this side generates."""
        return None if reference is None else following.decide(reference, engine, self.ids)

    def observe(self, engine: Engine) -> taken.InTurns | None:
        """Return what takes steps apart."""
        if self.observed is None and self.like is not None:
            self.observed = taken.InTurns(engine, self.like)
        return self.observed


def _whole(reading: Reading) -> int | None:
    return None if reading.value is None else int(reading.value)


_OUTCOMES = {"failed": "failed", "skipped": "was skipped"}


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    lines = [line for line in report.longreprtext.splitlines() if line.strip()]
    errors = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
    return (errors or lines[-1:] or ["no reason given"])[0]
