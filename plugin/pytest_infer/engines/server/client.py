"""Asks a server over HTTP; whatever goes wrong is one line, without the key."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.engines.server import address, events
from pytest_infer.errors import EngineError

if TYPE_CHECKING:
    import h11
    import httpx

    from pytest_infer.engines.base import Clock
    from pytest_infer.engines.server.wire import Wire

_CONNECT_S = 10.0
_SHOWN = 300
OK = 200


class Client:
    """Connections to a server, one at a time; `timeout_s` is how long nothing may come.

    `check` is called when something went wrong: it raises where it knows why (a server of ours that has ended).
    """

    def __init__(self, url: str, *, timeout_s: float, check: Callable[[], None]) -> None:
        try:
            import httpx  # noqa: PLC0415 - only servers need it
        except ImportError:
            raise EngineError("servers are asked by httpx: pip install 'pytest-infer[server]'") from None
        self._httpx, self._url, self._timeout_s, self._check = httpx, url, timeout_s, check
        self._connect_s = min(_CONNECT_S, timeout_s)
        # The system's own certificates, and what SSL_CERT_FILE names.
        self._tls = ssl.create_default_context() if url.startswith("https") else None
        self._wire: Wire | None = None
        self._client = httpx.Client(
            base_url=url,
            verify=self._tls or False,
            trust_env=False,  # neither a proxy, which would be measured, nor a key from ~/.netrc
            timeout=httpx.Timeout(timeout_s, connect=self._connect_s),
            # Kept, they would occupy a server that serves few, and end when it likes.
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=0),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"request": [_authorise]},
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
        self._hang_up()

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def get(self, path: str) -> Any:
        """Return the JSON of a path; None where the server has no such path, or answers with something else."""
        return self._json("GET", path, None, needed=False)

    def text(self, path: str) -> str | None:
        """Return the text of a path; None where the server has none."""
        reply = self._answer("GET", path, None)
        return reply.text if reply.status_code == OK else None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that the server answers with; raise EngineError with its words where it refuses."""
        return self._json("POST", path, body, needed=True)

    def prepare(self, path: str, body: dict[str, Any]) -> None:
        """Write a request, for `stream`, and open its connection, on which the server has answered: it is warm.

        Each has a new one: servers close a connection after some requests (llama-server after a hundred), which would
        end a round.
        """
        self._hang_up()
        with self._told(lambda: "GET /health"):
            wire = self._connected()
            wire.write(self._request("GET", "/health"))
            wire.send()
            wire.head()
            for _ in wire.body():
                pass
            if not wire.again():
                wire = self._connected()
        headers = {"Content-Type": "application/json", "Connection": "close"}
        wire.write(self._request("POST", path, content=msgspec.json.encode(body), headers=headers))

    def _connected(self) -> Wire:
        from pytest_infer.engines.server.wire import Wire  # noqa: PLC0415 - only servers need its libraries

        self._hang_up()
        self._wire = Wire(self._url, self._tls, connect_s=self._connect_s, timeout_s=self._timeout_s)
        return self._wire

    def _request(self, method: str, path: str, **how: Any) -> httpx.Request:
        request = self._client.build_request(method, path, **how)
        _authorise(request)
        return request

    def stream(self, clock: Clock, tokens: Callable[[], int]) -> Iterator[dict[str, Any] | None]:
        """Send the request of `prepare` and return the events of its answer as they come; None: it says it is whole.

        The clock knows when the bytes came that complete an event. `tokens` tells how many there are by now, for the
        words of an error.
        """
        wire = self._wire
        if wire is None:
            raise EngineError("the server was not made ready for this round")
        with self._told(lambda: after(tokens())):
            try:
                wire.send()
                head, pieces = wire.head(clock), wire.body(clock)
                self._check_head(head, pieces)
                yield from events.read(pieces)
            finally:
                self._hang_up()

    def _check_head(self, head: h11.Response, pieces: Iterator[bytes]) -> None:
        """Raise EngineError where the answer is not the stream that was asked for."""
        headers = self._httpx.Headers(head.headers.raw_items())
        if head.status_code != OK:
            words = b"".join(pieces)
            told = {"reason_phrase": head.reason}
            raise EngineError(
                self._refusal(self._httpx.Response(head.status_code, headers=headers, content=words, extensions=told))
            )
        if headers.get("content-type", "").startswith("application/json"):
            raise EngineError(f"the server at {self._url} does not stream: it answers with all at once")

    def _json(self, method: str, path: str, body: dict[str, Any] | None, *, needed: bool) -> Any:
        reply = self._answer(method, path, body)
        if reply.status_code in (401, 403) or (needed and reply.status_code != OK) or 300 <= reply.status_code < 400:
            raise EngineError(self._refusal(reply))
        if reply.status_code != OK:
            return None
        try:
            found = msgspec.json.decode(reply.content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if needed:
                raise EngineError(f"the server answers {method} {path} with what is no JSON") from None
            return None
        if needed and not isinstance(found, dict):
            raise EngineError(f"the server answers {method} {path} with no JSON object: {shown(found)}")
        return found

    def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        with self._told(lambda: f"{method} {path}"):
            return self._client.request(method, path, json=body)

    @contextmanager
    def _told(self, doing: Callable[[], str]) -> Iterator[None]:
        """Raise what goes wrong on the way as EngineError, in one line."""
        httpx = self._httpx
        try:
            yield
        except httpx.TimeoutException as error:
            self._check()
            unconnected = isinstance(error, httpx.ConnectTimeout)
            slow = "no connection" if unconnected else "nothing came"
            limit = self._connect_s if unconnected else self._timeout_s
            raise EngineError(
                f"the server at {self._url} stalls: {slow} for {limit:g} s, {doing()} (--infer-server-timeout)"
            ) from None
        except httpx.ConnectError as error:
            self._check()
            raise EngineError(f"no server answers at {self._url}: {address.without_key(str(error))}") from None
        except httpx.HTTPError as error:
            self._check()
            why = address.without_key(str(error)) or type(error).__name__
            raise EngineError(f"the server at {self._url} broke off {doing()}: {why}") from None

    def _refusal(self, reply: httpx.Response) -> str:
        """Return what a server says that refuses."""
        status = reply.status_code
        if 300 <= status < 400:
            to = address.without_key(reply.headers.get("location", "elsewhere"))
            return f"the server at {self._url} sends on to {to[:_SHOWN]}: give that address"
        hint = f" (its key: {address.KEY} in the environment)" if status in (401, 403) else ""
        return f"the server at {self._url} answers {status}: {words(reply.content) or reply.reason_phrase}{hint}"


def _authorise(request: httpx.Request) -> None:
    """Give a request the key, which nothing else holds."""
    value = address.authorisation()
    if value is not None:
        request.headers["Authorization"] = value


def words(content: bytes) -> str:
    """Return what an error says, in one line of some hundred characters."""
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = content.decode(errors="replace")
    return said(found)


def said(found: Any) -> str:
    """Return the words of an error as servers write it: {"error": {"message": …}} and the like."""
    while isinstance(found, dict):
        found = next((found[key] for key in ("error", "message", "detail") if found.get(key) is not None), "")
    return shown(found)


def shown(found: Any) -> str:
    """Return what a server sent, in one line of some hundred characters."""
    return address.without_key(found if isinstance(found, str) else msgspec.json.encode(found).decode())[:_SHOWN]


def after(tokens: int) -> str:
    """Return when it happened, in words."""
    return f"after {tokens} token{'' if tokens == 1 else 's'}"
