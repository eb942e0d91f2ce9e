"""Queueing theory that load tests are held to: one server, first come first served, and requests of known service."""

import random

from pytest_infer.records import (
    Arrivals,
    Level,
    LevelKind,
    LoadRequest,
    Objectives,
    Repetition,
    RequestStatus,
    UnderLoad,
)


def mean_latency_md1(rate, service_s):
    """Return the mean time in the system where every service takes the same (Pollaczek 1930, Khinchin 1932)."""
    load = rate * service_s
    return service_s + load * service_s / (2 * (1 - load))


def mean_latency_mm1(rate, service_s):
    """Return the mean time in the system where services are exponential: 1 / (mu - lambda)."""
    return 1 / (1 / service_s - rate)


def simulated(rate, service_s, requests, seed, *, exponential=False, delay_s=0.0, tokens=4):
    """Return a repetition of a Poisson process at one server; the sender is late by `delay_s`."""
    draw = random.Random(seed)
    free = due = 0.0
    found = []
    for _ in range(requests):
        due += draw.expovariate(rate)
        sent = due + delay_s
        begin = max(sent, free)
        took = draw.expovariate(1 / service_s) if exponential else service_s
        free = begin + took
        found.append(
            LoadRequest(
                status=RequestStatus.DONE, due_s=due, sent_s=sent, first_s=begin + took / tokens, last_s=free,
                end_s=free, prompt_tokens=8, output_tokens=tokens,
            )
        )  # fmt: skip
    return Repetition(requests=tuple(found), seed=seed)


def at_rate(repetitions, rate=1.0, **objectives):
    """Return repetitions as those of a level of a rate."""
    level = Level(kind=LevelKind.RATE, value=rate, arrivals=Arrivals.POISSON)
    return UnderLoad(
        level=level, objectives=Objectives(**objectives), repetitions=tuple(repetitions), generator="simulated"
    )


def of_streams(repetitions, streams, **objectives):
    """Return repetitions as those of so many streams."""
    level = Level(kind=LevelKind.CONCURRENCY, value=float(streams))
    return UnderLoad(
        level=level, objectives=Objectives(**objectives), repetitions=tuple(repetitions), generator="simulated"
    )


def first_come(dues, services):
    """Return the latency of each request at one server that takes the first first (Lindley 1952), by their services."""
    free, found = 0.0, []
    for due, service in zip(dues, services, strict=True):
        free = max(free, due) + service
        found.append(free - due)
    return found
