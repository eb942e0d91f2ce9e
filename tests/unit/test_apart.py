"""How much of a prompt's time taking its steps apart may take, in how many launches and passes."""

from collections import Counter
from types import SimpleNamespace

import pytest

from pytest_infer.ab import apart, protocol
from pytest_infer.ab.passes import Cost
from pytest_infer.records import PassParts, Turns
from pytest_infer.units import seconds

TURNS = Turns(every=1, cycles=1, seconds=1.0, ratios={})


class Launch:
    """A launch whose passes let a clock go on by what they cost, and are so many times `slower` than was planned."""

    def __init__(self, serial, clock, cost, slower=1.0):
        self.serial, self._clock, self._cost, self._slower = serial, clock, cost, slower
        self.passes = []

    def take_apart(self, asked):
        self.passes.append((asked.tokens, asked.begins))
        self._clock.s += self._slower * (self._cost.first_s + self._cost.token_s * (asked.tokens - 1))
        parts = PassParts(parts=(("experts", 0),), self_ns=((10,) * asked.tokens,))
        return protocol.TookApart(parts=parts), protocol.TookApart(parts=parts)


@pytest.fixture
def measure(monkeypatch):
    """Takes apart a prompt whose first token takes so long a side; returns the launches, the parts, why, and how long
    it took."""

    def run(first_s, *, step_s=0.01, generated=64, launches=5, time_s=60, slower=1.0):
        clock = SimpleNamespace(s=100.0)
        monkeypatch.setattr(apart.time, "monotonic", lambda: clock.s)
        pair_s = 2 * (first_s + step_s * (generated - 1))
        cost = Cost(pair_s=pair_s, first_s=2 * first_s, prompt=9, generated=generated)
        there = [Launch(n + 3, clock, cost, slower) for n in range(launches)]
        parts, why = apart.measure(there, cost, TURNS, threads=1, time_s=time_s)
        return there, parts, why, clock.s - 100

    return run


@pytest.mark.parametrize("step_s", [0.0, 1e-4, 0.01, 0.2, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("first_s", [0.0, 1e-4, 0.01, 0.2, 0.5, 0.9, 2.0, 10.0])
@pytest.mark.parametrize("slower", [1.0, 1.3, 4.0])
def test_it_takes_a_quarter_of_the_time_at_most(measure, first_s, step_s, slower):
    launches, parts, why, took_s = measure(first_s, step_s=step_s, slower=slower)
    ran = [one.passes for one in launches if one.passes]
    assert (len(parts["decode"][0].before_ns) if parts else 0) == (0 if why else len(ran)) != 1
    # Where launches take longer than was planned, the last one is too much.
    assert took_s * (1 if slower == 1 or not ran else 1 - 1 / len(ran)) <= 15
    if slower == 1:
        # Nothing is begun that comes to nothing, and what handing over adds was planned, too.
        assert bool(parts) is bool(ran)
        assert took_s <= 15 / 1.3 or len(ran[0]) == 2
    # All launches do the same, and either side begins equally often.
    assert all(one == ran[0] for one in ran)
    begun = Counter(ran[0] if ran else ())
    assert all(begun[tokens, True] == begun[tokens, False] for tokens, _ in begun)


def test_where_two_launches_do_not_fit_it_says_so_at_once(measure):
    launches, parts, why, took_s = measure(10.0)
    assert (parts, took_s, [one.passes for one in launches]) == ({}, 0, [[]] * 5)
    assert why == "two launches of them take 80.3 s, more than a quarter of --infer-time 60s"


@pytest.mark.parametrize(
    ("first_s", "short", "launches"),
    [(0.01, 4, 5), (0.15, 4, 5), (0.25, 2, 5), (0.35, 0, 5), (0.6, 0, 5), (0.9, 0, 4), (1.2, 0, 3)],
)
def test_of_a_long_prompt_passes_of_several_tokens_tell_the_first_one_too(measure, first_s, short, launches):
    there, parts, why, _ = measure(first_s, step_s=0.001)
    assert why is None
    assert [sum(tokens == 1 for tokens, _ in one.passes) for one in there if one.passes] == [short] * launches
    assert set(parts) == {"prefill", "decode"}
    assert {one.launches for phase in parts.values() for one in phase} == {tuple(range(3, 3 + launches))}


@pytest.mark.parametrize(
    ("step_s", "tokens", "launches"), [(0.05, 10, 5), (0.06, 8, 5), (0.1, 5, 5), (0.15, 5, 5), (0.2, 5, 4), (0.4, 5, 2)]
)
def test_of_slow_steps_fewer_are_taken_apart_before_launches_are_fewer(measure, step_s, tokens, launches):
    there, _, why, _ = measure(0.1, step_s=step_s)
    assert why is None
    assert [{tokens for tokens, _ in one.passes if tokens > 1} for one in there if one.passes] == [{tokens}] * launches


def test_a_prompt_of_one_token_has_passes_of_one(measure):
    launches, parts, why, _ = measure(0.5, generated=1)
    assert (set(parts), why) == ({"prefill"}, None)
    assert {len(one.passes) for one in launches} == {2}


def test_launches_that_take_longer_than_was_planned_are_fewer(measure):
    launches, parts, why, _ = measure(0.1, step_s=0.03, slower=2.0)
    assert why is None
    assert len(parts["decode"][0].before_ns) == sum(bool(one.passes) for one in launches) < 5
    _, parts, why, took_s = measure(0.6, step_s=0.03, slower=6.0)
    assert (parts, why) == ({}, f"one launch took {seconds(took_s)}, and two more than a quarter of --infer-time 60s")
