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
    import httpx

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
        authorisation = address.authorisation  # asked for each request: nothing here holds the key

        def authorise(request: httpx.Request) -> None:
            value = authorisation()
            if value is not None:
                request.headers["Authorization"] = value

        self._client = httpx.Client(
            base_url=url,
            # The system's own certificates, and what SSL_CERT_FILE names.
            verify=ssl.create_default_context() if url.startswith("https") else False,
            trust_env=False,  # neither a proxy, which would be measured, nor a key from ~/.netrc
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=None),
            headers={"Accept-Encoding": "identity"},
            event_hooks={"request": [authorise]},
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def get(self, path: str) -> Any:
        """Return the JSON of a path; None where the server has no such path, or answers with something else."""
        return self._json("GET", path, None, needed=False)

    def text(self, path: str) -> str | None:
        """Return the text of a path, the last on its connection; None where the server has none."""
        reply = self._answer("GET", path, None, {"Connection": "close"})
        return reply.text if reply.status_code == OK else None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON that the server answers with; raise EngineError with its words where it refuses."""
        return self._json("POST", path, body, needed=True)

    def touch(self) -> None:
        """See that the server answers, so that the next request has a connection."""
        self._answer("GET", "/health", None)

    def prepared(self, path: str, body: dict[str, Any]) -> httpx.Request:
        """Return a request that can be sent at once, the last on its connection: each round has a new one.

        Servers close a connection after some requests (llama-server after a hundred), which would end a round.
        """
        headers = {"Content-Type": "application/json", "Connection": "close"}
        return self._client.build_request("POST", path, content=msgspec.json.encode(body), headers=headers)

    def stream(self, request: httpx.Request, tokens: Callable[[], int]) -> Iterator[dict[str, Any] | None]:
        """Send a request and return the events of its answer as they come; None once the server says that it is whole.

        `tokens` tells how many there are by now, for the words of an error.
        """
        with self._told(lambda: after(tokens())):
            reply = self._client.send(request, stream=True)
            try:
                if reply.status_code != OK:
                    reply.read()
                    raise EngineError(self._refusal(reply))
                if reply.headers.get("content-type", "").startswith("application/json"):
                    raise EngineError(f"the server at {self._url} does not stream: it answers with all at once")
                yield from events.read(reply.iter_raw())
            finally:
                reply.close()

    def _json(self, method: str, path: str, body: dict[str, Any] | None, *, needed: bool) -> Any:
        reply = self._answer(method, path, body)
        if reply.status_code in (401, 403) or (needed and reply.status_code != OK) or 300 <= reply.status_code < 400:
            raise EngineError(self._refusal(reply))
        if reply.status_code != OK:
            return None
        try:
            return msgspec.json.decode(reply.content)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if needed:
                raise EngineError(f"the server answers {method} {path} with what is no JSON") from None
            return None

    def _answer(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Return what a server answers; ask again where it closed the connection just then."""
        with self._told(lambda: f"{method} {path}"):
            try:
                return self._client.request(method, path, json=body, headers=headers)
            except self._httpx.RemoteProtocolError:
                return self._client.request(method, path, json=body, headers=headers)

    @contextmanager
    def _told(self, doing: Callable[[], str]) -> Iterator[None]:
        """Raise what goes wrong on the way as EngineError, in one line."""
        httpx = self._httpx
        try:
            yield
        except httpx.TimeoutException as error:
            self._check()
            slow = "no connection" if isinstance(error, httpx.ConnectTimeout) else "nothing came"
            limit = min(_CONNECT_S, self._timeout_s) if isinstance(error, httpx.ConnectTimeout) else self._timeout_s
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
        found = next((found[key] for key in ("error", "message", "detail") if key in found), "")
    return address.without_key(found if isinstance(found, str) else msgspec.json.encode(found).decode())[:_SHOWN]


def after(tokens: int) -> str:
    """Return when it happened, in words."""
    return f"after {tokens} token{'' if tokens == 1 else 's'}"
