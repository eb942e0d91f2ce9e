"""Which role carried a change point: named where it stands out, and nobody where all changed alike."""

import random

import pytest

from pytest_infer.analysis.breakdown.lasting import CarryingRole, Lasting, lasting
from pytest_infer.analysis.history import carriers, trends
from pytest_infer.metrics import by_key
from pytest_infer.metrics.breakdown import DECODE, PREFILL, PhaseParts, RolePart
from pytest_infer.report.breakdown.lasting import in_words
from pytest_infer.report.history.terminal import render_shifts

STEP = {"experts": 10e-3, "attention projections": 3e-3, "head": 1.5e-3, "router": 1e-3, "generation loop": 0.5e-3}


def parts(**seconds):
    found = tuple(RolePart(role=role.replace("_", " "), seconds=value) for role, value in seconds.items())
    return PhaseParts(observed=9, bare=9, step_s=sum(seconds.values()), cost_s=0.0, parts=found)


def runs(generator, many, factors=(), *, noise=0.02):
    """Steps of so many runs: the machine moves all roles of a run alike, and each scatters by itself too."""
    factors = dict(factors)
    found = []
    for _ in range(many):
        machine = generator.lognormvariate(0, noise)
        own = {role: value * machine * generator.lognormvariate(0, noise) for role, value in STEP.items()}
        found.append(parts(**{role: value * factors.get(role, 1) for role, value in own.items()}))
    return found


def named(factors, *, many=8, noise=0.02, trials=100):
    generator = random.Random(2)
    pairs = ((runs(generator, many, noise=noise), runs(generator, many, factors, noise=noise)) for _ in range(trials))
    found = [lasting(DECODE, *pair) for pair in pairs]
    return [None if one is None else [role.role for role in one.roles] for one in found]


@pytest.mark.parametrize(("role", "by"), [("experts", 1.15), ("head", 2), ("router", 2.5), ("experts", 0.85)])
def test_a_role_that_became_slower_or_faster_is_named_alone(role, by):
    assert named({role: by}).count([role]) > 90


def test_two_roles_are_named_together():
    found = named({"experts": 1.2, "head": 2.5}, many=12)
    assert found.count(["head", "experts"]) + found.count(["experts", "head"]) > 90


def test_of_a_machine_that_became_slower_nobody_is_named():
    found = named(dict.fromkeys(STEP, 1.2))
    assert sum(bool(roles) for roles in found) <= 2
    assert found.count([]) > 90


def test_of_unchanged_steps_nobody_is_named():
    assert sum(bool(roles) for roles in named({})) <= 1


def test_scatter_hides_who_carried_it():
    assert sum(bool(roles) for roles in named({"head": 1.2}, noise=0.2)) <= 2


def test_what_is_certain_and_small_carries_nothing():
    before = [parts(experts=1.0, router=0.001, head=x) for x in (0.1, 0.11, 0.1)]
    after = [parts(experts=1.5, router=0.009, head=x) for x in (0.1, 0.11, 0.1)]
    assert [one.role for one in lasting(DECODE, before, after).roles] == ["experts"]


def test_a_role_that_is_new_took_nothing_before():
    before = [parts(experts=x, head=0.2) for x in (1.0, 1.01, 0.99)]
    after = [parts(experts=x, head=0.2, logits_processors=0.4) for x in (1.0, 1.01, 0.99)]
    found = lasting(DECODE, before, after)
    assert found.roles == (CarryingRole(role="logits processors", before_s=0.0, after_s=pytest.approx(0.4)),)


@pytest.mark.parametrize("sides", [(2, 8), (8, 2), (0, 8), (0, 0)])
def test_too_few_runs_say_nothing(sides):
    slow = {"head": 5.0}
    assert lasting(DECODE, runs(random.Random(1), sides[0]), runs(random.Random(1), sides[1], slow)) is None


def test_steps_of_no_length_say_nothing():
    assert lasting(DECODE, [parts(head=0.0)] * 3, [parts(head=1.0)] * 3) is None
    assert lasting(DECODE, [parts()] * 3, [parts()] * 3) is None


