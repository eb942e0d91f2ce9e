"""The queueing theory that load tests are held to, held to simulated queues itself."""

import importlib.util
import json
import random
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import queueing
from pytest_infer.metrics import load

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load_quality.py"


def waits(utilisation, number, seed, *, exponential):
    """Return the waits of requests at one server whose mean service is 1."""
    draw = random.Random(seed)
    wait, found = 0.0, []
    for _ in range(number):
        found.append(wait)
        service = draw.expovariate(1) if exponential else 1.0
        wait = max(0.0, wait + service - draw.expovariate(utilisation))
    return found


@pytest.mark.parametrize(("utilisation", "exponential"), [(0.3, True), (0.6, True), (0.6, False)])
def test_the_mean_wait_scatters_as_theory_says(utilisation, exponential):
    # 40 parts of 4000, which are long beside the waits' autocorrelation: their variance is known to a quarter.
    parts = queueing.batch_means(waits(utilisation, 160_000, 1, exponential=exponential), 40)
    expected = queueing.variance_of_mean(utilisation, 1.0, exponential=exponential)
    # Of fixed services it is a rule for long waits.
    assert 1 / 1.6 < statistics.variance(parts) * 4000 / expected < (1.6 if exponential else 2)
    mean = (queueing.mean_latency_mm1 if exponential else queueing.mean_latency_md1)(utilisation, 1.0)
    assert statistics.fmean(parts) + 1 == pytest.approx(mean, rel=0.05)


def test_means_of_batches():
    assert queueing.batch_means([1, 3, 5, 7, 9], 2) == [2, 6]


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip("the wheel is tested without benchmarks/")
    spec = importlib.util.spec_from_file_location("load_quality", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["load_quality"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["load_quality"]


def test_levels_get_requests_by_their_autocorrelation_within_the_time(script):
    levels = [(queue, rho) for queue in script.QUEUES for rho in script.UTILISATIONS]
    made = script.plans(levels, 0.01, 10.0)
    took_s = sum(one.runs * (script.START_S + one.requests * 0.01 / one.utilisation) for one in made)
    assert 400 < took_s <= 600
    requests = {one.key: one.runs * one.requests for one in made}
    assert requests["M/M/1 0.95"] > 2 * requests["M/D/1 0.95"] * 0.95 > requests["M/M/1 0.9"] > requests["M/M/1 0.3"]
    assert all(one.requests <= script.MOST for one in made)
    assert [one.requests for one in script.plans(levels, 0.01, 0.1)] == [script.FEWEST] * len(levels)


def test_a_finished_level_is_read_again_and_printed_the_same(script, tmp_path):
    found = script.Found(
        key="M/M/1 0.5", utilisation=0.5, requests=480, theory=0.02, low=0.018, high=0.022, measured=0.022,
        sending=0.002, beyond=0.0019, beyond_half=0.0002, overhead=0.0004, marks=("x",),
    )  # fmt: skip
    path = tmp_path / "levels.jsonl"
    path.write_text(f"{json.dumps(asdict(found))}\n")
    assert script._kept(path) == {"M/M/1 0.5": found}
    assert " yes " in found.line()
    assert " no " in script.Found(**{**asdict(found), "sending": 0.0041}).line()


def test_sending_is_what_requests_take_that_met_an_idle_server(script):
    sent = queueing.simulated(5.0, 0.1, 400, 1, exponential=True, delay_s=0.0)
    of = queueing.at_rate([sent], 5.0)
    draw, services, free, due = random.Random(1), [], 0.0, 0.0
    for _ in sent.requests:
        due += draw.expovariate(5.0)
        services.append(draw.expovariate(10))
        free = max(free, due) + services[-1]
    latencies, beyond, alone = script._latencies(sent, services, of)
    assert latencies == pytest.approx(load.latencies_s(load.steady(sent, of)))
    assert beyond == pytest.approx([0.0] * len(latencies), abs=1e-9)
    assert 0.3 < len(alone) / len(latencies) < 0.7
    assert alone == pytest.approx([0.0] * len(alone), abs=1e-9)


def test_how_far_so_short_levels_scatter(script, monkeypatch):
    monkeypatch.setattr(script, "SIMULATED", 60)
    plan = script.Plan(queue="M/M/1", utilisation=0.5, runs=1, requests=400)
    low, high = script._short(5.0, 0.1, plan)
    assert 0.13 < low < queueing.mean_latency_mm1(5.0, 0.1) < high < 0.32
    fixed = script._short(5.0, 0.1, script.Plan(queue="M/D/1", utilisation=0.5, runs=1, requests=400))
    assert fixed[0] < queueing.mean_latency_md1(5.0, 0.1) < fixed[1]
    assert fixed[1] - fixed[0] < (high - low) / 2
