"""Traces beside a run: named after their test, kept with the run, gone with it; what a run says of its operators."""

import dataclasses
import gzip
import json
import re
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.breakdown import memory
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.metrics.result import of_record
from pytest_infer.records import Operators, OperatorTimes, PhaseOperators, PromptRecord, RoleWork, Work
from pytest_infer.report.breakdown import operators
from pytest_infer.report.show import exports, summary
from pytest_infer.storage import block, results, schema, traces

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def with_operators(record, found, nodeid=None):
    broken_down = dataclasses.replace(record.breakdown, operators=found)
    return dataclasses.replace(record, breakdown=broken_down, nodeid=nodeid or record.nodeid)


# names


def test_names_are_safe_and_no_two_tests_share_one():
    nodeids = [
        "bench/t.py::test_prompt[guide]", "other/t.py::test_prompt[guide]", "bench/t.py::test_prompt[gui de]",
        "bench/t.py::test_prompt[gui/de]", "bench/t.py::test_prompt[../../etc]", "bench/t.py::test_prompt[]",
        "bench/t.py::test_prompt[größe\u202e]", "bench/t.py::T::test_" + "x" * 300,
        "t.py::test[a.trace.json.gz]", "t.py::[\x00\n]",
    ]  # fmt: skip
    names = [traces.name_for(nodeid) for nodeid in nodeids]
    assert len(set(names)) == len(nodeids)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_-]{0,61}-[0-9a-f]{8}\.trace\.json\.gz", name)
    assert names[0].startswith("test_prompt-guide-")
    assert traces.name_for(nodeids[0]) == names[0]


def test_the_block_names_what_is_written(record, tmp_path):
    run = tmp_path / "0001_abc.json"
    traces.write(run, [record, with_operators(record, None, "t.py::without")])
    named = block.build(record)["breakdown"]["operators"]["trace"]
    (path,) = tmp_path.iterdir()
    assert path == traces.path_for(run, named)
    assert path.name == f"0001_abc.{named}"
    assert json.loads(gzip.decompress(path.read_bytes())) == {"traceEvents": []}
    assert path.stat().st_mode & 0o777 == 0o644


def test_those_of_a_run_that_had_the_file_go_and_no_others(record, tmp_path):
    # --benchmark-json writes the same file again.
    stays = [
        "run.b.json", traces.path_for(tmp_path / "run.b.json", traces.name_for("a")).name, "run.notes.trace.json.gz",
        traces.path_for(tmp_path / "rerun.json", traces.name_for("a")).name, "run.npz", "run.json",
    ]  # fmt: skip
    for name in stays:
        (tmp_path / name).write_bytes(b"")
    run = tmp_path / "run.json"
    traces.write(run, [with_operators(record, record.breakdown.operators, n) for n in ("t.py::one", "t.py::two")])
    assert len(list(tmp_path.iterdir())) == len(stays) + 2
    traces.write(run, [with_operators(record, record.breakdown.operators, "t.py::two")])
    two = traces.path_for(run, traces.name_for("t.py::two")).name
    assert {path.name for path in tmp_path.iterdir()} == {*stays, two}
    traces.write(run, [with_operators(record, None)])
    assert {path.name for path in tmp_path.iterdir()} == set(stays)


# a stored run


def stored(record, tmp_path, change=lambda operators: None):
    run = tmp_path / "0001_abc.json"
    built = block.build(record)
    change(built["breakdown"]["operators"])
    row = {"fullname": record.nodeid, "params": {"phase": "total"}, "stats": {"median": 1.0, "data": [1.0]}}
    row |= {"name": "n", "group": None, "extra_info": {schema.KEY: built}}
    run.write_text(json.dumps({"benchmarks": [row], "datetime": "2026-11-28T10:00:00", "version": "5"}))
    return run


