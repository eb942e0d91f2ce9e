"""The connection of one round: open before the clock starts, written at once, and read where bytes are stamped."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import h11
import httpx

from pytest_infer.engines.server import address

if TYPE_CHECKING:
    from pytest_infer.engines.base import Clock

_READ_BYTES = 2**16
_QUIET_S = 0.05
"""How long nothing comes before what has come is looked at, unless the end of the answer has."""
_LAST_CHUNK = b"0\r\n\r\n"
_MOST_UNREAD_BYTES = 2**26


class Wire:
    """A connection to a server: a socket, and `h11` that makes and reads the bytes of HTTP.

    Raises what `httpx` does: of a connection that cannot be made, stalls, breaks off, or is no HTTP.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None, *, connect_s: float, timeout_s: float) -> None:
        host = urlsplit(url).hostname or ""
        self._timeout_s = timeout_s
        try:
            self._socket = socket.create_connection((host, address.port(url)), connect_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                # Closes the other where it fails.
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error)) from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        self._http = h11.Connection(h11.CLIENT)
        self._unsent = b""
        self._came: deque[tuple[int, bytes]] = deque()

    def write(self, request: httpx.Request) -> None:
        """Make the bytes of a request; `send` sends them."""
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        parts = (head, h11.Data(data=request.content), h11.EndOfMessage())
        self._unsent = b"".join(self._http.send(part) or b"" for part in parts)
        self._socket.settimeout(self._timeout_s)

    def send(self) -> None:
        """Send what was written, in one piece as far as the system takes it."""
        unsent, self._unsent = self._unsent, b""
        try:
            self._socket.sendall(unsent)
        except TimeoutError as error:
            raise httpx.WriteTimeout(str(error)) from None
        except OSError as error:
            raise httpx.WriteError(str(error)) from None

    def head(self, clock: Clock | None = None) -> h11.Response:
        """Return the head of the answer.

        A clock is read whenever bytes came, and told what came when as that is returned. Bytes are looked at once all
        have come, or none come: what it takes neither delays a stamp nor the server, which may need the core.
        """
        while not isinstance(event := self._next(clock), h11.Response):
            pass  # 1xx, of which others follow
        return event

    def body(self, clock: Clock | None = None) -> Iterator[bytes]:
        """Return the body of the answer in pieces, in the same way."""
        while isinstance(event := self._next(clock), h11.Data):
            yield bytes(event.data)

    def _next(self, clock: Clock | None) -> object:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise httpx.RemoteProtocolError(str(error)) from None
            if event is not h11.NEED_DATA:
                return event
            if not self._came:
                self._read(clock)
            at_ns, data = self._came.popleft()
            if clock is not None:
                clock.arrived(at_ns)
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("it closed the connection without an answer")
            self._http.receive_data(data)

    def _read(self, clock: Clock | None) -> None:
        """Read what comes; with a clock as long as more comes, each piece with its moment."""
        came, read, bytes_ = self._came, self._socket.recv, 0
        now = _no_time if clock is None else clock.now
        self._socket.settimeout(self._timeout_s)
        try:
            data = read(_READ_BYTES)
            came.append((now(), data))
            if clock is None:
                return
            self._socket.settimeout(_QUIET_S)
            while data and not data.endswith(_LAST_CHUNK) and bytes_ < _MOST_UNREAD_BYTES:
                data = read(_READ_BYTES)
                came.append((now(), data))
                bytes_ += len(data)
        except TimeoutError as error:
            if not came:
                raise httpx.ReadTimeout(str(error)) from None
        except OSError as error:
            if not came:  # else it is told once these have been looked at
                raise httpx.ReadError(str(error)) from None

    def again(self) -> bool:
        """Be ready for another request, and return True; False where the server ends the connection."""
        if self._http.their_state is not h11.DONE or self._http.our_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _no_time() -> int:
    return 0
