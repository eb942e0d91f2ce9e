"""The adapter to pytest-benchmark: replayed durations, phase rows, and the fallback when they cannot be live."""

import json
import random
import time
from types import SimpleNamespace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.stats import Metadata

from pytest_infer.errors import StorageError
from pytest_infer.storage.bridge import Bridge, ReplayClock, checked, group_name, late_row, phase_row

PARAMS = {"prompt": "a", "n": 3}


@pytest.fixture
def clock():
    return ReplayClock()


@pytest.fixture
def run():
    """A pytest-benchmark session as far as its fixture and our bridge look at it."""
    return SimpleNamespace(benchmarks=[], disabled=False, save=None, autosave=False, json=None)


@pytest.fixture
def fixture(clock, run):
    class Logger:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    made = BenchmarkFixture(
        SimpleNamespace(name="test_it[a]", nodeid="t.py::test_it[a]"),
        add_stats=run.benchmarks.append,
        logger=Logger(),
        warner=None,
        disabled=False,
        disable_gc=False,
        min_rounds=5,
        min_time=0.000005,
        max_time=1.0,
        precision=None,
        confidence=None,
        timer=SimpleNamespace(target=clock),
        calibration_precision=10,
        warmup=False,
        warmup_iterations=100000,
        cprofile=None,
        cprofile_loops=None,
        cprofile_dump=None,
    )
    yield made
    made._cleanup()


@pytest.fixture
def notes():
    return []


@pytest.fixture
def bridge(run, notes):
    return Bridge(SimpleNamespace(_benchmarksession=run), notes.append)


def test_a_replay_is_exact_to_the_last_bit(clock):
    draw = random.Random(7)
    durations = [draw.expovariate(3) for _ in range(1000)] + [5e-324, 1e-9, 1 / 3, 1e9 + 1 / 3]
    clock.load(durations)
    seen = []
    for _ in durations:
        clock.rewind()
        start = clock()
        clock.step()
        seen.append(clock() - start)
    assert seen == durations


def test_rounds_go_through_the_fixture_exactly(bridge, fixture, clock, run):
    draw = random.Random(3)
    total = [draw.uniform(0.1, 9) for _ in range(7)]
    phases = {"total": total, "ttft": [t / 3 for t in total], "tpot": []}
    bridge.hand_over(fixture, clock, phases, {"schema": 1}, params=PARAMS, group=None)
    assert [row.fullname for row in run.benchmarks] == ["t.py::test_it[a]", "t.py::test_it[a]:ttft"]
    assert list(run.benchmarks[0].stats.data) == total
    assert list(run.benchmarks[1].stats.data) == phases["ttft"]
    assert [row.group for row in run.benchmarks] == ["total", "ttft"]
    assert run.benchmarks[0].extra_info == {"pytest_infer": {"schema": 1}}


def test_a_prompts_group_stands_before_the_phase():
    assert group_name("ttft", None) == "ttft"
    assert group_name("ttft", "short") == "short: ttft"


def test_the_late_row_is_the_live_rows_json(bridge, fixture, clock):
    total, ttft = [0.3, 0.1 + 0.2, 0.7, 0.4], [0.1, 0.2, 0.15, 1 / 3]
    bridge.hand_over(fixture, clock, {"total": total}, {"schema": 1}, params=PARAMS, group="g")
    live = phase_row(fixture, "ttft", ttft, PARAMS, "g").as_dict(include_data=True)
    late = late_row(fixture.stats.as_dict(include_data=True), "ttft", ttft, PARAMS, "g")
    assert json.dumps(late, sort_keys=True) == json.dumps(live, sort_keys=True)
    assert late["stats"]["data"] == ttft
    assert late["extra_info"] == {"pytest_infer": {"schema": 1, "phase": "ttft", "of": "t.py::test_it[a]"}}


def test_a_phase_row_leaves_the_total_row_alone(bridge, fixture, clock, run):
    phases = {"total": [1.0, 2.0], "ttft": [0.5, 0.5]}
    bridge.hand_over(fixture, clock, phases, {"schema": 1}, params=PARAMS, group=None)
    total, ttft = run.benchmarks
    assert list(total.stats.data) == [1.0, 2.0]
    assert total.params == {**PARAMS, "phase": "total"}
    assert ttft.params == {**PARAMS, "phase": "ttft"}
    assert PARAMS == {"prompt": "a", "n": 3}


