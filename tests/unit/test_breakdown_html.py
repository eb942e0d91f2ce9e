"""Where the time goes in the report: its bars, boxes, maps and dots are what the run stored, beside another side's."""

import dataclasses
import itertools
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from native_rows import native
from test_breakdown import PROBE, WORK
from test_html_report import BIDI, EVIL, Page
from test_lasting import stored_runs
from typer.testing import CliRunner

from pytest_infer.analysis.breakdown import shares
from pytest_infer.analysis.compare.verdicts import Judgement, Verdict
from pytest_infer.cli.main import app
from pytest_infer.metrics.breakdown import DECODE
from pytest_infer.metrics.result import of_record
from pytest_infer.records import (
    Breakdown,
    Operators,
    OperatorTimes,
    PhaseOperators,
    PhaseTimes,
    PromptRecord,
    Role,
    RoleTimes,
    RoleTurns,
    Turns,
)
from pytest_infer.report.html import page
from pytest_infer.storage import block, sidecar, traces
from pytest_infer.storage.runs import read

GOLDEN = msgspec.json.decode((Path(__file__).parents[1] / "data" / "record-1.json").read_bytes(), type=PromptRecord)
MS = 1_000_000
ROLES = {
    Role.EXPERTS: 12.0, Role.HEAD: 2.4, Role.PROJECTIONS: 2.0, Role.SCORES: 1.6, Role.LOOP: 1.0, Role.NORMS: 0.8,
    Role.RESIDUAL: 0.15, Role.SAMPLING: 0.1,
}  # fmt: skip
LAYERED = (Role.EXPERTS, Role.PROJECTIONS, Role.SCORES)


def phase(times, *, scale=1.0, layers=(0.25, 0.75), off=0.0):
    """Return eight observed and bare steps of roles that take so many ms, in two layers."""
    roles = {role: round(ms * MS * scale) for role, ms in times.items()}
    step = sum(roles.values())
    return PhaseTimes(
        observed_ns=(step + MS,) * 8,
        cost_ns=(MS,) * 8,
        bare_ns=(round(step * (1 + off)),) * 8,
        roles=tuple(
            RoleTimes(
                role=role,
                calls=2.0,
                self_ns=(ns,) * 8,
                **({"layers": (4, 5), "layer_ns": tuple(ns * part for part in layers)} if role in LAYERED else {}),
            )
            for role, ns in roles.items()
        ),
    )


def _timed(measured, step_ms):
    """Return a round whose decode steps took so long."""
    first = measured.trace.stamps_ns[0]
    stamps = tuple(first + round(n * step_ms * MS) for n in range(len(measured.trace.stamps_ns)))
    return dataclasses.replace(measured, trace=dataclasses.replace(measured.trace, stamps_ns=stamps))


def record(
    name="guide", decode=ROLES, *, prefill=None, work=WORK, config=None, breakdown=True, step_ms=20.0, **changes
):
    prompt = dataclasses.replace(GOLDEN.prompt, name=name)
    sites = tuple(dataclasses.replace(site, expert_bytes=2048) for site in GOLDEN.profile.experts.sites)
    usage = dataclasses.replace(GOLDEN.profile.experts, sites=sites)
    found = dataclasses.replace(
        GOLDEN,
        profile=dataclasses.replace(GOLDEN.profile, experts=usage),
        nodeid=f"bench/t.py::t[{name}]",
        prompt=prompt,
        model=dataclasses.replace(GOLDEN.model, work=work),
        machine=dataclasses.replace(GOLDEN.machine, probe=PROBE),
        breakdown=None,
        config=config or {},
        rounds=tuple(_timed(one, step_ms) for one in GOLDEN.rounds),
    )
    if breakdown:
        taken = Breakdown(clock="host", decode=phase(decode, **changes), prefill=phase(prefill) if prefill else None)
        return dataclasses.replace(found, breakdown=taken)
    return dataclasses.replace(found, breakdown_absent="--infer-breakdown=off", **changes)


