"""Whatever an instrument raises costs its own figures, and never what was timed."""

import asyncio
from dataclasses import fields
from fractions import Fraction

import pytest

import warm
from asked import asked
from pytest_infer.engines.base import Engine
from pytest_infer.measure import rounds
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.pytest_face import pieces
from pytest_infer.records import Counters, Limits, Reference, Scores, StopReason

ERRORS = [
    RuntimeError("hooks are\nnot welcome"),
    KeyError("x"),
    ZeroDivisionError(),
    RecursionError(),
    MemoryError(),
    StopIteration(),
]


class Ticking(Engine):
    """Generates three tokens; `profiled` raises in the round after the timed ones."""

    def __init__(self, *, fails_in=None, error=None, module=None, cache=None):
        self.calls, self.fails_in, self.error, self.module, self.cache = 0, fails_in, error, module, cache

    def load(self):
        raise NotImplementedError

    def encode(self, prompt):
        raise NotImplementedError

    def decode(self, token_ids):
        raise NotImplementedError

    def generate(self, prompt_ids, limits, clock):
        self.calls += 1
        if self.calls == self.fails_in:
            raise self.error
        for number in range(limits.max_new_tokens):
            clock.tick([number])
        return StopReason.LENGTH

    def logits_module(self):
        return self.module

    def cache_bytes(self):
        if self.cache is not None:
            raise self.cache
        return 12


@pytest.fixture(autouse=True)
def _little_garbage():
    with warm.apart_from_what_is_loaded():
        yield


@pytest.fixture
def system():
    made = SystemCounters()
    yield made
    made.close()


def measured(engine, system, breakdown="off"):
    runner = rounds.Runner(
        engine=engine, asking=asked([1, 2]), limits=Limits(max_new_tokens=3), system=system, usable_cores=1.0
    )
    plan = rounds.RoundPlan(warmup=0, rounds=2, profile=True, experts=True, breakdown=breakdown)
    return rounds.measure(runner, plan, lambda *_: None)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_profile_round_that_fails_leaves_the_timed_ones(system, error):
    found = measured(Ticking(fails_in=3, error=error), system)
    assert len(found.rounds) == 2
    assert found.profile is None
    assert found.profile_absent.startswith(f"the profile round failed: {type(error).__name__}")
    assert "\n" not in found.profile_absent


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), pytest.fail.Exception("timeout")]
)
def test_a_request_to_end_is_no_failing_instrument(system, error):
    with pytest.raises(type(error)):
        measured(Ticking(fails_in=3, error=error), system)


def test_pytests_own_exit_is_one_too(system):
    with pytest.raises(pytest.exit.Exception):
        measured(Ticking(fails_in=3, error=pytest.exit.Exception("enough")), system)


def test_a_reason_that_is_no_text_costs_the_reason_alone(system):
    engine = Ticking()
    engine.experts_absent = engine.scores_absent = lambda: 7
    profile = measured(engine, system).profile
    said = "gives a int, neither a text nor None"
    assert profile.experts_absent == profile.nonfinite_logits.reason == f"EngineError: Engine.experts_absent {said}"
    assert profile.scores_absent == f"EngineError: Engine.scores_absent {said}"
    engine.scores = lambda: "kept"
    profile = measured(engine, system).profile
    assert (profile.scores, profile.scores_absent) == ("kept", None)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_module_that_takes_no_hook_costs_its_logits_alone(system, error):
    class Module:
        def register_forward_hook(self, hook):
            raise error

    profile = measured(Ticking(module=Module()), system).profile
    assert profile.nonfinite_logits.value is None
    assert type(error).__name__ in profile.nonfinite_logits.reason
    assert profile.kv_cache_bytes.value == 12


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_engine_that_fails_to_give_its_module_keeps_its_rounds(system, monkeypatch, error):
    def fails(self):
        raise error

    monkeypatch.setattr(Ticking, "logits_module", fails)
    found = measured(Ticking(), system, breakdown="auto")
    assert len(found.rounds) == 2
    assert found.breakdown is None
    assert found.breakdown_absent.startswith(f"taking steps apart failed: {type(error).__name__}")


def test_a_module_that_is_not_of_torch_is_not_taken_apart(system):
    class Module:
        """As mlx.nn.Module: names like torch's, and parameters in a dict."""

        def named_modules(self):
            return [("", self)]

        def parameters(self):
            return {"weight": [1.0]}

    found = measured(Ticking(module=Module()), system, breakdown="auto")
    assert len(found.rounds) == 2
    assert found.breakdown_absent == "the engine's module takes no hook"
    assert found.profile.nonfinite_logits.reason == "the engine's module takes no hook"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_experts_that_cannot_be_reached_cost_their_usage_alone(system, monkeypatch, error):
    def fails(self):
        raise error

    monkeypatch.setattr(Ticking, "experts_module", fails)
    profile = measured(Ticking(), system).profile
    assert profile.experts_absent.startswith(type(error).__name__)
    assert profile.kv_cache_bytes.value == 12


@pytest.mark.parametrize(("told", "value"), [(Fraction(12), 12), ("a", None), ([], None)])
def test_what_an_engine_tells_of_its_cache_is_a_whole_number_or_absent(system, monkeypatch, told, value):
    monkeypatch.setattr(Ticking, "cache_bytes", lambda self: told)
    reading = measured(Ticking(), system).profile.kv_cache_bytes
    assert (reading.value, type(reading.value)) == (value, type(value))
    assert value is not None or "Error" in reading.reason


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_cache_that_cannot_be_counted_is_absent(system, error):
    profile = measured(Ticking(cache=error), system).profile
    assert type(error).__name__ in profile.kv_cache_bytes.reason
    assert profile.counters.wall_s > 0


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["read", "readings"])
def test_each_counter_fails_alone(system, monkeypatch, error, method):
    class Broken:
        """An instrument that works until it is read."""

        def __init__(self, real):
            self.real, self.failed = real, False

        def read(self):
            if method == "read":
                raise error
            return self.real.read()

        def readings(self, before, after):
            if method == "readings" and not self.failed:
                self.failed = True
                raise error
            return self.real.readings(before, after)

        def close(self):
            self.real.close()

    whole = system.end(system.begin())
    instruments = system._instruments
    for place, real in enumerate(instruments):
        broken = (*instruments[:place], Broken(real), *instruments[place + 1 :])
        monkeypatch.setattr(system, "_instruments", broken)
        found = system.end(system.begin())
        lost = [
            f.name
            for f in fields(Counters)
            if f.name != "wall_s" and getattr(found, f.name).value is None and getattr(whole, f.name).value is not None
        ]
        # The peak is read elsewhere, and a window may hold no round of a sampler.
        assert all(type(error).__name__ in getattr(found, name).reason for name in lost if name != "peak_rss_bytes")


def test_scores_of_no_position_have_no_texts():
    kept = dict.fromkeys(("tokens", "chosen", "top_ids", "top", "rest"), b"")
    none = Scores(sequences=1, positions=0, width=4, vocabulary=4, **kept)
    assert pieces.of(str, None, Reference(name="0001", tokens=(), free=(), scores=none)) == {}
