"""Every rule: a block that triggers it, one that must not, and silence without its evidence."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.advice import advice as advising
from pytest_infer.analysis.advice.advice import RULES, Advice
from pytest_infer.analysis.advice.evidence import Facts, Severity
from pytest_infer.cli.main import app
from pytest_infer.metrics import METRICS
from pytest_infer.pytest_face.settings import OF_ENGINES
from pytest_infer.records import WarningKind
from pytest_infer.report import advice as shown
from pytest_infer.storage import schema

DOCS = Path(__file__).parents[2] / "docs"
BY_KEY = {rule.key: rule for rule in RULES}
MIB, GIB = 2**20, 2**30
PROBE = {"threads": 2, "device": "cpu", "flops": {"float32": 180e9, "bfloat16": 21e9}}


def block(*, model=None, machine=None, output=None, rounds=None, name="guide", config=None, breakdown=None, **metrics):
    """Return a block with these figures and nothing else; a list is the rounds' values."""
    assert metrics.keys() <= {metric.key for metric in METRICS}, "a rule that asks for no metric is silent for ever"
    told = {
        key: {"value": sorted(v)[len(v) // 2], "rounds": v} if isinstance(v, list) else {"value": v}
        for key, v in metrics.items()
        if v is not None
    }
    tables = {"model": {"device": "cpu", **(model or {})}, "machine": machine or {}}
    tables |= {"output": output or {}, "rounds": rounds or {}, "metrics": told, "prompt": {"name": name}}
    tables |= {} if breakdown is None else {"breakdown": breakdown}
    return stored({"phase": "total", "config": config or {}, **tables})


def stored(tables):
    return schema.of_block({"schema": 1, **tables}, schema.WHOLE_BLOCK)


# The guide's model: its files stay mapped while its experts are copied.
TWICE = {
    "peak_rss_bytes": 12.4 * GIB,
    "peak_file_bytes": 6.9 * GIB,
    "mapped_weights_bytes": 6.7 * GIB,
    "model_bytes": 6.99 * GIB,
    "loaded_anon_bytes": 5.2 * GIB,
}


def taken_apart(*parts, step_s=0.020, phase="decode", missed=0.0001, error=0.0001):
    """Return a breakdown of (role, seconds, bytes or operations)."""
    what = "read_bytes" if phase == "decode" else "flops"
    told = [{"role": role, "seconds": taken} | ({what: work} if work else {}) for role, taken, work in parts]
    check = {"remainder_s": missed, "remainder_error_s": error}
    return {phase: {"observed": 20, "bare": 20, "step_s": step_s, "cost_s": 0.0, "parts": told, **check}}


# At 60 MB/s the experts could be read in 3.7 of their 12.2 ms, and the head in 2.1 of its 2.4.
STEP = (
    ("experts", 0.0122, 226_000),
    ("head", 0.0024, 127_000),
    ("norms", 0.0034, 400),
    ("generation loop", 0.002, None),
)
AT_60_MB = {"decode_ceiling": 60.0, "step_bytes": 1_000_000, "tpot_s": 0.0203}
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
    "slow_role": (
        {**AT_60_MB, "breakdown": taken_apart(*STEP)},
        {**AT_60_MB, "breakdown": taken_apart(("experts", 0.02, 900_000))},
        {"breakdown": taken_apart(*STEP), "tpot_s": 0.0203},
    ),
    "swapping": ({"swap_bytes": 5 * MIB, "major_faults": 3}, {"swap_bytes": 0}, {}),
    "memory_pressure": (
        {"pressure_memory_s": 0.1, "total_s": 1.0},
        {"pressure_memory_s": 0.005, "total_s": 1.0},
        {"total_s": 1.0},
    ),
    "memory_full": ({"memory_percent": 93.0}, {"memory_percent": 70.0, "system_memory_percent": 85.0}, {}),
    "mapped_copy": (TWICE, {**TWICE, "loaded_anon_bytes": GIB}, {**TWICE, "mapped_weights_bytes": None}),
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


def advise(blocks):
    return advising.advise({f"bench/t.py::t{number}": block for number, block in enumerate(blocks)})


def advised(**changes):
    return {advice.rule for advice in advise([block(**changes)]) if advice.suggestion is not None}


CALM, ALL = {"timed": 3}, {"timed": 3, "disturbed": {"0": ["steal"], "1": ["steal"], "2": ["steal"]}}
OF_THE_DISTURBANCE = {"rounds_disturbed", "threads_over_cores", "crowded_threads"}


@pytest.mark.parametrize(
    "of_rounds",
    [
        {"model": {"threads": 1}, "machine": {"usable_cores": 4.0, "physical_cores": 4}, "cores_used": [0.99] * 3},
        {"model": T2, "machine": C2, "cores_used": [1.02] * 3, "mbu": [0.2] * 3},
        {**CASES["experts_implementation"][0], "cores_used": [1.0] * 3},
        {"mbu": [0.8] * 3, "step_bytes": 100 * MIB},
        {"decode_throughput": [3.0] * 3},
        {"ttft_s": [2.5] * 3, "decode_throughput": [30.0] * 3, "machine": {"accelerators": ["RTX"]}},
        {**CASES["stalled_on_io"][0], "cpu_utilization": [30.0] * 3},
        {
            "model": {"dtype": "float32"},
            "machine": CASES["faster_dtype"][0]["machine"],
            "mfu": [0.7] * 3,
            "ttft_s": [2.5] * 3,
        },
        {"tpot_s": [1.0, 1.2, 0.8]},
        {"total_s": [3.0, 1.0, 1.0]},
    ],
    ids=range(10),
)
def test_what_only_disturbed_rounds_say_is_no_evidence(of_rounds):
    calm = advised(**of_rounds, rounds=CALM)
    assert calm
    assert advised(**of_rounds, rounds=ALL) <= OF_THE_DISTURBANCE


def test_calm_rounds_speak_for_themselves():
    rounds = {"timed": 3, "disturbed": {"0": ["steal"], "1": ["steal"]}}
    (slow,) = advise([block(decode_throughput=[2.0, 3.0, 4.0], rounds=rounds)])
    assert slow.evidence == "decode 4.00 tok/s"
    assert advised(decode_throughput=[2.0, 3.0, 16.0], rounds=rounds) == set()
    assert advised(decode_throughput=3.0, rounds=ALL) == set()
    # A single round has none beside it: that there should be more is said as well.
    single = advised(decode_throughput=3.0, rounds={"timed": 1, "disturbed": {"0": ["steal"]}})
    assert single == {"slow_decode", "too_few_rounds"}
    # A first round that something else slowed asks for no warm-up.
    assert advised(total_s=[3.0, 1.0, 1.0, 1.0], rounds={"timed": 4, "disturbed": {"0": ["steal"]}}) == {
        "rounds_disturbed"
    }


def test_a_disturbance_does_not_change_how_much_memory_is_taken():
    assert advised(memory_percent=[93.0] * 3, rounds=ALL) == {"memory_full"}
    assert advised(swap_bytes=[MIB] * 3, rounds=ALL) == {"swapping"}
    assert advised(pressure_memory_s=[0.1] * 3, total_s=[1.0] * 3, rounds=ALL) == {"memory_pressure"}
    waited = {"run_queue_wait_s": [0.1] * 3, "cpu_s": [0.9] * 3}
    assert advised(model=T2, machine=C2, **waited, rounds=ALL) == {"crowded_threads"}


@pytest.mark.parametrize("rule", ["slow_dtype", "faster_dtype"])
def test_multiplying_is_no_advice_where_it_is_not_the_limit(rule):
    assert finding(rule, mfu=0.6) is not None
    assert finding(rule, mfu=0.3) is None
    assert finding(rule, mfu=0.0) is None


@pytest.mark.parametrize(
    "shaken", [{"read_bandwidth_spread": 0.41}, {"waited": 0.3}], ids=["reads disagree", "threads waited"]
)
def test_a_probe_that_was_disturbed_is_no_evidence(shaken):
    for rule in ("slow_dtype", "faster_dtype"):
        machine = CASES[rule][0]["machine"]
        assert finding(rule, machine={"probe": {**machine["probe"], **shaken}}) is None
    for rule in ("one_core", "memory_bound", "experts_implementation"):
        assert finding(rule, machine={**C2, "probe": {**PROBE, **shaken}}) is None
    assert "allows" not in finding("slow_decode", machine={"probe": {**PROBE, **shaken}}).evidence


@pytest.mark.parametrize("beaten", [{"mbu": 1.2}, {"mfu": [0.7, 0.8, 1.1]}], ids=["memory", "one round's compute"])
def test_a_probe_that_a_round_beat_is_no_evidence_of_any_kind(beaten):
    for rule in ("slow_dtype", "faster_dtype", "one_core", "experts_implementation"):
        assert finding(rule, **beaten) is None


def test_no_gain_is_promised_that_was_not_measured():
    for case, _, _ in CASES.values():
        for advice in advise([block(**{**case, "mfu": 0.7, "prefill_s": 0.3})]):
            assert "up to" not in f"{advice.suggestion}"
            assert "×" not in f"{advice.suggestion}", "a factor"
    told = finding("faster_dtype", mfu=0.7, prefill_s=0.3, total_s=1.0)
    assert told.evidence == (
        "large matrices multiply with 200 GFLOP/s in bfloat16 and 100 GFLOP/s in float32 here; "
        "prefill reaches 70.0 % of the latter in 30.0 % of the time"
    )


def test_what_is_suggested_can_be_done():
    few = finding("too_few_rounds", tpot_s=[1.0, 1.1, 0.9])
    assert (few.suggestion, "about 17 rounds" in few.evidence) == ("--infer-rounds 17", True)
    # It takes fifteen calm rounds, and of twenty there were twelve.
    disturbed = {"timed": 20, "disturbed": {str(n): ["steal"] for n in range(8)}}
    few = finding("too_few_rounds", tpot_s=[1.0] * 8 + [1.0, 1.11, 0.89] * 4, rounds=disturbed)
    assert (few.suggestion, "from about 15 rounds on" in few.evidence) == ("--infer-rounds 25", True)
    many = finding("too_few_rounds", tpot_s=[1.0, 4.9, 0.2])
    assert many.suggestion == "compare commits with --infer-against"
    assert "by no number of rounds that one would run" in many.evidence
    bound = CASES["memory_bound"][0]
    four = {"machine": {"usable_cores": 4.0}, "model": {"threads": 1}}
    assert "not more threads" in BY_KEY["memory_bound"].find(Facts(block(**bound))).suggestion
    assert "threads" not in BY_KEY["memory_bound"].find(Facts(block(**bound, **four))).suggestion


FOLLOWED = {
    "transformers": ({"engine": "transformers"}, {*OF_ENGINES.values()} - {"server", "engine_args"}),
    "adopted": ({"engine": "transformers", "source": "adopted"}, {"threads", "use_cache", "sampling", "compile"}),
    "llamacpp": ({"engine": "llamacpp"}, {"model", "dtype", "threads", "sampling", "engine_args"}),
    "gguf": ({"engine": "llamacpp", "source": "local file"}, {"model", "threads", "sampling", "engine_args"}),
    "server": ({"engine": "llama-server"}, {"model", "sampling", "server"}),
    "own": ({"engine": "mine"}, set()),
}


@pytest.mark.parametrize("engine", FOLLOWED)
def test_no_option_is_suggested_that_the_engine_does_not_follow(engine):
    model, follows = FOLLOWED[engine]
    suggested = set()
    for case, _, _ in CASES.values():
        run = [block(**{**case, "model": {**case.get("model", {}), **model}})]
        for advice in advise(run):
            suggested |= {*re.findall(r"--infer-([a-z-]+)", advice.suggestion or "")}
    assert {OF_ENGINES[option] for option in suggested if option in OF_ENGINES} <= follows
    # What every engine can be run with is suggested still.
    assert "warmup" in suggested


def test_what_an_engine_of_ones_own_can_do_is_said_without_options():
    own = {"model": {"threads": 2, "engine": "mine"}}
    assert finding("one_core", **own).suggestion == (
        "compare with 1 thread, as the engine lets one set them, which leaves the other cores free"
    )
    assert finding("slow_role", **own).suggestion.endswith("compare what you change with --infer-against")
    assert finding("faster_dtype", model={"dtype": "float32", "engine": "mine"}) is None


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


def test_tests_of_one_prompt_are_told_apart():
    (swap, *_) = advise([block(name=name, swap_bytes=MIB, decode_throughput=30.0) for name in ("a", "b", "a")])
    assert (swap.rule, swap.prompts) == ("swapping", ("t0", "b", "t2"))


def test_there_is_none_on_the_tests_of_a_sweep():
    slow = block(name="a", decode_throughput=4.0, config={"threads": "1"})
    assert advise([slow]) == ()
    (room,) = advise([slow, block(name="b", memory_percent=12.0)])
    assert (room.rule, room.tests) == ("memory_room", 1)


def test_levels_of_load_are_no_prompts():
    level = schema.of_block({"schema": 1, "under_load": {"level": {"kind": "rate", "value": 1.0}}}, schema.WHOLE_BLOCK)
    run = [block(name="a", swap_bytes=MIB, ttft_s=0.1), level, level]
    assert [(a.rule, a.prompts, a.tests) for a in advise(run)] == [
        ("swapping", ("a",), 1),
        ("short_first_token", ("a",), 1),
    ]


def test_a_good_sign_asks_the_tests_that_have_its_evidence():
    run = [block(name="a", decode_throughput=30.0, ttft_s=0.1), block(name="one token", ttft_s=0.2)]
    assert [(a.rule, a.prompts, a.tests) for a in advise(run)] == [
        ("good_decode", ("a",), 1),
        ("short_first_token", ("a", "one token"), 2),
    ]
    assert [a.rule for a in advise([*run, block(name="b", decode_throughput=9.0)])] == ["short_first_token"]
    for key, rule in BY_KEY.items():
        found = rule.find(Facts(block(**CASES[key][0])))
        assert (rule.sign is None) == (found.suggestion is not None)


def piece(rule="r", severity=Severity.INFO, suggestion="do it", evidence="1", prompts=("p",), tests=1):
    return Advice(rule=rule, severity=severity, evidence=evidence, suggestion=suggestion, prompts=prompts, tests=tests)


def test_suggestions_leave_out_good_signs_and_what_warnings_tell():
    given = [piece("rounds_disturbed"), *(piece(f"r{n}") for n in range(5)), piece("good", suggestion=None)]
    plain = ["r0", "r1", "r2", "r3", "r4"]
    assert [a.rule for a in shown.suggestions(given)] == ["rounds_disturbed", *plain]
    assert [a.rule for a in shown.suggestions(given, {WarningKind.DISTURBED})] == plain
    assert shown.suggestions([piece(suggestion=None)]) == ()


def test_what_the_kernel_can_drop_is_said_and_not_planned_for():
    twice = finding("mapped_copy")
    assert "12.4 GiB counts weights twice: 6.70 GiB of the model's mapped files" in twice.evidence
    assert "the 5.20 GiB that the load copied, for a model of 6.99 GiB" in twice.evidence
    assert twice.suggestion.startswith("plan for 5.70 GiB:")
    # Mapped and not copied, copied and not mapped, and a file in shared memory, which cannot be dropped.
    assert finding("mapped_copy", loaded_anon_bytes=0.1 * GIB) is None
    assert finding("mapped_copy", mapped_weights_bytes=0) is None
    assert finding("mapped_copy", peak_file_bytes=0.2 * GIB) is None
    # A small model beside large libraries.
    assert finding("mapped_copy", peak_rss_bytes=60 * GIB) is None


def test_memory_that_is_full_of_what_can_be_dropped_is_a_remark():
    full = {"memory_percent": 95.0, "rss_bytes": 12.4 * GIB}
    dropped = finding("memory_full", **full, peak_file_bytes=6.9 * GIB)
    assert dropped.severity is Severity.INFO
    assert dropped.evidence.endswith(
        "6.90 GiB of that pages of mapped files, which the kernel can drop: without them 42.1 %"
    )
    assert "major_faults" in dropped.suggestion
    kept = finding("memory_full", **full, peak_file_bytes=0.2 * GIB)
    assert (kept.severity, kept.suggestion) == (Severity.WARNING, "a smaller model or dtype")
    assert "205 MiB of that pages of mapped files" in kept.evidence
    assert "mapped" not in finding("memory_full", **full).evidence


def test_lines_are_escaped():
    line = shown.line(piece(evidence="x\x1b[31m", prompts=("\x1b]0;t\a",), tests=2))
    assert line == "info: x\\x1b[31m [\\x1b]0;t\\x07] → do it (r)"


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")
def test_the_table_of_rules_is_that_of_the_code():
    page = (DOCS / "advice.md").read_text(encoding="utf-8")
    table = page.partition("<!-- rules:begin -->\n")[2].partition("<!-- rules:end -->")[0]
    assert table == shown.rules_table(), "run: pytest-infer advice --rules"


# the role that has the most to gain


def test_the_role_is_named_with_its_share_and_its_use():
    found = finding("slow_role")
    assert found.evidence == "experts: 61.0 % of a decode step, at 30.9 % of the machine's bandwidth"
    assert "--infer-experts-implementation" in found.suggestion
    other = finding("slow_role", breakdown=taken_apart(("dense MLP", 0.015, 226_000), ("head", 0.005, 127_000)))
    assert other.evidence.startswith("dense MLP: 75.0 % ")
    # One of an unknown kind, or an engine's own span.
    assert finding("slow_role", breakdown=taken_apart(("My'Blocks", 0.02, 1000))).evidence.startswith(
        "My'Blocks: 100 %"
    )


def test_of_two_slow_roles_it_is_that_with_more_to_gain():
    both = taken_apart(("dense MLP", 0.0102, 300_000), ("experts", 0.0098, 6_000))
    assert finding("slow_role", breakdown=both).evidence.startswith("experts: 49.0 %")


@pytest.mark.parametrize(
    "changed",
    [
        {"breakdown": taken_apart(*STEP, missed=0.002)},  # the parts do not add up
        {"breakdown": taken_apart(*STEP, error=0.0008)},  # steps scattered too much to tell
        {"breakdown": taken_apart(*STEP, missed=None, error=None)},  # nothing tells
        {"breakdown": taken_apart(*STEP, missed=0.0001, error=None)},
        {"tpot_s": 0.012},  # a slow moment: timed rounds were faster
        {"tpot_s": 0.040},
        {"rounds": {"timed": 3, "disturbed": {"1": ["steal"]}}},
        {"machine": {"probe": {**PROBE, "waited": 0.5}}},
        {"mbu": 1.2},
        {"breakdown": taken_apart(("norms", 0.02, None))},  # nothing to hold it against
        {"breakdown": taken_apart(("experts", 0.005, 1000), *((f"r{n}", 0.005, None) for n in range(3)))},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_slow_role_is_not_named_where_that_is_in_doubt(changed):
    assert finding("slow_role", **changed) is None


def test_where_most_of_the_time_is_prefill_its_operations_count():
    prefill = taken_apart(("experts", 0.8, 30e9), ("head", 0.2, 30e9), step_s=1.0, phase="prefill")
    of_both = {**prefill, **taken_apart(*STEP)}
    told = {"breakdown": of_both, "ttft_s": 1.02, "total_s": 1.5, "prefill_s": 1.02, "model": {"dtype": "float32"}}
    found = finding("slow_role", **told, machine={"probe": PROBE})
    assert found.evidence == "experts: 80.0 % of a prefill, at 20.8 % of the machine's GEMM rate"
    assert finding("slow_role", **told) is None  # no probe


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
    told = json.loads(run("--format=json", f"--storage={storage.folder}").output)
    assert {"rule": "slow_decode", "severity": "warning"}.items() <= next(
        a for a in told["advice"] if a["rule"] == "slow_decode"
    ).items()


def test_the_command_prints_the_rules_and_refuses_no_run(storage):
    assert run("--rules").output == shown.rules_table()
    result = run("7", f"--storage={storage.folder}")
    assert result.exit_code == 11
    assert "no run '7'" in result.output