@pytest.fixture
def add(storage):
    def run(*records, without=()):
        blocks = [block.build(one) for one in records]
        for made in blocks:
            made["metrics"] = {key: values for key, values in made["metrics"].items() if key not in without}
        path = storage.add([native(made, one.nodeid) for made, one in zip(blocks, records, strict=True)])
        sidecar.write(path, records)
        return path

    return run


class Report(Page):
    """A report, and its section of steps as text."""

    def __init__(self, html):
        super().__init__(html)
        self.whole = html
        text = html[html.index('<section id="breakdown"') :]
        self.html = text[: text.index("</section>") + len("</section>")]
        self.section = Page(self.html).shown


def shown(path):
    return Report(page.render(read(path), [], []))


def rows(page_, caption=""):
    """Return the cells of each row of the tables whose caption holds a text."""
    found = []
    for table in re.findall(r"<table>(.*?)</table>", page_.html, re.DOTALL):
        if caption in plain(table.partition("</caption>")[0]):
            every = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
            found += [
                [plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", one, re.DOTALL)] for one in every
            ]
    return found


def plain(html):
    return " ".join(re.sub(r"<[^>]*>", "", html).split())


def row(page_, role, caption="by role"):
    """Return the first row of a role in the tables of a step."""
    return next(cells for cells in rows(page_, caption) if cells[0] == role)


@pytest.fixture
def compare(storage, tmp_path, monkeypatch):
    def run(*more):
        monkeypatch.chdir(tmp_path)
        which = more or ["1", "2"]
        result = CliRunner().invoke(app, ["report", *which, f"--storage={storage.folder}", "--output=r.html"])
        assert result.exit_code == 0, result.output
        return Report((tmp_path / "r.html").read_text(encoding="utf-8"))

    return run


# one run


def test_a_bar_has_the_seconds_and_shares_of_each_role(add):
    bars = shown(add(record())).data["roles-decode"]
    of = {one["name"]: (one["values"], one["shares"]) for one in bars["series"]}
    assert of["experts"] == ([12.0], pytest.approx([59.85], abs=0.01))
    assert of["outside the model"] == ([pytest.approx(1.1)], pytest.approx([5.486], abs=0.01))
    # Below 2 % of every step: no name of its own.
    assert of["others"][0] == [pytest.approx(0.15)]
    assert "residual 0.150 ms" in next(one["holds"][0] for one in bars["series"] if one["name"] == "others")
    assert sum(values[0] for values, _ in of.values()) == pytest.approx(sum(ROLES.values()), rel=1e-3)
    assert sum(shares_[0] for _, shares_ in of.values()) == pytest.approx(100, abs=0.1)
    assert len({one["tint"] for one in bars["series"]}) == len(bars["series"])


def test_prompts_stand_side_by_side_and_their_mean_is_in_the_table(add):
    slow = {**ROLES, Role.EXPERTS: 24.0}
    page_ = shown(add(record("short"), record("long", slow)))
    bars = page_.data["roles-decode"]
    assert (bars["names"], bars["sides"]) == (["short", "long"], ["", ""])
    assert bars["series"][0]["values"] == [12.0, 24.0]
    assert "mean of 2 prompts" in page_.shown
    assert row(page_, "experts", "mean of 2")[1:3] == ["18.0", "69.1"]
    icicle = page_.data["icicle-decode"]
    assert [choice["name"] for choice in icicle["choices"]] == ["all prompts", "short", "long"]


def test_steps_of_very_different_lengths_are_shown_as_shares_first(add):
    near = shown(add(record("a"), record("b", scale=5.0))).data["roles-decode"]
    far = shown(add(record("a"), record("b", scale=20.0))).data["roles-decode"]
    assert [[one["name"] for one in of["choices"]] for of in (near, far)] == [["time", "shares"], ["shares", "time"]]


def test_the_icicle_nests(add):
    (choice,) = shown(add(record())).data["icicle-decode"]["choices"]
    levels = [[node for node in choice["nodes"] if node[0] == level] for level in range(4)]
    assert [len(level) for level in levels] == [1, 2, len(ROLES), 2 * len(LAYERED)]
    for level in levels[:3]:
        assert level[0][1] == 0.0
        assert level[-1][2] == pytest.approx(1.0, abs=1e-3)
        assert all(one[2] == pytest.approx(other[1], abs=1e-3) for one, other in itertools.pairwise(level))
    for layer in levels[3]:
        (role,) = [node for node in levels[2] if node[3] == layer[6]]
        assert role[1] - 1e-4 <= layer[1] < layer[2] <= role[2] + 1e-4
    assert {node[3] for node in levels[3]} == {"layer 4", "layer 5"}


def test_the_map_of_layers_is_the_sidecars(add):
    path = add(record())
    chart = shown(path).data["layers-decode"]
    arrays = sidecar.read(path)
    (choice,) = chart["choices"]
    assert (chart["layers"], chart["change"], chart["unit"]) == (["4", "5"], False, "ms")
    assert choice["roles"] == [Role.EXPERTS, Role.PROJECTIONS, Role.SCORES]
    for layer, row, value in choice["cells"]:
        stored = arrays[sidecar.layers_key("bench/t.py::t[guide]", DECODE, choice["roles"][row])]
        assert value == pytest.approx(1e3 * stored[1][layer], rel=1e-3)


def test_a_dot_is_what_a_role_reaches_and_what_was_not_measured_has_none(add):
    found = record(decode={**ROLES, Role.SCORES: 200.0})
    reached = {one.role: one for one in shares.of([of_record(found)], DECODE).model if one.used is not None}
    chart = shown(add(found)).data["reach-decode"]
    (choice,) = chart["choices"]
    dots = {dot["name"]: dot["at"] for dot in choice["points"]}
    assert set(dots) == set(reached)
    assert dots
    assert Role.NORMS not in dots
    for role, at in dots.items():
        assert at == pytest.approx([100 * reached[role].share, 100 * reached[role].used], rel=1e-3)
    assert "No figure for attention projections." in chart["says"]


def test_without_counted_work_there_are_no_dots(add):
    page_ = shown(add(record(work=None)))
    assert "reach-decode" not in page_.data
    assert "roles-decode" in page_.data
    assert "bandwidth" not in page_.section


def test_decode_and_prefill_are_apart(add):
    data = shown(add(record(prefill={Role.EXPERTS: 150.0, Role.LOOP: 5.0}))).data
    assert data["roles-prefill"]["series"][0]["values"] == [150.0]
    assert data["roles-decode"]["series"][0]["values"] == [12.0]
    # A role has one colour in both.
    tint = {data[key]["series"][0]["name"]: data[key]["series"][0]["tint"] for key in ("roles-prefill", "roles-decode")}
    assert tint == {"experts": "c1"}
    assert "roles-prefill" not in shown(add(record())).data


def test_configurations_have_no_mean_together(add):
    records = [
        dataclasses.replace(record("a", config={"threads": n}), nodeid=f"bench/t.py::t[a-threads={n}]") for n in "12"
    ]
    page_ = shown(add(*records))
    assert "mean of" not in page_.section
    assert page_.data["roles-decode"]["names"] == ["a threads=1", "a threads=2"]


def test_models_have_no_mean_together(add):
    records = [
        dataclasses.replace(one, model=dataclasses.replace(one.model, name=model))
        for one, model in ((record("a"), "dense"), (record("b"), "dense"), (record("c"), "moe"), (record("d"), "moe"))
    ]
    found = shown(add(*records)).section
    assert "A decode step by role, dense, mean of 2 prompts" in found
    assert "A decode step by role, moe, mean of 2 prompts" in found
    assert "mean of 4" not in found


def test_many_configurations_are_folded(add):
    records = [
        dataclasses.replace(record("a", config={"threads": n}), nodeid=f"bench/t.py::t[a-threads={n}]") for n in "1248"
    ]
    found = shown(add(*records))
    folded = found.html[found.html.index("A decode step of each prompt") :]
    assert (
        found.html.count("A decode step by role, a threads=") == folded.count("A decode step by role, a threads=") == 4
    )


def test_a_large_suite_has_the_mean_alone_more_closely(add, monkeypatch):
    monkeypatch.setattr("pytest_infer.report.html.steps.MOST_LAYERS", 2 * len(LAYERED) * 2)
    two, three = (shown(add(*map(record, names))).data for names in ("a", "abc"))
    assert [one["name"] for one in two["icicle-decode"]["choices"]] == ["a"]
    assert [one["name"] for one in three["icicle-decode"]["choices"]] == ["all prompts"]
    assert three["roles-decode"]["names"] == ["a", "b", "c"]


# what to trust


def test_parts_that_do_not_add_up_ask_for_a_second_look(add):
    good, bad = shown(add(record())).section, shown(add(record(off=0.1), record("fine"))).section
    assert "The parts do not add up to the step" not in good
    assert "the parts add up to a step within 0 %" in good
    assert re.search(r"The parts do not add up to the step[^→]*measure againguide A decode", bad)


def test_steps_far_from_those_of_timed_rounds_ask_for_a_second_look(add):
    good, bad = (shown(add(record(step_ms=ms), record("fine"))).section for ms in (35, 45))
    assert "where they were taken apart" not in good
    assert re.search(r"than twice as long where they were taken apart[^→]*measure againguide A decode", bad)


def test_the_cost_of_the_hooks_is_said(add):
    assert "hooks took 5.0 %, not counted" in shown(add(record())).shown


def test_experts_that_ran_past_the_hooks_are_told(add):
    unseen = {Role.UNSEEN_EXPERTS: 12.0, Role.HEAD: 2.0}
    assert "Experts ran past the hooks" in shown(add(record(decode=unseen))).shown
    assert "Experts ran past the hooks" not in shown(add(record())).shown


def test_why_there_is_none_is_said(add, storage, make_block):
    assert "Nothing to show here: --infer-breakdown=off." in shown(add(record(breakdown=False))).shown
    partly = shown(add(record(), record("other", breakdown=False))).shown
    assert "Not taken apart" in partly
    assert "other: --infer-breakdown=off." in partly
    old = make_block("guide")
    del old["breakdown"]
    assert "this run's version of pytest-infer did not take steps apart" in shown(storage.add([old])).shown


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 2)), np.zeros((0, 2)), np.zeros((2, 0)), np.array([[0.0, np.nan], [1.0, 2.0]]),
        np.array([[0.0, 1.0], [np.inf, -1.0]]),
    ],
)  # fmt: skip
def test_damaged_layers_are_left_out(add, array):
    path = add(record())
    arrays = dict(sidecar.read(path))
    key = sidecar.layers_key("bench/t.py::t[guide]", DECODE, Role.EXPERTS)
    np.savez(path.with_suffix(".npz"), **{**arrays, key: array})
    data = shown(path).data
    assert data["roles-decode"]["series"][0]["values"] == [12.0]
    assert Role.SCORES in data["layers-decode"]["choices"][0]["roles"]


