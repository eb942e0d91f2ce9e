"""Every rule: a block that triggers it, one that must not, and silence without its evidence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.advice.advice import RULES, Advice, advise
from pytest_infer.analysis.advice.evidence import Facts, Severity
from pytest_infer.cli.main import app
from pytest_infer.metrics import METRICS
from pytest_infer.records import WarningKind
from pytest_infer.report import advice as shown
from pytest_infer.storage import schema

DOCS = Path(__file__).parents[2] / "docs"
BY_KEY = {rule.key: rule for rule in RULES}
MIB, GIB = 2**20, 2**30
PROBE = {"threads": 2, "device": "cpu", "flops": {"float32": 180e9, "bfloat16": 21e9}}


def block(*, model=None, machine=None, output=None, rounds=None, name="guide", config=None, **metrics):
    """Return a block with these figures and nothing else; a list is the rounds' values."""
    assert metrics.keys() <= {metric.key for metric in METRICS}, "a rule that asks for no metric is silent for ever"
    told = {
        key: {"value": sorted(v)[len(v) // 2], "rounds": v} if isinstance(v, list) else {"value": v}
        for key, v in metrics.items()
        if v is not None
    }
    tables = {"model": {"device": "cpu", **(model or {})}, "machine": machine or {}}
    tables |= {"output": output or {}, "rounds": rounds or {}, "metrics": told, "prompt": {"name": name}}
    return stored({"phase": "total", "config": config or {}, **tables})


def stored(tables):
    return schema.of_block({"schema": 1, **tables}, schema.WHOLE_BLOCK)


T2, C2 = {"threads": 2}, {"usable_cores": 2.0}
# rule: (triggers, must not, evidence is absent)
CASES = {
    "output_differs": (
        {"output": {"equal": False, "first_difference": [1, 4]}},
        {"output": {"equal": True}},
        {"output": {}},
    ),
    "cold_start": (
        {"total_s": [3.0, 1.0, 1.0], "ttft_s": [2.1, 0.1, 0.1], "rounds": {"warmup": 1}},
        {"total_s": [1.4, 1.0, 1.0]},
        {"total_s": [3.0, 1.0]},
    ),
    "rounds_disturbed": (
        {"total_s": [1.0, 1.1, 1.0], "rounds": {"timed": 3, "disturbed": {"1": ["waited 3 %"]}}},
        {"total_s": [1.0, 1.01, 1.0], "rounds": {"timed": 3, "disturbed": {"1": ["waited 3 %"]}}},
        {"total_s": [1.0, 1.1, 1.0], "rounds": {"timed": 3}},
    ),
    "too_few_rounds": (
        {"tpot_s": [1.0, 1.2, 0.8], "rounds": {"timed": 3}},
        {"tpot_s": [1.0, 1.01, 0.99], "rounds": {"timed": 3}},
        {"rounds": {"timed": 5}},
    ),
    "threads_over_cores": (
        {"model": {"threads": 8}, "machine": C2, "run_queue_wait_s": 1.0, "cpu_s": 1.0},
        {"model": T2, "machine": C2},
        {"model": {"threads": 8}},
    ),
    "threads_under_cores": (
        {"model": {"threads": 1}, "machine": {"usable_cores": 4.0, "physical_cores": 4}, "cores_used": 0.99},
        {"model": {"threads": 1}, "machine": {"usable_cores": 4.0, "physical_cores": 1}, "cores_used": 0.99},
        {"model": {"threads": 1}, "machine": {"usable_cores": 4.0}},
    ),
    "crowded_threads": (
        {"model": T2, "machine": C2, "run_queue_wait_s": 0.1, "cpu_s": 0.9},
        {"model": T2, "machine": C2, "run_queue_wait_s": 0.04, "cpu_s": 0.96},
        {"model": T2, "machine": C2, "cpu_s": 0.9},
    ),
    "slow_dtype": (
        {"model": {"dtype": "bfloat16"}, "machine": {"probe": PROBE}},
        {"model": {"dtype": "bfloat16"}, "machine": {"probe": {**PROBE, "flops": {"float32": 1e11, "bfloat16": 9e10}}}},
        {"model": {"dtype": "bfloat16"}, "machine": {}},
    ),
    "faster_dtype": (
        {"model": {"dtype": "float32"}, "machine": {"probe": {**PROBE, "flops": {"float32": 1e11, "bfloat16": 2e11}}}},
        {"model": {"dtype": "float32"}, "machine": {"probe": PROBE}},
        {"model": {"dtype": "float32"}, "machine": {}},
    ),
    "experts_implementation": (
        {"model": {"experts_implementation": "eager"}, "machine": C2, "cores_used": 1.0, "expert_selections": 9},
        {"model": {"experts_implementation": "grouped_mm"}, "machine": C2, "cores_used": 1.0, "expert_selections": 9},
        {"model": {"experts_implementation": "eager"}, "machine": C2, "expert_selections": 9},
    ),
    "stalled_on_io": (
        {"cpu_utilization": 30.0, "read_bytes": 500 * MIB, "pressure_io_s": 0.5, "total_s": 1.0},
        {"cpu_utilization": 30.0, "read_bytes": 0, "pressure_io_s": 0.5, "total_s": 1.0},
        {"cpu_utilization": 30.0},
    ),
    "one_core": (
        {"model": T2, "machine": C2, "cores_used": 1.02, "mbu": 0.2},
        {"model": T2, "machine": C2, "cores_used": 1.9},
        {"model": T2, "machine": C2},
    ),
    "memory_bound": (
        {"mbu": 0.8, "step_bytes": 100 * MIB, "decode_ceiling": 40.0},
        {"mbu": 0.3, "step_bytes": 100 * MIB},
        {"step_bytes": 100 * MIB},
    ),
    "cores_busy": ({"cpu_utilization": 98.0}, {"cpu_utilization": 80.0}, {}),
    "swapping": ({"swap_bytes": 5 * MIB, "major_faults": 3}, {"swap_bytes": 0}, {}),
    "memory_pressure": (
        {"pressure_memory_s": 0.1, "total_s": 1.0},
        {"pressure_memory_s": 0.005, "total_s": 1.0},
        {"total_s": 1.0},
    ),
    "memory_full": ({"memory_percent": 93.0}, {"memory_percent": 70.0, "system_memory_percent": 85.0}, {}),
    "slow_decode": ({"decode_throughput": 3.0, "decode_ceiling": 4.0}, {"decode_throughput": 6.0}, {}),
    "slow_first_token": ({"ttft_s": 2.5, "prompt_tokens": 100}, {"ttft_s": 1.9}, {}),
    "idle_accelerator": (
        {"machine": {"accelerators": ["RTX"]}, "ttft_s": 3.0},
        {"machine": {"accelerators": ["RTX"]}, "ttft_s": 0.1, "decode_throughput": 30.0},
        {"machine": {"accelerators": ["RTX"]}},
    ),
    "good_decode": ({"decode_throughput": 16.0}, {"decode_throughput": 14.0}, {}),
    "short_first_token": ({"ttft_s": 0.5}, {"ttft_s": 2.0}, {}),
    "memory_room": ({"memory_percent": 20.0}, {"memory_percent": 20.0, "system_memory_percent": 85.0}, {}),
}


def test_every_rule_is_tested_here():
    assert list(CASES) == [rule.key for rule in RULES]


@pytest.mark.parametrize("key", CASES)
def test_it_speaks_when_it_should_and_only_then(key):
    find = BY_KEY[key].find
    triggers, must_not, absent = (block(**case) for case in CASES[key])
    found = find(Facts(triggers))
    assert found is not None
    assert any(c.isdigit() for c in found.evidence), "evidence has numbers"
    assert find(Facts(must_not)) is None
    assert find(Facts(absent)) is None


NOTHING = {"metrics": None, "machine": {"probe": None}, "rounds": {}, "model": {}}


@pytest.mark.parametrize("key", CASES)
def test_a_block_that_says_nothing_is_met_with_silence(key):
    assert BY_KEY[key].find(Facts(stored({}))) is None
    assert BY_KEY[key].find(Facts(stored(NOTHING))) is None


def finding(key, **changes):
    return BY_KEY[key].find(Facts(block(**{**CASES[key][0], **changes})))


def test_evidence_by_hand():
    assert finding("slow_dtype").evidence == "bfloat16 multiplies 8.6× slower than float32 here (21.0 and 180 GFLOP/s)"
    assert finding("threads_over_cores").severity is Severity.CRITICAL
    assert finding("threads_over_cores", run_queue_wait_s=None).severity is Severity.WARNING
    assert finding("threads_over_cores").suggestion == "--infer-threads 2"
    # 2 x 0.2 / 0.05 = 8, squared.
    assert "64 rounds" in finding("too_few_rounds").evidence
    assert "100 % of the difference before the first token" in finding("cold_start").evidence
    assert finding("cold_start").suggestion == "--infer-warmup 2"


def test_float32_is_not_suggested_where_it_does_not_fit():
    fits = {"probe": PROBE, "memory_limit_bytes": 9 * GIB}
    assert finding("slow_dtype", machine=fits, model_bytes=4 * GIB).suggestion.endswith("8.00 GiB instead of 4.00 GiB")
    assert finding("slow_dtype", machine=fits, model_bytes=5 * GIB) is None
    # 4 GiB more than the 5.5 GiB of weights, cache and libraries.
    assert finding("slow_dtype", machine=fits, model_bytes=4 * GIB, peak_rss_bytes=5.5 * GIB) is None
    assert finding("slow_dtype", machine=fits, model_bytes=4 * GIB, peak_rss_bytes=4.5 * GIB) is not None


def test_what_an_accelerators_host_does_is_no_evidence_about_experts():
    triggers = CASES["experts_implementation"][0]
    elsewhere = {**triggers, "model": {**triggers["model"], "device": "cuda:0"}}
    assert BY_KEY["experts_implementation"].find(Facts(block(**elsewhere))) is None


def test_a_run_is_sorted_and_merged():
    run = [
        block(name="a", swap_bytes=MIB, decode_throughput=4.0, ttft_s=0.1, memory_percent=10.0),
        block(name="b", swap_bytes=MIB, major_faults=2, decode_throughput=30.0, ttft_s=0.4, memory_percent=12.0),
        block(name="c", decode_throughput=3.0, ttft_s=0.2, memory_percent=11.0),
    ]
    found = advise(run)
    assert [a.rule for a in found] == ["swapping", "slow_decode", "short_first_token", "memory_room"]
    swap, slow, first, room = found
    assert (swap.severity, swap.prompts, swap.tests) == (Severity.CRITICAL, ("a", "b"), 3)
    assert slow.evidence == "decode 3.00 tok/s"
    # Good signs are told of the weakest test, and only if all show them: not all decode fast.
    assert first.evidence == "time to first token 400 ms"
    assert room.evidence.startswith("12.0 %")


def test_there_is_none_on_the_tests_of_a_sweep():
    slow = block(name="a", decode_throughput=4.0, config={"threads": "1"})
    assert advise([slow]) == ()
    (room,) = advise([slow, block(name="b", memory_percent=12.0)])
    assert (room.rule, room.tests) == ("memory_room", 1)


def piece(rule="r", severity=Severity.INFO, suggestion="do it", evidence="1", prompts=("p",), tests=1):
    return Advice(rule=rule, severity=severity, evidence=evidence, suggestion=suggestion, prompts=prompts, tests=tests)


def test_the_shortlist_leaves_out_good_signs_and_what_warnings_tell():
    given = [piece("rounds_disturbed"), *(piece(f"r{n}") for n in range(5)), piece("good", suggestion=None)]
    assert [a.rule for a in shown.shortlist(given)] == ["rounds_disturbed", "r0", "r1"]
    assert [a.rule for a in shown.shortlist(given, {WarningKind.DISTURBED})] == ["r0", "r1", "r2"]
    assert shown.shortlist([piece(suggestion=None)]) == ()


def test_lines_are_escaped():
    line = shown.line(piece(evidence="x\x1b[31m", prompts=("\x1b]0;t\a",), tests=2))
    assert line == "info: x\\x1b[31m [\\x1b]0;t\\x07] → do it (r)"


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")
def test_the_table_of_rules_is_that_of_the_code():
    page = (DOCS / "advice.md").read_text(encoding="utf-8")
    table = page.partition("<!-- rules:begin -->\n")[2].partition("<!-- rules:end -->")[0]
    assert table == shown.rules_table(), "run: pytest-infer advice --rules"


def test_a_probe_that_the_test_beat_gives_no_advice():
    # As older versions stored it: a probe of 1 GB/s on a machine of 51.
    beaten = {"mbu": 3.12, "step_bytes": 100 * MIB, "decode_ceiling": 1.0, "decode_throughput": 3.1}
    assert [advice.rule for advice in advise([block(**beaten)])] == ["slow_decode"]
    (slow,) = advise([block(**beaten)])
    assert "the memory allows" not in slow.evidence
    assert "let the probe run" in slow.suggestion
    (absent,) = advise([block(machine={"probe_absent": "its reads disagree"}, decode_throughput=3.1)])
    assert "probe" not in absent.suggestion


def run(*arguments):
    return CliRunner().invoke(app, ["advice", *arguments])


def test_the_command_shows_a_stored_run(storage, make_block):
    storage.add([make_block(decode_throughput=3.0)])
    result = run("latest", f"--storage={storage.folder}")
    assert result.exit_code == 0
    assert "warning: decode 3.00 tok/s" in result.output
    told = json.loads(run("--json", f"--storage={storage.folder}").output)
    assert {"rule": "slow_decode", "severity": "warning"}.items() <= next(
        a for a in told["advice"] if a["rule"] == "slow_decode"
    ).items()


def test_the_command_prints_the_rules_and_refuses_no_run(storage):
    assert run("--rules").output == shown.rules_table()
    result = run("7", f"--storage={storage.folder}")
    assert result.exit_code == 2
    assert "no run '7'" in result.output
