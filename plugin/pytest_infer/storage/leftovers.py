"""Temporary files that tell whether the process which writes them still lives, so that a killed one's are cleaned."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there age tells
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".infer.tmp"
"""Ends the name of every file that is only there while something is being written."""
_OLD_S = 24 * 3600.0
"""Where there are no locks, a file so old belongs to nobody."""


@contextmanager
def held(make: Callable[[], tuple[int, str]]) -> Iterator[Path]:
    """Make a file that `clear` leaves alone as long as this process lives, and remove its name at the end.

    `make` returns a descriptor and the name, as tempfile.mkstemp does.
    """
    descriptor, name = make()
    while not _lock(descriptor):
        # Somebody who cleaned up was faster than our lock.
        os.close(descriptor)
        descriptor, name = make()
    try:
        if fcntl is None:
            os.close(descriptor)  # Windows replaces no open file
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        if fcntl is not None:
            os.close(descriptor)


def clear(folder: Path) -> None:
    """Remove what processes that were killed left of files they were writing into a folder."""
    with suppress(OSError):
        for path in folder.glob(f".*{SUFFIX}"):
            # Another process may clean up beside us.
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode):
                    _remove_dead(path)


def _remove_dead(path: Path) -> None:
    old = path.stat().st_mtime < time.time() - _OLD_S
    if fcntl is None:
        if old:
            path.unlink()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # its process lives
    except OSError:
        if old:
            path.unlink()
    else:
        # Under the lock: who has just made it sees that the name is gone. It may be another's by now.
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file that was just made; return whether it still has its name."""
    if fcntl is None:
        return True
    # Where a file system has no locks nobody cleans up by them either.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0
