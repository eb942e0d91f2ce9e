"""Loads in fresh processes: the request, the answer, and how a process is started."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields

import msgspec

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError
from pytest_infer.records import CacheState, LoadingRound

_MODULE = "pytest_infer.measure.loading.once"
_SHOWN = 300
TELLS = "pytest-infer: "
"""What a line of the process's stderr begins with that is for people: what takes long."""


class LoadingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and the state of the page cache before it."""

    cache: CacheState
    engine: str
    options: EngineOptions


class LoadingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The round, or one line saying why there is none."""

    round: LoadingRound | None = None
    error: str | None = None


def encode(request: LoadingRequest) -> bytes:
    """Return a request as JSON: all engine options but `progress`, which is a function of this process."""
    told = {field.name: getattr(request.options, field.name) for field in fields(request.options)}
    del told["progress"]
    return msgspec.json.encode({"cache": request.cache, "engine": request.engine, "options": told})


def decode(data: bytes) -> LoadingRequest:
    """Return the request that `encode` wrote."""
    return msgspec.json.decode(data, type=LoadingRequest)


def ask(
    request: LoadingRequest, tell: Callable[[str], None], program: Sequence[str] = (sys.executable, "-m", _MODULE)
) -> LoadingRound:
    """Load once in a process that ends with it, and tell what takes long meanwhile.

    Raises ModelError with the process's own reason where it fails.
    """
    said: list[str] = []
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as told:
        asked.write(encode(request))
        asked.seek(0)
        with subprocess.Popen([*program], stdin=asked, stdout=told, stderr=subprocess.PIPE) as child:
            for line in child.stderr or ():
                said.append(line.decode(errors="replace").strip())
                if said[-1].startswith(TELLS):
                    tell(said.pop().removeprefix(TELLS))
        told.seek(0)
        try:
            answer = msgspec.json.decode(told.read(), type=LoadingAnswer)
        except msgspec.DecodeError:
            answer = LoadingAnswer()
    if answer.round is not None:
        return answer.round
    raise ModelError(
        answer.error or f"{request.options.model}: the process that loads it {_end(child.returncode, said)}"
    )


def _end(code: int, said: Sequence[str]) -> str:
    last = next(filter(None, reversed(said)), "")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    return how + (f": {last[:_SHOWN]}" if last else "")
