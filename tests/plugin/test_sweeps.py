"""Sweeps on a scripted engine: which tests there are, in which order, with how many loads, and what is lost by what."""

import json

import pytest

ENGINE = '''
import pathlib

from pytest_infer.engines.base import Engine
from pytest_infer.errors import ModelError, UnknownValueError
from pytest_infer.records import ModelInfo, StopReason

LOG = pathlib.Path("log.txt")


def log(line):
    with LOG.open("a") as file:
        file.write(line + "\\n")


class Scripted(Engine):
    """Writes down what it is asked; its clock goes by what it was told: bfloat16 and threads make it faster."""

    alive = 0

    def __init__(self, options):
        self.options = options
        self.loaded = False

    def check(self):
        if self.options.dtype == "int3":
            raise UnknownValueError("unknown dtype 'int3'; known: float32, bfloat16")
        if self.options.dtype == "float16" and self.options.experts_implementation == "fast":
            raise ModelError("fast experts are not for float16")

    def load(self):
        assert Scripted.alive == 0, "two models at once"
        log(f"load {self.options.model} {self.options.dtype} {self.options.experts_implementation}")
        if self.options.dtype == "broken":
            raise ModelError("the weights are torn")
        if self.options.dtype == "huge":
            raise MemoryError
        Scripted.alive += 1
        self.loaded = True
        return self.describe()

    def describe(self):
        return ModelInfo(name=self.options.model, engine="scripted", dtype=self.options.dtype,
                         threads=self.options.threads, generation={"use_cache": self.options.use_cache})

    def adapt(self, options):
        log(f"adapt threads={options.threads} cache={options.use_cache}")
        self.options = options
        return self.describe()

    def weights_sha256(self):
        return "abc"

    def batches(self):
        return True

    def context_length(self):
        return 100

    def encode(self, prompt):
        return list(range(1, len(prompt.text.split()) + 1))

    def decode(self, token_ids):
        return "text"

    def generate(self, prompt_ids, limits, clock):
        if self.options.dtype == "bursting" and len(prompt_ids) == 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: "
                               "you tried to allocate 8 bytes.")
        step = 1_000_000 // (self.options.threads or 1) // (2 if self.options.dtype == "bfloat16" else 1)
        self.now = clock._start_ns
        clock._now = lambda: self.now
        for number in range(limits.max_new_tokens):
            self.now += len(prompt_ids) * step if number == 0 else step + number
            clock.tick([number + 1])
        return StopReason.LENGTH

    def close(self):
        if self.loaded:
            log("close")
            self.loaded = False
            Scripted.alive -= 1
'''

SUITE = """
[defaults]
max_new_tokens = 4

[[prompt]]
name = "first"
text = "one two three"

[[prompt]]
name = "second"
text = "four five"
"""

TEST = "def test_prompt(infer, prompt):\n    infer(prompt)\n"
QUICK = ("--infer-engine=scripted", "--infer-rounds=2", "--infer-warmup=0", "--infer-no-profile")


@pytest.fixture
def swept(pytester):
    """A suite of two prompts on an engine that is installed as another distribution."""
    pytester.makepyfile(scripted_engine=ENGINE, test_suite=TEST)
    pytester.path.joinpath("prompts.toml").write_text(SUITE, encoding="utf-8")
    info = pytester.mkdir("scripted-1.0.dist-info")
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[pytest_infer.engines]\nscripted = scripted_engine:Scripted\n")
    pytester.syspathinsert()
    return pytester


def run(pytester, *args):
    return pytester.runpytest(*QUICK, *args)


def log(pytester):
    path = pytester.path / "log.txt"
    return path.read_text().splitlines() if path.exists() else []


def loads(pytester):
    return [line for line in log(pytester) if line.startswith("load")]


def blocks(pytester):
    path = max(pytester.path.glob(".benchmarks/*/*.json"))  # their names begin with a number
    rows = json.loads(path.read_text())["benchmarks"]
    return {
        row["fullname"].partition("::")[2]: row["extra_info"]["pytest_infer"]
        for row in rows
        if row["params"]["phase"] == "total"
    }


def unwrapped(result):
    return " ".join(result.stdout.str().split())


def order(result):
    return [line.split("::")[1].split()[0] for line in result.stdout.lines if "PASSED" in line]


