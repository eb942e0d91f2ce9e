"""The rounds of an engine whose work another process does: counters, profile, load and timeline are that process's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.measure import disturbance, rounds
from pytest_infer.measure.asking import Asking
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.loading import timed
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face.observing import Observing
from pytest_infer.records import Limits, ModelInfo, Observed, Quality, Reading, StopReason, absent
from worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20


class Served(Engine):
    """Lets a worker compute each token; `of` is how it names it."""

    def __init__(self, worker, of=None, load_s=None):
        self.worker, self.of, self.load_s, self.spent = worker, of, load_s, []

    def load(self):
        self.worker.do("keep 20")
        return ModelInfo(name="m", engine="served", load_s=self.load_s)

    def encode(self, prompt):
        raise NotImplementedError

    def decode(self, token_ids):
        raise NotImplementedError

    def respond(self, request, limits, clock):
        self.spent.append(0.0)
        for number in range(limits.max_new_tokens):
            self.spent[-1] += self.worker.do("burn 0.1")["cpu"]
            clock.tick([number])
        return StopReason.LENGTH

    def observed(self):
        return self.of or Observed(pids=(self.worker.pid,), started=self.load_s is not None)

    def metrics_text(self):
        return f"vllm:prefix_cache_hits_total {len(self.spent)}\n"


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.end()


@pytest.fixture
def observing():
    made = Observing(lambda: 4, timeline=True)
    yield made
    made.close()


def measured(engine, observing):
    runner = rounds.Runner(
        engine=engine,
        asking=Asking(prompt=Prompt(name="p", text="x"), ids=[1, 2]),
        limits=Limits(max_new_tokens=3),
        system=observing.counters(engine),
        usable_cores=4,
        timeline=observing.sampler(engine),
    )
    plan = rounds.RoundPlan(warmup=0, rounds=2, profile=True, experts=False)
    return rounds.measure(runner, plan, lambda *_: None)


def test_rounds_and_profile_are_of_the_worker(worker, observing):
    worker.do("keep 30")
    engine = Served(worker)
    found = measured(engine, observing)
    for r, spent in zip(found.rounds, engine.spent, strict=False):
        assert r.counters.cpu_s.value == pytest.approx(spent, rel=0.02)
        assert r.counters.rss_bytes.value == pytest.approx(worker.account["rss"], rel=0.02)
        assert 0 < r.counters.client_cpu_s.value < r.counters.cpu_s.value / 4
        assert (r.counters.server_cached_tokens.value, r.counters.server_cached_tokens.source) == (
            1,
            "vllm:prefix_cache_hits_total",
        )
    profile = found.profile
    assert profile.pss_bytes.value == pytest.approx(worker.account["rss"], rel=0.3)
    assert str(worker.pid) in profile.pss_bytes.source
    assert profile.timeline.rss_bytes[-1] == pytest.approx(worker.account["rss"], rel=0.02)
    assert observing.counters() is not observing.counters(engine)
    assert observing.counters(engine) is observing.counters(engine)


def test_a_server_elsewhere_is_measured_without_counters(worker, observing):
    found = measured(Served(worker, Observed(absent="another machine")), observing)
    (first, _) = found.rounds
    assert first.counters.cpu_s == absent("another machine")
    assert first.counters.client_cpu_s.value > 0
    assert found.profile.pss_bytes.reason == found.profile.timeline_absent == "another machine"
    assert found.profile.mapped_weights_bytes.reason == "another machine"


def test_the_load_is_the_servers(worker):
    engine, system = Served(worker, load_s=1.5), SystemCounters()
    info = timed.measured(engine, system, cold=False, note=pytest.fail)
    assert info.load_s == 1.5
    assert info.load.rss_anon_bytes.value > 20 * MIB
    assert str(worker.pid) in info.load.peak_rss_bytes.source
    assert info.load_read_bytes == info.load.read_bytes.value
    system.close()


@pytest.mark.parametrize("of", [None, Observed(absent="another machine")])
def test_one_that_ran_before_has_no_load(worker, of):
    system = SystemCounters()
    info = timed.measured(Served(worker, of), system, cold=False, note=pytest.fail)
    assert (info.load_s, info.load, info.load_read_bytes) == (None, None, None)
    system.close()


def test_what_is_of_a_server_is_forgotten_before_it_ends(worker, observing):
    opened = len(list(Path("/proc/self/fd").iterdir()))
    own = observing.counters()
    engine = Served(worker)
    first = observing.counters(engine)
    first.begin()
    observing.sampler(engine)
    observing.forget()
    assert observing.counters() is own
    assert observing.counters(engine) is not first
    observing.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_without_a_timeline_there_is_no_sampler(worker):
    observing = Observing(lambda: 4, timeline=False)
    assert observing.sampler() is None
    assert observing.sampler(Served(worker)) is None


@pytest.mark.parametrize(("waited_s", "said"), [(0.0005, False), (0.5, True), (None, False)])
def test_a_client_that_waits_for_a_core_disturbs_the_round(worker, observing, waited_s, said):
    system = observing.counters(Served(worker, Observed(absent="another machine")))
    counters = system.end(system.begin())
    wait = absent("x") if waited_s is None else Reading(value=waited_s, source="x", quality=Quality.EXACT)
    changed = type(counters)(
        **{f: getattr(counters, f) for f in counters.__slots__} | {"client_wait_s": wait, "wall_s": 1}
    )
    assert disturbance.reasons(changed, 4) == (("the client waited 50.0 % of the time for a core",) if said else ())
