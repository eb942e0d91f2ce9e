"""From marks to self times, on a clock that tests set: what passes within a part, and not within a part of that."""

import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from asked import asked
from pytest_infer.engines.base import Engine
from pytest_infer.measure.breakdown import folding, observer, taken
from pytest_infer.measure.breakdown.folding import Cost
from pytest_infer.measure.breakdown.marks import ENDED, DeviceStamper, Marks, Site
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import Limits, Role, StopReason, TokenTrace


class Clock:
    """A stamper whose time passes when a test says so."""

    name = "host"

    def __init__(self):
        self.at = 0

    def now(self):
        return self.at

    def ns(self, stamps):
        return list(stamps)


class Story:
    """Marks that are told one by one, with the time that passes before each."""

    def __init__(self, **sites):
        self.clock = Clock()
        self.marks = Marks(self.clock)
        self.numbers = {name: self.marks.number(Site(*site)) for name, site in sites.items()}

    def tell(self, *steps):
        for passed, what in steps:
            self.clock.at += passed
            if what == "resume":
                self.marks.resume()
            elif what in ("observed", "bare"):
                self.marks.tick(observed=what == "observed")
            else:
                self.marks.add(ENDED if what == "end" else self.numbers[what])
        return self


def layered():
    return Story(
        model=(Role.AROUND, None, True),
        attention=(Role.SCORES, 3, True),
        cache=(Role.CACHE, None, False),
        experts=(Role.EXPERTS, 3, True),
    )


STEP = (
    (0, "resume"), (5, "model"), (10, "attention"), (20, "cache"), (7, "end"), (30, "end"), (1, "experts"),
    (400, "end"), (2, "end"), (25, "observed"),
)  # fmt: skip


def test_time_within_a_part_of_a_part_is_not_its_own():
    (step,) = folding.steps(layered().tell(*STEP).marks, Cost())
    assert step.self_ns == {
        (Role.LOOP, None): 5 + 25,
        (Role.AROUND, None): 10 + 1 + 2,
        (Role.SCORES, 3): 20 + 30,
        (Role.CACHE, 3): 7,  # a span is in the layer of what is around it
        (Role.EXPERTS, 3): 400,
    }
    assert step.total_ns == sum(step.self_ns.values()) == 500


def test_what_marking_costs_is_known_where_it_passed():
    cost = Cost(hook=(2.0, 3.0), span=(0.5, 1.0), known=True)
    (step,) = folding.steps(layered().tell(*STEP).marks, cost)
    assert step.cost_ns == {
        (Role.LOOP, None): 3,
        (Role.AROUND, None): 2 + 3 + 3,
        (Role.SCORES, 3): 2 + 1,
        (Role.CACHE, 3): 0.5,
        (Role.EXPERTS, 3): 2,
    }
    found = folding.phase([step], cost)
    assert found.cost_ns == (16,)  # 3 x 5 + 1.5, to the even
    assert {one.role: one.self_ns for one in found.roles} == {
        Role.LOOP: (27,), Role.AROUND: (5,), Role.SCORES: (47,), Role.CACHE: (6,), Role.EXPERTS: (398,)
    }  # fmt: skip


def test_what_passes_between_steps_is_in_none():
    story = layered().tell(*STEP, (900, "resume"), *STEP[1:], (77, "resume"))
    steps = folding.steps(story.marks, Cost())
    assert [step.total_ns for step in steps] == [500, 500]
    assert steps[0].self_ns == steps[1].self_ns


def test_a_span_may_last_for_several_steps():
    story = Story(loop=("my loop", None, False), experts=(Role.EXPERTS, 0, True))
    story.tell(
        (0, "resume"), (1, "loop"), (10, "experts"), (5, "end"), (4, "observed"),
        (50, "resume"), (20, "bare"), (9, "resume"), (3, "experts"), (6, "end"), (2, "observed"),
        (1, "resume"), (8, "end"),
    )  # fmt: skip
    first, bare, last = folding.steps(story.marks, Cost())
    assert first.self_ns == {(Role.LOOP, None): 1, ("my loop", None): 14, (Role.EXPERTS, 0): 5}
    assert (bare.observed, bare.total_ns) == (False, 20)
    assert last.self_ns == {("my loop", None): 5, (Role.EXPERTS, 0): 6}


