"""Which processes of this machine listen to a port, and so do a server's work."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import psutil

from pytest_infer import untrusted
from pytest_infer.engines.server import address
from pytest_infer.errors import OptionError
from pytest_infer.records import Observed

_CONNECT_S = 2.0
NAME_IT = "name its process with --infer-server-pid"

_FORWARDERS = (
    "docker-proxy",
    "rootlessport",
    "rootlesskit",
    "slirp4netns",
    "pasta",
    "ssh",
    "kubectl",
    "socat",
    "nginx",
)
"""Programs that pass on what comes to a port: their counters are not the server's."""


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


def listeners(port: int) -> list[tuple[int, str]]:
    """Return who listens to a TCP port, by process id and name, as far as that may be known."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    pids = {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    named = ((pid, _name(pid)) for pid in sorted(pid for pid in pids if pid))
    return [(pid, name) for pid, name in named if name is not None]


def observed(port: int, pids: Sequence[int] = ()) -> Observed:
    """Return whose counters count for a running server of this machine: these processes, or who listens to its port."""
    if pids:
        return Observed(pids=tuple(pids), source="named with --infer-server-pid")
    source = f"listens to port {port}"
    found = listeners(port)
    forwarding = [name for _, name in found if name.startswith(_FORWARDERS)]
    if forwarding:
        return Observed(absent=f"{forwarding[0]} listens to port {port}, which only forwards: {NAME_IT}", source=source)
    if not found:
        why = f"it is not told who listens to port {port} (another user's process, or a container's): {NAME_IT}"
        return Observed(absent=why, source=source)
    return Observed(pids=tuple(pid for pid, _ in found), source=source)


def refused(url: str) -> str | None:
    """Return why no connection to a server can be made; None where one can, and of one that is only slow."""
    try:
        socket.create_connection((urlsplit(url).hostname or "", address.port(url)), timeout=_CONNECT_S).close()
    except TimeoutError:
        return None
    except OSError as error:
        return (
            f"no server answers at {url} any more: {untrusted.reason(error)} (its own output, not seen here, says why)"
        )
    return None


def check(pids: Sequence[int]) -> None:
    """Raise OptionError for a process that is not there."""
    for pid in pids:
        if not psutil.pid_exists(pid):
            raise OptionError(f"--infer-server-pid: there is no process {pid}")


def _name(pid: int) -> str | None:
    """Return a process's name, "" where that may not be known, or None if it has ended."""
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ""
