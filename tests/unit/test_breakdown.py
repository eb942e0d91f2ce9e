"""What a breakdown comes to: typical steps, what is left over, the work by role, the lines, and what is stored."""

import dataclasses
import random
import statistics
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.breakdown import changes, shares
from pytest_infer.measure.breakdown import taken
from pytest_infer.metrics import breakdown, roofline
from pytest_infer.metrics.breakdown import DECODE, PREFILL, PhaseParts, RolePart
from pytest_infer.metrics.result import of_record
from pytest_infer.records import (
    MachineProbe,
    PhaseTimes,
    PromptRecord,
    Role,
    RoleTimes,
    RoleWork,
    TokenTrace,
    Work,
)
from pytest_infer.report.breakdown import terminal
from pytest_infer.storage import block, sidecar

DATA = Path(__file__).parents[1] / "data"
WORK = Work(
    read_bytes=100_000,
    parameters=5000,
    head_parameters=700,
    expert_parameters={"layers.0.experts": 1000, "layers.1.experts": 2000},
    pair_flops=24,
    window_pair_flops=8,
    window=4,
    roles={
        Role.EXPERTS: RoleWork(read_bytes=20_000, parameters=3000),
        Role.DENSE: RoleWork(read_bytes=70_000, parameters=2000),
        Role.HEAD: RoleWork(read_bytes=10_000, parameters=700),
    },
)
PROBE = MachineProbe(
    threads=2, read_bandwidth=60e6, read_bandwidth_spread=0.03, flops={"float32": 1e9}, caches={}, at_ns=1
)


@pytest.fixture
def record():
    found = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    sites = (found.profile.experts.sites[0], dataclasses.replace(found.profile.experts.sites[1], expert_bytes=2048))
    usage = dataclasses.replace(found.profile.experts, sites=sites)
    return dataclasses.replace(
        found,
        model=dataclasses.replace(found.model, work=WORK),
        machine=dataclasses.replace(found.machine, probe=PROBE),
        profile=dataclasses.replace(found.profile, experts=usage),
    )


# what is run for it


def first_after(each_s):
    stamps = (int(each_s * 1e9),)
    return TokenTrace(
        prompt_tokens=1, requested_tokens=1, token_ids=(1,), tick_sizes=(1,), start_ns=0, stamps_ns=stamps
    )


@pytest.mark.parametrize(
    ("each_s", "count"),
    [(0.001, 16), (0.06, 16), (0.07, 12), (0.12, 8), (0.13, 6), (1.6, 6), (1.7, 4), (2.5, 4), (2.6, 2), (9.0, 2)],
)
def test_how_many_prefills_are_run(each_s, count):
    assert taken._prefills(first_after(each_s)) == count
    assert count == 2 or count * each_s <= (10 if count <= 6 else 1)


def test_as_many_prefills_of_a_second_are_run_as_tell_what_made_them_longer():
    generator = random.Random(2)
    steps = taken._prefills(first_after(1.0)) // 2

    def prefill(experts_s):
        own = {Role.EXPERTS: experts_s, Role.DENSE: 0.3, Role.HEAD: 0.1}
        ran = {
            role: tuple(round(1e9 * took * generator.gauss(1, 0.01)) for _ in range(steps))
            for role, took in own.items()
        }
        observed = tuple(map(sum, zip(*ran.values(), strict=True)))
        roles = tuple(RoleTimes(role=role, calls=1.0, self_ns=took) for role, took in ran.items())
        return breakdown.phase(
            PhaseTimes(observed_ns=observed, cost_ns=(0,) * steps, bare_ns=observed, roles=roles), PREFILL
        )

    found = changes.of_stored(PREFILL, prefill(0.6), prefill(0.8), 0.01)
    assert [one.role for one in found.roles if one.named] == [Role.EXPERTS]
    assert prefill(0.6).adds_up


# typical steps