def test_a_stored_run_says_what_its_end_did(record, tmp_path):
    run = stored(record, tmp_path)
    traces.write(run, [record])
    (found,) = results.shown(run).results
    shown = of_record(record)
    assert found.operators == shown.operators
    assert found.operators.prefill.operators[0] == OperatorTimes(
        name="aten::mm", role="experts", shapes="[6, 8], [8, 16]", calls=4.0, self_s=0.14
    )
    assert found.trace == "0001_abc.test_prompt-guide-d9821cad.trace.json.gz"
    assert [line.plain for line in operators.lines([found], width=100)] == [
        "operators of 4 decode steps, profiled: mm in experts 80 %, others 20 %",
        "traces beside the run, for ui.perfetto.dev:",
        "  0001_abc.test_prompt-guide-d9821cad.trace.json.gz",
    ]


def test_a_trace_that_is_gone_is_said_to_be(record, tmp_path):
    (found,) = results.shown(stored(record, tmp_path)).results
    assert found.trace is None
    (line,) = [line.plain for line in operators.lines([found], width=100)][1:]
    assert line == "no trace: 0001_abc.test_prompt-guide-d9821cad.trace.json.gz is not beside the run"


@pytest.mark.parametrize("name", ["../../../etc/passwd", "x/y.trace.json.gz", "\x00", "a" * 5000])
def test_a_name_that_leads_elsewhere_is_not_followed(record, tmp_path, name):
    run = stored(record, tmp_path, lambda found: found.update(trace=name))
    (found,) = results.shown(run).results
    assert found.trace is None
    assert "is not beside the run" in found.operators.trace_absent


def test_runs_without_operators_say_nothing(record, tmp_path):
    plain = with_operators(record, None)
    assert "operators" not in block.build(plain)["breakdown"]
    shown = of_record(plain)
    assert (shown.operators, shown.trace) == (None, None)
    assert not list(operators.lines([shown], width=80))


def test_the_record_keeps_the_trace_in_the_journal(record):
    again = msgspec.json.decode(msgspec.json.encode(record), type=PromptRecord)
    assert again.breakdown.operators.trace == record.breakdown.operators.trace
    # The block has its name only.
    assert "H4sI" not in json.dumps(block.build(record))


# what is shown


def phase(*rows, steps=4, device=None, peaks=None):
    return PhaseOperators(
        steps=steps,
        self_s=sum(seconds for _, _, seconds in rows),
        device_s=device,
        operators=tuple(
            OperatorTimes(
                name=name, role=role, shapes="[1, 8]", calls=2.0, self_s=seconds, device_s=device and seconds / 2
            )
            for role, name, seconds in rows
        ),
        peaks=peaks or {},
        peak_bytes=sum((peaks or {}).values()),
    )


MM, ADD, CAT = ("experts", "aten::mm", 0.006), ("norms", "aten::add", 0.003), ("KV cache", "aten::cat", 0.001)


def test_shapes_of_one_operator_are_one_in_the_line(record):
    found = Operators(decode=phase(MM, MM, ADD, CAT), prefill=phase(CAT, steps=1))
    one = of_record(with_operators(record, found))
    (line,) = [line.plain for line in operators.lines([one], width=80)]
    assert line == "operators of 4 decode steps, profiled: mm in experts 75 %, add in norms 19 %, others 6.2 %"
    (wide,) = [line.plain for line in operators.lines([one], width=120)]
    assert wide.endswith("mm in experts 75 %, add in norms 19 %, cat in KV cache 6.2 %")


def test_without_decode_it_is_the_prefill(record):
    one = of_record(with_operators(record, Operators(prefill=phase(MM, steps=1))))
    (line,) = [line.plain for line in operators.lines([one], width=80)]
    assert line.startswith("operators of the prefill, profiled: mm in experts 100 %")


def test_reasons_are_said_once(record):
    absent = of_record(with_operators(record, Operators(absent="the engine runs without torch")))
    assert [line.plain for line in operators.lines([absent, absent], width=80)] == [
        "no operators: the engine runs without torch"
    ]


def told(record, width=100, **changes):
    one = dataclasses.replace(of_record(record), **changes)
    return summary.render(RunSummary(results=(one,)), width=width, color=False, verbose=True)


WORK = Work(
    read_bytes=3000,
    parameters=10,
    head_parameters=1,
    expert_parameters={},
    roles={
        "experts": RoleWork(read_bytes=2048, parameters=9, parameter_bytes=2**20),
        "head": RoleWork(read_bytes=1024, parameters=1, parameter_bytes=3 * 2**20),
    },
)