def refused(result, *said):
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str()
    lines = [line for line in result.stderr.lines if line.startswith("ERROR: ")]
    assert len(lines) == 1
    for part in said:
        assert part in lines[0]


# which tests, in which order, with which loads


def test_a_dtype_is_stored_by_its_one_name_whatever_it_was_called(swept):
    swept.makeini("[pytest]\ninfer_dtype = Half\ninfer_sweep =\n    dtype=bf16,FP32\n")
    run(swept, "-v", "--benchmark-autosave").assert_outcomes(passed=4)
    assert {one["config"]["dtype"] for one in blocks(swept).values()} == {"bfloat16", "float32"}
    assert {one["model"]["dtype"] for one in blocks(swept).values()} == {"bfloat16", "float32"}
    twice = run(swept, "--infer-sweep=dtype=bf16,bfloat16")
    assert twice.ret == 4
    twice.stderr.fnmatch_lines(["*dtype takes different values*"])


def test_the_product_becomes_tests_and_each_model_is_loaded_once(swept):
    result = run(
        swept, "-v", "--benchmark-autosave", "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16",
        "--infer-order=sequential",
    )  # fmt: skip
    result.assert_outcomes(passed=8)
    assert order(result) == [
        f"test_prompt[{prompt}-threads={threads}-dtype={dtype}]"
        for dtype in ("float32", "bfloat16")
        for threads in (1, 2)
        for prompt in ("first", "second")
    ]
    assert log(swept) == [
        "load reference-moe float32 None",
        "adapt threads=1 cache=True",
        "adapt threads=2 cache=True",
        "adapt threads=1 cache=True",  # back to the first test, for the drift
        "close",
        "load reference-moe bfloat16 None",
        "adapt threads=1 cache=True",
        "adapt threads=2 cache=True",
        "adapt threads=1 cache=True",
        "close",
    ]
    block = blocks(swept)["test_prompt[first-threads=2-dtype=bfloat16]"]
    assert block["config"] == {"threads": "2", "dtype": "bfloat16"}
    assert block["prompt"]["name"] == "first"
    assert block["model"]["threads"] == 2
    assert block["model"]["dtype"] == "bfloat16"
    # What loading told is kept when the model goes on with other threads.
    assert block["model"]["weights_sha256"] == "abc"
    assert block["model"]["load_s"] > 0


def test_the_ini_file_sweeps_too(swept):
    swept.makeini("[pytest]\ninfer_sweep =\n    threads=1,2\n    cache=on,off\n")
    result = run(swept, "-v")
    result.assert_outcomes(passed=8)
    assert len(loads(swept)) == 1
    assert "test_prompt[second-threads=2-cache=off]" in order(result)


def test_interleaved_goes_prompt_by_prompt_and_another_begins_each_time(swept):
    result = run(swept, "-v", "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    assert order(result) == [
        f"test_prompt[{prompt}-threads={threads}-dtype={dtype}]"
        for dtype in ("float32", "bfloat16")
        for prompt, threads in (("first", 1), ("first", 2), ("second", 2), ("second", 1))
    ]
    assert len(loads(swept)) == 2