def test_without_the_sidecar_there_is_no_map(add):
    path = add(record())
    path.with_suffix(".npz").unlink()
    data = shown(path).data
    assert "layers-decode" not in data
    assert len(data["icicle-decode"]["choices"][0]["nodes"]) == 3 + len(ROLES)


@pytest.mark.parametrize("seconds", [0, -1.0, 1e308])
def test_times_that_no_step_has_break_nothing(add, seconds):
    path = add(record())
    text = path.read_text(encoding="utf-8")
    changed = re.sub(r'("role": "[^"]*", "seconds": )[\d.e-]+', rf"\g<1>{seconds}", text)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    assert "roles-decode" not in shown(path).data


@pytest.mark.parametrize("name", [EVIL, BIDI, "'\"><b onmouseover=alert(1)>", "x" * 3000])
def test_names_of_roles_are_text(add, name):
    # A span of a user's engine names its role.
    harmless = shown(add(record(decode={**ROLES, "mine": 5.0})))
    html = page.render(read(add(record(decode={**ROLES, name: 5.0}))), [], [])
    found = Report(html)
    assert found.tags == harmless.tags
    assert not any(attribute.startswith("on") for _, given in found.attributes for attribute in given)
    assert not {*BIDI, "\x00", "\x1b"} & {*found.html}


