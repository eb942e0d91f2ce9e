"""How our rows are grouped, scaled and compared by pytest-benchmark's own tools."""

import copy

import pytest

from pytest_infer.storage import native


def make_row(fullname="t.py::t[a]", *, group="total", source="NOW", ours=True, **more):
    return {
        "fullname": fullname,
        "name": fullname.rpartition("::")[2],
        "group": group,
        "source": source,
        "params": {"prompt": "a", "phase": group},
        "param": None,
        "extra_info": {"pytest_infer": {"schema": 1}} if ours else {},
        **more,
    }


def test_one_run_is_grouped_by_phase():
    rows = [make_row(), make_row("t.py::t[a]:ttft", group="ttft"), make_row("t.py::t[b]")]
    groups = native.pytest_benchmark_group_stats(None, rows, "group")
    assert [(name, len(found)) for name, found in groups] == [("total", 2), ("ttft", 1)]


def test_several_runs_are_grouped_by_prompt_and_phase():
    rows = [
        make_row(fullname, group=group, source=source)
        for source in ("0001", "0002")
        for fullname, group in (("t.py::t[a]", "total"), ("t.py::t[a]:ttft", "ttft"), ("t.py::t[b]", "total"))
    ]
    groups = native.pytest_benchmark_group_stats(None, iter(rows), "group")
    assert [name for name, _ in groups] == ["t.py::t[a]", "t.py::t[a]:ttft", "t.py::t[b]"]
    assert all([row["source"] for row in found] == ["0001", "0002"] for _, found in groups)


def test_rows_that_are_not_ours_keep_their_group():
    rows = [make_row(source="1"), make_row("u.py::u", group="mine", source="2", ours=False)]
    rows.append(make_row("u.py::v", group=None, source="2", ours=False))
    groups = dict(native.pytest_benchmark_group_stats(None, rows, "group"))
    assert set(groups) == {"t.py::t[a]", "mine", None}


def test_a_suite_without_ours_is_left_to_pytest_benchmark():
    rows = [make_row(source="1", ours=False), make_row(source="2", ours=False)]
    groups = native.pytest_benchmark_group_stats(None, rows, "group")
    assert [(name, len(found)) for name, found in groups] == [("total", 2)]


@pytest.mark.parametrize("group_by", ["fullname", "name", "param:phase"])
def test_the_users_own_grouping_wins(group_by):
    rows = [make_row(source="1"), make_row("t.py::t[a]:ttft", group="ttft", source="2")]
    groups = native.pytest_benchmark_group_stats(None, rows, group_by)
    assert len(groups) == 2
    assert "t.py::t[a]" not in [name for name, _ in groups] or group_by == "fullname"


def test_operations_of_our_rows_stay_unscaled():
    rows = [make_row(ops=12345.0)]
    assert native.pytest_benchmark_scale_unit(None, "operations", rows, rows[0], rows[0], "ops") == ("", 1.0)


def test_times_and_other_rows_are_scaled_as_ever():
    ours, theirs = make_row(min=0.002, ops=12345.0), make_row(ours=False, min=0.002, ops=12345.0)
    prefix, factor = native.pytest_benchmark_scale_unit(None, "seconds", [ours], ours, ours, "min")
    assert (prefix, factor) == ("m", 1000.0)
    prefix, factor = native.pytest_benchmark_scale_unit(None, "operations", [theirs], theirs, theirs, "ops")
    assert prefix == "K"
    prefix, _ = native.pytest_benchmark_scale_unit(None, "operations", [ours, theirs], ours, ours, "ops")
    assert prefix == "K"


def compared(cpu, *, ours=True):
    return {"machine_info": {"node": "n", "cpu": cpu}, "benchmarks": [make_row(ours=ours)]}


def test_the_momentary_clock_rate_is_no_difference():
    now = {"node": "n", "cpu": {"hz_actual": [2, 0], "hz_actual_friendly": "2", "brand_raw": "A"}}
    then = compared({"hz_actual": [1, 0], "hz_actual_friendly": "1", "hz_advertised": [9, 0], "brand_raw": "A"})
    native.align_noise(now, then)
    assert then["machine_info"]["cpu"] == now["cpu"]
    assert now["cpu"]["hz_actual"] == [2, 0]


def test_another_cpu_stays_a_difference():
    now = {"cpu": {"hz_actual": [2, 0], "brand_raw": "A"}}
    then = compared({"hz_actual": [1, 0], "brand_raw": "B"})
    native.align_noise(now, then)
    assert then["machine_info"]["cpu"] == {"hz_actual": [2, 0], "brand_raw": "B"}


@pytest.mark.parametrize(
    "then",
    [
        compared({"hz_actual": [1, 0]}, ours=False),
        compared("a string"),
        compared(None),
        {"benchmarks": []},
        {},
        {"machine_info": {"cpu": {"hz_actual": [1, 0]}}, "benchmarks": [{}]},
    ],
    ids=range(6),
)
def test_what_is_not_ours_or_of_another_shape_is_left_alone(then):
    before = copy.deepcopy(then)
    native.align_noise({"cpu": {"hz_actual": [2, 0]}}, then)
    assert then == before


def test_a_grouping_loses_no_row_and_keeps_their_order():
    rows = [make_row(f"t.py::t[{name}]", source=source) for name in "ba" for source in ("2", "1")]
    groups = native.pytest_benchmark_group_stats(None, rows, "group")
    assert [(name, [row["source"] for row in found]) for name, found in groups] == [
        ("t.py::t[b]", ["2", "1"]),
        ("t.py::t[a]", ["2", "1"]),
    ]


def test_aligning_changes_the_compared_run_only_in_its_clock_rate():
    now, then = {"node": "here", "cpu": {"hz_actual": [2, 0]}}, compared({"hz_actual": [1, 0], "count": 4})
    native.align_noise(now, then)
    assert then["machine_info"] == {"node": "n", "cpu": {"hz_actual": [2, 0], "count": 4}}
    assert now == {"node": "here", "cpu": {"hz_actual": [2, 0]}}
