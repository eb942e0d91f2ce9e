"""The highest resident size within a window: by the kernel where it can be reset, else by the helper process."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

import psutil

from pytest_infer.measure.counters import peak_helper
from pytest_infer.measure.counters.kernel_files import KernelFile, Sample, Unavailable, why
from pytest_infer.measure.counters.memory import parse_status
from pytest_infer.records import Quality, Reading, absent

# Writing it to clear_refs sets the high-water mark to the present size (filesystems/proc.rst, Linux >= 4.0).
RESET = b"5"
"""What is written to clear_refs."""
_PROBE_BYTES = 4 * 2**20
_ANSWER_BYTES = 64


class PeakSource(Protocol):
    """A source of the highest resident size since the last call."""

    @property
    def source(self) -> str:
        """Name the source of the value."""

    @property
    def quality(self) -> Quality:
        """Return whether a short peak can be missed."""

    def take(self) -> float | Unavailable:
        """Return the highest bytes since the last call, and start over."""

    def close(self) -> None:
        """Give back what is held open."""


class KernelPeak:
    """The kernel's own high-water mark, VmHWM, reset through /proc/self/clear_refs: exact, 6 to 14 µs."""

    source = "/proc/self/status VmHWM, reset before"
    quality = Quality.EXACT

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._path = proc / "self/clear_refs"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        self._status = KernelFile(proc / "self/status", parse_status)

    def take(self) -> float | Unavailable:
        """Return the mark and reset it to the present size."""
        sample = self._status.read()
        try:
            os.write(self._fd, RESET)
        except OSError as error:
            return Unavailable(why(error, self._path))
        if isinstance(sample, Unavailable):
            return sample
        return sample.get("peak", Unavailable("/proc/self/status has no VmHWM"))

    def close(self) -> None:
        """Give the file descriptors back."""
        self._status.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def problem(self) -> str | None:
        """Return why the mark cannot be used, or None: some sandboxes accept the reset and do nothing."""
        with mmap.mmap(-1, _PROBE_BYTES) as probe:
            probe.write(b"\1" * _PROBE_BYTES)
        spike, fallen = self.take(), self.take()
        if isinstance(spike, Unavailable):
            return spike.reason
        if isinstance(fallen, Unavailable):
            return fallen.reason
        return None if spike - fallen > _PROBE_BYTES / 2 else f"writing to {self._path} does not reset the peak here"


class HelperPeak:
    """The maximum that a helper process samples: one for the session, started when it is first asked."""

    quality = Quality.SAMPLED

    def __init__(self, interval_s: float, *, linux: bool, pids: Sequence[int] = ()) -> None:
        """Sample this process, or the sum of others with their children."""
        whose = "resident size" if not pids else f"sum of resident sizes of {', '.join(map(str, pids))} and children"
        self.source = f"{whose} sampled by a helper process every {1000 * interval_s:g} ms"
        # Isolated and without site-packages it starts fast; psutil, where there is no /proc, is found by its folder.
        extra = [] if linux else [str(Path(psutil.__file__).parents[1])]
        program = [sys.executable, "-I", "-S", peak_helper.__file__]
        watched = f"{peak_helper.TREE}{','.join(map(str, pids))}" if pids else str(os.getpid())
        self._command = [*program, watched, str(interval_s), *extra]
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: str | None = None

    def take(self) -> float | Unavailable:
        """Ask the helper for the maximum since it was last asked; starts the helper at the first call (about 30 ms)."""
        if self._ended is not None:
            return Unavailable(self._ended)
        try:
            if self._process is None:
                self._process = self._start()
            os.write(_pipe(self._process.stdin), peak_helper.MARK)
            return int(os.read(_pipe(self._process.stdout), _ANSWER_BYTES))
        except (OSError, ValueError) as error:
            self._end(f"the sampling helper process does not answer: {error}")
            return Unavailable(f"the sampling helper process does not answer: {error}")

    def close(self) -> None:
        """End the helper."""
        self._end("the sampling helper process was closed")

    def _start(self) -> subprocess.Popen[bytes]:
        # Its own session: Ctrl-C ends the tests, and the end of the pipe ends the helper.
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )

    def _end(self, reason: str) -> None:
        self._ended = reason
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None