def test_a_node_id_selects_and_k_takes_a_colon(swept):
    sweep = ("--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    result = run(swept, "test_suite.py::test_prompt[first-threads=2-dtype=bfloat16]", *sweep)
    result.assert_outcomes(passed=1)
    assert loads(swept) == ["load reference-moe bfloat16 None"]
    run(swept, "-k", "threads:2 and dtype:float32 and second", *sweep).assert_outcomes(passed=1, deselected=7)


def test_lengths_need_no_reload_and_are_what_was_asked_for(swept):
    result = run(swept, "--benchmark-autosave", "--infer-sweep=prompt-tokens=1,5", "--infer-sweep=max-new-tokens=2,3")
    result.assert_outcomes(passed=8)
    assert log(swept) == ["load reference-moe auto None", "close"]
    block = blocks(swept)["test_prompt[first-prompt-tokens=5-max-new-tokens=3]"]
    assert block["metrics"]["prompt_tokens"]["value"] == 5
    assert block["metrics"]["generated_tokens"]["value"] == 3
    assert block["curve"] == {"axis": "prompt_tokens", "value": 5}


def test_a_batch_reports_the_rate_of_one_sequence_and_of_all(swept):
    run(swept, "--benchmark-autosave", "--infer-sweep=batch=1,4").assert_outcomes(passed=4)
    found = blocks(swept)
    one, four = (found[f"test_prompt[first-batch={n}]"] for n in (1, 4))
    assert four["prompt"]["limits"]["batch"] == 4
    assert "batch" not in one["prompt"]["limits"]
    rate = four["metrics"]["decode_throughput"]["value"]
    assert rate == one["metrics"]["decode_throughput"]["value"]
    assert four["metrics"]["total_decode_throughput"]["value"] == 4 * rate
    prefill = four["metrics"]["prefill_throughput"]["value"]
    assert four["metrics"]["total_prefill_throughput"]["value"] == 4 * prefill
    assert one["absent"]["total_decode_throughput"] == "one sequence at a time: its own rate is the total"


@pytest.mark.parametrize(("given", "said"), [("2", "2"), ("1", None)])
def test_batch_is_an_option_too(swept, given, said):
    run(swept, "--benchmark-autosave", f"--infer-batch={given}").assert_outcomes(passed=2)
    limits = blocks(swept)["test_prompt[first]"]["prompt"]["limits"]
    assert limits.get("batch") == (None if said is None else int(said))


def test_an_engine_without_batches_refuses_them(suite):
    pytester = suite(engine="Scripted.delays = [0.0] * 3")
    result = pytester.runpytest("--infer-batch=2")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*this engine runs one sequence at a time*"])


def test_what_pytest_benchmark_keeps_as_parameters(swept):
    run(swept, "--benchmark-autosave", "--infer-sweep=threads=1,2")
    (path,) = swept.path.glob(".benchmarks/*/*.json")
    params = [row["params"] for row in json.loads(path.read_text())["benchmarks"]]
    assert {"prompt": "first", "threads": "2", "phase": "total"} in params
    assert all(set(given) == {"prompt", "threads", "phase"} for given in params)


def test_a_test_that_measures_nothing_is_not_multiplied(swept):
    swept.makepyfile(test_suite=TEST + "def test_plain(engine):\n    pass\n")
    run(swept, "--infer-sweep=threads=1,2").assert_outcomes(passed=5)


def test_a_test_may_ask_what_it_is_measured_with(swept):
    swept.makepyfile(
        test_suite="def test_it(infer, infer_configuration):\n"
        "    infer('one two')\n"
        "    assert infer_configuration.values['threads'] in ('1', '2')\n"
    )
    run(swept, "--infer-sweep=threads=1,2").assert_outcomes(passed=2)


# drift between loads


COUNTED = "self.calls = getattr(self, 'calls', 0) + 1\n        step = self.calls * 1_000_000"
SLOWER = ENGINE.replace("step = 1_000_000", COUNTED)
"""An engine that takes n times as long for its nth generation as for its first."""


def test_the_first_test_of_a_load_is_measured_again_after_its_last(swept):
    swept.makepyfile(scripted_engine=SLOWER)
    result = run(swept, "--benchmark-autosave", "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    result.assert_outcomes(passed=8)
    found = {name: block["drift"] for name, block in blocks(swept).items() if "drift" in block}
    last = [f"test_prompt[second-threads=1-dtype={dtype}]" for dtype in ("float32", "bfloat16")]
    assert list(found) == last
    for name, dtype in zip(last, ("float32", "bfloat16"), strict=True):
        assert found[name]["test"] == f"test_suite.py::test_prompt[first-threads=1-dtype={dtype}]"
        assert found[name]["apart_s"] > 0
        # Calls 9 and 10 after calls 1 and 2, the first of each left out: without a warm-up it is not like the others.
        # The time to the first token is 3 steps, each as long as the call's number.
        assert found[name]["ratios"]["ttft_s"] == pytest.approx(10 / 2, rel=1e-4)
        # Each gap has some nanoseconds beside its step.
        assert found[name]["ratios"]["decode_throughput"] == pytest.approx(2 / 10, rel=1e-4)
    # The test that it is told with has its own rounds only.
    assert blocks(swept)[last[0]]["rounds"]["timed"] == 2
    told = "drift: the first test of each load, again after its last: decode -80.0 %; intervals between loads hold it"
    assert told in unwrapped(result)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        # One load: its configurations are measured in turns, and nothing lies between.
        (["threads=1,2"], False),
        # One test a load: going back to it at once would tell nothing.
        (["dtype=float32,bfloat16"], True),
    ],
)
def test_where_there_is_no_drift_to_measure(swept, sweep, said):
    swept.path.joinpath("prompts.toml").write_text(SUITE.partition('[[prompt]]\nname = "second"')[0], encoding="utf-8")
    result = run(swept, "--benchmark-autosave", *(f"--infer-sweep={axis}" for axis in sweep))
    result.assert_outcomes(passed=2)
    assert not any("drift" in block for block in blocks(swept).values())
    assert ("drift between loads was not measured: no interval holds it" in unwrapped(result)) == said


