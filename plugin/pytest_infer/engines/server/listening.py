"""Which processes of this machine listen to a port."""

from __future__ import annotations

from collections.abc import Iterable

import psutil


def tree(root: int) -> list[psutil.Process]:
    """Return a process with all its children that run now; none where it has ended."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def any_listens(processes: Iterable[psutil.Process], port: int) -> bool | None:
    """Return whether one of these listens to a TCP port; None where one of them may not be asked."""
    unknown = False
    for process in processes:
        try:
            connections = process.net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError):
            unknown = True
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return True
    return None if unknown else False


def listeners(port: int) -> list[psutil.Process]:
    """Return who listens to a TCP port, as far as that may be known."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    pids = {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    return [psutil.Process(pid) for pid in sorted(pid for pid in pids if pid) if psutil.pid_exists(pid)]
