"""A real llama-server on loopback, from the wheel xllamacpp: for tests of what is served."""

import http.client
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

MISSING = find_spec("xllamacpp") is None
WHY = "llama.cpp is not installed: pip install -e '.[llamacpp]'"
COMMAND = f"{sys.executable} -m pytest_infer.engines.llamacpp -m {{model}} --port {{port}}"
"""What starts it, as --infer-serve takes it."""
_LIMIT_S = 120


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@contextmanager
def llama_server(model: Path, *arguments: str):
    """Start one with its model loaded, about half a second; yield its port and process, and end it."""
    port, process = _begun(model, arguments)
    try:
        if not _awaited(port, process):
            # Another process may have taken the port before it did.
            _ended(process)
            port, process = _begun(model, arguments)
            assert _awaited(port, process), process.stderr.read()
        yield port, process
    finally:
        _ended(process)


def _begun(model, arguments):
    port = free_port()
    command = [sys.executable, "-m", "pytest_infer.engines.llamacpp", "-m", str(model), "--port", str(port), *arguments]
    return port, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _awaited(port, process):
    """Wait until it says that its model is loaded; return False where it ends instead."""
    until = time.monotonic() + _LIMIT_S
    while not healthy(port):
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, "llama-server did not start"
        time.sleep(0.02)
    return process.poll() is None


def _ended(process):
    if process.poll() is None:
        process.terminate()
    process.wait(_LIMIT_S)
    process.stderr.close()


def healthy(port):
    """Return whether a server says that its model is loaded."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()
