"""The binding: parameters, a loaded model, and requests to its server, which listens on loopback in this process."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from pytest_infer import untrusted
from pytest_infer.engines.llamacpp import arguments
from pytest_infer.errors import EngineError, ModelError

ERRORS, WARNINGS = 1, 2
"""llama.cpp's levels of verbosity."""
_TIMEOUT_S = 3600.0
_WRITTEN_S = 0.2
"""After so long what llama.cpp logged has been written, which a thread of its own does."""
_DATA = b"data: "


def check_installed() -> None:
    """Raise EngineError where the binding is not installed."""
    if find_spec("xllamacpp") is None:
        raise EngineError("llama.cpp is not installed here: pip install 'pytest-infer[llamacpp]'")


def binding() -> Any:
    """Return the module xllamacpp."""
    check_installed()
    # A failed assertion of ggml's would start a debugger, which may wait for ever.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    import xllamacpp  # noqa: PLC0415 - of an extra, 100 MB

    return xllamacpp


def parameters(path: str | Path, given: argparse.Namespace, *, threads: int | None) -> Any:
    """Return the parameters of a server of one model, one request at a time, that keeps nothing of earlier prompts."""
    xllamacpp = binding()
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = 1
    params.ui = False
    params.verbosity = ERRORS
    params.cache_ram_mib = 0
    params.n_ctx_checkpoints = 0
    if threads is not None:
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
    if given.threads_batch is not None:
        params.cpuparams_batch.n_threads = given.threads_batch
    arguments.apply(given, params, xllamacpp)
    return params


def started(params: Any) -> Any:
    """Return a server with its model loaded.

    Raises:
        ModelError: it could not be loaded; with what llama.cpp said first.
    """
    name = Path(params.model.path).name
    with _errors() as said:
        try:
            server = binding().Server(params)
        except (RuntimeError, ValueError) as error:
            time.sleep(_WRITTEN_S)
            said.seek(0)
            raise ModelError(f"{name}: llama.cpp cannot load it: {_reason(said.read()) or error}") from error
    # Answered by the server's own loop: one that is freed before its loop has begun waits for it for ever.
    keys = params.api_keys
    _request(_connection(server), "GET", "/slots", key=keys[0] if keys else "").read()
    return server


def _connection(server: Any) -> http.client.HTTPConnection:
    """Return a connection to a server, open already."""
    address = urlsplit(server.listening_address)
    made = http.client.HTTPConnection(str(address.hostname), int(address.port or 0), timeout=_TIMEOUT_S)
    made.connect()
    return made


def _request(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, *, key: str
) -> http.client.HTTPResponse:
    """Send a request and return its response, whose body is still to be read."""
    told = {"Content-Type": "application/json", "Connection": "close", "Authorization": f"Bearer {key}"}
    connection.request(method, path, body, told)
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        said = json.loads(response.read() or b"{}").get("error", {})
        raise EngineError(f"llama.cpp: {said.get('message', f'HTTP {response.status}')}")
    return response


def _reason(log: str) -> str | None:
    """Return what a log says first of why a model could not be loaded, or its first error."""
    found = re.search(r"error loading model: (.+)", log) or re.search(r"^[\d.]+ E +(.+)", log, re.MULTILINE)
    return None if found is None else found[1].strip()


@contextmanager
def _errors() -> Iterator[IO[str]]:
    """Catch what is written to this process's stderr by C code: a file to be read back."""
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as caught:
        held = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(held, 2)
            os.close(held)


class Native:
    """A loaded model. Requests go to its server by loopback: that of the binding's own calls gives no token ids.

    Other processes of the machine cannot use it: each has a key of its own.
    """

    def __init__(self, params: Any) -> None:
        self._key = secrets.token_hex(16)
        params.api_keys = [self._key]
        self._server = started(params)

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to one request."""
        with _explained(), closing(self.connection()) as connection:
            return json.load(_request(connection, "POST", path, json.dumps(body).encode(), key=self._key))

    @cached_property
    def ends(self) -> frozenset[int]:
        """Return the tokens that end a text: those that it would make impossible where none may."""
        told = self.ask("/completion", {"prompt": [0], "n_predict": 0, "ignore_eos": True})
        return frozenset(one["token"] for one in told["generation_settings"]["logit_bias"])

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection, open already."""
        return _connection(self._server)

    def stream(self, connection: http.client.HTTPConnection, body: bytes) -> Iterator[dict[str, Any]]:
        """Yield the events of a completion as they arrive."""
        with _explained():
            for line in _request(connection, "POST", "/completion", body, key=self._key):
                if line.startswith(_DATA):
                    event = json.loads(line[len(_DATA) :])
                    if "error" in event:
                        raise EngineError(f"llama.cpp: {event['error'].get('message', event['error'])}")
                    yield event


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line that a connection broke off."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise EngineError(
            f"llama.cpp: no answer from its server in this process: {untrusted.failure(error)}"
        ) from error
