"""How close load tests come to queueing theory: one server on loopback, known service times, Poisson arrivals.

A line for each utilisation and queue, services being fixed (M/D/1) or exponential (M/M/1), means in ms:

- theory: the mean latency of endless runs; so short: between which means 95 % of runs as short as these lie, by
  simulation (their own scatter tells too little of it: near 1 latencies go with those of hundreds of requests before)
- measured, less `sending`: what requests that met an idle server took beyond their service, so what sender and loopback
  add; within: whether that is between what theory says of so short runs
- beyond: what was measured beyond what follows from the arrivals and services that there were (Lindley's recursion)

Each level gets as many requests as its autocorrelation asks for, so that all intervals are equally wide, relative to
their mean, in all the minutes that there are. Needs `pytest-infer load-generator install`, and a quiet machine. With
--results a run that was stopped goes on where it was.

    python benchmarks/load_quality.py --minutes 10 --results levels.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import queueing  # type: ignore[import-not-found]  # in tests, whose types nobody checks
import scripted_server  # type: ignore[import-not-found]
from pytest_infer.analysis.compare import stats
from pytest_infer.engines.base import Served
from pytest_infer.measure.load import environment, generator, marks
from pytest_infer.measure.load.generator import Sending
from pytest_infer.measure.load.workload import Workload
from pytest_infer.metrics import load
from pytest_infer.metrics.timing import NS
from pytest_infer.prompts import Prompt
from pytest_infer.records import Arrivals, Level, LevelKind, Objectives, Repetition, UnderLoad
from scripted_server import Answer, Script

UTILISATIONS = (0.3, 0.5, 0.7, 0.9, 0.95)
QUEUES = ("M/D/1", "M/M/1")
FEWEST, MOST = 600, 5000
"""Requests of a level at least, and of one run of the generator at most, whose file has some kilobytes for each."""
START_S = 12.0
"""What a run of the generator takes beside its requests, quiet."""
BATCHES = 20
_OTHER = 1_000_000
SIMULATED = 400
HEAD = "queue  util. requests   theory        so short measured  sending within     beyond  marks"


@dataclass(frozen=True)
class Plan:
    """A level: `runs` of the generator of `requests` each."""

    queue: str
    utilisation: float
    runs: int
    requests: int

    @property
    def key(self) -> str:
        return f"{self.queue} {self.utilisation:g}"

    @property
    def exponential(self) -> bool:
        return self.queue == "M/M/1"


@dataclass(frozen=True)
class Found:
    """A finished level, times in seconds."""

    key: str
    utilisation: float
    requests: int
    theory: float
    low: float
    high: float
    measured: float
    sending: float
    beyond: float
    beyond_half: float
    overhead: float
    marks: tuple[str, ...]

    def line(self) -> str:
        within = "yes" if self.low <= self.measured - self.sending <= self.high else "no"
        short = f"{_ms(self.low)}–{_ms(self.high)}"
        figures = f"{_ms(self.theory):>8} {short:>15} {_ms(self.measured):>8} {_ms(self.sending):>8}"
        beyond = f"{_ms(self.beyond)} ± {_ms(self.beyond_half)}"
        head = f"{self.key.split()[0]} {self.utilisation:6.2f} {self.requests:8d}"
        return f"{head} {figures} {within:>6} {beyond:>10}  {', '.join(self.marks)}"


def plans(levels: list[tuple[str, float]], service_s: float, minutes: float) -> list[Plan]:
    """Return how many requests each level gets, for intervals of the same relative width in the minutes given."""
    wanted = {one: queueing.relative_variance(one[1], exponential=one[0] == "M/M/1") for one in levels}
    for scale in (2.0 ** (step / 8) for step in range(160, -160, -1)):
        made = [_plan(queue, rho, max(FEWEST, math.ceil(scale * n))) for (queue, rho), n in wanted.items()]
        took_s = sum(one.runs * (START_S + one.requests * service_s / one.utilisation) for one in made)
        if took_s <= 60 * minutes:
            return made
    return [_plan(queue, rho, FEWEST) for queue, rho in levels]


def _plan(queue: str, utilisation: float, requests: int) -> Plan:
    runs = math.ceil(requests / MOST)
    return Plan(queue=queue, utilisation=utilisation, runs=runs, requests=math.ceil(requests / runs))


def measured(plan: Plan, service_s: float, overhead_s: float) -> Found:
    """Return a level; services are shorter by the overhead, so that the utilisation is that of the plan."""
    level = Level(kind=LevelKind.RATE, value=plan.utilisation / service_s, arrivals=Arrivals.POISSON)
    sent = [_sent(level, plan, service_s - overhead_s, seed) for seed in range(1, plan.runs + 1)]
    repetitions = tuple(found for found, _ in sent)
    of = UnderLoad(level=level, objectives=Objectives(), repetitions=repetitions, generator="")
    runs = [_latencies(found, services, of) for found, services in sent]
    real = statistics.fmean(service for _, services in sent for service in services)
    rate = level.value or 0.0
    each = max(2, BATCHES // plan.runs)
    beyond = stats.student([mean for _, more, _ in runs for mean in queueing.batch_means(more, each)])
    sending = statistics.fmean([extra for _, _, idle in runs for extra in idle] or [math.nan])
    low, high = _short(rate, real, plan)
    theory = queueing.mean_latency_mm1 if plan.exponential else queueing.mean_latency_md1
    return Found(
        key=plan.key,
        utilisation=rate * real,
        requests=sum(len(got) for got, _, _ in runs),
        theory=theory(rate, real) if rate * real < 1 else math.inf,
        low=low,
        high=high,
        measured=statistics.fmean(latency for got, _, _ in runs for latency in got),
        sending=sending,
        beyond=beyond.mid,
        beyond_half=beyond.interval(0.95)[1] - beyond.mid,
        overhead=overhead_s + real - service_s,
        marks=tuple(warning.kind.value for warning in marks.find(of, bust=True)),
    )


def _sent(level: Level, plan: Plan, service_s: float, seed: int) -> tuple[Repetition, list[float]]:
    """Return a run of the generator, and how long the server took for each of its requests, in their order."""
    # Not the seed of the arrivals: of one seed both draw the same numbers, and long services meet long gaps.
    script = Script(answers=(Answer(service_s=service_s, exponential=plan.exponential),), slots=1, seed=_OTHER + seed)
    with scripted_server.running(script) as server:
        sending = Sending(
            served=Served(url=server.url, model="scripted"),
            level=level,
            work=Workload(prompts=((Prompt(name="a", text="one two"), 1),)),
            requests=plan.requests,
            limit_s=600.0,
            salt="s",
        )
        found = generator.repetition(environment.required(), sending, seed)
        turns = sorted(server.served, key=lambda one: one.began_ns)
        return found, [(one.ended_ns - one.began_ns) / NS for one in turns]


def _latencies(found: Repetition, services: list[float], of: UnderLoad) -> tuple[list[float], list[float], list[float]]:
    """Return the steady part's latencies; what they are beyond Lindley's; and that of requests that did not wait."""
    part = load.steady(found, of)
    if part is None:
        raise SystemExit("too few requests")
    if len(found.requests) != len(services):
        # Nobody knows which service was whose.
        return load.latencies_s(part), [math.nan] * len(load.latencies_s(part)), []
    predicted = queueing.first_come([request.due_s or 0.0 for request in found.requests], services)
    offered = set(map(id, part.offered))
    rows = [
        (request.end_s - (request.due_s or 0.0), want, service)
        for request, want, service in zip(found.requests, predicted, services, strict=True)
        if id(request) in offered and request.end_s is not None
    ]
    alone = [got - service for got, want, service in rows if math.isclose(want, service, abs_tol=1e-6)]
    return [got for got, _, _ in rows], [got - want for got, want, _ in rows], alone


def _short(rate: float, service_s: float, plan: Plan) -> tuple[float, float]:
    """Return between which mean latencies 95 % of so short levels lie, whose runs begin at an empty server."""
    found = []
    for seed in range(SIMULATED):
        own = [_simulated(rate, service_s, plan, seed * plan.runs + run) for run in range(plan.runs)]
        found.append(statistics.fmean(own))
    cuts = statistics.quantiles(found, n=40, method="inclusive")
    return cuts[0], cuts[-1]


def _simulated(rate: float, service_s: float, plan: Plan, seed: int) -> float:
    repetition = queueing.simulated(rate, service_s, plan.requests, seed, exponential=plan.exponential)
    part = load.steady(repetition, queueing.at_rate([repetition], rate))
    if part is None:
        raise SystemExit("too few requests")
    return statistics.fmean(load.latencies_s(part))


def _ms(value: float) -> str:
    return f"{1000 * value:.1f}"


def _kept(path: Path | None) -> dict[str, Found]:
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: Found(**{**row, "marks": tuple(row["marks"])}) for row in rows}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", type=float, default=10.0, help="mean service time, ms")
    parser.add_argument("--utilisations", default=",".join(map(str, UTILISATIONS)))
    parser.add_argument("--queues", default=",".join(QUEUES))
    parser.add_argument("--minutes", type=float, default=10.0, help="of all levels together, on a quiet machine")
    parser.add_argument("--results", type=Path, help="JSON Lines of finished levels, which are not measured again")
    parser.add_argument("--plan", action="store_true", help="only say how many requests each level gets")
    given = parser.parse_args()
    levels = [(queue, rho) for queue in given.queues.split(",") for rho in map(float, given.utilisations.split(","))]
    service_s, kept, overhead_s = given.service / 1000, _kept(given.results), 0.0
    if not given.plan:
        print(HEAD)
    for plan in plans(levels, service_s, given.minutes):
        if given.plan:
            width = 1.96 * math.sqrt(
                queueing.relative_variance(plan.utilisation, exponential=plan.exponential) / plan.runs / plan.requests
            )
            took_s = plan.runs * (START_S + plan.requests * service_s / plan.utilisation)
            print(f"{plan.key}: {plan.runs} × {plan.requests} requests, {took_s:.0f} s, about ± {100 * width:.0f} %")
            continue
        found = kept.get(plan.key) or measured(plan, service_s, overhead_s)
        overhead_s = found.overhead
        if given.results is not None and plan.key not in kept:
            with given.results.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(asdict(found))}\n")
        print(found.line(), flush=True)


if __name__ == "__main__":
    main()