def test_typical_steps_are_the_middle_half():
    assert breakdown.typical([5, 1, 9, 3, 7, 100, 2, 4]) == [0, 3, 4, 7]
    assert breakdown.typical([5]) == [0]
    assert breakdown.typical([5, 4, 9]) == [0, 1, 2]
    assert breakdown.typical([]) == []


def times(observed, bare, cost=0, role=Role.DENSE):
    roles = (RoleTimes(role=role, calls=1.0, self_ns=tuple(step - cost for step in observed)),)
    return PhaseTimes(observed_ns=tuple(observed), cost_ns=(cost,) * len(observed), bare_ns=tuple(bare), roles=roles)


def test_one_long_step_moves_nothing():
    quiet = breakdown.phase(times([100, 101, 102, 103], [99, 100, 101, 102], cost=1))
    loud = breakdown.phase(times([100, 101, 102, 900], [99, 100, 101, 102], cost=1))
    assert quiet.parts == loud.parts
    assert (loud.step_s, loud.parts[0].seconds) == pytest.approx((100.5e-9, 100.5e-9))
    assert loud.remainder_s == pytest.approx(0.0)


@pytest.mark.parametrize(("cost", "adds_up"), [(0, False), (60, True), (120, False)])
def test_a_cost_that_is_not_what_hooks_took_shows(cost, adds_up):
    # Hooks take 60 of a thousand; too little or too much of it is taken off.
    generator = random.Random(4)
    bare = [1000 + generator.randrange(20) for _ in range(40)]
    found = breakdown.phase(times([step + 60 for step in bare], bare, cost=cost))
    assert found.adds_up is adds_up
    assert found.remainder_s * 1e9 == pytest.approx(cost - 60, abs=3)


def test_chance_is_no_fault():
    # Steps that scatter by 30 % cannot tell 3 %, and do tell 60 %.
    generator = random.Random(1)
    verdicts = {0.97: [], 1.6: []}
    for factor, found in verdicts.items():
        for _ in range(200):
            bare = [round(1e6 * generator.lognormvariate(0, 0.3)) for _ in range(20)]
            watched = [round(1e6 * factor * generator.lognormvariate(0, 0.3)) for _ in range(20)]
            found.append(breakdown.phase(times(watched, bare)).adds_up)
    assert verdicts[0.97].count(False) < 20
    assert verdicts[1.6].count(False) > 180


def test_the_error_of_a_mean_of_typical_steps_is_what_such_means_scatter_by():
    generator = random.Random(7)
    means, errors = [], []
    for _ in range(400):
        steps = [round(1e6 * generator.gauss(1, 0.1)) for _ in range(24)]
        found = breakdown.phase(times(steps, steps))
        means.append(found.step_s)
        errors.append(found.remainder_error_s)
    # Of a difference of two, so √2 of one.
    assert statistics.fmean(errors) == pytest.approx(2**0.5 * statistics.stdev(means), rel=0.2)


def test_without_bare_steps_nothing_tells(record):
    found = breakdown.phase(times([100], []))
    assert (found.remainder_s, found.remainder_error_s, found.adds_up) == (None, None, None)
    assert found.step_s == pytest.approx(100e-9)


# the work of each role


def test_the_bytes_of_all_roles_are_those_of_a_step(record):
    parts = breakdown.phases(record)[DECODE].parts
    work = breakdown.step_bytes(record)
    assert sum(work.values()) == pytest.approx(roofline.step(record).value)
    # 8 selections in 4 steps at each site: two of four experts.
    assert work[Role.EXPERTS] == 20_000 - 4 * 1024 - 4 * 2048 + 2 * 1024 + 2 * 2048
    assert work[Role.SCORES] == 1048576 * 8.5 / 10
    assert {part.role: part.read_bytes for part in parts} == {Role.EXPERTS: work[Role.EXPERTS], Role.LOOP: None}


