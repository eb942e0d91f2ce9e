"""A load test: what was asked of a server at one level, and when each request was due, sent and answered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pytest_infer.records.counters import Counters


class LevelKind(StrEnum):
    """How requests come: so many at once, at a rate whatever the server does, all at once, or as they once did."""

    CONCURRENCY = "concurrency"
    RATE = "rate"
    THROUGHPUT = "throughput"
    REPLAY = "replay"


class Arrivals(StrEnum):
    """How the requests of a rate are spaced: by an exponential distribution (a Poisson process), or evenly."""

    POISSON = "poisson"
    CONSTANT = "constant"


class RequestStatus(StrEnum):
    """How a request ended; one that ran into the limit of a repetition was cancelled."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of load: `value` is the number of streams, requests per second, or how much longer a replay takes.

    It is None for throughput.
    """

    kind: LevelKind
    value: float | None = None
    arrivals: Arrivals | None = None

    @property
    def name(self) -> str:
        """Return it as it is written: `concurrency=4`, `rate=0.5:poisson`, `throughput`."""
        if self.value is None:
            return self.kind.value
        spaced = "" if self.arrivals is None else f":{self.arrivals.value}"
        return f"{self.kind.value}={self.value:g}{spaced}"

    @property
    def scheduled(self) -> bool:
        """Return whether each request is due at a time of its own, whatever became of those before it."""
        return self.kind in (LevelKind.RATE, LevelKind.REPLAY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What a request must keep to be good, seconds each; those that are None are not asked for."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """One request, as its sender saw it; seconds of one clock, None for what never happened.

    `due_s` is when the schedule wanted it sent and `sent_s` when its first byte was written, `first_s` and `last_s` are
    the arrivals of its first and last token, and `end_s` is the end of the answer, or of the wait for one. `cached` are
    the prompt's tokens that the server says it had cached.
    """

    status: RequestStatus
    due_s: float | None = None
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """One repetition of a level: all requests that it sent, or was to send, in the order in which they were due.

    `asked` is how many it was to send; None where that is not known. `counters` are those of whoever does the engine's
    work, from before the generator starts until it has ended; None where they were not read.
    """

    requests: tuple[LoadRequest, ...]
    seed: int
    asked: int | None = None
    counters: Counters | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderLoad:
    """A level with its repetitions; requests of one repetition depend on each other, repetitions do not.

    `generator` sent the requests, `data` says what they asked for where that were not the suite's prompts.
    """

    level: Level
    objectives: Objectives
    repetitions: tuple[Repetition, ...]
    generator: str
    data: str | None = None
