"""The timeline of a profile round: one helper process for the session samples it, and sleeps at all other times."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pytest_infer.measure.timeline import helper
from pytest_infer.records import Observed, Timeline

INTERVAL_S, FEW_CORES_INTERVAL_S, FEW_CORES = 0.01, 0.05, 2
"""With few cores a sample every 10 ms would slow the workload down (+0.3 % measured with all cores busy)."""

PATIENCE_S = 10.0
"""How long the helper may take to answer: it needs milliseconds, on a machine that is not starved."""

_CHUNK = 2**20


@dataclass(slots=True)
class Window:
    """A profile round being sampled; once it has ended, its timeline or the reason why there is none."""

    timeline: Timeline | None = None
    absent: str | None = "the round did not end"


class TimelineSampler:
    """Starts the helper at the first round, marks the beginning and end of each, and takes its samples.

    Nothing is done within the round by this process: the marks are sent before and after it, and the phases' times
    are the clock's own stamps, which come from the same clock as the samples'. `platform` and `proc` are for tests.
    """

    def __init__(
        self,
        *,
        usable_cores: float,
        observed: Observed | None = None,
        platform: str = sys.platform,
        proc: Path = Path("/proc"),
        pid: int | None = None,
    ) -> None:
        """Sample this process, or those that an engine observes with their children."""
        self.interval_s = FEW_CORES_INTERVAL_S if usable_cores <= FEW_CORES else INTERVAL_S
        self._watched, self._proc = pid, proc
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._roots = ",".join(map(str, observed.pids)) if observed is not None else ""
        self._absent = None if platform == "linux" else "only Linux tells it to another process cheaply, in /proc"
        if observed is not None and observed.absent is not None:
            self._absent = observed.absent

    @contextmanager
    def sampling(self) -> Iterator[Window]:
        """Sample until the block ends; a helper that fails leaves the reason, never an error."""
        window = Window()
        self._send(helper.BEGIN)
        try:
            yield window
        finally:
            self._send(helper.END)
            window.timeline = self._take()
            window.absent = None if window.timeline is not None else self._absent

    def close(self) -> None:
        """End the helper."""
        self._end("the timeline helper was closed")

    @property
    def helper(self) -> int | None:
        """Return the helper's process id while it runs."""
        return None if self._process is None else self._process.pid

    def _send(self, mark: bytes) -> None:
        if self._owner != os.getpid():
            # After a fork the helper watches the parent still, and answers it.
            self._process, self._owner = None, os.getpid()
        if self._absent is not None:
            return
        try:
            if self._process is None:
                self._process = self._start()
                self._line()  # it is ready: the round is sampled from its start
            os.write(_pipe(self._process.stdin), mark)
        except (OSError, ValueError) as error:
            self._end(f"the timeline helper does not run: {error}")

    def _start(self) -> subprocess.Popen[bytes]:
        pid = os.getpid() if self._watched is None else self._watched
        # Isolated and without site-packages it starts fast. Its own session: Ctrl-C ends the tests, and the helper
        # ends with this process.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", helper.__file__, str(pid), str(self.interval_s), str(self._proc), self._roots],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )

    def _take(self) -> Timeline | None:
        if self._absent is not None:
            return None
        try:
            head = json.loads(self._line())
            values = array("q", self._exactly(8 * head["samples"] * len(head["columns"])))
        except (OSError, ValueError) as error:
            self._end(f"the timeline helper does not answer: {error}")
            return None
        return timeline_of(head, values)

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self._read(1)
        return line

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            data += self._read(min(_CHUNK, size - len(data)))
        return bytes(data)

    def _read(self, size: int) -> bytes:
        descriptor = _pipe(None if self._process is None else self._process.stdout)
        if not select.select([descriptor], [], [], PATIENCE_S)[0]:
            raise ValueError(f"nothing within {PATIENCE_S:g} s")
        data = os.read(descriptor, size)
        if not data:
            raise ValueError("it has ended")
        return data

    def _end(self, reason: str) -> None:
        self._absent = self._absent or reason
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._process = None


def timeline_of(head: Mapping[str, Any], values: Sequence[int]) -> Timeline:
    """Return the timeline from the helper's answer: one row of `head["columns"]` per sample."""
    columns: list[str] = head["columns"]
    column = {name: tuple(values[number :: len(columns)]) for number, name in enumerate(columns)}
    cores = [column[name] for name in columns if name.startswith("cpu")]
    ticks_per_s = head["ticks_per_s"]
    return Timeline(
        interval_s=head["interval_s"],
        at_ns=column["at"],
        rss_bytes=column.get("rss"),
        core_busy_s=tuple(zip(*([(t - core[0]) / ticks_per_s for t in core] for core in cores), strict=True))
        if cores
        else None,
        read_bytes=_since_first(column.get("read")),
        write_bytes=_since_first(column.get("write")),
        helper_cpu_s=head["cpu_s"],
        absent=dict(head["absent"]),
    )


def _since_first(counts: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if counts is None else tuple(count - counts[0] for count in counts)


def _pipe(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise ValueError("it has no pipe")
    return stream.fileno()