@pytest.mark.parametrize("sequences", [1, 3])
def test_the_operations_of_all_roles_are_those_of_a_prefill(record, sequences):
    usage = record.profile.experts
    whole = roofline.prefill_flops(WORK, usage, 6, sequences)
    found = breakdown.flops_by_role(WORK, usage, 6, sequences)
    assert sum(found.values()) == pytest.approx(whole)
    assert found[Role.HEAD] == 2 * 700 * sequences
    assert found[Role.SCORES] == sequences * (24 * 21 + 8 * (1 + 2 + 3 + 4 + 4 + 4))
    assert sum(breakdown.phases(record)[PREFILL].parts[n].flops or 0 for n in range(2)) == pytest.approx(
        breakdown.flops_by_role(WORK, usage, 6)[Role.EXPERTS]
    )


@pytest.mark.parametrize(
    "work", [None, dataclasses.replace(WORK, roles={}), dataclasses.replace(WORK, parameters=None)]
)
def test_work_that_is_not_told_is_unknown(record, work):
    without = dataclasses.replace(record, model=dataclasses.replace(record.model, work=work))
    assert [part.flops for part in breakdown.phases(without)[PREFILL].parts] == [None, None]
    told = work is not None and work.roles
    assert (breakdown.phases(without)[DECODE].parts[0].read_bytes is not None) is bool(told)


# what a run says


def result_with(record, name="guide", **phases):
    """Return a result whose timed rounds took what its steps do."""
    found = of_record(record)
    took = {{DECODE: "tpot_s", PREFILL: "ttft_s"}[phase]: parts.step_s for phase, parts in phases.items()}
    timed = {key: dataclasses.replace(found.figures[key], value=step_s) for key, step_s in took.items()}
    return dataclasses.replace(
        found,
        prompt=dataclasses.replace(found.prompt, name=name),
        breakdown={**found.breakdown, **phases},
        figures={**found.figures, **timed},
    )


def step(*parts, step_s=0.02, cost_s=0.0005, missed=0.0001, error=0.00001):
    return PhaseParts(
        observed=20,
        bare=20,
        step_s=step_s,
        cost_s=cost_s,
        remainder_s=missed,
        remainder_error_s=error,
        parts=tuple(RolePart(role=role, seconds=seconds, read_bytes=read) for role, seconds, read in parts),
    )


STEP = (
    (Role.EXPERTS, 0.012, 223_000.0), (Role.HEAD, 0.0024, 130_000.0), (Role.PROJECTIONS, 0.0020, 80_000.0),
    (Role.SCORES, 0.0016, None), (Role.LOOP, 0.0010, None), (Role.NORMS, 0.0008, 9e9), (Role.SAMPLING, 0.0002, None),
)  # fmt: skip


def test_shares_add_up_and_each_role_has_its_part_of_the_bandwidth(record):
    found = shares.of([result_with(record, decode=step(*STEP))], DECODE)
    assert sum(one.share for one in (*found.model, *found.outside)) == pytest.approx(1.0)
    used = {one.role: one.used for one in found.model}
    assert used[Role.EXPERTS] == pytest.approx(223_000 / 0.012 / 60e6)
    assert used[Role.HEAD] == pytest.approx(130_000 / 0.0024 / 60e6)
    # More than the memory delivers comes from the caches.
    assert (used[Role.NORMS], used[Role.SCORES]) == (None, None)
    assert [one.role for one in found.outside] == [Role.LOOP, Role.SAMPLING]
    assert found.cost == pytest.approx(0.025)


def test_a_suite_has_its_mean_step(record):
    long = step((Role.EXPERTS, 0.03, 1e5), (Role.DENSE, 0.01, None), step_s=0.04)
    found = shares.of([result_with(record, decode=step(*STEP)), result_with(record, "other", decode=long)], DECODE)
    assert found.step_s == pytest.approx(0.03)
    assert found.model[0].seconds == pytest.approx(0.021)
    # What one test does not have is 0 there.
    assert next(one for one in found.model if one.role == Role.DENSE).seconds == pytest.approx(0.005)