@pytest.mark.parametrize("error", ["RuntimeError", "ConnectionError", "KeyError"])
def test_a_failure_while_going_back_costs_nothing_but_the_drift(swept, error):
    # Each load has four tests of two rounds.
    torn = f"        if self.calls > 8:\n            raise {error}('torn')\n"
    swept.makepyfile(scripted_engine=SLOWER.replace("        self.now = clock", f"{torn}        self.now = clock"))
    result = run(swept, "--benchmark-autosave", "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    result.assert_outcomes(passed=8)
    assert len(blocks(swept)) == 8
    first = "test_suite.py::test_prompt[first-threads=1-dtype=float32]"
    assert f"! drift was not measured: {first} failed when it was measured again: " in unwrapped(result)


def test_an_interrupt_while_going_back_leaves_the_last_test_to_resume(swept):
    stop = "        if self.calls > 8:\n            raise KeyboardInterrupt\n"
    swept.makepyfile(scripted_engine=SLOWER.replace("        self.now = clock", f"{stop}        self.now = clock"))
    sweep = ("--benchmark-autosave", "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    result = swept.runpytest_subprocess(*QUICK, *sweep)
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    swept.makepyfile(scripted_engine=SLOWER)
    before = len(loads(swept))
    result = run(swept, "--infer-resume", *sweep)
    result.assert_outcomes(passed=8)
    # All four tests of the first load were kept.
    assert loads(swept)[before:] == ["load reference-moe bfloat16 None"]
    told = "! part of this sweep was measured by an earlier run: no interval holds what changed since then"
    assert told in unwrapped(result)
    assert not any("drift" in block for block in blocks(swept).values())


def test_the_drift_of_a_load_is_kept_for_a_run_that_goes_on(swept):
    last = "prompt.name == 'second' and infer_configuration.values['dtype'] == 'bfloat16'"
    test = f"def test_prompt(infer, prompt, infer_configuration):\n    if {last}:\n        raise KeyboardInterrupt\n"
    swept.makepyfile(test_suite=f"{test}    infer(prompt)\n")
    sweep = ("--benchmark-autosave", "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    swept.runpytest_subprocess(*QUICK, *sweep)
    swept.makepyfile(test_suite=TEST)
    run(swept, "--infer-resume", *sweep).assert_outcomes(passed=8)
    drifts = [block["drift"]["test"] for block in blocks(swept).values() if "drift" in block]
    assert drifts == ["test_suite.py::test_prompt[first-threads=1-dtype=float32]"]
    # The test that was kept twice, without its drift and with it, is there once.
    assert len(blocks(swept)) == 8


def test_nothing_is_gone_back_to_where_nothing_is_measured(swept):
    sweep = ("--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16", "--infer-order=sequential")
    result = run(swept, "--benchmark-disable", *sweep)
    result.assert_outcomes(passed=8)
    # From the last test, with two threads, there was no way back to one.
    assert [line for line in log(swept) if line.startswith("adapt")] == [
        "adapt threads=1 cache=True", "adapt threads=2 cache=True",
        "adapt threads=1 cache=True", "adapt threads=2 cache=True",
    ]  # fmt: skip


def test_each_length_is_measured_with_every_configuration_in_turns(swept):
    result = run(swept, "-v", "--infer-sweep=threads=1,2", "--infer-sweep=prompt-tokens=4,8")
    assert order(result) == [
        f"test_prompt[{prompt}-threads={threads}-prompt-tokens={tokens}]"
        for tokens in (4, 8)
        for prompt, turns in (("first", (1, 2)), ("second", (2, 1)))
        for threads in turns
    ]


def test_a_curve_measures_each_length_with_every_configuration_in_turns(swept):
    result = run(swept, "-v", "--infer-curve=4,8,16", "--infer-sweep=threads=1,2")
    assert order(result) == [
        f"test_prompt[first-threads={threads}-prompt-tokens={tokens}]"
        for tokens, turns in ((4, (1, 2)), (8, (2, 1)), (16, (1, 2)))
        for threads in turns
    ]


def test_an_engine_that_cannot_switch_is_refused_before_it_loads(swept):
    swept.makepyfile(scripted_engine=ENGINE.replace("    def adapt(self", "    def other(self"))
    result = run(swept, "--infer-sweep=threads=1,2")
    refused(result, "threads=1: this engine cannot change threads or the cache of a loaded model; sweep other axes")
    assert loads(swept) == []


def test_the_option_to_use_names_a_folder_as_it_was_given(swept):
    result = run(swept, "--infer-sweep=model=somewhere/one,elsewhere/two", "--infer-sweep=dtype=bfloat16")
    assert "use the best decode: --infer-model somewhere/one --infer-dtype bfloat16" in unwrapped(result)


# what is lost by what


def test_a_configuration_that_cannot_be_loaded_costs_no_other(swept):
    result = run(swept, "--benchmark-autosave", "--infer-sweep=dtype=float32,broken,bfloat16")
    result.assert_outcomes(passed=4, failed=2)
    assert loads(swept) == [f"load reference-moe {dtype} None" for dtype in ("float32", "broken", "bfloat16")]
    assert {block["config"]["dtype"] for block in blocks(swept).values()} == {"float32", "bfloat16"}
    assert len([line for line in result.stdout.lines if line.startswith("the weights are torn")]) == 2
    assert "Traceback" not in result.stdout.str()


@pytest.mark.parametrize(
    ("dtype", "failed", "line"),
    [("huge", 2, "out of memory: MemoryError"), ("bursting", 1, "out of memory: [[]enforce*")],
)
def test_a_configuration_without_memory_costs_no_other(swept, dtype, failed, line):
    result = run(swept, "--benchmark-autosave", f"--infer-sweep=dtype=float32,{dtype},bfloat16")
    result.assert_outcomes(passed=6 - failed, failed=failed)
    result.stdout.fnmatch_lines([line])
    assert len(blocks(swept)) == 6 - failed
    assert loads(swept)[-1] == "load reference-moe bfloat16 None"


def test_another_runtime_error_is_shown_as_it_is(swept):
    swept.makepyfile(scripted_engine=ENGINE.replace("can't allocate memory", "something else"))
    result = run(swept, "--infer-sweep=dtype=bursting")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E * RuntimeError: *something else*"])


def test_an_interrupted_sweep_goes_on_where_it_was(swept):
    last = "prompt.name == 'second' and infer_configuration.values['threads'] == '1'"
    stop = f"if {last}:\n        raise KeyboardInterrupt\n"
    test = f"def test_prompt(infer, prompt, infer_configuration):\n    {stop}    infer(prompt)\n"
    swept.makepyfile(test_suite=test)
    # In a process of its own: an interrupt would end this one too.
    result = swept.runpytest_subprocess(*QUICK, "--benchmark-autosave", "--infer-sweep=threads=1,2")
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    swept.makepyfile(test_suite=TEST)
    before = len(log(swept))
    result = run(swept, "--benchmark-autosave", "--infer-resume", "--infer-sweep=threads=1,2")
    result.assert_outcomes(passed=4)
    # One prompt of one configuration was left to measure.
    assert log(swept)[before:] == ["load reference-moe auto None", "adapt threads=1 cache=True", "close"]


def test_impossible_combinations_are_skipped_before_anything_is_loaded(swept):
    result = run(swept, "-rs", "--infer-sweep=dtype=float32,float16", "--infer-sweep=experts=eager,fast")
    result.assert_outcomes(passed=6, skipped=2)
    result.stdout.fnmatch_lines(["*fast experts are not for float16*"])
    result.stdout.fnmatch_lines(["not run: dtype=float16 experts=fast: fast experts are not for float16"])
    assert len(loads(swept)) == 3


def test_compile_without_a_cache_is_skipped(swept):
    result = run(swept, "--infer-sweep=compile=on,off", "--infer-sweep=cache=on,off")
    result.assert_outcomes(passed=6, skipped=2)
    result.stdout.fnmatch_lines(["not run: compile=on cache=off: compile needs the KV cache"])


def test_a_length_beyond_the_context_is_skipped(swept):
    result = run(swept, "--infer-sweep=prompt-tokens=50,97")
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["not run: prompt-tokens=97: *97 tokens and 4 new ones do not fit", "*context of 100*"])


def test_a_sweep_of_which_nothing_can_be_run_is_refused(swept):
    refused(run(swept, "--infer-sweep=dtype=float16", "--infer-sweep=experts=fast"), "fast experts are not for float16")


OF_THE_BUNDLED_MODEL = """
from pytest_infer.engines import models
from pytest_infer.engines.checkpoint import source
Scripted.checkpoint = lambda self: source.of_folder(
    models.local_folder(models.resolve("reference-moe", print), None)
)
"""


def test_too_little_memory_skips_a_configuration_when_it_is_to_be_strict(swept, monkeypatch):
    # Asked of the files' headers: those of the bundled model, which takes 14 MB in float32 and half of it in bfloat16.
    from pytest_infer.measure.machine import host

    monkeypatch.setattr(host, "available_bytes", lambda: 12 << 20)
    swept.makepyfile(scripted_engine=ENGINE + OF_THE_BUNDLED_MODEL)
    sweep = "--infer-sweep=dtype=float32,bfloat16"
    result = swept.runpytest_inprocess(*QUICK, "--infer-strict-memory", sweep)
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["not run: dtype=float32: reference-moe in float32 takes 1*"])
    assert loads(swept) == ["load reference-moe bfloat16 None"]


def test_too_little_memory_for_one_batch_leaves_the_others(swept, monkeypatch):
    from pytest_infer.measure.machine import host

    monkeypatch.setattr(host, "available_bytes", lambda: 64 << 20)
    swept.makepyfile(scripted_engine=ENGINE + OF_THE_BUNDLED_MODEL)
    result = swept.runpytest_inprocess(
        *QUICK, "--infer-strict-memory", "--infer-sweep=dtype=float32", "--infer-sweep=batch=1,100000"
    )
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["not run: dtype=float32 batch=100000: reference-moe in float32 takes *"])
    assert loads(swept) == ["load reference-moe float32 None"]


