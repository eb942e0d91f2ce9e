"""The border to the load generator: what its file must hold of each request, and nothing else of it is believed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines.server import address
from pytest_infer.errors import EngineError
from pytest_infer.records import LoadRequest, RequestStatus

_STATUS = re.compile(r"(?:Client|Server) error '([^']+)'")
_RAISED = re.compile(r"\w+\([\"'](.*)[\"']\)", re.DOTALL)
_LONGEST = 200
_EARLY_S = 60.0
"""An arrival that was to be so long before the beginning was drawn when the beginning was not known yet."""
VERSION = 2
"""The version of the generator's format that is understood."""


class NotAsAskedError(EngineError):
    """The generator did not send its requests when they were to be sent: a bug of its own, and not the server's."""


_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""A number of tokens that the sidecar can hold."""


class _Timings(msgspec.Struct, frozen=True):
    """Stamps of one request, seconds since 1970."""

    targeted_start: float | None = None
    resolve_start: float | None = None
    request_start: float | None = None
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None
    request_end: float | None = None
    resolve_end: float | None = None


class _Info(msgspec.Struct, frozen=True):
    timings: _Timings
    scheduler_start_time: float = 0.0
    error: str | None = None


class _Request(msgspec.Struct, frozen=True):
    info: _Info
    prompt_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cached_tokens: int | None = None


class _Requests(msgspec.Struct, frozen=True):
    successful: tuple[_Request, ...] = ()
    incomplete: tuple[_Request, ...] = ()
    errored: tuple[_Request, ...] = ()


class _Benchmark(msgspec.Struct, frozen=True):
    requests: _Requests


class _Metadata(msgspec.Struct, frozen=True):
    version: int


class _Report(msgspec.Struct, frozen=True):
    metadata: _Metadata
    benchmarks: tuple[_Benchmark, ...]


_DECODER: msgspec.json.Decoder[_Report] = msgspec.json.Decoder(_Report)


def read(path: Path) -> tuple[LoadRequest, ...]:
    """Return the requests of a generator's file, in the order in which they were due or sent.

    Requests that were prepared and never due are left out; a few that end before they begin have failed. Raises
    EngineError where the file is not what it must be, and NotAsAskedError where requests came at once that were to
    come one by one.
    """
    try:
        report = untrusted.decode(_DECODER, untrusted.read(path, untrusted.RUN_BYTES))
    except (OSError, untrusted.Damaged) as error:
        raise EngineError(f"the load generator's {path.name} cannot be read: {untrusted.reason(error)}") from error
    if report.metadata.version != VERSION:
        raise EngineError(
            f"the load generator's {path.name} is of format {report.metadata.version}, and format {VERSION} is read: "
            "pytest-infer load-generator remove, then install"
        )
    if len(report.benchmarks) != 1:
        raise EngineError(f"the load generator's {path.name} holds {len(report.benchmarks)} benchmarks, not one")
    told = report.benchmarks[0].requests
    found = [
        *(_request(one, RequestStatus.DONE) for one in told.successful),
        *(_request(one, RequestStatus.FAILED) for one in told.errored),
        *(_request(one, RequestStatus.CANCELLED) for one in told.incomplete),
    ]
    few = max(1, len(found) // 100)
    if sum(map(_backwards, found)) > few:
        raise EngineError(
            f"the load generator's {path.name} has requests that end before they begin: was the clock set meanwhile?"
        )
    early = sum(map(_early, (*told.successful, *told.errored, *told.incomplete)))
    if early > few:
        raise NotAsAskedError(
            f"the load generator sent {early} of {len(found)} requests at once, as it had drawn their times before it "
            "knew when it begins: it waits too long for a core"
        )
    found = [_untimed(one) if _backwards(one) else one for one in found]
    known = [(request.due_s or request.sent_s or 0.0, request) for request in found if request.due_s or request.sent_s]
    return tuple(request for _, request in sorted(known, key=lambda one: one[0]))


def _early(one: _Request) -> bool:
    due = one.info.timings.targeted_start
    return due is not None and due < one.info.scheduler_start_time - _EARLY_S


def _request(one: _Request, status: RequestStatus) -> LoadRequest:
    at, whole = one.info.timings, status is RequestStatus.DONE
    begun = at.request_start or at.resolve_start
    # guidellm 0.8.1 may draw an arrival before it knows when it begins, from 1970 on: it is due at the beginning.
    due = None if at.targeted_start is None else max(at.targeted_start, one.info.scheduler_start_time)
    if whole and (begun is None or at.request_end is None or at.first_token_iteration is None):
        # It was answered, and with nothing: no token is no answer.
        status = RequestStatus.FAILED
    return LoadRequest(
        status=status,
        due_s=due,
        sent_s=begun,
        first_s=at.first_token_iteration,
        last_s=at.last_token_iteration,
        end_s=at.request_end or at.resolve_end,
        prompt_tokens=one.prompt_tokens,
        output_tokens=one.output_tokens,
        cached=one.cached_tokens,
        error=None if status is RequestStatus.DONE else _words(one.info.error),
    )


def _backwards(request: LoadRequest) -> bool:
    # Not from when it was due: a timer may wake some microseconds early.
    stamps = (request.sent_s, request.first_s, request.last_s, request.end_s)
    known = [stamp for stamp in stamps if stamp is not None]
    return known != sorted(known)


def _untimed(request: LoadRequest) -> LoadRequest:
    """Return a request whose stamps go backwards as one of no time: nobody knows how long it took."""
    status, error = request.status, request.error
    if status is RequestStatus.DONE:
        status, error = RequestStatus.FAILED, "its answer ended before it began"
    return replace(request, status=status, first_s=None, last_s=None, end_s=request.sent_s, error=error)


def _words(error: str | None) -> str:
    """Return what went wrong, in a line: the status or the words of what was raised, without the request's address."""
    if error is None:
        return "no token came"
    status, raised = _STATUS.search(error), _RAISED.fullmatch(error)
    text = status[1] if status else raised[1] if raised else error
    return address.without_key(text)[:_LONGEST]