def of_three(*, bare, cost):
    """Return three observed steps of 500 and a little, each with a bare one beside it."""
    story = layered()
    for more in (0, 40, 3):
        story.tell((9, "resume"), *STEP[1:-1], (25 + more, "observed"), (1, "resume"), (bare + more, "bare"))
    return folding.phase(folding.steps(story.marks, cost), cost)


def test_a_phase_adds_up_in_every_step():
    found = of_three(bare=490, cost=Cost(hook=(1.0, 1.0), span=(0.5, 0.5), known=True))
    whole = [sum(own) for own in zip(*(role.self_ns for role in found.roles), strict=True)]
    rest = [total - cost for total, cost in zip(found.observed_ns, found.cost_ns, strict=True)]
    assert whole == pytest.approx(rest, abs=3)
    assert found.bare_ns == (490, 530, 493)
    experts = next(role for role in found.roles if role.role == Role.EXPERTS)
    assert (experts.calls, experts.layers) == (1.0, (3,))
    loop = next(role for role in found.roles if role.role == Role.LOOP)
    assert loop.layers == ()


def test_steps_that_repeat_exactly_tell_the_cost():
    # Idle modules say 20 a step, and steps 10, without any scatter.
    found = of_three(bare=490, cost=Cost(hook=(3.0, 3.0), span=(1.0, 1.0), known=True))
    assert found.cost_ns == (10, 10, 10)


def test_steps_that_scatter_leave_the_cost_to_idle_modules():
    story = layered()
    for more in (-200, 300, 100, -250, 80, -30):
        story.tell((9, "resume"), *STEP[1:-1], (25 + 500, "observed"), (1, "resume"), (970 + more, "bare"))
    cost = Cost(hook=(3.0, 3.0), span=(1.0, 1.0), known=True)
    found = folding.phase(folding.steps(story.marks, cost), cost)
    assert found.cost_ns[0] == pytest.approx(20, abs=2)


def test_where_idle_modules_tell_nothing_steps_do():
    found = of_three(bare=460, cost=Cost())
    assert found.cost_ns == (40, 40, 40)
    assert sum(role.self_ns[0] for role in found.roles) == pytest.approx(460, abs=3)


def test_faster_steps_with_hooks_are_chance():
    assert of_three(bare=510, cost=Cost()).cost_ns == (0, 0, 0)


def test_no_observed_step_is_no_phase():
    story = layered().tell((0, "resume"), (5, "bare"))
    assert folding.phase(folding.steps(story.marks, Cost()), Cost()) is None


@pytest.mark.parametrize("steps", [2, 3, 9, 64, 200, 1000])
def test_steps_with_and_without_come_in_pairs_over_the_whole_generation(steps):
    found = taken.spread(steps)
    observed = sorted(step for step, watched in found.items() if watched)
    bare = sorted(step for step, watched in found.items() if not watched)
    assert len(observed) == len(bare) == min(taken.MOST_STEPS, steps // 2)
    assert {abs(a - b) for a, b in zip(observed, bare, strict=True)} == {1}
    assert max(found) < steps
    assert max(found) >= steps - 2 - steps // len(observed)
    # Neither kind comes first more often, by more than one.
    first = sum(a < b for a, b in zip(observed, bare, strict=True))
    assert abs(2 * first - len(observed)) <= 1


def test_a_single_step_is_observed():
    assert taken.spread(1) == {0: True}
    assert taken.spread(0) == {}


# an accelerator


class Event:
    """An event of a device whose time passes when a test says so, milliseconds."""

    at = 0.0

    def __init__(self, device, enable_timing):
        assert (device, enable_timing) == ("cuda:0", True)

    def record(self, stream):
        assert stream == "what cuda:0 works on"
        self.when = Event.at

    def elapsed_time(self, later):
        return later.when - self.when


def test_events_of_a_device_are_read_when_the_round_is_over(monkeypatch):
    waited = []
    accelerator = SimpleNamespace(synchronize=waited.append, current_stream="what {} works on".format)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Event=Event, accelerator=accelerator))
    marks = Marks(DeviceStamper("cuda:0"))
    number = marks.number(Site(Role.EXPERTS, 4, hooked=True))
    before, after = marks.hooks(number)
    for passed, mark in ((0, marks.resume), (0.25, lambda: before(None, None)), (2.5, lambda: after(None, None, None))):
        Event.at += passed
        mark()
    Event.at += 0.001
    marks.tick(observed=True)
    assert waited == []
    (step,) = folding.steps(marks, Cost())
    assert waited == ["cuda:0"]
    assert step.self_ns == {(Role.LOOP, None): 251_000, (Role.EXPERTS, 4): 2_500_000}