# what is refused


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("threads", "takes AXIS=VALUE,VALUE, not 'threads'"),
        ("speed=1", "unknown axis 'speed'; known: attention, batch"),
        ("threads=", "threads takes different values"),
        ("threads=1,,2", "threads takes different values"),
        ("threads=1,1", "threads takes different values"),
        ("threads=2,02", "threads takes different values"),
        pytest.param(f"threads={'9' * 5000}", "threads takes whole numbers", id="endless"),
        ("threads=0", "threads takes whole numbers of 1 or more, not '0'"),
        ("threads=two", "threads takes whole numbers of 1 or more, not 'two'"),
        ("threads=99999", "threads must be 4096 or less"),
        ("batch=-1", "batch takes whole numbers"),
        ("cache=maybe", "cache: unknown value 'maybe'; known: off, on"),
        ("dtype=float32,int3", "unknown dtype 'int3'"),
        ("dtype=a\x1bb", "printable text"),
    ],
    ids=lambda value: value.replace("\x1b", "ESC") if "=" in value else "",
)
@pytest.mark.parametrize("way", ["command line", "ini"])
def test_a_wrong_value_is_one_line_before_anything_is_loaded(swept, way, sweep, said):
    if way == "ini":
        swept.makeini(f"[pytest]\ninfer_sweep = {sweep}\n")
    refused(run(swept, *([f"--infer-sweep={sweep}"] if way == "command line" else [])), "infer", said)
    assert not log(swept)


