"""The machine's limit: formulas by hand, and a record's figures with every reason for which they may be absent."""

import dataclasses
from pathlib import Path

import msgspec
import pytest

from pytest_infer.metrics import roofline, summarize
from pytest_infer.metrics.result import of_record
from pytest_infer.records import MachineProbe, PromptRecord, Quality, Work, absent
from pytest_infer.report.show.roofline import limit_line, machine_line
from pytest_infer.storage import block

DATA = Path(__file__).parents[1] / "data"

PROBE = MachineProbe(
    threads=2,
    read_bandwidth=40e6,
    read_bandwidth_spread=0.031,
    flops={"float32": 180e6, "bfloat16": 21e6},
    caches={"L1d": 65536, "L2": 2**20, "L3": 2**25},
    at_ns=1,
    boot="b",
)
WORK = Work(
    read_bytes=100_000,
    parameters=5000,
    head_parameters=700,
    expert_parameters={"layers.0.experts": 1000, "layers.1.experts": 2000},
    pair_flops=24,
)
STEP_BYTES = (100_000 - 4 * 1024 - 4 * 2048) + (2 * 1024 + 2 * 2048) + 1048576 * 8.5 / 10
"""Dense; 8 selections in 4 steps at each site; the cache holds 6 + 5 - 1 positions and a step reads 8.5 of them."""


@pytest.fixture
def record():
    """Two sites of 4 experts, 6 tokens of prompt and 5 generated; four rounds with a TPOT of 45 ms."""
    found = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    sites = (found.profile.experts.sites[0], dataclasses.replace(found.profile.experts.sites[1], expert_bytes=2048))
    return changed(found, {"work": WORK}, {"probe": PROBE}, sites=sites)


def changed(record, model=None, machine=None, profile=None, **usage):
    """Return the record with some of its parts replaced."""
    experts = dataclasses.replace(record.profile.experts, **usage)
    return dataclasses.replace(
        record,
        model=dataclasses.replace(record.model, **(model or {})),
        machine=dataclasses.replace(record.machine, **(machine or {})),
        profile=dataclasses.replace(record.profile, **{"experts": experts, **(profile or {})}),
    )


def reason(record, key):
    summary = summarize(record)[key]
    assert summary.value is None
    return summary.reason


# formulas


def test_the_bytes_of_a_step():
    assert roofline.step_bytes(1000, [], 0) == 1000
    assert roofline.step_bytes(1000, [(2, 30), (1.5, 40)], 7) == 1000 + 60 + 60 + 7


def test_utilisations_and_ceiling():
    assert roofline.mbu(20e9, 2.0, 40e9) == 0.25
    assert roofline.ceiling(40e9, 20e9) == 2.0
    assert roofline.mfu(30e9, 0.5, 180e9) == pytest.approx(1 / 3)
    # At its ceiling a model uses all of the bandwidth.
    assert roofline.mbu(434e6, 1 / roofline.ceiling(41e9, 434e6), 41e9) == pytest.approx(1)


@pytest.mark.parametrize(("prompt", "generated"), [(1, 2), (6, 5), (100, 2), (3, 60)])
def test_the_mean_cache_is_that_of_the_steps_one_by_one(prompt, generated):
    per_position = 24
    held = per_position * (prompt + generated - 1)
    read = [per_position * (prompt + step) for step in range(1, generated)]
    assert roofline.mean_cache_bytes(held, prompt, generated) == pytest.approx(sum(read) / len(read))