# an engine of one's own, which reports spans


class Spanning(Engine):
    """Generates with spans around its work, and without a module."""

    def __init__(self):
        self.clocks = []

    def generate(self, prompt_ids, limits, clock):
        self.clocks.append(type(clock))
        for number in range(limits.max_new_tokens):
            with clock.span("experts", layer=number % 2):
                busy(40)
                with clock.span("lookup"):
                    busy(10)
            busy(5)
            clock.tick([number])
        return StopReason.LENGTH


def busy(rounds):
    """Do a little, so that some time passes."""
    return sum(range(100 * rounds))


def trace(tokens):
    return TokenTrace(
        prompt_tokens=3,
        requested_tokens=tokens,
        start_ns=0,
        stamps_ns=tuple(1_000_000 * (n + 1) for n in range(tokens)),
        tick_sizes=(1,) * tokens,
        token_ids=tuple(range(tokens)),
    )


def test_an_engine_of_ones_own_is_taken_apart_by_its_spans():
    engine = Spanning()
    assert taken.absent(engine, replace(trace(20), spanned=True), taken.AUTO) is None
    found = taken.take(engine, asked([1, 2, 3]), Limits(max_new_tokens=20), trace(20))
    assert found.clock == "host"
    for phase, steps in ((found.prefill, 8), (found.decode, 9)):
        roles = {one.role: one for one in phase.roles}
        assert set(roles) == {"experts", "lookup", Role.LOOP}
        assert (len(phase.observed_ns), len(phase.bare_ns)) == (steps, steps)
        assert roles["experts"].calls == roles["lookup"].calls == 1.0
        # A span within one that says its layer is in that layer.
        assert roles["lookup"].layers == roles["experts"].layers
        whole = [sum(own) for own in zip(*(role.self_ns for role in phase.roles), strict=True)]
        rest = [total - cost for total, cost in zip(phase.observed_ns, phase.cost_ns, strict=True)]
        assert whole == pytest.approx(rest, abs=len(roles))
    assert found.decode.roles[0].role == "experts" or set(found.decode.roles[0].layers) <= {0, 1}


def test_steps_with_spans_and_without_find_the_same_caches(monkeypatch):
    """What idle modules tell pushes weights out of the caches: every generation begins so, and no step of decode."""
    engine = Spanning()
    told, began, running = [], [], [False]
    own, repeat = engine.generate, observer.Calibration.repeat

    def generate(prompt_ids, limits, clock):
        began.append((limits.max_new_tokens, len(told)))
        running[0] = True
        stopped = own(prompt_ids, limits, clock)
        running[0] = False
        return stopped

    def noted(self):
        told.append(running[0])
        repeat(self)

    monkeypatch.setattr(engine, "generate", generate)
    monkeypatch.setattr(observer.Calibration, "repeat", noted)
    taken.take(engine, asked([1, 2, 3]), Limits(max_new_tokens=20), trace(20))
    assert told
    assert not any(told)
    # As often before a prefill with spans as before one without.
    assert len({after - before for (_, before), (_, after) in pairwise(began)}) == 1
    assert began[0][1] > 0


def test_a_timed_clock_times_no_span():
    clock = TokenClock()
    clock.start()
    with clock.span("experts", layer=1):
        clock.tick([7])
    found = clock.trace(prompt_tokens=1, requested_tokens=1, stopped_by=None)
    assert (found.token_ids, found.spanned) == ((7,), True)
    assert not trace(2).spanned


@pytest.mark.parametrize(
    ("mode", "spanned", "seconds", "why"),
    [
        ("off", True, 1, "switched off with --infer-breakdown=off"),
        ("auto", False, 1, "the engine gives no access to its modules, and it reports no spans"),
        ("auto", True, 11, "a round takes 11 s: steps are taken apart up to 10 s, or with --infer-breakdown"),
        ("on", True, 11, None),
        ("auto", True, 9, None),
    ],
)
def test_why_steps_are_not_taken_apart(mode, spanned, seconds, why):
    like = trace(2)
    like = replace(like, stamps_ns=(1, seconds * 10**9), spanned=spanned)
    assert taken.absent(Spanning(), like, mode) == why