def _pipe(stream: IO[bytes] | None) -> int:
    if stream is None:
        raise ValueError("it has no pipe")
    return stream.fileno()


class PeakWindow:
    """An open window: the highest bytes taken in it so far, or why there are none."""

    __slots__ = ("__weakref__", "highest", "missing")

    def __init__(self, missing: str | None) -> None:
        self.highest: float = 0
        self.missing = missing

    def note(self, taken: float | Unavailable) -> None:
        """Add one part of the window; a missing part makes the whole unknown."""
        if isinstance(taken, Unavailable):
            self.missing = self.missing or taken.reason
        else:
            self.highest = max(self.highest, taken)


class Peak:
    """Peaks of windows that may be nested: what a window takes is noted in all windows that enclose it."""

    def __init__(self, source: PeakSource, fallback_reason: str | None = None) -> None:
        """Take `source`, and why it had to be that one if it is not the kernel's."""
        self._source = source
        self._fallback_reason = fallback_reason
        # Weak, because a test that fails inside a window never ends it.
        self._open: weakref.WeakSet[PeakWindow] = weakref.WeakSet()

    def begin(self) -> PeakWindow:
        """Open a window whose peak starts at the present size."""
        taken = self._take()
        window = PeakWindow(taken.reason if isinstance(taken, Unavailable) else None)
        self._open.add(window)
        return window

    def end(self, window: PeakWindow, before: Sample | Unavailable, after: Sample | Unavailable) -> Reading:
        """Close the window; the memory samples serve where the source fails."""
        self._take()
        self._open.discard(window)
        if window.missing is None:
            return Reading(value=window.highest, source=self._source.source, quality=self._source.quality)
        reasons = "; ".join(filter(None, (self._fallback_reason, window.missing)))
        return unreset_peak(before, after, reasons)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _take(self) -> float | Unavailable:
        taken = self._source.take()
        for window in self._open:
            window.note(taken)
        return taken


def unreset_peak(before: Sample | Unavailable, after: Sample | Unavailable, reasons: str) -> Reading:
    """Return the peak since the process started, if it rose in the window: then it was reached within."""
    if isinstance(before, Unavailable) or isinstance(after, Unavailable) or "peak" not in before or "peak" not in after:
        return absent(f"{reasons}; the system tells no peak since the start", "peak since the process started")
    if after["peak"] <= before["peak"]:
        return absent(f"{reasons}; the peak since the start did not rise", "peak since the process started")
    return Reading(value=after["peak"], source="peak since the process started, which rose here")


_PROBLEMS: dict[Path, str | None] = {}


def known_problem(proc: Path) -> str | None:
    """Return why marks cannot be reset here, or None, tried on this process only once.

    To try it again would reset this process's own mark, in the middle of whatever window is open.
    """
    if proc not in _PROBLEMS:
        try:
            kernel = KernelPeak(proc)
            _PROBLEMS[proc] = kernel.problem()
            kernel.close()
        except OSError as error:
            _PROBLEMS[proc] = why(error, proc / "self/clear_refs")
    return _PROBLEMS[proc]


def choose(proc: Path, *, linux: bool, usable_cores: float) -> Peak:
    """Choose the kernel's mark where it can be reset, the helper process elsewhere."""
    reason: str | None = "this system cannot reset the peak"
    if linux:
        try:
            kernel = KernelPeak(proc)
            reason = _PROBLEMS[proc] = kernel.problem()
            if reason is None:
                return Peak(kernel)
            kernel.close()
        except OSError as error:
            reason = why(error, proc / "self/clear_refs")
    return Peak(HelperPeak(interval_s(usable_cores), linux=linux), reason)


def interval_s(usable_cores: float) -> float:
    """Return how often to sample: with few cores every 10 ms would slow the workload down (+0.3 % measured)."""
    return 0.05 if usable_cores <= 2 else 0.01