@pytest.mark.parametrize("error", [AttributeError, TypeError, ValueError])
def test_a_row_that_cannot_be_live_is_saved_all_the_same(bridge, fixture, clock, run, notes, monkeypatch, error):
    class Refusing(list):
        def append(self, row):
            if row.name.endswith(":ttft"):
                raise error("semi-private things changed")
            super().append(row)

    # The fixture keeps the old list's `append`; the bridge looks for the list at the session.
    run.benchmarks = Refusing()
    bridge.hand_over(fixture, clock, {"total": [1.0, 2.0], "ttft": [0.25, 0.5]}, {}, params=PARAMS, group=None)
    assert len(notes) == 1
    assert "not gated by --benchmark-compare-fail" in notes[0]
    assert "semi-private things changed" in notes[0]
    output = {"benchmarks": ["a row"]}
    bridge.complete(output)
    first, late = output["benchmarks"]
    assert first == "a row"
    assert late["fullname"] == "t.py::test_it[a]:ttft"
    assert late["stats"]["data"] == [0.25, 0.5]
    assert late["stats"]["median"] == 0.375


def test_a_row_that_could_not_be_saved_later_is_found_out_at_once(bridge, fixture, clock, run, notes, monkeypatch):
    def broken(row, **kwargs):
        if row.name.endswith(":ttft"):
            raise AttributeError("no attribute 'renamed'")
        return as_dict(row, **kwargs)

    as_dict = Metadata.as_dict
    monkeypatch.setattr(Metadata, "as_dict", broken)
    bridge.hand_over(fixture, clock, {"total": [1.0], "ttft": [0.5], "tpot": [0.25]}, {}, params=PARAMS, group=None)
    assert [row.fullname for row in run.benchmarks] == ["t.py::test_it[a]", "t.py::test_it[a]:tpot"]
    assert len(notes) == 1
    output = {"benchmarks": []}
    bridge.complete(output)
    assert [row["fullname"] for row in output["benchmarks"]] == ["t.py::test_it[a]:ttft"]


def test_a_failed_test_gets_no_late_rows_either(bridge, fixture, clock, run):
    # pytest-benchmark saves no row of a fixture that has an error: the late ones would point to nothing.
    class Refusing(list):
        def append(self, row):
            raise TypeError("semi-private things changed")

    run.benchmarks = Refusing()
    bridge.hand_over(fixture, clock, {"total": [1.0], "ttft": [0.5]}, {}, params=PARAMS, group=None)
    bridge.mark_failed(fixture)
    output = {"benchmarks": []}
    bridge.complete(output)
    assert output == {"benchmarks": []}


def test_the_live_rows_of_a_failed_test_have_an_error(bridge, fixture, clock, run):
    bridge.hand_over(fixture, clock, {"total": [1.0], "ttft": [0.5]}, {}, params=PARAMS, group=None)
    bridge.mark_failed(fixture)
    assert [row.has_error for row in run.benchmarks] == [True, True]


def test_before_it_is_loaded_the_clock_is_the_real_one(clock):
    before = time.perf_counter()
    assert before <= clock() <= time.perf_counter()


def test_without_trouble_nothing_is_appended_late(bridge, fixture, clock):
    bridge.hand_over(fixture, clock, {"total": [1.0], "ttft": [0.5]}, {}, params=PARAMS, group=None)
    output = {"benchmarks": []}
    bridge.complete(output)
    assert output == {"benchmarks": []}


def test_another_timer_is_found_out(bridge, fixture, clock):
    fixture._timer = map(float, range(100)).__next__
    with pytest.raises(StorageError, match="did not record the replayed durations"):
        bridge.hand_over(fixture, clock, {"total": [0.5, 0.25]}, {}, params=PARAMS, group=None)


def test_another_plugins_fixture_is_named():
    class Fast:
        """Stands in for what another plugin makes of `benchmark`."""

    with pytest.raises(StorageError, match=r"test_bridge\..*Fast.*-p no:NAME"):
        checked(Fast())


def test_a_used_fixture_is_refused(bridge, fixture, clock):
    bridge.hand_over(fixture, clock, {"total": [1.0]}, {}, params=PARAMS, group=None)
    with pytest.raises(StorageError, match="once a test"):
        bridge.check(fixture)


def test_a_failed_tests_row_has_an_error(bridge, fixture, clock):
    bridge.hand_over(fixture, clock, {"total": [1.0]}, {}, params=PARAMS, group=None)
    bridge.mark_failed(fixture)
    assert fixture.has_error
    bridge.mark_failed(None)


@pytest.mark.parametrize(
    ("given", "saving"),
    [({}, False), ({"save": "x"}, True), ({"autosave": True}, True), ({"json": "run.json"}, True)],
)
def test_whether_the_run_is_saved(bridge, run, given, saving):
    vars(run).update(given)
    assert bridge.saving is saving


def test_the_clock_has_a_name_that_pytest_benchmark_can_print():
    clock = ReplayClock()
    assert f"{clock.__module__}.{clock.__name__}" == "pytest_infer.perf_counter_ns, replayed"
