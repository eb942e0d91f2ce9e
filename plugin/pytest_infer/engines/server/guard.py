"""The guard's program: starts a server as its child, and ends it with all its children once pytest is gone."""

# Run by path (`python -I -S guard.py PARENT_PID GRACE_S LOG COMMAND…`), so it imports the standard library only.

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER (linux/prctl.h)
KILLING_S = 10.0
"""How long killed processes may take to go: one that waits for a device goes when the device answers."""


def prctl(option: int, value: int) -> None:
    """Set something of this process, where there is such a call; elsewhere the pipe alone tells that pytest ended."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def children_end() -> int:
    """Return a descriptor that becomes readable whenever a child ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # with no handler nothing is written
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def parent_ends(pid: int) -> list[int]:
    """Return a descriptor that becomes readable when pytest ends, where the kernel offers that; else nothing.

    The end of the pipe shows it too, but not while a process that pytest forked still holds the other end.
    """
    try:
        return [os.pidfd_open(pid)]
    except (AttributeError, OSError):
        return []


def start(command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, which Ctrl-C does not reach; raise OSError if it cannot be."""
    guard = os.getpid()

    def dies_with_guard() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    with Path(log).open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dies_with_guard,  # noqa: PLW1509 - this process has one thread
        )


def descendants(root: int) -> list[int]:
    """Return the ids of a process's children and theirs that still run (proc(5)); none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses can hold anything.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents.setdefault(int(parent), []).append(int(folder.name))
    found, left = [], [root]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def reap() -> dict[int, int]:
    """Return the codes of the children that have ended since, as subprocess has them; those adopted as well."""
    ended = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def end_all(server: int, grace_s: float) -> None:
    """Ask the server and whatever it started to end, and kill what is left after `grace_s`."""
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILLING_S)):
        deadline = time.monotonic() + patience_s
        asked: set[int] = set()
        while True:
            reap()
            left = set(descendants(os.getpid()))
            for pid in left - asked:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            with suppress(ProcessLookupError, PermissionError):
                if not left and not Path("/proc/self").exists():
                    os.killpg(server, number)  # raises once nobody is left in it
                    left = {server}
            if not left:
                return
            asked |= left
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)


def say(line: str) -> None:
    """Tell pytest something, if it still listens."""
    with suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())


def main(arguments: Sequence[str]) -> None:
    """Run the server until it ends, pytest ends, or pytest's end of the pipe is closed; leave nothing behind."""
    parent, grace_s, log, *command = arguments
    prctl(_ADOPT_ORPHANS, 1)
    woken, gone = children_end(), parent_ends(int(parent))
    begun = time.perf_counter_ns()
    try:
        server = start(command, log).pid
    except (OSError, subprocess.SubprocessError) as error:
        say(f"failed {getattr(error, 'strerror', None) or error}")
        return
    say(f"started {server} {begun}")
    try:
        while True:
            ready = select.select([0, woken, *gone], [], [])[0]
            if 0 in ready or any(end in ready for end in gone):
                return
            os.read(woken, 4096)
            code = reap().get(server)
            if code is not None:
                say(f"ended {code}")
                return
    finally:
        end_all(server, float(grace_s))


if __name__ == "__main__":
    main(sys.argv[1:])
