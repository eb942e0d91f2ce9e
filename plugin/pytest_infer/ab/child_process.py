"""The pytest process that measures the other commit: how it is started, and what it is told to do."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from pytest_infer.ab import baton, protocol
from pytest_infer.errors import AgainstError, SkippedError
from pytest_infer.pytest_face.options import CHILD
from pytest_infer.records import PromptRecord, Reference, Round, TokenTrace

START_TIMEOUT_S = 600
"""Collecting imports torch, perhaps from a cold disk, and may build a bundled model."""
ABANDON_TIMEOUT_S = 60
"""A test that was left ends meanwhile; of a process that hangs nothing more comes."""
LOOK_S = 1.0
"""So often a process that says nothing is looked at: one that it forked may hold its connection open after its end."""
_SEQUENTIAL = "add --infer-against-sequential"
_END_S = 1.0
_STEP_S = 0.02
_LOG_LINES = 15

Expected = TypeVar("Expected", bound=protocol.WireMessage)


def _told(ends: tuple[int, int] | None) -> dict[str, str]:
    return {} if ends is None else {baton.ENVIRONMENT: f"{ends[0]},{ends[1]}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How the child is started; `name` is what the user calls its commit."""

    name: str
    arguments: Sequence[str]
    cwd: Path
    environment: Mapping[str, str]


