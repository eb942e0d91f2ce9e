"""What this process did while it waited for another one's tokens: a client that is busy is itself the bottleneck."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from pytest_infer.measure.counters.contention import RunQueue
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference
from pytest_infer.records import Reading, absent

_CPU = "process_ns"
_NS = 1e9


class Client:
    """The CPU time of this process with all its threads, and how long they waited for a core."""

    def __init__(self, proc: Path = Path("/proc"), *, linux: bool = True) -> None:
        self._waits = RunQueue(proc) if linux else None
        self._missing = "only Linux tells it"

    def read(self) -> Sample | Unavailable:
        """Return the process clock in ns, and the nanoseconds that each thread has waited, by its id."""
        waits = Unavailable(self._missing) if self._waits is None else self._waits.read()
        if isinstance(waits, Unavailable):
            self._missing, waits = waits.reason, {}
        return {_CPU: time.process_time_ns()} | waits

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the CPU seconds and those waited between two samples."""
        cpu = difference(before, after, _CPU, "process CPU clock of the client", per_unit=_NS)
        return {"client_cpu_s": cpu, "client_wait_s": self._waited(before, after)}

    def _waited(self, before: Sample | Unavailable, after: Sample | Unavailable) -> Reading:
        threads = [
            s if isinstance(s, Unavailable) else {tid: ns for tid, ns in s.items() if tid != _CPU}
            for s in (before, after)
        ]
        if self._waits is None or not all(threads):
            return absent(self._missing)
        found = self._waits.readings(threads[0], threads[1])["run_queue_wait_s"]
        return replace(found, source=f"{found.source} of the client")

    def close(self) -> None:
        """Give the file descriptors back."""
        if self._waits is not None:
            self._waits.close()
