"""A stored run printed again: figure by figure what the end of the run printed."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.cli.main import app
from pytest_infer.metrics.result import of_record
from pytest_infer.records import MachineProbe, MeasurementWarning, PromptRecord, Reading, WarningKind, Work
from pytest_infer.report.show import summary
from pytest_infer.storage import block, results, schema

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def record():
    golden = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    work = Work(read_bytes=10**6, parameters=None, head_parameters=1, expert_parameters={}, pair_flops=4)
    probe = MachineProbe(
        threads=2,
        read_bandwidth=40e6,
        read_bandwidth_spread=0.03,
        flops={"float32": 1e9},
        caches={"L3": 2**25},
        at_ns=1,
    )
    # What a model's own config leaves open is None there, and left out of the block.
    generation = {key: value for key, value in golden.model.generation.items() if value is not None}
    return dataclasses.replace(
        golden,
        model=dataclasses.replace(golden.model, work=work, generation=generation),
        machine=dataclasses.replace(golden.machine, probe=probe, cpu=None),
        warnings=(MeasurementWarning(kind=WarningKind.FREQUENCY, text="the cores slowed down"),),
    )


def through_a_file(record):
    """Return the result of a record after its block was written as JSON and read back."""
    return results.result_of(record.nodeid, schema.of_block(block.build(record), schema.WHOLE_BLOCK))


def test_what_is_restored_is_what_was_recorded(record):
    restored, recorded = through_a_file(record), of_record(record)
    assert restored.experts is not None
    assert restored.machine.cpu is None
    for field in dataclasses.fields(recorded):
        assert getattr(restored, field.name) == getattr(recorded, field.name), field.name


def test_a_record_without_a_profile_round(record):
    bare = dataclasses.replace(record, profile=None, profile_absent="left out with --infer-no-profile")
    assert through_a_file(bare) == of_record(bare)


def test_why_there_are_no_experts(record):
    dense = dataclasses.replace(
        record, profile=dataclasses.replace(record.profile, experts=None, experts_absent="a dense model")
    )
    assert through_a_file(dense) == of_record(dense)
    assert through_a_file(dense).experts_absent == "a dense model"


@pytest.mark.parametrize("width", [50, 100])
def test_it_prints_alike(record, width):
    texts = [
        summary.render(RunSummary(results=(result,)), width=width, color=True, verbose=True)
        for result in (of_record(record), through_a_file(record))
    ]
    assert texts[0] == texts[1]
    assert "guide" in texts[0]


def with_peaks(record, peak, file, shared, weights):
    """Return the record with these bytes in every round."""
    change = {"peak_rss_bytes": peak, "rss_file_bytes": file, "rss_shmem_bytes": shared}
    change = {key: Reading(value=value, source="test") for key, value in change.items()}
    rounds = tuple(dataclasses.replace(r, counters=dataclasses.replace(r.counters, **change)) for r in record.rounds)
    mapped = Reading(value=weights, source="test")
    return dataclasses.replace(
        record, rounds=rounds, profile=dataclasses.replace(record.profile, mapped_weights_bytes=mapped)
    )


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((12.4, 6.9, 0.0, 6.7), "12.4 GiB at the peak, 6.90 GiB of it file-backed (6.70 GiB the model's own files)"),
        ((12.4, 6.9, 6.7, 0.0), "12.4 GiB at the peak, 205 MiB of it file-backed"),
        # What grew after the peak was not in it.
        ((1.0, 2.0, 0.0, 0.0), "1.00 GiB at the peak, 1.00 GiB of it file-backed"),
    ],
    ids=["mapped", "in shared memory", "grew"],
)
def test_what_of_the_peak_the_kernel_can_drop(record, sizes, told):
    result = through_a_file(with_peaks(record, *(size * 2**30 for size in sizes)))
    small = of_record(with_peaks(record, 2.0**20, 2.0**20, 0.0, 0.0))
    lines = summary.render(RunSummary(results=(small, result)), width=200, color=False, verbose=True).splitlines()
    assert [line for line in lines if line.startswith("memory:")] == [f"memory: {told}: the kernel can drop that"]


def test_no_line_about_memory_that_nobody_tells(record):
    untold = with_peaks(record, 2.0**30, None, 0.0, 0.0)
    assert "memory:" not in summary.render(
        RunSummary(results=(of_record(untold),)), width=200, color=False, verbose=True
    )


def show(storage, *arguments, run="latest"):
    return CliRunner().invoke(app, ["show", run, "--storage", str(storage.folder), *arguments])


def test_the_command_prints_rows_failures_the_gate_and_advice(storage, make_block, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    advice = {
        "rule": "swapping",
        "severity": "critical",
        "evidence": "9 MiB swapped",
        "suggestion": "free memory",
        "prompts": ["guide"],
        "tests": 1,
    }
    storage.add(
        [make_block("guide", decode_throughput=22.5)],
        failed={"bench/t.py::t[broken]": make_block("broken")},
        unmeasured=["bench/t.py::t[never]"],
        gate={"result": "regressed", "against": "0001 aaaaaaaa", "rules": ["ttft:5%"]},
        advice=[advice],
    )
    result = show(storage)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "0001 cccccccc (main) · 2026-01-01 00:01 UTC"
    (row,) = [line for line in lines if line.startswith("guide ")]
    assert " 22.5 " in row
    assert any(line.startswith("broken ") for line in lines)
    assert any(line.startswith("! bench/t.py::t[broken] did not pass") for line in lines)
    assert "not measured: bench/t.py::t[never]" in lines
    assert "gate against 0001 aaaaaaaa: regressed (ttft:5%)" in lines
    assert "next: 9 MiB swapped → free memory (swapping: pytest-infer advice)" in lines
    assert "The answer" not in result.output


def test_the_command_says_why_there_is_no_probe(storage, make_block):
    storage.add([make_block(machine={"probe": None, "probe_absent": "its reads disagree"})])
    result = CliRunner().invoke(app, ["show", "-v", f"--storage={storage.folder}"])
    assert "no probe of the machine: its reads disagree" in result.output.splitlines()
    assert any(line.endswith("no probe") for line in result.output.splitlines())


AVERAGED = {"ttft_s": {"mean": 0.3, "stdev": 0.1, "prompts": 2}}


def test_the_suites_averages_are_those_of_the_file(storage, make_block):
    pair = [make_block("a", ttft_s=0.2), make_block("b", ttft_s=0.4)]
    storage.add(pair, averages=[{"metrics": AVERAGED, "against": AVERAGED}])
    told = json.loads(show(storage, "--format=json").output)
    (averages,) = told["averages"]
    assert averages.pop("model")["name"] == "hand-made"
    assert averages == {"metrics": AVERAGED, "config": {}, "against": AVERAGED}
    storage.add([make_block("c")], failed={"t.py::t": make_block("d")}, averages=[{"metrics": AVERAGED}])
    (mean, spread) = show(storage, "--format=markdown").output.splitlines()[-2:]
    assert mean.startswith("| mean |  | 300 ms |")
    assert spread.startswith("| sd between prompts |  | 100 ms |")


def test_an_older_runs_averages_are_worked_out_of_its_tests(storage, make_block):
    storage.add([make_block("a", ttft_s=0.2)], failed={"t.py::t[b]": make_block("b", ttft_s=0.4)})
    (suite,) = json.loads(show(storage, "--format=json").output)["averages"]
    assert suite["metrics"]["ttft_s"] == {"mean": pytest.approx(0.3), "stdev": pytest.approx(0.02**0.5), "prompts": 2}


@pytest.mark.parametrize(
    "value", [5, None, [5], [{"metrics": {"ttft_s": 3}}], [{"metrics": {"ttft_s": {"mean": "x"}}}]]
)
def test_averages_of_another_shape_are_one_line(storage, make_block, value):
    storage.add([make_block()], averages=value)
    result = show(storage)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "not a run of pytest-benchmark" in result.output


def test_outputs_on_demand(storage, make_block):
    made = make_block("guide")
    made["output"]["text"] = "The answer"
    storage.add([made])
    assert "  output      The answer" in show(storage, "-v").output.splitlines()
    assert "The answer" not in show(storage).output


def test_a_run_of_plain_pytest_benchmark_is_one_line(storage):
    storage.add([{"fullname": "t.py::plain", "name": "plain", "stats": {"median": 1.0}}])
    result = show(storage)
    assert result.exit_code == 11
    assert result.output.count("\n") == 1
    assert "holds no measurements" in result.output


def test_a_block_of_another_shape_is_one_line(storage, make_block):
    made = make_block("guide")
    made["cautions"] = [{"kind": "unheard of"}]
    storage.add([made])
    result = show(storage)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("key", ["absent", "output", "metrics", "rounds", "experts"])
@pytest.mark.parametrize("value", [None, 5], ids=["null", "number"])
def test_a_part_of_a_block_that_is_no_table_is_tolerated_or_one_line(storage, make_block, key, value):
    made = make_block("guide")
    made[key] = value
    if value is None:
        assert results.result_of("t", schema.of_block(made, schema.WHOLE_BLOCK)).prompt.name == "guide"
    storage.add([made])
    result = show(storage)
    assert isinstance(result.exception, SystemExit | None), result.exception
    if result.exit_code:
        assert (result.exit_code, result.output.count("\n")) == (2, 1)
        assert "0001_cccccccc_x.json: not a run of pytest-" in result.output