def test_several_models_have_no_step_in_common(record):
    one = result_with(record)
    other = dataclasses.replace(one, model=dataclasses.replace(one.model, name="other"))
    assert shares.of([one, other], DECODE) is None
    assert not list(terminal.lines([one, other], width=80))


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_three_lines(record, width):
    prefill = PhaseParts(observed=2, bare=2, step_s=0.3, cost_s=0.0, parts=(RolePart(role="experts", seconds=0.3),))
    found = [
        line.plain for line in terminal.lines([result_with(record, decode=step(*STEP), prefill=prefill)], width=width)
    ]
    assert len(found) == 3
    three = "experts 60 % (31 % of bandwidth), head 12 % (90 %), attention projections 10 % (67 %)"
    rest = "attention scores 8.0 %, norms 4.0 %" if width == 160 else "others 12 %"
    assert found[0] == f"decode 20.0 ms a step: {three}, {rest}"
    assert found[1] == "prefill 300 ms: experts 100 %"
    assert found[2] == (
        "outside the model 6.0 %: generation loop 5.0 %, sampling 1.0 %; hooks took 2.5 %, not counted; "
        "the parts add up to a step within 0.50 %"
    )


def test_what_the_line_leaves_out_is_in_others(record):
    found = next(iter(terminal.lines([result_with(record, decode=step(*STEP))], width=80))).plain
    shown = [float(part.split(" %")[0].split(" ")[-1]) for part in found.split(": ")[1].split(", ")]
    assert "others" in found
    assert sum(shown) == pytest.approx(94, abs=1.5)


def test_parts_that_do_not_add_up_are_said_to(record):
    lines = [line.plain for line in terminal.lines([result_with(record, decode=step(*STEP, missed=-0.002))], width=80)]
    assert lines[-1].endswith("; ! the parts do not add up: they miss a step by 10 %")


def test_in_brief_a_line_is_left_that_parts_do_not_add_up(record):
    def brief(missed):
        found = terminal.lines([result_with(record, decode=step(*STEP, missed=missed))], width=80, brief=True)
        return [line.plain for line in found]

    assert brief(-0.002)[1:] == ["! the parts do not add up: they miss a step by 10 %"]
    assert brief(0.0001)[1:] == []


@pytest.mark.parametrize(
    ("timed_s", "said"),
    [
        (0.039, None),
        (0.0101, None),
        ((0.002, 0.02), None),  # ten tokens a step
        ((0.09, 0.021), None),  # a few of its steps are long
        (0.002, "! a step took 20.0 ms where it was taken apart, 2.00 ms in timed rounds{}: "),
        (0.2, "! a step took 20.0 ms where it was taken apart, 200 ms in timed rounds{}: "),
    ],
)
def test_steps_that_are_not_those_of_the_timed_rounds_are_said_to_be_others(record, timed_s, said):
    one, other = result_with(record, decode=step(*STEP)), result_with(record, "other", decode=step(*STEP))
    mean_s, gap_s = timed_s if isinstance(timed_s, tuple) else (timed_s, timed_s)
    took = {"tpot_s": mean_s, "itl_p50_s": gap_s}
    timed = {key: dataclasses.replace(one.figures[key], value=seconds) for key, seconds in took.items()}
    one = dataclasses.replace(one, figures={**one.figures, **timed})
    for results, worst in (([one], ""), ([other, one], " (the worst of 1 of 2 tests)")):
        for brief in (True, False):
            found = [line.plain for line in terminal.lines(results, width=80, brief=brief)]
            assert [line for line in found if line.startswith("! ")] == (
                [] if said is None else [f"{said.format(worst)}the parts are not theirs"]
            )