def test_an_axis_is_given_once(swept):
    refused(run(swept, "--infer-sweep=threads=1", "--infer-sweep=threads=2"), "threads is swept twice")


def test_too_many_combinations_are_a_typing_error(swept):
    many = ",".join(map(str, range(1, 33)))
    refused(run(swept, f"--infer-sweep=threads={many}", f"--infer-sweep=batch={many}"), "more than 1000")


def test_an_engine_of_ones_own_decides_itself(suite):
    refused(suite().runpytest("--infer-sweep=threads=1,2"), "threads", "`engine` fixture", "test_suite.py::test_prompt")


def test_an_engine_of_ones_own_is_swept_over_lengths(suite):
    suite().runpytest("--infer-sweep=max-new-tokens=1,2").assert_outcomes(passed=4)


def test_a_model_of_ones_own_can_be_swept_over_threads_and_not_over_dtypes(swept):
    swept.makeconftest(
        "import pytest\n@pytest.fixture(scope='session')\ndef model(engine):\n    return engine.load()\n"
    )
    run(swept, "--infer-sweep=threads=1,2").assert_outcomes(passed=4)
    assert len(loads(swept)) == 1
    refused(run(swept, "--infer-sweep=dtype=float32,bfloat16"), "dtype", "`model` fixture")