@pytest.mark.parametrize("window", [None, 1, 2, 5, 6, 7, 100])
def test_attended_pairs_are_those_of_the_causal_mask(window):
    pairs = sum(1 for q in range(6) for k in range(6) if k <= q and (window is None or q - k < window))
    assert roofline.attended_pairs(6, window) == pairs
    in_chunks = sum(1 for q in range(6) for k in range(q + 1) if window is None or k // window == q // window)
    assert roofline.attended_pairs(6, window, chunked=True) == in_chunks


def test_the_operations_of_a_dense_prefill():
    work = Work(read_bytes=0, parameters=100, head_parameters=50, expert_parameters={}, pair_flops=8)
    assert roofline.prefill_flops(work, None, 3) == 2 * (100 * 3 + 50) + 8 * 6
    windowed = dataclasses.replace(work, window_pair_flops=10, window=2)
    assert roofline.prefill_flops(windowed, None, 3) == 2 * (100 * 3 + 50) + 8 * 6 + 10 * 5
    in_chunks = dataclasses.replace(windowed, chunked=True)
    assert roofline.prefill_flops(in_chunks, None, 3) == 2 * (100 * 3 + 50) + 8 * 6 + 10 * 4


def test_what_is_not_told_is_not_worked_out(record):
    usage = record.profile.experts
    assert roofline.prefill_flops(dataclasses.replace(WORK, parameters=None), usage, 6) is None
    assert roofline.prefill_flops(dataclasses.replace(WORK, pair_flops=None), usage, 6) is None
    assert roofline.prefill_flops(dataclasses.replace(WORK, expert_parameters={"other": 9}), usage, 6) is None


# a record's figures


def test_the_figures_of_a_record(record):
    found = summarize(record)
    assert found["step_bytes"].value == pytest.approx(STEP_BYTES)
    assert found["mbu"].value == pytest.approx(STEP_BYTES / 0.045 / 40e6)
    assert len(found["mbu"].rounds) == 4
    assert found["decode_ceiling"].value == pytest.approx(40e6 / STEP_BYTES)
    # 12 selections of 6 tokens at each site, of experts with 250 and 500 weights.
    flops = 2 * ((5000 - 3000) * 6 + 12 * 250 + 12 * 500 + 700) + 24 * 21
    assert found["mfu"].value == pytest.approx(flops / 180e6 * (1 / 0.201 + 1 / 0.202) / 2)
    assert found["mbu"].quality is found["mfu"].quality is Quality.SAMPLED
    assert "probe" in found["mbu"].source


def test_a_dense_model_needs_no_experts(record):
    dense = dataclasses.replace(WORK, expert_parameters={})
    record = changed(record, {"work": dense}, profile={"experts": None, "experts_absent": "the model is dense"})
    found = summarize(record)
    assert found["step_bytes"].value == pytest.approx(100_000 + 1048576 * 0.85)
    assert found["mfu"].value == pytest.approx((2 * (5000 * 6 + 700) + 24 * 21) / 180e6 * (1 / 0.201 + 1 / 0.202) / 2)


def test_slots_without_weights_read_nothing(record):
    usage = record.profile.experts
    sites = (dataclasses.replace(usage.sites[0], slots=5), usage.sites[1])
    skipping = changed(
        record,
        sites=sites,
        prefill=((6, 3, 2, 1, 0), usage.prefill[1]),
        decode=((3, 2, 2, 0, 1), usage.decode[1]),
    )
    assert summarize(skipping)["step_bytes"].value == pytest.approx(STEP_BYTES - 1024 / 4)


def test_experts_that_are_all_computed_are_all_read(record):
    first, second = record.profile.experts.sites
    every = changed(record, sites=(dataclasses.replace(first, kind="mlp-all"), second))
    # 4 instead of the 2 that a token selects.
    assert summarize(every)["step_bytes"].value == pytest.approx(STEP_BYTES + 2 * 1024)


def test_usage_counts_where_the_modules_did_not_look_like_experts(record):
    unseen = changed(record, {"work": dataclasses.replace(WORK, expert_parameters={})})
    assert summarize(unseen)["step_bytes"].value == pytest.approx(STEP_BYTES)
    assert "add up" in reason(changed(unseen, check="layers.0: 9 found, 10 expected"), "step_bytes")


def test_a_split_model_has_no_single_limit(record):
    split = changed(record, {"device": "cuda:0, cpu"})
    assert {"several devices (cuda:0, cpu)" in reason(split, key) for key in ("mbu", "mfu", "decode_ceiling")} == {True}
    assert summarize(split)["step_bytes"].value == pytest.approx(STEP_BYTES)


def test_the_profile_holds_what_the_figures_rest_on(record):
    assert reason(changed(record, {"work": None}), "step_bytes").startswith("the engine does not tell")
    assert reason(changed(record, {"work": None}), "mfu").startswith("the engine does not tell")
    without = dataclasses.replace(record, profile=None, profile_absent="left out")
    assert {reason(without, key) for key in ("step_bytes", "mbu", "decode_ceiling", "mfu")} == {"left out"}
    unrecorded = changed(record, profile={"experts": None, "experts_absent": "not with --infer-compile"})
    assert {reason(unrecorded, key) for key in ("step_bytes", "mbu", "mfu")} == {"not with --infer-compile"}
    assert "add up" in reason(changed(record, check="layers.0: 9 found, 10 expected"), "mbu")
    assert "add up" in reason(changed(record, check="layers.0: 9 found, 10 expected"), "mfu")
    assert reason(changed(record, profile={"kv_cache_bytes": absent("no cache")}), "step_bytes") == "no cache"
    assert "KV cache" in reason(changed(record, {"generation": {"use_cache": False}}), "step_bytes")
    unsized = tuple(dataclasses.replace(site, expert_bytes=None) for site in record.profile.experts.sites)
    assert "one expert" in reason(changed(record, sites=unsized), "step_bytes")
    larger = tuple(dataclasses.replace(site, expert_bytes=10**6) for site in record.profile.experts.sites)
    assert "one expert" in reason(changed(record, sites=larger), "step_bytes")


@pytest.mark.parametrize(("sizes", "said"), [((5,), "no decode step"), ((1, 2, 2), "several tokens")])
def test_ticks_that_are_no_steps(record, sizes, said):
    trace = dataclasses.replace(
        record.profile.trace, tick_sizes=sizes, stamps_ns=record.profile.trace.stamps_ns[: len(sizes)]
    )
    assert said in reason(changed(record, profile={"trace": trace}), "step_bytes")


def test_a_prompt_whose_tokens_nobody_counted_has_no_limit(record):
    rounds = [
        dataclasses.replace(r, trace=dataclasses.replace(r.trace, prompt_tokens=0))
        for r in (*record.rounds, record.profile)
    ]
    unknown = dataclasses.replace(record, rounds=tuple(rounds[:-1]), profile=rounds[-1])
    for key in ("step_bytes", "mbu", "decode_ceiling", "mfu"):
        assert reason(unknown, key) == "neither the engine nor a server tells how many tokens the prompt has"


def test_without_a_probe_the_bytes_are_still_told(record):
    unprobed = changed(record, machine={"probe": None})
    assert summarize(unprobed)["step_bytes"].value == pytest.approx(STEP_BYTES)
    assert {reason(unprobed, key)[:27] for key in ("mbu", "mfu", "decode_ceiling")} == {"the machine was not probed:"}
    # Nor does the probe of the processor say anything of a model that is elsewhere.
    elsewhere = changed(record, {"device": "cuda:0"})
    assert "not probed" in reason(elsewhere, "mbu")
    untold = changed(record, {"threads": None}, {"probe": None})
    assert "does not tell with how many threads it runs (ModelInfo.threads)" in reason(untold, "mbu")


def test_a_dtype_that_was_not_probed(record):
    assert reason(changed(record, {"dtype": "float64"}), "mfu") == "the probe has no rate for float64"
    assert summarize(changed(record, {"dtype": "float64"}))["mbu"].value is not None


def test_the_block_holds_the_probe_and_the_work(record):
    built = block.build(record)
    assert built["machine"]["probe"]["flops"] == {"float32": 180e6, "bfloat16": 21e6}
    assert built["machine"]["probe"]["read_bandwidth"] == 40e6
    assert built["model"]["work"]["expert_parameters"] == {"layers.0.experts": 1000, "layers.1.experts": 2000}
    assert msgspec.json.decode(msgspec.json.encode(record), type=PromptRecord) == record


# for people


def test_the_machines_line(record):
    assert machine_line(record.machine, "float32") == (
        "2 usable cores · 1.17 GiB · L3 32.0 MiB · reads 40.0 MB/s ± 3.1 % · 180 MFLOP/s in float32"
    )
    assert "FLOP/s" not in machine_line(record.machine, "int8")
    assert machine_line(dataclasses.replace(record.machine, probe=None)) is None


def test_what_an_older_run_kept_of_a_beaten_probe_is_not_shown(record):
    kept = of_record(record)
    beaten = {key: dataclasses.replace(kept.figures[key], value=3.12) for key in ("mbu", "mfu")}
    figures = {**kept.figures, **beaten}
    assert limit_line([dataclasses.replace(kept, figures=figures)]) is None
    assert "prefill" not in limit_line([dataclasses.replace(kept, figures={**kept.figures, "mfu": beaten["mfu"]})])


def test_the_limits_line(record):
    slower = changed(record, machine={"probe": dataclasses.replace(PROBE, read_bandwidth=80e6)})
    rows = [of_record(r) for r in (record, slower)]
    shares = [100 * STEP_BYTES / 0.045 / bandwidth for bandwidth in (80e6, 40e6)]
    assert limit_line(rows).startswith(
        f"decode: {shares[0]:.0f}–{shares[1]:.0f} % of what this machine's memory allows (962 KiB a step, at most "
    )
    assert "bandwidth ± 3.1 %)" in limit_line(rows)
    assert "prefill: 0.12 % of its GEMM rate" in limit_line(rows)
    low = changed(record, machine={"probe": dataclasses.replace(PROBE, flops={"float32": 180e6 / 1000})})
    assert "prefill" not in limit_line([of_record(low)])
    unprobed = changed(record, machine={"probe": None})
    assert limit_line([of_record(unprobed)]) is None
