"""Whether a server on this machine is ready to answer."""

from __future__ import annotations

import http.client

_NOT_OFFERED = {404, 405, 501}
_KEY_REQUIRED = {401, 403}


def problem(port: int, timeout_s: float) -> str | None:
    """Return why the server on a port of 127.0.0.1 is not ready, or None: `GET /health`, or else `/v1/models`.

    A server that offers neither, or asks for a key, is ready once it answers.
    """
    for path in ("/health", "/v1/models"):
        try:
            status = _status(port, path, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            return f"GET {path}: {str(error) or type(error).__name__}"
        if status not in _NOT_OFFERED:
            ready = 200 <= status < 400 or status in _KEY_REQUIRED
            return None if ready else f"GET {path}: HTTP status {status}"
    return None


def _status(port: int, path: str, timeout_s: float) -> int:
    # Not urllib, which would ask a proxy that the environment names.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
