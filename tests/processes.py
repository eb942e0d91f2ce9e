"""What becomes of processes that a test watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

PATIENCE_S = 120.0
"""How long one waits for what comes soon, unless the machine is busy."""


def runs(process: psutil.Process) -> bool:
    """Return whether it still runs; one that ends while it is asked does not, nor does one that nobody waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until it is so, which it soon is; fail where it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def wait_for_a_sample(pid: int) -> None:
    """Wait until a helper process has taken a sample that it began after this call."""

    # It goes to sleep after each sample: the first time may be after one that it had begun before.
    def slept() -> int:
        (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("voluntary_ctxt"))
        return int(line.split()[1])

    before = slept()
    wait_until(lambda: slept() >= before + 2)
