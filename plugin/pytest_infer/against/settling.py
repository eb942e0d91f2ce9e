"""The pause before a turn."""

from __future__ import annotations

import time

SETTLE_S = 0.02
"""Pause before each turn, never inside one, and in the process whose turn it is: both then start alike, from a sleep.

OpenMP's threads spin after their last parallel region: libgomp's for 8 to 11 ms (CPU time of torch's idle threads, on
this project's 2-core machine), and on a full machine they would take the other side's cores.
"""


def settle() -> None:
    """Let the threads of the side that measured last go to sleep."""
    time.sleep(SETTLE_S)