# beside another side


def test_two_runs_have_a_bar_each_and_the_difference_by_layer(add, compare):
    for one in (record(), record(decode={**ROLES, Role.EXPERTS: 15.0}, layers=(0.2, 0.8))):
        add(one, without=("tpot_s", "decode_throughput"))
    found = compare()
    bars = found.data["roles-decode"]
    assert bars["names"] == ["guide", "guide"]
    assert [side.split()[0] for side in bars["sides"]] == ["0001", "0002"]
    assert bars["series"][0]["values"] == [12.0, 15.0]
    chart = found.data["layers-decode"]
    assert chart["change"]
    (choice,) = chart["choices"]
    assert choice["roles"][0] == Role.EXPERTS
    changes = {(layer, row): value for layer, row, value in choice["cells"]}
    scale = {"ms": 1e3, "µs": 1e6}[chart["unit"]]
    assert changes[0, 0] == pytest.approx(scale * (0.2 * 0.015 - 0.25 * 0.012), abs=1e-6)
    assert changes[1, 0] == pytest.approx(scale * (0.8 * 0.015 - 0.75 * 0.012))
    dots = {dot["name"]: dot for dot in found.data["reach-decode"]["choices"][0]["points"]}
    assert dots["head"]["was"][0] > dots["head"]["at"][0]
    assert row(found, "experts")[1:4] == ["12.0", "15.0", "+3.00"]
    assert row(found, "all")[1:4] == ["20.0", "23.1", "+3.00"]
    assert "without an interval" in found.section


