"""How close load tests come to queueing theory: one server on loopback, known service times, Poisson arrivals.

Prints, for utilisations from 0.3 to 0.95 and services that are fixed (M/D/1) or exponential (M/M/1), the mean latency
by theory, of endless runs and (by simulation) of as short ones; what follows from the arrivals and services that
there were (Lindley's recursion); and the measured one with its 95 % interval over repetitions. Needs
`pytest-infer load-generator install`.

    python benchmarks/load_quality.py --requests 300 --repetitions 3 --service 20
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import queueing  # type: ignore[import-not-found]  # in tests, whose types nobody checks
import scripted_server  # type: ignore[import-not-found]
from pytest_infer.analysis.load import curve
from pytest_infer.engines.base import Served
from pytest_infer.measure.load import environment, generator, marks, workload
from pytest_infer.measure.load.generator import Sending
from pytest_infer.measure.load.workload import Workload
from pytest_infer.metrics import load
from pytest_infer.metrics.timing import NS
from pytest_infer.prompts import Prompt
from pytest_infer.records import Arrivals, Level, LevelKind, Objectives, UnderLoad
from pytest_infer.units import Unit
from scripted_server import Answer, Script

UTILISATIONS = (0.3, 0.5, 0.7, 0.9, 0.95)
SIMULATED = 300


def measured(utilisation: float, service_s: float, given: argparse.Namespace, *, exponential: bool) -> str:
    """Return a line of the table."""
    level = Level(kind=LevelKind.RATE, value=utilisation / service_s, arrivals=Arrivals.POISSON)
    repetitions, lindley, services = [], [], []
    for seed in workload.seeds(given.repetitions):
        script = Script(answers=(Answer(service_s=service_s, exponential=exponential),), slots=1, seed=seed)
        with scripted_server.running(script) as server:
            sending = Sending(
                served=Served(url=server.url, model="scripted"),
                level=level,
                work=Workload(prompts=((Prompt(name="a", text="one two"), 4),)),
                requests=given.requests,
                limit_s=600.0,
                salt="s",
            )
            found = generator.repetition(environment.required(), sending, seed)
            own = [(one.ended_ns - one.began_ns) / NS for one in sorted(server.served, key=lambda one: one.began_ns)]
        dues = [request.due_s or 0.0 for request in found.requests]
        # Without all of the requests nobody knows which service was whose.
        predicted = queueing.first_come(dues, own) if len(dues) == len(own) else [math.nan] * len(dues)
        services += own
        repetitions.append(found)
        lindley.append(predicted)
    of = UnderLoad(level=level, objectives=Objectives(), repetitions=tuple(repetitions), generator="")
    means, expected = [], []
    for repetition, predicted in zip(repetitions, lindley, strict=True):
        part = load.steady(repetition, of)
        if part is None:
            raise SystemExit("too few requests")
        means.append(statistics.fmean(load.latencies_s(part)))
        offered = set(map(id, part.offered))
        expected.append(
            statistics.fmean(
                value for request, value in zip(repetition.requests, predicted, strict=True) if id(request) in offered
            )
        )
    real = statistics.fmean(services)
    rate = level.value or 0.0
    theory = (queueing.mean_latency_mm1 if exponential else queueing.mean_latency_md1)(rate, real)
    short = _short(rate, real, given.requests, exponential=exponential)
    found_mean = curve.estimate(means, Unit.SECONDS)
    ends = found_mean.low, found_mean.high
    interval = "–".join(_ms(end) for end in ends if end is not None)
    kinds = ", ".join(warning.kind.value for warning in marks.find(of, bust=True))
    figures = (theory, short, statistics.fmean(expected), statistics.fmean(means))
    told = " ".join(f"{_ms(value):>9}" for value in figures)
    return f"{'M/M/1' if exponential else 'M/D/1'} {rate * real:11.2f} {told} {interval:>15}  {kinds}"


def _short(rate: float, service_s: float, requests: int, *, exponential: bool) -> float:
    """Return the mean latency of so short a run, which begins at an empty server, over many simulated ones."""
    found = []
    for seed in range(SIMULATED):
        repetition = queueing.simulated(rate, service_s, requests, seed, exponential=exponential)
        of = queueing.at_rate([repetition], rate)
        part = load.steady(repetition, of)
        if part is not None:
            found.append(statistics.fmean(load.latencies_s(part)))
    return statistics.fmean(found)


def _ms(value: float) -> str:
    return f"{1000 * value:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--service", type=float, default=20.0, help="mean service time, ms")
    parser.add_argument("--utilisations", default=",".join(map(str, UTILISATIONS)))
    given = parser.parse_args()
    print("queue utilisation theory ms  so short   Lindley  measured    95 % interval  marks")
    for exponential in (False, True):
        for utilisation in map(float, given.utilisations.split(",")):
            print(measured(utilisation, given.service / 1000, given, exponential=exponential), flush=True)


if __name__ == "__main__":
    main()