def check(record, *steps):
    found = [result_with(record, f"p{n}", decode=one) for n, one in enumerate(steps)]
    return [line.plain for line in terminal.lines(found, width=80)][-1].rpartition("; ")[2]


SCATTERED = "steps scattered too much to check the parts"


@pytest.mark.parametrize(
    ("missed", "error", "said"),
    [
        (0.0001, 0.0004, "the parts add up to a step within 0.50 %"),
        (0.0001, 0.0006, SCATTERED),  # 2 × 3 % of the step
        (0.0136, 0.0070, SCATTERED),
        (0.0136, 0.0010, "! the parts do not add up: they miss a step by 68 %"),
        # Steps that scatter may still tell.
        (0.0136, 0.0020, "! the parts do not add up: they miss a step by 68 %"),
        # One step of each kind tells nothing, however alike or unlike they are.
        (0.0001, None, "the parts are not checked"),
        (0.0136, None, "the parts are not checked"),
    ],
)
def test_a_check_that_cannot_tell_says_so(record, missed, error, said):
    assert check(record, step(*STEP, missed=missed, error=error)) == said


def test_of_tests_that_miss_both_ways_the_worst_is_told(record):
    both = [step(*STEP, missed=part, error=0.0001) for part in (0.0012, -0.0010, 0.0)]
    said = "! the parts do not add up: they miss a step by 6.0 %, the worst of 2 of 3 tests"
    assert check(record, *both) == said
    # What nobody can judge did not add up either.
    unknown = step(*STEP, missed=None, error=None)
    assert check(record, *both, unknown) == said
    assert check(record, both[0], unknown) == "! the parts do not add up: they miss a step by 6.0 %"


def test_many_tests_check_better_than_one(record):
    one = step(*STEP, missed=0.0001, error=0.0008)
    assert check(record, one) == SCATTERED
    assert check(record, one, one, one) == "the parts add up to a step within 0.50 %"
    # One that tells nothing changes nothing.
    assert check(record, one, one, one, step(*STEP, missed=None, error=None)).startswith("the parts add up")


def test_what_the_parts_miss_is_a_share_of_the_steps_that_are_judged(record):
    short = step((Role.EXPERTS, 0.03, None), step_s=0.03, missed=0.0006, error=0.0001)
    long = step((Role.EXPERTS, 2.0, None), step_s=2.0, missed=0.1, error=None)
    assert check(record, short, long) == "the parts add up to a step within 2.0 %"
    noisy = step((Role.EXPERTS, 0.03, None), step_s=0.03, missed=0.0006, error=0.001)
    assert check(record, noisy, long) == SCATTERED
    # A step of a damaged file that took no time cannot be missed by a share of it.
    assert check(record, step(step_s=0.0), short) == "the parts add up to a step within 2.0 %"


def test_no_breakdown_says_nothing(record):
    bare = dataclasses.replace(record, breakdown=None, breakdown_absent="switched off")
    assert not list(terminal.lines([of_record(bare)], width=80))
    assert block.build(bare)["breakdown"] == {"absent": "switched off"}


# what is kept


def test_the_sidecar_has_the_layers(record, tmp_path):
    sidecar.write(tmp_path / "run.json", [record])
    found = sidecar.read(tmp_path / "run.json")
    layers = found[sidecar.layers_key(record.nodeid, DECODE, "experts")]
    assert layers.tolist() == [[0, 1], [0.004, 0.0083]]
    assert sidecar.layers_key(record.nodeid, DECODE, "generation loop") not in found


@pytest.mark.parametrize(("steps", "adds_up"), [(2, True), (3, True), (6, False), (64, False)])
def test_of_a_few_steps_chance_misses_by_more(steps, adds_up):
    found = breakdown.PhaseParts(
        observed=steps, bare=steps, step_s=1.0, cost_s=0.0, remainder_s=0.0475, remainder_error_s=0.01
    )
    assert found.adds_up is adds_up
