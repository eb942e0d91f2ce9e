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


def variance_of_mean(utilisation, service_s, *, exponential):
    """Return n × the variance of the mean wait of n requests in a row, for large n, seconds squared.

    Of exponential services by Blomqvist (1967); of fixed ones half of that, relative to the mean wait, as run lengths
    go with the sum of the squared coefficients of variation of gaps and services, 1 + 0 and 1 + 1 (Whitt 1989).
    """
    rho = utilisation
    exact = rho * (2 + 5 * rho - 4 * rho**2 + rho**3) / (1 - rho) ** 4 * service_s**2
    # The mean wait is half as long as well.
    return exact if exponential else exact / 2 / 4


def relative_variance(utilisation, *, exponential):
    """Return n × the squared relative error of the mean latency of n requests, as far as it is their wait's."""
    mean = (mean_latency_mm1 if exponential else mean_latency_md1)(utilisation, 1.0)
    return variance_of_mean(utilisation, 1.0, exponential=exponential) / mean**2


def batch_means(values, batches):
    """Return the means of so many parts of equal length, in order: hardly correlated where these are long."""
    size = len(values) // batches
    return [sum(values[n * size : (n + 1) * size]) / size for n in range(batches)]