def test_the_tables_of_a_test(record):
    found = Operators(prefill=phase(MM, steps=1, peaks={"experts": 2048}), decode=phase(ADD, peaks={"KV cache": 512}))
    of_model = dataclasses.replace(record, model=dataclasses.replace(record.model, work=WORK))
    text = told(with_operators(of_model, found))
    assert "guide: operators, prefill, 1 step" in text
    assert "guide: operators, decode, mean of 4 steps" in text
    assert re.search(r"^norms +add +\[1, 8\] +2\.00 +3\.00 ms 100 %$", text, re.MULTILINE)
    assert re.search(r"^head +3\.00 MiB +— +—$", text, re.MULTILINE)
    assert re.search(r"^experts +1\.00 MiB +2\.00 KiB +—$", text, re.MULTILINE)
    assert re.search(r"^KV cache +— +— +512 B$", text, re.MULTILINE)
    assert re.search(r"^together, at one moment +4\.00 MiB +2\.00 KiB +512 B$", text, re.MULTILINE)


@pytest.mark.parametrize("width", [40, 60])
def test_narrow_tables_of_a_test_cut_no_figure_and_no_title_where_the_table_ends(record, width):
    found = Operators(prefill=phase(MM, steps=1, peaks={"experts": 2048}), decode=phase(ADD, peaks={"KV cache": 512}))
    of_model = dataclasses.replace(record, model=dataclasses.replace(record.model, work=WORK))
    text = told(with_operators(of_model, found), width=width)
    assert re.search(r" 6\.00 ms 100 %$", text, re.MULTILINE)
    assert re.search(r"^experts +1\.00 MiB", text, re.MULTILINE)
    weights_alone = told(with_operators(of_model, None), width=60)
    assert re.search(r"^guide: memory by role; KV cache at the end \S+ \S+$", weights_alone, re.MULTILINE)


def test_an_accelerators_time_is_beside_the_hosts(record):
    text = told(with_operators(record, Operators(decode=phase(MM, device=0.003))))
    assert re.search(r"self time +on the device$", text, re.MULTILINE)
    assert re.search(r"6\.00 ms 100 % +3\.00 ms$", text, re.MULTILINE)


def test_without_a_profiler_memory_is_that_of_the_weights(record):
    of_model = dataclasses.replace(record, model=dataclasses.replace(record.model, work=WORK))
    text = told(with_operators(of_model, None))
    assert "most in prefill" not in text
    assert re.search(r"^head +3\.00 MiB$", text, re.MULTILINE)
    rows = memory.by_role(of_record(with_operators(of_model, None)))
    assert [(row.role, row.parameter_bytes, row.prefill_peak) for row in rows] == [
        ("head", 3 * 2**20, None),
        ("experts", 2**20, None),
    ]


def test_activations_that_cannot_be_told_have_the_reason(record):
    of_model = dataclasses.replace(record, model=dataclasses.replace(record.model, work=WORK))
    found = Operators(decode=phase(MM), peaks_absent="torch's allocator reported nothing")
    assert "no activations: torch's allocator reported nothing\n" in told(with_operators(of_model, found))


def test_json_has_all_of_it(record):
    of_model = dataclasses.replace(record, model=dataclasses.replace(record.model, work=WORK))
    one = dataclasses.replace(of_record(of_model), trace="0001_abc.x.trace.json.gz")
    (found,) = json.loads(exports.as_json(RunSummary(results=(one,)), run="1"))["tests"]
    assert found["operators"]["trace"] == "0001_abc.x.trace.json.gz"
    assert found["operators"]["decode"]["operators"][0]["name"] == "aten::mm"
    assert found["memory"][0] == {
        "role": "head", "parameter_bytes": 3145728, "prefill_peak": None, "decode_peak": None
    }  # fmt: skip


def test_names_that_came_with_a_file_are_harmless(record):
    found = Operators(decode=phase(("my\x1b[31mBlock", "aten::\x1b]0;x\x07", 0.1)), trace_absent="\x1b[2J")
    text = told(with_operators(record, found), trace="\x1b[1m")
    assert "\x1b" not in text