# what it says at the end


def test_the_end_recommends_a_configuration_and_the_options_for_it(swept):
    result = run(swept, "--infer-sweep=threads=1,2", "--infer-sweep=dtype=float32,bfloat16")
    text = " ".join(result.stdout.str().split())
    # Steps of 1 ms / threads, halved by bfloat16, and a few nanoseconds: four times the rate, the same in all rounds.
    assert "best decode: threads=2 dtype=bfloat16, 4000 tok/s, 4.00× as fast as threads=1 dtype=float32" in text
    assert "best TTFT: threads=2 dtype=bfloat16, 612 µs, 4.00× as fast as threads=1" in text
    assert "use the best decode: --infer-threads 2 --infer-dtype bfloat16" in text
    # The table of prompts is for -v: what a sweep is for is its configurations.
    assert "in+out" not in text
    assert "in+out" in run(swept, "-v", "--infer-sweep=threads=1,2").stdout.str()


def test_what_many_tests_of_a_sweep_share_is_counted_and_not_listed(swept):
    # Every round generates other tokens.
    calls = "    calls = 0\n\n    def generate"
    again = ENGINE.replace("    def generate", calls).replace(
        "clock.tick([number + 1])", "clock.tick([Scripted.calls])"
    )
    swept.makepyfile(scripted_engine=again.replace("        step =", "        Scripted.calls += 1\n        step ="))
    text = " ".join(run(swept, "--infer-sweep=threads=1,2").stdout.str().split())
    assert "! output differs between rounds in 4 of 4 tests. first [threads=1]: round 2 differs" in text


def test_a_sweep_over_lengths_alone_recommends_nothing(swept):
    text = run(swept, "--infer-sweep=max-new-tokens=2,3").stdout.str()
    assert "best decode" not in text
    assert text.count("in+out") == 2


@pytest.mark.parametrize("way", ["command line", "ini"])
def test_a_curve_is_measured_with_the_longest_prompt(swept, way):
    args = ["--infer-curve"]
    if way == "ini":
        swept.makeini("[pytest]\ninfer_curve = 16..context\n")
        args = []
    result = run(swept, "-v", "--benchmark-autosave", *args)
    # The context of 100 has room for 96 and the 4 new tokens of the suite.
    assert order(result) == [f"test_prompt[first-prompt-tokens={n}]" for n in (16, 32, 64, 96)]
    found = blocks(swept)
    assert [block["curve"]["value"] for block in found.values()] == [16, 32, 64, 96]
    assert [block["metrics"]["prompt_tokens"]["value"] for block in found.values()] == [16, 32, 64, 96]
    assert all(block["prompt"]["limits"]["ignore_eos"] for block in found.values())
    assert len(loads(swept)) == 1
    result.stdout.fnmatch_lines(["by prompt length: first", "*no fit of TTFT: 4 lengths, and it takes 5"])


def test_a_curve_for_each_configuration_of_a_sweep(swept):
    result = run(swept, "--infer-curve=8..40", "--infer-sweep=dtype=float32,bfloat16")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["by prompt length: first dtype=float32", "by prompt length: first dtype=bfloat16"])
    assert len(loads(swept)) == 2


def test_a_curve_to_the_context_needs_an_engine_that_is_known_before(suite):
    text = suite().runpytest("--infer-curve").stdout.str()
    assert "the model's context is not known; give the lengths (16..1024) or --infer-context N" in text
    suite().runpytest("--infer-curve=1..4").assert_outcomes(passed=3)


def test_a_curve_and_a_prompt_length_contradict_each_other(swept):
    refused(run(swept, "--infer-curve", "--infer-prompt-tokens=4"), "--infer-curve", "--infer-prompt-tokens")
    refused(run(swept, "--infer-curve", "--infer-sweep=prompt-tokens=1,2"), "--infer-curve", "prompt-tokens")
