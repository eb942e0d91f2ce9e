"""Whether processes that a test watches still run."""

from __future__ import annotations

import psutil


def runs(process: psutil.Process) -> bool:
    """Return whether it still runs; one that ends while it is asked does not, nor does one that nobody waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