def test_two_runs_whose_scatter_is_known_have_intervals(add, storage, compare, make_block):
    made = [block.build(record(decode={**ROLES, Role.EXPERTS: ms})) for ms in (12.0, 15.0)]
    for number, one in enumerate(made):
        for key, middle in (("ttft_s", 0.1), ("tpot_s", 0.02), ("decode_throughput", 50)):
            rounds = [middle * factor for factor in (0.99, 1.0, 1.01, 1.0, 0.995)]
            one["metrics"][key] = {"value": middle, "rounds": rounds}
        storage.add([one])
        assert number < 2
    found = compare()
    assert re.fullmatch(r"\[−0\.\d+ \+3\.00 \+6\.\d+\]", row(found, "experts")[3])
    assert "without an interval" not in found.section


def test_a_run_without_steps_leaves_the_other_alone(add, compare):
    add(record(breakdown=False))
    add(record())
    bars = compare().data["roles-decode"]
    assert (bars["names"], bars["sides"]) == (["guide"], [""])


def test_a_prompt_that_one_run_lacks_has_one_bar(add, compare):
    add(record("a"))
    add(record("a"), record("b"))
    bars = compare().data["roles-decode"]
    assert bars["names"] == ["a", "a", "b"]


def test_what_one_run_alone_knows_of_the_limit_stands_in_its_place(add, compare):
    blind = dataclasses.replace(record(), machine=GOLDEN.machine)
    add(record())
    add(blind)
    add(record())
    both = [row(compare(*runs), "experts")[-1] for runs in ([], ["2", "3"])]
    assert re.fullmatch(r"[\d.]+ → —", both[0])
    assert re.fullmatch(r"— → [\d.]+", both[1])


