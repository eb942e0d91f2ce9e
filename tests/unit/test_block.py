"""The versioned block of extra_info: a hand-made record gives exactly the golden of its schema."""

import dataclasses
import json
import math
import os
from pathlib import Path

import msgspec
import pytest

from pytest_infer.metrics import METRICS, load
from pytest_infer.records import CurvePoint, ExpertUsage, PromptRecord
from pytest_infer.storage import block, runs, schema

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


@pytest.fixture
def golden():
    return json.loads(DATA.joinpath("block-1.json").read_text(encoding="utf-8"))


def test_the_golden_is_of_this_schema(golden):
    assert golden["schema"] == schema.SCHEMA == 1


def test_a_record_gives_exactly_the_golden(record):
    # Through JSON, with the order of keys: a file that changes for no reason is a diff for no reason.
    built = json.dumps(block.build(record), indent=1) + "\n"
    path = DATA / "block-1.json"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(built, encoding="utf-8")
    assert built == path.read_text(encoding="utf-8")


def test_the_record_itself_survives_the_journals_json(record):
    again = msgspec.json.decode(msgspec.json.encode(record), type=PromptRecord)
    assert again == record
    assert block.build(again) == block.build(record)


def test_the_goldens_figures_were_worked_out_by_hand(golden):
    """The record: start, then 200 (+ 0, 1, 2, 3) ms, 20, 20, 120, 20 ms; 6 prompt tokens; 0.5 s of wall time."""
    metrics = golden["metrics"]
    for key, value in {
        "generated_tokens": 5,
        "total_tokens": 11,
        "ttft_s": 0.2015,
        "decode_s": 0.18,
        "total_s": 0.3815,
        "tpot_s": 0.045,
        "itl_p50_s": 0.02,
        "itl_p99_s": 0.117,  # 20 + 0.97 × 100 ms: rank 0.99 × 3 = 2.97
        "itl_max_s": 0.12,
        "decode_throughput": 4 / 0.18,
        "cores_used": 0.875,
        "cpu_utilization": 43.75,
        "memory_percent": 25.0,
        "rest_bytes": 298 * 2**20,
        "expert_selections": 40,
        "expert_imbalance": 1.5,
    }.items():
        assert metrics[key]["value"] == pytest.approx(value), key


def test_every_metric_is_either_there_or_absent_with_a_reason(record):
    built = block.build(record)
    of_prompts = {m.key for m in METRICS if not m.key.startswith(load.PREFIX)}
    assert set(built["metrics"]) | set(built["absent"]) == of_prompts
    assert not set(built["metrics"]) & set(built["absent"])
    assert all(built["absent"].values())


def test_nothing_unknown_is_written_as_null_nan_or_zero(record):
    built = block.build(record)

    def walk(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(inner, f"{path}[{number}]")
        else:
            assert value is not None, path

    walk(built, "block")
    json.dumps(built, allow_nan=False)


def test_quality_is_named_unless_exact(record):
    metrics = block.build(record)["metrics"]
    assert metrics["peak_rss_bytes"]["quality"] == "sampled"
    assert metrics["peak_rss_bytes"]["source"] == "sampler every 5 ms"
    assert "quality" not in metrics["rss_bytes"]
    assert "source" not in metrics["rss_bytes"]


def test_a_single_round_is_not_listed(record):
    metrics = block.build(dataclasses.replace(record, rounds=record.rounds[:1]))["metrics"]
    assert set(metrics["ttft_s"]) == {"value", "unit", "mean"}


def test_the_output_says_what_stopped_it_and_where_it_differs(record):
    assert block.build(record)["output"]["stopped_by"] == "eos"
    output = dataclasses.replace(record.output, equal=False, first_difference=(2, 0))
    rounds = tuple(dataclasses.replace(r, trace=dataclasses.replace(r.trace, stopped_by=None)) for r in record.rounds)
    built = block.build(dataclasses.replace(record, output=output, rounds=rounds))
    assert json.loads(json.dumps(built["output"]["first_difference"])) == [2, 0]
    assert "stopped_by" not in built["output"]


def test_why_there_are_no_experts(record):
    without = dataclasses.replace(record, profile=None, profile_absent="left out")
    assert block.build(without)["experts"] == {"absent": "left out"}
    assert block.build(without)["rounds"]["profile"] is False
    dense = dataclasses.replace(record.profile, experts=None, experts_absent="the model is dense")
    assert block.build(dataclasses.replace(record, profile=dense))["experts"] == {"absent": "the model is dense"}


def test_expert_counts_are_kept_in_full(record):
    usage = block.build(record)["experts"]
    assert isinstance(record.profile.experts, ExpertUsage)
    assert usage["tokens"] == {"prefill": 6, "decode": 4}
    assert usage["counts"]["decode"] == [[4, 2, 2, 0], [2, 2, 2, 2]]
    assert usage["sites"][0]["expert_bytes"] == 1024
    assert "expert_bytes" not in usage["sites"][1]


def test_a_resumed_record_says_so(record):
    assert block.build(dataclasses.replace(record, resumed=True))["rounds"]["resumed"] is True


def test_a_phase_points_to_its_total_row():
    assert block.of_phase("ttft", "t.py::t[a]") == {"schema": 1, "phase": "ttft", "of": "t.py::t[a]"}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_no_nan_gets_into_the_file(record, wrong):
    model = dataclasses.replace(record.model, load_s=wrong, generation={"temperature": wrong, "top_k": 3})
    machine = dataclasses.replace(record.machine, quota_cores=wrong)
    built = block.build(dataclasses.replace(record, model=model, machine=machine, tokenize_s=wrong))
    json.dumps(built, allow_nan=False)
    assert built["model"]["generation"] == {"top_k": 3}
    assert built["absent"]["load_s"] == built["absent"]["tokenize_s"] == "not a finite number"


def test_disturbed_rounds_are_numbered_from_zero(record):
    why = {2: ("steal 12 %", "waited 3 ms")}
    rounds = tuple(dataclasses.replace(r, disturbed=why.get(n, ())) for n, r in enumerate(record.rounds))
    assert block.build(dataclasses.replace(record, rounds=rounds))["rounds"] == {
        "warmup": record.warmup_rounds,
        "timed": 4,
        "profile": True,
        "disturbed": {"2": ["steal 12 %", "waited 3 ms"]},
        "repeated": 0,
        "resumed": False,
    }


def test_what_is_swept_is_kept_and_read_again(record):
    config = {"threads": "2", "dtype": "bfloat16"}
    point = CurvePoint(axis="prompt_tokens", value=16)
    built = block.build(dataclasses.replace(record, config=config, curve=point))
    assert built["config"] == config
    assert built["curve"] == {"axis": "prompt_tokens", "value": 16}
    row = runs.row_of("t", "n", built)
    assert (row.config, row.curve) == (config, point)
    # Order is part of it: the axes stand as they were given.
    assert list(row.config) == ["threads", "dtype"]


def test_a_test_that_is_not_swept_has_neither(record):
    built = block.build(record)
    assert "config" not in built
    assert "curve" not in built
    row = runs.row_of("t", "n", built)
    assert (row.config, row.curve) == ({}, None)
