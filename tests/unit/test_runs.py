"""What a run file leaves out, holds twice or never had: what its reader makes of it, row by row and as a result."""

import copy
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pytest_infer.errors import StorageError
from pytest_infer.records import ExpertSite
from pytest_infer.storage import results, runs, schema
from pytest_infer.storage.runs import Run
from pytest_infer.storage.schema import Usage

TEST = "bench/t.py::t[guide]"
SITE = {"name": "layers.0", "layer": 0}
USAGE = {
    "sites": [SITE, {**SITE, "layer": 1, "experts": 3, "slots": 5}],
    "counts": {"prefill": [[1, 2], [1, 1, 1, 0, 0]], "decode": [[4, 0], [2, 1, 1, 0, 0]]},
    "tokens": {"prefill": 3, "decode": 4},
}


def restored(made, **changes):
    made = {**copy.deepcopy(made), **changes}
    return results.result_of(TEST, schema.of_block(made, schema.WHOLE_BLOCK))


# rows


@pytest.mark.parametrize("tags", [None, ["a", "b"]])
def test_tags_are_a_tuple_where_there_are_none(make_row, tags):
    assert make_row(prompt={"tags": tags}).tags == tuple(tags or ())


def test_a_row_without_what_a_block_may_lack(make_block):
    made = make_block()
    del made["prompt"]["name"]
    row = runs.row_of(TEST, "native name", {**made, "experts": None, "rounds": None})
    assert (row.name, row.experts, row.disturbed) == ("native name", Usage(), ())


def test_disturbed_rounds_are_numbers(make_block):
    row = runs.row_of(TEST, TEST, {**make_block(), "rounds": {"disturbed": {"2": ["steal"], "x": ["?"], "0": []}}})
    assert row.disturbed == (2, 0)


def test_the_drift_and_the_curve_of_a_row(make_block):
    drift = {"test": "first", "apart_s": 3.0, "ratios": {"ttft_s": 1.1}}
    curve = {"axis": "prompt_tokens", "value": 16}
    row = runs.row_of(TEST, TEST, {**make_block(), "drift": drift, "curve": curve, "config": {"threads": "2"}})
    assert (row.drift.test, row.curve.value, row.config) == ("first", 16, {"threads": "2"})


# runs


def test_a_run_of_which_nothing_is_known():
    run = Run(path=Path("some.json"), time=datetime(2026, 1, 1, tzinfo=UTC))
    assert (run.tests, run.plain, run.label, run.regressed) == (0, False, "some.json", False)


def test_a_model_without_a_dtype_and_a_machine_without_a_cpu(storage, make_block):
    run = runs.read(storage.add([make_block(model={"dtype": None}, machine={"cpu": None})]))
    assert (run.model, run.machine) == ("hand-made", "host")


def test_tests_of_others_are_counted_where_there_are_none_of_ours(storage, make_block):
    plain = {"name": "t", "fullname": "t.py::t", "stats": {"median": 0.3, "data": [0.3]}}
    assert runs.read(storage.add([plain, plain])).tests == 2
    assert runs.read(storage.add([plain, make_block()])).tests == 1


# results


def test_sizes_that_an_older_run_does_not_say_are_those_of_its_counts(make_block):
    usage = restored(make_block(experts=USAGE)).experts
    assert [(site.experts, site.slots) for site in usage.sites] == [(2, 2), (3, 5)]
    assert all(isinstance(site, ExpertSite) for site in usage.sites)
    assert (usage.check, usage.prefill_weights, usage.prefill_dropped) == ("not checked", None, None)


def test_all_of_an_expert_usage_is_restored(make_block):
    more = {
        "weights": {"prefill": [[0.1, 0.2], [0.3] * 5], "decode": [[0.4, 0.5], [0.6] * 5]},
        "dropped": {"prefill": [1, 2], "decode": [3, 4]},
        "check": "passed",
        "note": "a note",
    }
    usage = restored(make_block(experts={**USAGE, **more})).experts
    assert (usage.prefill_tokens, usage.decode_tokens) == (3, 4)
    assert (usage.prefill, usage.decode) == (((1, 2), (1, 1, 1, 0, 0)), ((4, 0), (2, 1, 1, 0, 0)))
    assert (usage.prefill_weights[0], usage.decode_weights[0]) == ((0.1, 0.2), (0.4, 0.5))
    assert (usage.prefill_dropped, usage.decode_dropped) == ((1, 2), (3, 4))
    assert (usage.check, usage.note) == ("passed", "a note")


@pytest.mark.parametrize("key", ["counts", "tokens"])
def test_half_a_usage_is_none(make_block, key):
    assert restored(make_block(experts={name: part for name, part in USAGE.items() if name != key})).experts is None


@pytest.mark.parametrize("output", [None, {}, {"text": None}])
def test_an_output_that_was_not_stored_is_empty(make_block, output):
    assert restored(make_block(), output=output).output == ""


@pytest.mark.parametrize(("rounds", "timed"), [(None, 1), ({}, 1), ({"timed": 7}, 7)])
def test_a_run_had_one_round_unless_it_says_how_many(make_block, rounds, timed):
    assert restored(make_block(), rounds=rounds).timed_rounds == timed


def test_swept_options_and_the_place_on_a_curve_are_restored(make_block):
    found = restored(make_block(), config={"threads": "2"}, curve={"axis": "prompt_tokens", "value": 16})
    assert (found.config, found.curve.value) == ({"threads": "2"}, 16)


def test_a_metric_that_a_run_does_not_have_says_so(make_block):
    made = make_block(ttft_s=None)
    made["absent"] = {}
    assert restored(made).figures["ttft_s"].reason == "this run did not store it"


# the whole of a run


def test_of_failed_tests_only_their_total_rows_are_shown(storage, make_block):
    failed = {"t[a]": make_block("a"), "t[a]:ttft": {**make_block("a"), "phase": "ttft"}}
    found = results.shown(storage.add([make_block()], failed=failed))
    assert [result.nodeid for result in found.results] == [TEST, "t[a]"]
    assert found.failed == ("t[a]", "t[a]:ttft")


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        ({"schema": 99, "phase": "total"}, "schema 99 is newer"),
        ({"schema": 1, "phase": 5}, "not a run of pytest-benchmark"),
        ({"schema": 1, "phase": "total", "experts": {**USAGE, "sites": [SITE]}}, "not a run of pytest-benchmark"),
    ],
    ids=["newer", "another type", "fewer sites than rows"],
)
def test_a_failed_test_that_cannot_be_read_is_one_line(storage, make_block, failed, said):
    path = storage.add([make_block()], failed={"t[a]": {**make_block("a"), **failed}})
    with pytest.raises(StorageError, match=said) as raised:
        results.shown(path)
    assert "\n" not in str(raised.value)