def turned(names=("guide",), planted=1.4, launches=4):
    """Return records of an A/B whose experts became slower in layer 5."""
    generator = np.random.default_rng(3)
    records = []
    for name in names:
        parts = []
        for role, ms in ROLES.items():
            ns = [round(ms * MS * (1 + 0.002 * x)) for x in generator.standard_normal(launches)]
            slower = planted if role == Role.EXPERTS else 1.0
            after = [
                round(own * slower * (1 + 0.001 * x))
                for own, x in zip(ns, generator.standard_normal(launches), strict=True)
            ]
            change = [b - a for a, b in zip(ns, after, strict=True)]
            layers = {"layers": (4, 5), "layer_change_ns": ((0,) * launches, tuple(change))} if role in LAYERED else {}
            parts.append(RoleTurns(role=role, before_ns=tuple(ns), after_ns=tuple(after), **layers))
        ratios = dict.fromkeys(("first", "step"), ((0.01, 0.02),) * launches)
        turns = Turns(every=1, cycles=4, seconds=9.0, ratios=ratios, parts={DECODE: tuple(parts)})
        bare = record(name, breakdown=False)
        against = {"rev": "main", "commit": "c" * 40, "turns": msgspec.to_builtins(turns)}
        records.append(native({**block.build(bare), "against": against}, bare.nodeid))
    return records


def test_an_ab_shows_both_sides_with_intervals_and_names_the_role(storage):
    found = shown(storage.add(turned()))
    bars = found.data["roles-decode"]
    assert bars["sides"] == ["main", "this checkout"]
    assert bars["series"][0]["values"] == pytest.approx([12.0, 16.8], rel=0.01)
    assert re.fullmatch(r"\[\+4\.\d\d \+4\.\d\d \+4\.\d\d\]", row(found, "experts")[3])
    assert row(found, "experts")[-1] == "carries it in layer 5"
    assert found.section.count("carries it") == 1
    chart = found.data["layers-decode"]
    (cell,) = [cell for cell in chart["choices"][0]["cells"] if cell[:2] == [1, 0]]
    assert chart["change"]
    assert cell[2] == pytest.approx(4.8, rel=0.02)
    assert "--infer-breakdown=off" not in found.section


@pytest.mark.parametrize("known", [False, True])
def test_roles_are_named_where_the_headline_names_them(storage, known):
    # Four launches tell the step's change with 95 %, not with 99 %; whether it moved is known from many more passes.
    ends = {"low": 0.001, "mid": 0.0017, "high": 0.002}
    j = Judgement(test="bench/t.py::t[guide]", name="guide", metric_key="tpot_s", verdict=Verdict.ACCEPTED, **ends)
    gate = {"result": "regressed", "against": "main", "judgements": [msgspec.to_builtins(j)] if known else []}
    found = shown(storage.add(turned(planted=1.0029), gate=gate))
    assert ("the step is neither longer nor shorter beyond doubt" in found.section) is not known
    assert ("a step: experts +" in found.section) is known


@pytest.mark.parametrize("mid", [0.9, -0.3])
def test_no_role_is_named_by_steps_that_did_not_see_the_change(storage, mid):
    # The steps that were taken apart took a quarter longer.
    ends = {"low": mid - 0.01, "mid": mid, "high": mid + 0.01}
    j = Judgement(test="bench/t.py::t[guide]", name="guide", metric_key="tpot_s", verdict=Verdict.REGRESSED, **ends)
    found = shown(storage.add(turned(), gate={"result": "regressed", "judgements": [msgspec.to_builtins(j)]}))
    assert "a step: no part carries it beyond doubt." in found.section
    assert "carries it in" not in found.section


def test_an_ab_that_took_nothing_apart_says_why(storage):
    (one,) = turned(launches=1)
    assert "Nothing to show here: --infer-breakdown=off." in shown(storage.add([one])).section


def test_an_ab_of_equal_code_names_nobody(storage):
    assert "carries it" not in shown(storage.add(turned(planted=1.0))).section


def test_the_mean_of_an_abs_prompts_has_intervals_too(storage):
    found = shown(storage.add(turned(names=("a", "b"))))
    assert row(found, "experts", "mean of 2 prompts: main → this checkout")[3].startswith("[+4.")


