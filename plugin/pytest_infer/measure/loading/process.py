"""Loads in fresh processes: the request, the answer, and how a process is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields

import msgspec

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError
from pytest_infer.records import CacheState, LoadingRound

_MODULE = "pytest_infer.measure.loading.once"
_SHOWN = 300


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


def ask(request: LoadingRequest, program: Sequence[str] = (sys.executable, "-m", _MODULE)) -> LoadingRound:
    """Load once in a process that ends with it; raise ModelError with the process's own reason where it fails."""
    done = subprocess.run([*program], input=encode(request), capture_output=True, check=False)
    try:
        answer = msgspec.json.decode(done.stdout, type=LoadingAnswer)
    except msgspec.DecodeError:
        answer = LoadingAnswer()
    if answer.round is not None:
        return answer.round
    raise ModelError(answer.error or f"{request.options.model}: the process that loads it {_end(done)}")


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
    return how + (f": {lines[-1][:_SHOWN]}" if lines else "")
