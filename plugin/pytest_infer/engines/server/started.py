"""A server that is started for a run: its health awaited, its load timed, its end certain."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from pytest_infer.engines.server import command, guard, health, listening
from pytest_infer.errors import EngineError

GRACE_S = 5.0
"""How long a server may take to end when it is asked to, before it is killed."""

_LAST_LINES, _LAST_BYTES = 8, 8192
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
_ANSWER_S = 2.0
_GUARD_S = 60.0
"""How long the guard may take to start: tens of milliseconds, on a machine that is not starved."""


class Started:
    """A server process in the user's own environment, with all its children.

    A small process of ours, the guard, starts it and ends it when this one ends, however it ends. `template` is the
    command with `{model}` or `{gguf}`, `{port}` and perhaps `{flags}`, split as a shell would but run without one.
    `model` and `gguf` are called where they stand there, once all else is known to be right.

    Raises:
        OptionError: the template cannot be used, or there is no such program; nothing has been started then.
        EngineError: no server can be started on this system.
    """

    def __init__(
        self,
        template: str,
        *,
        model: Callable[[], str],
        environ: Mapping[str, str],
        limit_s: float,
        grace_s: float = GRACE_S,
        flags: str = "",
        gguf: Callable[[], str] | None = None,
    ) -> None:
        if os.name != "posix":
            raise EngineError("servers are started on Linux and macOS only: start it yourself, and give --infer-server")
        self.port = command.free_port()
        values = {"model": model, "gguf": gguf or model, "port": lambda: str(self.port)}
        first, *more = command.parts(template, values, flags)
        self._command = [command.program(first, environ), *command.filled(more, values)]
        self._environ, self._limit_s, self._grace_s = dict(environ), limit_s, grace_s
        self._name = Path(self._command[0]).name
        self._guard: subprocess.Popen[bytes] | None = None
        self._heard = b""
        self._pid: int | None = None
        self._load_s: float | None = None
        self._log: Path | None = None
        self._failure: str | None = None

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id of the program that the command names; known once it has started."""
        if self._pid is None:
            raise EngineError(f"the server ({self._name}) has not started")
        return self._pid

    @property
    def load_s(self) -> float:
        """Return the seconds from its start until it was ready, to 1 % or 10 ms; known then."""
        if self._load_s is None:
            raise EngineError(f"the server ({self._name}) was never ready")
        return self._load_s

    def start(self) -> None:
        """Start it and wait until it is ready; once only.

        Raises:
            EngineError: it does not run, ended, was not ready in time, or another process listens to its port.
        """
        try:
            begun_ns = self._started()
            self._await_ready(begun_ns)
            self._check_own_port()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise EngineError, with the last lines of its output, if it has ended; some µs while it runs."""
        if self._failure is None and self._guard is not None:
            line = self._line(0.0)
            if line is not None:
                self._failure = self._told(f"{_ended(line)}{self._when()}")
        if self._failure is not None:
            raise EngineError(self._failure)

    def stop(self) -> None:
        """End it and all its children, by force if it does not end when asked; more than once is fine."""
        process, self._guard = self._guard, None
        if process is not None:
            left = [] if self._pid is None else listening.tree(self._pid)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            try:
                process.wait(self._grace_s + guard.KILLING_S + _ANSWER_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # The guard has ended them, unless somebody ended the guard.
            for child in left:
                with suppress(psutil.Error):
                    child.kill()
        if self._log is not None and self._failure is None:
            self._log.unlink(missing_ok=True)
            self._log = None

    def _started(self) -> int:
        """Start the guard, and it the server; return the `perf_counter_ns` of its start."""
        if self._guard is not None:
            raise EngineError(f"the server ({self._name}) was started before")
        descriptor, name = tempfile.mkstemp(prefix="pytest-infer-server-", suffix=".log")
        self._log = Path(name)
        # Isolated and without site-packages it starts fast. Its own session: Ctrl-C ends the tests first.
        program = [sys.executable, "-I", "-S", guard.__file__]
        try:
            self._guard = subprocess.Popen(
                [*program, str(os.getpid()), str(self._grace_s), name, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                bufsize=0,
                start_new_session=True,
                env=self._environ,
            )
        finally:
            os.close(descriptor)
        line = self._line(_GUARD_S)
        said = (line or "").split()
        if said[:1] != ["started"]:
            why = (line or "its guard does not answer").removeprefix("failed ")
            raise EngineError(f"the server ({self._name}) does not start: {why}")
        self._pid = int(said[1])
        return int(said[2])

    def _await_ready(self, begun_ns: int) -> None:
        while True:
            passed_s = (time.perf_counter_ns() - begun_ns) / 1e9
            problem = health.problem(self.port, min(_ANSWER_S, self._limit_s))
            now_s = (time.perf_counter_ns() - begun_ns) / 1e9
            self.check()
            if problem is None:
                self._load_s = now_s
                return
            if now_s >= self._limit_s:
                self._failure = self._told(f"was not ready within {self._limit_s:g} s: {problem}")
                raise EngineError(self._failure)
            time.sleep(max(0.0, min(0.25, max(0.01, passed_s / 100), self._limit_s - now_s)))

    def _check_own_port(self) -> None:
        if listening.any_listens(listening.tree(self.pid), self.port) is not False:
            return
        self.check()
        others = ", ".join(f"{pid} ({name})" for pid, name in listening.listeners(self.port)) or "unknown"
        self._failure = f"the server ({self._name}) does not listen to port {self.port}: another process does, {others}"
        raise EngineError(self._failure)

    def _line(self, patience_s: float) -> str | None:
        """Return the guard's next line, "" once it has ended, or None if there is none in time."""
        pipe = None if self._guard is None else self._guard.stdout
        if pipe is None:
            return ""
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._heard:
            if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(pipe.fileno(), 4096)
            if not data:
                return ""
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode(errors="replace")

    def _when(self) -> str:
        return " before it was ready" if self._load_s is None else ""

    def _told(self, what: str) -> str:
        """Return what has become of it, with the last lines of its output."""
        lines = _last_lines(self._log)
        if not lines:
            return f"the server ({self._name}) {what}; it wrote nothing"
        return "\n  ".join([f"the server ({self._name}) {what}; its last lines (all are in {self._log}):", *lines])


def _ended(line: str) -> str:
    """Return how it ended, from what the guard says."""
    code = line.removeprefix("ended ")
    if not code.lstrip("-").isdecimal():
        return "lost its guard, and was ended"
    if int(code) >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-int(code)).name}"
    except ValueError:
        return f"was ended by signal {-int(code)}"


def _last_lines(log: Path | None) -> list[str]:
    """Return the last lines of its output, without what a terminal would act on."""
    try:
        with (log or Path(os.devnull)).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [_ESCAPES.sub("", part) for line in text.split("\n") for part in [line.rstrip("\r").rpartition("\r")[2]]]
    return [line.rstrip() for line in lines if line.strip()][-_LAST_LINES:]
