"""Who else used the cores: run-queue wait, the whole machine's CPU time, pressure stalls."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from pytest_infer.measure.counters import cgroup
from pytest_infer.measure.counters.cpu import children_s
from pytest_infer.measure.counters.kernel_files import FAILURES, KernelFile, Sample, Unavailable, difference, why
from pytest_infer.records import Quality, Reading, absent

_NS = 1e9
_US = 1e6
# Beyond so many threads their files are reopened each time (6 µs instead of 2), to save descriptors.
_KEPT_THREADS = 64
_PSI_OFF = " (pressure stall information is off: boot with psi=1)"
_SOME = re.compile(rb"^some .*total=(\d+)", re.MULTILINE)


class RunQueue:
    """How long runnable threads of this process waited for a core (2nd field of schedstat, sched-stats.rst).

    Threads of this process that wait for each other's core count too. What a thread waited is lost when it ends.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._tasks = proc / "self/task"
        self._fds: dict[str, int] = {}
        self._directory: int | None = None
        self._unavailable = Unavailable("")
        try:
            if (proc / "self/schedstat").read_text().split()[0] == "0":
                self._unavailable = Unavailable("this kernel does not count how long threads wait for a core")
                return
            self._directory = os.open(self._tasks, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FAILURES as error:
            self._unavailable = Unavailable(why(error, f"{self._tasks}/*/schedstat"))

    def read(self) -> Sample | Unavailable:
        """Return the nanoseconds that each thread has waited since its start, by thread id."""
        if self._directory is None:
            return self._unavailable
        try:
            threads = os.listdir(self._directory)  # noqa: PTH208  # pathlib cannot list an open descriptor
            sample: Sample = {tid: wait for tid in threads if (wait := self._wait_ns(tid)) is not None}
        except FAILURES as error:
            return Unavailable(why(error, f"{self._tasks}/*/schedstat"))
        for tid in self._fds.keys() - sample.keys():
            os.close(self._fds.pop(tid))
        return sample or Unavailable(f"no thread in {self._tasks} could be read")

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the seconds waited by all threads that lived to the end of the window, together."""
        source = "/proc/self/task/*/schedstat"
        if isinstance(before, Unavailable):
            return {"run_queue_wait_s": absent(before.reason, source)}
        if isinstance(after, Unavailable):
            return {"run_queue_wait_s": absent(after.reason, source)}
        waited = 0.0
        for tid, total in after.items():
            earlier = before.get(tid, 0)
            # A thread id can be reused by a new thread, which starts from 0.
            waited += total - earlier if total >= earlier else total
        ended = len(before.keys() - after.keys())
        if ended:
            source += f", without {ended} that ended"
        return {"run_queue_wait_s": Reading(value=waited / _NS, source=source)}

    def close(self) -> None:
        """Give the file descriptors back."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        if self._directory is not None:
            os.close(self._directory)
        self._directory = None
        self._unavailable = Unavailable(f"{self._tasks} was closed")

    def _wait_ns(self, tid: str) -> int | None:
        """Return the thread's wait, or None when it has ended."""
        fd = self._fds.get(tid)
        if fd is not None:
            return _pread_wait_ns(fd)
        try:
            fd = os.open(f"{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        if len(self._fds) < _KEPT_THREADS:
            self._fds[tid] = fd
            return _pread_wait_ns(fd)
        try:
            return _pread_wait_ns(fd)
        finally:
            os.close(fd)


def _pread_wait_ns(fd: int) -> int | None:
    try:
        return int(os.pread(fd, 64, 0).split()[1])
    except ProcessLookupError:
        return None


def parse_stat(text: bytes, ticks_per_s: int) -> Sample:
    """Return the seconds that all cores were busy and were stolen, from the first line of /proc/stat (proc(5))."""
    name, *fields = text.split(b"\n", 1)[0].split()
    if name != b"cpu":
        raise ValueError("the first line is not that of all cores")
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    # Guests' time is part of user and nice already.
    return {"busy": (user + nice + system + irq + softirq) / ticks_per_s, "steal": steal / ticks_per_s}


def other_cpu(before: Sample | Unavailable, after: Sample | Unavailable, source: str) -> Reading:
    """Return the seconds that all cores were busy (`busy`) with something other than the workload (`own`)."""
    busy = difference(before, after, "busy", f"{source} less own CPU time", quality=Quality.SAMPLED)
    own = difference(before, after, "own", source)
    if busy.value is None or own.value is None:
        return busy if busy.value is None else own
    # Ticks lag behind the exact clock of the process: the difference can be negative by a tick.
    value = max(0.0, busy.value - own.value)
    return Reading(value=value, source=busy.source, quality=busy.quality)


def own_cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    return time.process_time_ns() / _NS + children_s()


class MachineTime:
    """CPU time of the whole machine, in ticks (10 ms): too coarse for windows of a few of them."""

    def __init__(self, proc: Path = Path("/proc"), own_s: Callable[[], float] = own_cpu_s) -> None:
        """Take what returns the CPU seconds that are no other process's."""
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._own_s = own_s
        self._file = KernelFile(proc / "stat", lambda text: parse_stat(text, ticks_per_s), size=256)

    def read(self) -> Sample | Unavailable:
        """Return busy and stolen seconds of all cores since boot, and the workload's own at the same moment."""
        sample = self._file.read()
        if not isinstance(sample, Unavailable):
            sample["own"] = self._own_s()
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the seconds stolen by the host, and those that other processes used."""
        return {
            "steal_s": difference(before, after, "steal", "/proc/stat steal, all cores"),
            "other_cpu_s": other_cpu(before, after, "/proc/stat"),
        }

    def close(self) -> None:
        """Give the file descriptor back."""
        self._file.close()


def parse_pressure(text: bytes) -> Sample:
    """Return the µs for which some task was stalled (`some … total=`, accounting/psi.rst)."""
    match = _SOME.search(text)
    if match is None:
        raise ValueError("no line `some`")
    return {"some": int(match[1])}


class Pressure:
    """Time for which some task was stalled for one resource: in a process's control group, or else on the machine."""

    def __init__(self, resource: str, groups: cgroup.ControlGroups, proc: Path = Path("/proc")) -> None:
        own = groups.unified[0] / f"{resource}.pressure" if groups.unified else None
        in_group = own is not None and os.access(own, os.F_OK)
        self._file = KernelFile(own if own and in_group else proc / "pressure" / resource, parse_pressure, size=256)
        self._figure = f"pressure_{resource}_s"
        self._source = f"{resource}.pressure some, whole cgroup" if in_group else f"/proc/pressure/{resource} some"

    def read(self) -> Sample | Unavailable:
        """Return microseconds stalled since the group was made, or since boot."""
        sample = self._file.read()
        if isinstance(sample, Unavailable):
            off = "has no" in sample.reason or "not supported" in sample.reason
            return Unavailable(sample.reason + (_PSI_OFF if off else ""))
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the seconds stalled between two samples."""
        return {self._figure: difference(before, after, "some", self._source, per_unit=_US)}

    def close(self) -> None:
        """Give the file descriptor back."""
        self._file.close()