class ChildProcess:
    """A child process that measures the other commit when it is told to.

    Every method raises AgainstError, in one line and with the end of the child's log, when the child cannot go on; the
    same line is raised ever after.
    """

    def __init__(
        self, command: Command, ends: tuple[int, int] | None = None, note: Callable[[str], None] = lambda _line: None
    ) -> None:
        """Start it; `ends` are those of the pipes with which it takes turns of a token, to be closed by the caller.

        `note` takes lines for the summary.
        """
        self._name, self._note = command.name, note
        self._broken: str | None = None
        self._open: str | None = None
        self._begun: float | None = None
        self._ran: set[str] = set()
        try:
            ours, theirs = Pipe()
            # Appended to, as our reading moves the position that the child's writing shares.
            self._log = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - read when the child fails, closed in close()
        except OSError as error:
            raise AgainstError(f"the run of {self._name} cannot be started: {error.strerror}") from error
        self._channel = protocol.parents_end(ours)
        try:
            self._process = subprocess.Popen(
                command.arguments,
                cwd=command.cwd,
                env={**command.environment, CHILD: str(theirs.fileno()), **_told(ends)},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno(), *(ends or ())],
                # Ctrl-C is for the parent, which then ends the child. Not a session of its own: with autogroups
                # (sched(7)) the kernel would share the cores out between sessions, and whatever else runs in the
                # parent's would slow only one side.
                process_group=0,
            )
        except OSError as error:
            ours.close()
            self._log.close()
            raise AgainstError(f"{command.arguments[0]} cannot be started: {error.strerror}") from error
        finally:
            # With no other copy of the child's end, its death is the end of the connection, and ours is for it.
            theirs.close()
        self._group: int | None = self._process.pid

    def greet(self, hello: protocol.Hello) -> None:
        """Say what is planned; the child, once it is there, collects it."""
        self._send(hello)

    def ready(self) -> protocol.Ready:
        """Wait until a child that was greeted has collected its tests."""
        if not any(self.says(LOOK_S) for _ in range(START_TIMEOUT_S)):
            raise self._fail(f"{self._name} has not collected its tests within {START_TIMEOUT_S} s")
        ready = self._expect(protocol.Ready)
        self._verify(ready.foreign)
        return ready

    def begin(self, nodeid: str) -> protocol.Begun:
        """Let a test run up to its first round."""
        self.go(nodeid)
        return self.begun()

    def go(self, nodeid: str) -> None:
        """Let a test begin, and do not wait for it; the child runs each once, in their order."""
        if nodeid in self._ran:
            raise AgainstError(f"{nodeid} ran in {self._name} already: a comparison cannot repeat a test (--reruns)")
        self._ran.add(nodeid)
        self.abandon()
        self.abandoned()
        self._send(protocol.Go(nodeid=nodeid))
        self._open, self._begun = nodeid, None

    def begun(self) -> protocol.Begun:
        """Wait until the test has come to its first round; raise SkippedError where it was skipped before that."""
        begun = self._expect(protocol.Begun)
        self._begun = time.monotonic()
        return begun

    def measures(self, nodeid: str) -> bool:
        """Return whether a test passes with a single round, which is all that is asked of it."""
        try:
            self.begin(nodeid)
            self.time()
            _, why = self.finish((0,), tell=False)
        except AgainstError:
            self.check()
            return False
        return why is None

    @property
    def running(self) -> bool:
        """Whether a test has begun that has not ended."""
        return self._open is not None

    @property
    def loading(self) -> bool:
        """Whether a test has begun that has not come to its first round."""
        return self.running and self._begun is None

    @property
    def broken(self) -> bool:
        """Whether the child cannot go on."""
        return self._broken is not None

    def warm_up(self) -> None:
        """Let a round run that does not count."""
        self._send(protocol.WarmUp())
        self._expect(protocol.Warmed)

    def time(self, cores: tuple[int, ...] = ()) -> Round:
        """Let a timed round run, on these cores if any are given."""
        self._send(protocol.Time(cores=cores))
        return self._expect(protocol.TimedRound).round

    def take_turns(self, asked: protocol.TakeTurns) -> None:
        """Let a pass in turns begin, in which the other side of the pair takes part; `took_turns` waits for its end."""
        self._send(asked)

    def took_turns(self) -> protocol.TookTurns:
        """Wait until this side is through with the pass."""
        return self._expect(protocol.TookTurns)

    def encode(self, times: int) -> tuple[int, ...]:
        """Return how long the tokeniser takes for the prompt, nanoseconds, so many times."""
        self._send(protocol.Encode(times=times))
        return self._expect(protocol.Encoded).took_ns

    def took_apart(self) -> protocol.TookApart:
        """The same of an observed pass."""
        return self._expect(protocol.TookApart)

    @property
    def pid(self) -> int:
        """Return its process number."""
        return self._process.pid

    @property
    def gone(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    def says(self, seconds: float) -> bool:
        """Return whether it says something within so many seconds, or is gone and never will."""
        return self._channel.waits(seconds) or self.gone

    def end_with(self, partner: ChildProcess) -> NoReturn:
        """End the child, which may wait for ever for a partner that is gone, and raise what is said of that one."""
        error = partner._lost()
        self._broken = str(error)
        self.close()
        raise error

    def follow(self, reference: Reference) -> None:
        """Let all rounds and passes of the test follow a reference from now on; those it had are forgotten."""
        self._send(protocol.Follow(reference=reference))
        self._expect(protocol.Follows)

    def adopt(self, trace: TokenTrace) -> None:
        """Give the test a whole round's trace in place of one of its own."""
        self._send(protocol.Adopt(trace=trace))
        self._expect(protocol.Adopted)

    def instrument(
        self,
        *,
        experts: bool,
        trace: bool = False,
        reference: Reference | None = None,
        full: Path | None = None,
    ) -> None:
        """Let the profile round run."""
        file = None if full is None else str(full)
        self._send(protocol.RunProfile(experts=experts, trace=trace, reference=reference, full=file))
        self._expect(protocol.Instrumented)

    def finish(self, keep: tuple[int, ...], *, tell: bool = True) -> tuple[PromptRecord, str | None]:
        """Return the record with the rounds of these numbers, and why the test did not pass after all, if so; `tell`
        what failed beside them."""
        self._send(protocol.Finish(keep=keep))
        finished = self._expect(protocol.FinishedTest)
        self._verify(finished.foreign)
        for line in finished.notes if tell else ():
            self._note(f"{line} (in {self._name})")
        ended = self._receive()
        if not isinstance(ended, protocol.Ended):
            raise self._fail(f"{self._name} sent {type(ended).__name__} at the end of a test")
        self._open = None
        return finished.record, ended.why

    def abandon(self) -> None:
        """Let the test, if one has begun, end without a record; `abandoned` waits for that."""
        if self.running:
            self._send(protocol.Abandon())

    def abandoned(self) -> None:
        """Wait until the test has ended."""
        now = time.monotonic()
        # What loads its model may take long, and a round no longer than the test has taken with all of its own.
        most_s = START_TIMEOUT_S if self._begun is None else max(ABANDON_TIMEOUT_S, now - self._begun)
        while self.running:
            if self.says(LOOK_S):
                self._open = None if isinstance(self._receive(), protocol.Ended) else self._open
            elif time.monotonic() > now + most_s:
                raise self._fail(f"{self._open} has not ended in {self._name} within {most_s:.0f} s")

    def check(self) -> None:
        """Raise the line that says why the child cannot go on, if it cannot."""
        if self._broken is not None:
            raise AgainstError(self._broken)

    def hang_up(self) -> None:
        """Let the child end: it notices that nobody is there any more. `close` waits for it."""
        self._channel.close()
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the child and what it started, whatever they are doing."""
        self.hang_up()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._signal(number)
            if self._ends(_END_S):
                break
        self._group = None
        self._log.close()

    def _ends(self, seconds: float) -> bool:
        """Return whether nobody is left of its process group within so many seconds."""
        end = time.monotonic() + seconds
        while not self.gone or self._signal(0):
            if time.monotonic() > end:
                return False
            time.sleep(_STEP_S)
        return True

    def _signal(self, number: int) -> bool:
        """Send a signal to its process group, and return whether somebody is left of it."""
        if self._group is not None:
            try:
                os.killpg(self._group, number)
            except (ProcessLookupError, PermissionError):
                # macOS refuses where only zombies are left. From now on the number may become another's.
                self._group = None
        return self._group is not None

    def _send(self, message: protocol.WireMessage) -> None:
        self.check()
        try:
            self._channel.send(message)
        except OSError:
            # A child that is gone is told from what it last sent, in _receive.
            pass
        except UnicodeEncodeError as error:
            raise AgainstError(f"{self._name} cannot be told of {error.object!r}: it is not UTF-8, rename it") from None

    def _receive(self) -> protocol.FromChild:
        try:
            while not self.says(LOOK_S):
                continue
            if self._channel.waits(0):
                return self._channel.receive()
        except (EOFError, OSError):
            pass
        except msgspec.DecodeError as error:
            raise self._fail(f"the run of {self._name} sent what is no message: {error}") from None
        raise self._lost()

    def _expect(self, kind: type[Expected]) -> Expected:
        message = self._receive()
        if isinstance(message, kind):
            return message
        if isinstance(message, protocol.Ended):
            # The child goes on with the next test.
            self._open = None
            why = message.why or "did not call infer(prompt)"
            advice = f": {_SEQUENTIAL}" if "out of memory" in why else ""
            error = SkippedError if message.skipped and kind is protocol.Begun else AgainstError
            raise error(f"{message.nodeid} {why} (in {self._name}){advice}")
        if isinstance(message, protocol.OtherProtocol):
            raise self._fail(
                f"{self._name} runs another version of pytest-infer (protocol {message.protocol}, not "
                f"{protocol.PROTOCOL}): install this version for --infer-against-python"
            )
        raise self._fail(f"the run of {self._name} sent {type(message).__name__}, not {kind.__name__}")

    def _verify(self, foreign: Mapping[str, str]) -> None:
        for module, file in foreign.items():
            raise self._fail(
                f"{self._name} was to be measured, but its run imported {module} from this checkout ({file}): "
                "make it importable from the rootdir, or install that commit elsewhere and name its interpreter with "
                "--infer-against-python",
                log=False,
            )

    def _how_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_S)
            self._signal(0)
            if code >= 0:
                return f"ended early, with exit code {code}"
            # What the kernel's out-of-memory killer sends, and two models are in memory.
            advice = f": if memory ran out, {_SEQUENTIAL}" if -code == signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-code).name}{advice}"
        return "closed its connection"

    def _lost(self) -> AgainstError:
        return self._fail(f"the run of {self._name} {self._how_ended()}")

    def _fail(self, line: str, *, log: bool = True) -> AgainstError:
        self._broken = line + (self._log_tail() if log else "")
        return AgainstError(self._broken)

    def _log_tail(self) -> str:
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n  | {line}" for line in lines[-_LOG_LINES:])