def test_what_turns_do_not_tell_is_not_shown_beside_another_run_by_their_names(storage, add, compare):
    add(record("a"), record("b", {**ROLES, Role.EXPERTS: 30.0}))
    alone = record("b")
    storage.add([*turned(names=("a",)), native(block.build(alone), alone.nodeid)])
    found = compare()
    bars = found.data["roles-decode"]
    assert list(zip(bars["names"], bars["sides"], strict=True)) == [
        ("a", "main"),
        ("a", "this checkout"),
        ("b", "this checkout"),
    ]
    assert "30.0" not in found.section


# operators


def recorded(trace=b"gz", **more):
    matmul = OperatorTimes(name="aten::mm", role="experts", shapes="[9, 64] [64, 12-15]", calls=2.0, self_s=0.006)
    copy = OperatorTimes(name="aten::copy_", role="KV cache", calls=8.5, self_s=0.002, shapes=EVIL)
    step = PhaseOperators(
        steps=4, self_s=0.012, operators=(matmul, copy), peak_bytes=3 * 2**20, peaks={"experts": 2 * 2**20}
    )
    one = record()
    found = Operators(decode=step, prefill_absent="it would fill the memory", trace=trace, **more)
    return dataclasses.replace(one, breakdown=dataclasses.replace(one.breakdown, operators=found))


def test_operators_are_listed_with_their_traces_and_the_memory_of_roles(add):
    one = recorded()
    path = add(one)
    traces.write(path, [one])
    found = shown(path)
    (name,) = [file.name for file in path.parent.iterdir() if file.name.endswith(".trace.json.gz")]
    assert f"Trace of guide, for ui.perfetto.dev: {name}" in found.section
    assert rows(found, "The largest operators, decode, mean of 4 steps")[1] == [
        "mm", "experts", "2.00", "6.00", "50.0", "[9, 64] [64, 12-15]",
    ]  # fmt: skip
    assert ["experts", "—", "—", "2.00 MiB"] in rows(found, "Memory by role")
    assert rows(found, "Memory by role")[-1][-1] == "3.00 MiB"
    assert "guide: no operators of the prefill: it would fill the memory." in found.section
    assert "script" not in found.tags[found.tags.index("nav") : found.tags.index("footer")]


def test_a_figure_with_its_own_unit_is_sorted_by_what_it_is(add, compare):
    runs = [read(add(recorded())) for _ in range(2)]
    found = compare().whole
    cells = re.findall(r'<t[dh] class="n[^"]*"([^>]*)>([^<]*)', found)
    cells = [(given, text) for given, text in cells if re.search(r"\d ([KMGT]?i?B|ms|µs|ns|s)\b", text)]
    assert [text for given, text in cells if "data-sort" not in given] == []
    assert {(' data-sort="2097152"', "2.00 MiB"), (' data-sort="3145728"', "3.00 MiB")} <= {*cells}
    a_step = float(runs[1].rows[0].metrics["step_bytes"].value)
    assert f' data-sort="{a_step}"' in {given for given, _ in cells}


def test_a_trace_that_is_gone_is_told(add):
    assert "guide: no trace: " in shown(add(recorded())).section


def test_without_operators_nothing_is_said_of_them(add):
    assert "Operators" not in shown(add(record())).section


# the history


def test_a_change_point_says_who_carried_it(storage, make_block):
    stored_runs(storage, make_block, 4.0)
    every = storage.load().runs
    found = Page(page.render(every[-1], every, []))
    assert "carried by" in found.shown
    assert re.search(r"head \+4\.\d+ ms( of \+4\.\d+)? a step", found.shown)


def test_a_history_without_steps_has_no_such_column(storage, make_block):
    stored_runs(storage, make_block, 4.0, apart=lambda number: False)
    every = storage.load().runs
    assert "carried by" not in Page(page.render(every[-1], every, [])).shown