def test_the_words_have_the_roles_with_their_part_of_the_change():
    roles = (CarryingRole(role="experts", before_s=0.05, after_s=0.0554),)
    change = Lasting(phase=DECODE, before_s=0.1, after_s=0.1056, roles=roles)
    assert in_words(change) == "experts +5.40 ms of +5.60 a step"
    faster = (CarryingRole(role="head", before_s=0.3, after_s=0.2),)
    assert in_words(Lasting(phase=PREFILL, before_s=1.0, after_s=0.9, roles=faster)) == "head −100 ms, all of it"
    experts = CarryingRole(role="experts", before_s=0.005, after_s=0.01199)
    beyond = Lasting(phase=DECODE, before_s=0.01, after_s=0.01589, roles=(experts,))
    assert in_words(beyond) == "experts +6.99 ms, the rest −1.10 ms a step"
    little = Lasting(phase=DECODE, before_s=0.01, after_s=0.01698, roles=(experts,))
    assert in_words(little) == "experts +6.99 ms a step, all of it"
    assert in_words(Lasting(phase=DECODE, before_s=0.1, after_s=0.2)) == "no part carries it beyond doubt"


# in a history


def stored(step):
    return {
        "observed": 9, "bare": 9, "step_s": sum(step.values()), "cost_s": 0.0,
        "parts": [{"role": role, "seconds": seconds} for role, seconds in step.items()],
    }  # fmt: skip


def stored_runs(
    storage, make_block, slower, *, by=1.3, runs=8, apart=lambda number: True, phase=DECODE, key="tpot_s", figure=0.05
):
    """Store runs whose figure changed in the middle, and their head with it."""
    generator = random.Random(3)
    for number in range(2 * runs):
        late = number >= runs
        noise = {role: generator.lognormvariate(0, 0.005) for role in STEP}
        step = {role: value * noise[role] * (slower if late and role == "head" else 1) for role, value in STEP.items()}
        around = generator.lognormvariate(0, 0.005)
        made = make_block("guide", **{key: figure * around * (by if late else 1)})
        made["breakdown"] = {"clock": "host", phase: stored(step)} if apart(number) else {"absent": "switched off"}
        storage.add([made])


@pytest.fixture
def history(storage, make_block):
    """A function that stores such runs, and returns their change points."""

    def make(slower, **how):
        stored_runs(storage, make_block, slower, **how)
        return trends.told(storage.load().runs, [by_key(how.get("key", "tpot_s"))]).shifts

    return make


@pytest.mark.parametrize(("key", "phase"), [("tpot_s", DECODE), ("decode_s", DECODE), ("ttft_s", PREFILL)])
def test_a_change_point_names_its_role(history, key, phase):
    (found,) = history(4.0, key=key, phase=phase)
    assert [one.role for one in found.carried.roles] == ["head"]
    shown = render_shifts(trends.Told(shifts=(found,)), width=120, color=False)
    line = next(line for line in shown.splitlines() if "head +4." in line)
    assert line.startswith(f"{by_key(key).label}, guide, since 0009 cccccccc (main): head +4.")


@pytest.mark.parametrize(("apart", "read"), [(1, 40), (2, 80), (10, 100)])
def test_of_a_long_history_the_steps_of_the_nearest_runs_are_read(apart, read):
    seen = []

    class Steps:
        def of_run(self, path):
            seen.append(path)
            number = abs(path)
            phases = {DECODE: parts(head=(1.5 if path > 0 else 1.0) + number / 10_000, experts=1.0)}
            return {"test": phases} if number % apart == 0 else {}

    sides = tuple(range(-100, 0)), tuple(range(1, 101))
    found = carriers.carried(Steps(), "test", by_key("tpot_s"), 0.5, sides)
    assert [one.role for one in found.roles] == ["head"]
    assert seen == [*range(-1, -read - 1, -1), *range(1, read + 1)]


def test_a_rate_that_falls_is_a_step_that_grows(history):
    (found,) = history(4.0, key="decode_throughput", by=0.8, figure=20)
    assert [one.role for one in found.carried.roles] == ["head"]
    assert found.worse


def test_steps_that_changed_the_other_way_carry_nothing(history):
    (found,) = history(0.2, by=1.3)
    assert found.carried is None


def test_what_a_step_does_not_explain_has_no_carrier(history):
    (found,) = history(4.0, key="peak_rss_bytes", figure=3e8)
    assert found.carried is None


@pytest.mark.parametrize("apart", [lambda number: number < 10, lambda number: number > 6, lambda number: False])
def test_without_steps_on_both_sides_nothing_is_said(history, apart):
    (found,) = history(4.0, apart=apart)
    assert found.carried is None
    assert "head" not in render_shifts(trends.Told(shifts=(found,)), width=120, color=False)


def test_a_damaged_breakdown_leaves_the_change_point(history, storage):
    history(4.0)
    for run in storage.load().runs:
        text = run.path.read_text(encoding="utf-8")
        run.path.write_text(text.replace('"breakdown": {', '"breakdown": {"clock": 5, '), encoding="utf-8")
    (found,) = trends.told(storage.load().runs, [by_key("tpot_s")]).shifts
    assert found.carried is None
