"""Every option: on the command line, as an ini key, what it does, and the one line for each bad value."""

import json
import re
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.compare.ending import Ending
from pytest_infer.cli.main import app
from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.errors import OptionError
from pytest_infer.measure.load.workload import Synthetic
from pytest_infer.pytest_face import saving
from pytest_infer.pytest_face.options import OPTIONS
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.pytest_face.sweep.lengths import Lengths
from pytest_infer.records import Arrivals, Level, LevelKind, Objectives

NAMES = {option.name: option for option in OPTIONS}

SERVER = {"url": None, "command": None, "cache": "bust", "kind": None, "pids": [], "timeout_s": 600.0, "flags": ""}
ENGINE_VALUES = {
    # option: (given, EngineOptions field, what the engine is told)
    "model": ("someone/model", "model", "someone/model"),
    "revision": ("v1.2", "revision", "v1.2"),
    "dtype": ("bfloat16", "dtype", "bfloat16"),
    "device": ("cuda:1", "device", "cuda:1"),
    "threads": ("3", "threads", 3),
    "experts-implementation": ("grouped_mm", "experts_implementation", "grouped_mm"),
    "attention": ("sdpa", "attention", "sdpa"),
    "no-cache": (True, "use_cache", False),
    "sample": (
        "temperature=0.7, top_p=0.9,seed=3",
        "sampling",
        {"temperature": 0.7, "top_p": 0.9, "seed": 3},
    ),
    "compile": (True, "compile", True),
    "trust-remote-code": (True, "trust_remote_code", True),
    "quantization": ("int8", "quantization", "int8"),
    "server": ("http://host:80/v1", "server", {**SERVER, "url": "http://host:80"}),
    "serve": ("s {model} {port}", "server", {**SERVER, "command": "s {model} {port}"}),
    "cache": ("warm", "server", {**SERVER, "cache": "warm"}),
    "serve-flags": (
        "-t 2",
        "server",
        {**SERVER, "command": "s {model} {port}", "flags": "-t 2"},
    ),
    "server-kind": ("vllm", "server", {**SERVER, "kind": "vllm"}),
    "server-pid": ("4711, 4712", "server", {**SERVER, "pids": [4711, 4712]}),
    "server-timeout": ("2min", "server", {**SERVER, "timeout_s": 120.0}),
    "engine-args": ("-ctk q8_0", "engine_args", "-ctk q8_0"),
}
"""What only the engine uses."""

RUN_VALUES = {
    # option: (given, Settings field, parsed)
    "engine": ("other", "engine", "other"),
    "max-new-tokens": ("2", "max_new_tokens", 2),
    "ignore-eos": (True, "ignore_eos", True),
    "cold-load": (True, "cold_load", True),
    "rounds": ("2", "rounds", 2),
    "turns": ("round", "turns", "round"),
    "launches": ("3", "launches", 3),
    "time": ("1.5min", "time_s", 90.0),
    "warmup": ("0", "warmup", 0),
    "experts": ("off", "experts", False),
    "timeline": ("off", "timeline", False),
    "breakdown": ("ops", "breakdown", "ops"),
    "advice": (True, "advice", True),
    "no-profile": (True, "profile", False),
    "no-probe": (True, "probe", False),
    "repeat-disturbed": ("7", "repeat_disturbed", 7),
    "resume": (True, "resume", True),
    "report": ("out/report.html", "report", Path("out/report.html")),
    "strict-memory": (True, "strict_memory", True),
    "inconclusive": ("pass", "ending", Ending(passes_doubt=True)),
    "exit": ("plain", "ending", Ending()),
    "accepted": ("bench/own.toml", "accepted", Path("bench/own.toml")),
    "gate": ("ttft:5%", "gate", rules.parse(["ttft:5%"])),
    "baseline": ("baseline:main", "baseline", "baseline:main"),
    "allow-different": ("torch, software", "allow_different", ("torch", "software")),
    "against": ("self", "against", "self"),
    "against-python": ("python3", "against_python", "python3"),
    "against-sequential": (True, "against_sequential", True),
    "against-server": ("http://other:81/v1", "other_server", ("server", "http://other:81")),
    "against-serve": ("t {model} {port}", "other_server", ("serve", "t {model} {port}")),
    "min-pairs": ("4", "min_pairs", 4),
    "max-rounds": ("8", "max_rounds", 8),
    "context": ("100", "context", 100),
    "batch": ("4", "batch", 4),
    "prompt-tokens": ("16", "prompt_tokens", 16),
    "sweep": ("threads=1, 2", "sweep", (("threads", ("1", "2")),)),
    "order": ("sequential", "interleaved", False),
    "curve": ("16..64", "curve", Lengths(shortest=16, longest=64)),
    "load": ("rate=1:constant", "load", (Level(kind=LevelKind.RATE, value=1.0, arrivals=Arrivals.CONSTANT),)),
    "slo": ("ttft=500ms", "objectives", Objectives(ttft_s=0.5)),
    "load-requests": ("10", "load_requests", 10),
    "load-limit": ("2min", "load_limit_s", 120.0),
    "load-data": (
        "prompt_tokens=8,output_tokens=4",
        "load_data",
        Synthetic(counts={"prompt_tokens": 8, "output_tokens": 4}),
    ),
    "prompts": ("suites/mine.toml", "prompts", Path("suites/mine.toml")),
    "replay": ("baseline:main", "replay", "baseline:main"),
    "text": ("texts/mine.txt", "text", Path("texts/mine.txt")),
}
"""What the harness uses itself."""

NEEDS = {
    **{name: ["--infer-serve=s {model} {port}"] for name in ("against-server", "against-serve", "serve-flags")},
    "baseline": ["--infer-gate"],
}
"""What makes sense only beside another option."""

BOTH_WAYS = pytest.mark.parametrize("way", ["command line", "ini"])

RECORDING_ENGINE = """
import dataclasses
import json
import pathlib

from pytest_infer.engines.base import Engine
from pytest_infer.records import ModelInfo


class Told(Engine):
    def __init__(self, options):
        told = dataclasses.asdict(dataclasses.replace(options, progress=None))
        pathlib.Path("told.json").write_text(json.dumps(told))

    def load(self):
        return ModelInfo(name="told", engine="told")

    def encode(self, prompt):
        return [1]

    def decode(self, token_ids):
        return "text"

    def generate(self, prompt_ids, limits, clock):
        clock.tick([5])
"""


def give(pytester, way, name, value):
    """Return the arguments for an option; as an ini key there are none."""
    option = NAMES[name]
    beside = NEEDS.get(name, [])
    if way == "command line":
        return [*beside, option.command_line if value is True else f"{option.command_line}={value}"]
    pytester.makeini(f"[pytest]\n{option.key} = {'true' if value is True else value}\n")
    return beside


def settings_of(pytester, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_ADDOPTS", raising=False)
        return Settings.from_config(pytester.parseconfig(*args))


@pytest.fixture
def installed_engine(pytester):
    """An engine that is installed as another distribution, and tells what it was told."""
    pytester.makepyfile(told_engine=RECORDING_ENGINE, test_it="def test_it(infer):\n    infer('one')\n")
    info = pytester.mkdir("told-1.0.dist-info")
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: told\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[pytest_infer.engines]\ntold = told_engine:Told\n")
    pytester.syspathinsert()
    return pytester


def rows_of(pytester):
    (path,) = pytester.path.glob(".benchmarks/*/*.json")
    rows = json.loads(path.read_text())["benchmarks"]
    return {row["fullname"]: row["extra_info"]["pytest_infer"] for row in rows if row["params"]["phase"] == "total"}


def block_of(pytester):
    return rows_of(pytester)["test_suite.py::test_prompt[first]"]


def test_every_option_is_tested_here():
    assert set(ENGINE_VALUES) | set(RUN_VALUES) == set(NAMES)
    assert not set(ENGINE_VALUES) & set(RUN_VALUES)


def test_every_setting_is_part_of_what_resuming_compares_or_changes_no_figure():
    # Of the engine's options, the limits and the prompt all is; of the settings what _MATTER names.
    changes_none = """prompts engine_options given context cold_load max_new_tokens ignore_eos advice probe
        strict_memory resume report gate gate_asked accepted accepts ending baseline allow_different against
        against_python against_sequential other_server turns launches time_s min_pairs max_rounds batch sweep
        interleaved curve load objectives load_requests load_limit_s load_data"""
    # What concerns load is part of the hash of a level, but for when it is given up.
    named = {*saving._MATTER, *changes_none.split()}
    assert named == set(Settings.__dataclass_fields__)


def test_the_help_shows_every_option_and_key(pytester):
    result = pytester.runpytest("--help")
    text = result.stdout.str()
    for option in OPTIONS:
        assert option.command_line in text
        assert option.key in text


def test_without_options(pytester):
    settings = settings_of(pytester)
    assert settings == Settings(
        prompts=None,
        engine="transformers",
        engine_options=EngineOptions(model="reference-moe"),
        cold_load=False,
        rounds=5,
        warmup=1,
        max_new_tokens=None,
        ignore_eos=False,
        experts=True,
        expert_trace=False,
        timeline=True,
        breakdown="auto",
        advice=False,
        profile=True,
        probe=True,
        repeat_disturbed=3,
        strict_memory=False,
        resume=False,
        report=None,
        gate=None,
        baseline=None,
        allow_different=(),
        against=None,
        against_python=None,
        against_sequential=False,
        turns="token",
        launches=8,
        time_s=60.0,
        min_pairs=10,
        max_rounds=30,
    )


@BOTH_WAYS
@pytest.mark.parametrize("name", RUN_VALUES)
def test_an_option_of_the_run(pytester, way, name):
    given, field, parsed = RUN_VALUES[name]
    found = getattr(settings_of(pytester, *give(pytester, way, name, given)), field)
    assert found == (pytester.path / parsed if isinstance(parsed, Path) else parsed)


@BOTH_WAYS
@pytest.mark.parametrize("name", ENGINE_VALUES)
def test_an_engine_is_told_its_option(installed_engine, way, name):
    pytester = installed_engine
    given, field, parsed = ENGINE_VALUES[name]
    args = give(pytester, way, name, given)
    result = pytester.runpytest("--infer-engine=told", "--infer-rounds=1", *args)
    result.assert_outcomes(passed=1)
    told = json.loads(pytester.path.joinpath("told.json").read_text())
    assert told[field] == parsed
    # …and nothing else than that.
    plain = {"model": "reference-moe", "dtype": "auto", "use_cache": True, "compile": False, "trust_remote_code": False}
    for other, value in told.items():
        if other != field:
            assert value == plain.get(other), other


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_comes_before_the_ini_file(pytester, name):
    option = NAMES[name]
    if option.flag:
        pytester.makeini(f"[pytest]\n{option.key} = false\n")
        plain, given = settings_of(pytester), settings_of(pytester, option.command_line)
        assert plain != given
        return
    first, second = {
        "threads": ("1", "2"), "max-new-tokens": ("1", "2"), "rounds": ("1", "2"), "warmup": ("1", "2"),
        "experts": ("counts", "off"), "timeline": ("on", "off"), "breakdown": ("on", "off"),
        "turns": ("token", "round"), "launches": ("1", "2"), "time": ("1s", "2s"), "inconclusive": ("pass", "fail"),
        "exit": ("bisect", "plain"), "repeat-disturbed": ("1", "2"), "min-pairs": ("1", "2"), "max-rounds": ("1", "2"),
        "load": ("rate=1", "rate=2"), "slo": ("ttft=1s", "ttft=2s"), "load-requests": ("1", "2"),
        "load-limit": ("1s", "2s"),
        "load-data": ("prompt_tokens=1,output_tokens=1", "prompt_tokens=2,output_tokens=1"),
        "context": ("1", "2"), "batch": ("1", "2"), "prompt-tokens": ("1", "2"), "order": ("sequential", "interleaved"),
        "sweep": ("threads=1", "batch=1,2"), "curve": ("16", "16..32"),
        "server": ("http://a", "http://b"), "cache": ("off", "warm"), "server-kind": ("llama", "vllm"),
        "server-pid": ("1", "2"), "server-timeout": ("1s", "2s"),
        "against-server": ("http://a", "http://b"), "against-serve": ("a {model} {port}", "b {model} {port}"),
        "serve-flags": ("-a", "-b"),
        "sample": ("seed=1", "seed=2"), "gate": ("ttft:1%", "ttft:2%"), "allow-different": ("torch", "cpu"),
    }.get(name, ("one", "two"))  # fmt: skip
    pytester.makeini(f"[pytest]\n{option.key} = {first}\n")
    beside = NEEDS.get(name, [])
    both = settings_of(pytester, *beside, f"{option.command_line}={second}")
    pytester.makeini(f"[pytest]\n{option.key} = {second}\n")
    assert both == settings_of(pytester, *beside)


@pytest.mark.parametrize("value", ["true", "True", "yes", "on", "1", "false", "no", "off", "0", ""])
def test_an_ini_flag_takes_the_usual_words(pytester, value):
    pytester.makeini(f"[pytest]\ninfer_ignore_eos = {value}\n")
    assert settings_of(pytester).ignore_eos is (value.lower() in ("true", "yes", "on", "1"))


def test_keys_work_in_pyproject(pytester):
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\ninfer_rounds = "3"\ninfer_dtype = "float16"\n')
    settings = settings_of(pytester)
    assert (settings.rounds, settings.engine_options.dtype) == (3, "float16")


def test_keys_are_known_to_strict_config(suite):
    pytester = suite()
    pytester.makeini("[pytest]\n" + "\n".join(f"{option.key} =" for option in OPTIONS))
    pytester.runpytest("--strict-config").assert_outcomes(passed=2)


def test_the_marker_is_known_to_strict_markers(suite):
    test = "import pytest\n@pytest.mark.infer_prompts(['x'])\ndef test_it(infer, prompt):\n    infer(prompt)\n"
    suite(test=test).runpytest("--strict-markers").assert_outcomes(passed=1)


# what the options of the run do


@BOTH_WAYS
def test_rounds_and_warmup_are_run(suite, way):
    pytester = suite()
    args = ["--infer-rounds=3", "--infer-warmup=2"]
    if way == "ini":
        pytester.makeini("[pytest]\ninfer_rounds = 3\ninfer_warmup = 2\n")
        args = []
    pytester.makepyfile(
        test_suite="""
        def test_prompt(infer, prompt, engine):
            before = engine.calls
            record = infer(prompt)
            assert (len(record.rounds), record.warmup_rounds) == (3, 2)
            assert record.first_run.trace.start_ns < record.rounds[0].trace.start_ns
            assert engine.calls - before == 2 + 3 + 1  # and the profile round
        """
    )
    pytester.runpytest("--benchmark-autosave", *args).assert_outcomes(passed=2)
    rounds = block_of(pytester)["rounds"]
    assert (rounds["timed"], rounds["warmup"], rounds["profile"]) == (3, 2, True)


@BOTH_WAYS
def test_no_profile(suite, way):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave", *give(pytester, way, "no-profile", True)).assert_outcomes(passed=2)
    block = block_of(pytester)
    assert block["rounds"]["profile"] is False
    assert block["absent"]["memory_growth_bytes"] == "left out with --infer-no-profile"
    assert block["experts"] == {"absent": "left out with --infer-no-profile"}


@BOTH_WAYS
def test_experts_off(suite, way):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave", *give(pytester, way, "experts", "off")).assert_outcomes(passed=2)
    block = block_of(pytester)
    assert block["experts"] == {"absent": "switched off with --infer-experts=off"}
    assert block["rounds"]["profile"] is True


@BOTH_WAYS
def test_timeline_off(suite, way):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave", *give(pytester, way, "timeline", "off")).assert_outcomes(passed=2)
    assert block_of(pytester)["timeline"] == {"absent": "switched off with --infer-timeline=off"}


SPANS = """
class Scripted(Scripted):
    delays = [0.002] * 9
    went = []

    def generate(self, prompt_ids, limits, clock):
        self.went.append(limits.max_new_tokens)
        self.clock = clock
        return super().generate(prompt_ids, limits, clock)

    def wait(self, delay):
        with self.clock.span("experts", layer=2):
            super().wait(delay)


@pytest.fixture(scope="session")
def engine():
    return Scripted()
"""
LONG = '[[prompt]]\nname = "first"\ntext = "one two three"\nmax_new_tokens = 9\n'


@BOTH_WAYS
def test_breakdown_off(suite, way):
    pytester = suite(engine=SPANS, prompts=LONG)
    pytester.runpytest("--benchmark-autosave", *give(pytester, way, "breakdown", "off")).assert_outcomes(passed=1)
    assert block_of(pytester)["breakdown"] == {"absent": "switched off with --infer-breakdown=off"}


@pytest.mark.parametrize("given", [(), ("--infer-breakdown",), ("--infer-breakdown=on",), ("--infer-breakdown=auto",)])
def test_breakdown(suite, given):
    pytester = suite(engine=SPANS, prompts=LONG)
    result = pytester.runpytest("--benchmark-autosave", "test_suite.py", *given)
    result.assert_outcomes(passed=1)
    lines = [r"decode [\d.]+ m?s a step: experts \d+ %", r"prefill [\d.]+ m?s: experts \d+ %"]
    asked = bool({"--infer-breakdown", "--infer-breakdown=on"} & set(given))
    result.stdout.re_match_lines(lines if asked else lines[:1])
    assert ("prefill " in result.stdout.str()) == asked
    stored = block_of(pytester)["breakdown"]
    assert [part["role"] for part in stored["decode"]["parts"]] == ["experts", "generation loop"]
    assert (stored["decode"]["observed"], stored["decode"]["bare"]) == (4, 4)
    shown = CliRunner().invoke(app, ["show"])
    assert re.search(r"^decode [\d.]+ m?s a step: experts \d+ %", shown.output, flags=re.MULTILINE)


WITH_HEAD = """super().wait(delay)
        with self.clock.span("head"):
            super().wait(0.004)
"""
STAMPED = """
from pytest_infer.measure.breakdown import marks


class Scripted(Scripted):
    def __init__(self):
        super().__init__()
        marks.HostStamper.now = lambda _: self.now
"""
"""Marks of a virtual engine are of its own clock."""


def test_stored_runs_are_compared_by_role(suite):
    for delay in (0.01, 0.05):
        engine = STAMPED + SPANS.replace("[0.002]", f"[{delay}]").replace("super().wait(delay)\n", WITH_HEAD)
        pytester = suite(engine=engine, prompts=LONG, virtual=True)
        pytester.runpytest("--benchmark-autosave", "--infer-rounds=5", "--infer-max-rounds=5").assert_outcomes(passed=1)
    shown = CliRunner().invoke(app, ["compare"]).output
    # The headline may be wrapped anywhere.
    line = r"(prefill|decode) \d+ % slower \[[^]]*\][^;]*: experts \+\d\S* ms( of \+\d|, all of it|, the rest)"
    assert re.search(line, " ".join(shown.split())), shown
    assert re.search(r"^ +where: experts \+\d", shown, flags=re.MULTILINE)
    told = json.loads(CliRunner().invoke(app, ["compare", "--format", "json"]).output)
    carried = [j["carried"] for j in told["judgements"] if j["carried"] is not None]
    named = {(change["phase"], one["role"]) for change in carried for one in change["roles"] if one["named"]}
    assert named == {("prefill", "experts"), ("decode", "experts")}
    assert "experts +" in CliRunner().invoke(app, ["compare", "--format", "markdown"]).output


def test_breakdown_of_an_engine_that_shows_nothing_takes_no_round(suite):
    pytester = suite()
    why = "the engine gives no access to its modules, and it reports no spans"
    for asked in ("--infer-breakdown=ops", "--infer-breakdown"):
        result = pytester.runpytest(asked)
        result.assert_outcomes(passed=2)
        assert result.outlines.count(f"no breakdown: {why}") == 1
    # Nobody waits for what would only have come along.
    assert "no breakdown" not in pytester.runpytest("--benchmark-autosave").stdout.str()
    assert block_of(pytester)["breakdown"] == {"absent": why}


def test_operators_are_of_one_checkout(pytester):
    with pytest.raises(OptionError, match=r"^--infer-breakdown=ops is for one checkout: with --infer-against take =on"):
        settings_of(pytester, "--infer-breakdown=ops", "--infer-against=self")
    # For all runs of a suite it is what it can be.
    pytester.makeini("[pytest]\ninfer_breakdown = ops\n")
    assert settings_of(pytester, "--infer-against=self").breakdown == "on"
    assert settings_of(pytester).breakdown == "ops"


def test_operators_of_an_engine_without_torch_are_absent_and_nothing_else(suite):
    pytester = suite(engine=SPANS, prompts=LONG)
    result = pytester.runpytest("--benchmark-autosave", "test_suite.py", "--infer-breakdown=ops")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["no operators: the engine runs without torch"])
    stored = block_of(pytester)["breakdown"]
    assert [part["role"] for part in stored["decode"]["parts"]] == ["experts", "generation loop"]
    assert stored["operators"] == {"absent": "the engine runs without torch"}
    assert not list(pytester.path.glob("**/*.trace.json.gz"))


@pytest.mark.parametrize("given", ["--infer-breakdown", "--infer-breakdown=ops"])
def test_breakdown_follows_the_profile_round(suite, given):
    pytester = suite(engine=SPANS, prompts=LONG)
    result = pytester.runpytest(given, "--infer-no-profile")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--infer-breakdown follows the profile round: leave out --infer-no-profile"])
    pytester.runpytest("--benchmark-autosave", "--infer-no-profile").assert_outcomes(passed=1)
    assert block_of(pytester)["breakdown"] == {"absent": "left out with --infer-no-profile"}


@BOTH_WAYS
def test_max_new_tokens_replaces_every_prompts_own(suite, way):
    pytester = suite()
    pytester.runpytest("--benchmark-autosave", *give(pytester, way, "max-new-tokens", 2)).assert_outcomes(passed=2)
    block = block_of(pytester)
    assert block["prompt"]["limits"]["max_new_tokens"] == 2
    assert block["metrics"]["generated_tokens"]["value"] == 2
    assert block["metrics"]["requested_tokens"]["value"] == 2


@BOTH_WAYS
def test_ignore_eos_reaches_the_engine(suite, way):
    pytester = suite()
    pytester.makepyfile(
        test_suite="""
        def test_prompt(infer, prompt):
            assert infer(prompt).prompt.limits.ignore_eos
        """
    )
    pytester.runpytest(*give(pytester, way, "ignore-eos", True)).assert_outcomes(passed=2)


@BOTH_WAYS
def test_resume_needs_a_run_that_is_saved(suite, way):
    pytester = suite()
    result = pytester.runpytest(*give(pytester, way, "resume", True))
    refused(result, "--infer-resume", "--benchmark-autosave")


@BOTH_WAYS
def test_resume_without_an_interrupted_run_says_so(suite, way):
    pytester = suite()
    result = pytester.runpytest("--benchmark-autosave", *give(pytester, way, "resume", True))
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*no interrupted run is left in*"])


def test_a_path_is_relative_to_where_it_was_written(pytester):
    below = pytester.mkdir("below")
    pytester.makeini("[pytest]\ninfer_prompts = suites/a.toml\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        # From the ini file's folder, and from the working folder.
        assert settings_of(pytester, str(below)).prompts == pytester.path / "suites" / "a.toml"
        assert settings_of(pytester, str(below), "--infer-prompts=b.toml").prompts == below / "b.toml"


def test_files_within_a_value_are_relative_to_where_it_was_written_too(pytester):
    below = pytester.mkdir("below")
    for folder in ("mine", "other"):
        pytester.path.joinpath("models", folder).mkdir(parents=True)
    pytester.makeini(
        "[pytest]\ninfer_model = models/mine\ninfer_load_data = trace=t.jsonl,tokenizer=models/mine\n"
        "infer_sweep = model=models/mine,owner/name,reference-moe\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        written, mine = settings_of(pytester, str(below)), str(pytester.path / "models" / "mine")
        assert written.engine_options.model == written.load_data.tokenizer == mine
        assert written.load_data.trace == str(pytester.path / "t.jsonl")
        assert dict(written.sweep)["model"] == (mine, "owner/name", "reference-moe")
        typed = settings_of(pytester, str(below), "--infer-model=models/mine", "--infer-load-data=trace=t.jsonl")
        assert typed.engine_options.model == "models/mine"
        assert typed.load_data.trace == str(below / "t.jsonl")


def test_the_home_of_an_unknown_user_is_a_folder_that_there_is_none_of(pytester):
    assert settings_of(pytester, "--infer-prompts=~nobody-here/a.toml").prompts == pytester.path / "~nobody-here/a.toml"


# bad values


def refused(result, *said):
    """Assert that the run ended with a usage error in one line that holds all of `said`."""
    text = f"{result.stdout}\n{result.stderr}"
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    lines = [line for line in text.splitlines() if line.strip().startswith("ERROR")]
    assert len(lines) == 1, text
    assert lines[0].startswith("ERROR: pytest-infer: ")
    assert any(lines[0] in line for line in result.stderr.lines), "an error belongs on stderr"
    for part in said:
        assert part in lines[0]
    return lines[0]


BAD = [
    ("rounds", "0", ["must be 1 or more, not 0"]),
    ("rounds", "-1", ["must be 1 or more, not -1"]),
    ("rounds", "abc", ["takes a whole number, not 'abc'"]),
    ("rounds", "2.5", ["takes a whole number, not '2.5'"]),
    ("warmup", "-1", ["must be 0 or more"]),
    ("warmup", "x", ["takes a whole number"]),
    ("max-new-tokens", "0", ["must be 1 or more"]),
    ("max-new-tokens", "many", ["takes a whole number"]),
    ("threads", "0", ["must be 1 or more"]),
    ("threads", "all", ["takes a whole number"]),
    ("experts", "x", ["unknown value 'x'", "counts, off, trace"]),
    ("sample", "foo=1", ["unknown key 'foo'", "seed, temperature, top_p"]),
    ("sample", "temperature", ["temperature takes a number, not ''"]),
    ("sample", "temperature=hot", ["temperature takes a number, not 'hot'"]),
    ("sample", "seed=1.5", ["seed takes a"]),
    ("sample", "temperature=0", ["temperature must be above 0"]),
    ("sample", "top_p=0", ["top_p in (0, 1]"]),
    ("sample", "top_p=1.1", ["top_p in (0, 1]"]),
    ("sample", "temperature=nan", ["temperature"]),
    ("sample", "temperature=inf", ["temperature"]),
    ("sample", "seed=99999999999999999999999", ["seed must be from 0 to 9223372036854775807"]),
    ("sample", "seed=9223372036854775808", ["seed must be from 0 to 9223372036854775807"]),
    ("sample", "seed=-1", ["seed must be from 0 to 9223372036854775807, not -1"]),
    ("batch", "0", ["must be 1 or more"]),
    ("prompt-tokens", "x", ["takes a whole number"]),
    ("order", "random", ["unknown value 'random'", "interleaved, sequential"]),
    ("curve", "long", ["takes lengths in tokens", "'long'"]),
    ("curve", "0,1", ["takes lengths in tokens"]),
    ("curve", "64..16", ["a range goes from 1 or more to something longer"]),
    ("threads", "999999999999", ["must be 4096 or less, not 999999999999"]),
]


LARGEST = [("sample", "seed=9223372036854775807"), ("threads", "4096")]


@BOTH_WAYS
@pytest.mark.parametrize(("name", "value"), LARGEST)
def test_the_largest_value_is_taken(suite, way, name, value):
    pytester = suite()
    options = settings_of(pytester, *give(pytester, way, name, value)).engine_options
    assert options.threads == 4096 if name == "threads" else options.sampling.seed == 2**63 - 1


@BOTH_WAYS
@pytest.mark.parametrize(("name", "value", "said"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_a_bad_value_is_one_line_that_says_what_it_takes(suite, way, name, value, said):
    pytester = suite()
    result = pytester.runpytest(*give(pytester, way, name, value))
    option = NAMES[name]
    refused(result, option.command_line if way == "command line" else option.key, *said)


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.flag], ids=lambda o: o.name)
def test_an_empty_value_is_refused_or_means_none(pytester, option):
    # `--infer-model=` of a script whose variable is empty must not run something else in silence.
    with pytest.raises(OptionError, match=option.command_line):
        settings_of(pytester, f"{option.command_line}=")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.flag], ids=lambda o: o.name)
def test_a_flag_in_the_ini_file_takes_true_or_false(suite, option):
    pytester = suite()
    pytester.makeini(f"[pytest]\n{option.key} = maybe\n")
    refused(pytester.runpytest(), option.key, "true or false", "'maybe'")


@pytest.mark.skipif(int(pytest.__version__.partition(".")[0]) < 9, reason="pytest reads types of TOML since 9")
@pytest.mark.parametrize("beside", [[], ["--infer-warmup=0"]], ids=["", "with an option"])
@pytest.mark.parametrize(
    ("line", "write"),
    [
        ("infer_rounds = 3", 'write infer_rounds = "…"'),
        ("infer_ignore_eos = true", 'write infer_ignore_eos = "…"'),
        ("infer_exit = 1", 'write infer_exit = "…"'),
        ('infer_gate = "ttft:5%"', 'write infer_gate = ["…"]'),
    ],
)
def test_a_toml_value_of_another_type_is_one_line_that_says_how_to_write_it(suite, beside, line, write):
    pytester = suite()
    pytester.makefile(".toml", pytest=f"[pytest]\n{line}\n")
    refused(pytester.runpytest(*beside), "pytest.toml: config option", write)


def test_compile_needs_the_cache(suite):
    refused(suite().runpytest("--infer-compile", "--infer-no-cache"), "--infer-compile", "--infer-no-cache")
    pytester = suite()
    pytester.makeini("[pytest]\ninfer_no_cache = true\n")
    refused(pytester.runpytest("--infer-compile"), "--infer-compile", "infer_no_cache")


OWN = "def test_own(infer):\n    infer('one')\n"


def test_a_curve_and_levels_that_no_test_follows_are_not_ignored_silently(suite):
    pytester = suite(test=OWN)
    refused(pytester.runpytest("--infer-curve=16,32"), "--infer-curve: no effect on 1 of 1 tests, which have no prompt")
    result = pytester.runpytest("--infer-load=concurrency=1", "--infer-rounds=1")
    assert "--infer-load: no effect: none of 1 tests asks for `load_level`" in result.stdout.str()
    suite(test=f"{OWN}\n\ndef test_prompt(infer, prompt):\n    infer(prompt)\n")
    result = pytester.runpytest("--infer-curve=1,2", "--infer-rounds=1")
    result.assert_outcomes(passed=3)
    assert "--infer-curve: no effect on 1 of 3 tests, which have no prompt of a suite" in result.stdout.str()


@pytest.mark.parametrize(
    ("addopts", "ini", "typed", "found"),
    [
        ("--infer-gate=off", "", ["--infer-gate"], list(rules.DEFAULT)),
        ("--infer-gate=off", "ttft:9%", ["--infer-gate"], ["ttft:9%"]),
        ("--infer-gate=off", "ttft:9%", ["--infer-gate=tpot:9%"], ["tpot:9%"]),
        ("--infer-gate=tpot:9%", "", ["--infer-gate=off", "--infer-gate=ttft:9%"], ["ttft:9%"]),
        ("--infer-gate", "off", [], list(rules.DEFAULT)),
        ("--infer-gate", "ttft:9%", ["--infer-gate=off"], None),
        ("", "off", [], None),
    ],
)
def test_what_stands_after_the_last_off_counts(pytester, addopts, ini, typed, found):
    pytester.makeini(f"[pytest]\naddopts = {addopts}\ninfer_gate = {ini}\n")
    gate = settings_of(pytester, *typed).gate
    assert (None if gate is None else [rule.text for rule in gate]) == found
    if found == [ini]:
        assert gate[0].source is rules.Source.INI


def test_a_baseline_needs_a_gate_that_compares_with_it(pytester):
    named = "--infer-baseline=main"
    refused(pytester.runpytest(named), "--infer-baseline", "add --infer-gate")
    # In addopts it may stand for other runs than these.
    for other in ("--infer-gate=off", "--infer-against=HEAD", "--infer-gate=ttft:5%"):
        assert settings_of(pytester, named, other).baseline == "main"
    pytester.makeini("[pytest]\ninfer_baseline = main\n")
    assert settings_of(pytester).baseline == "main"
    pytester.makeini("[pytest]\ninfer_gate = ttft:5%\n")
    assert settings_of(pytester, named).baseline == "main"


@BOTH_WAYS
def test_an_unknown_engine_names_the_installed_ones(installed_engine, way):
    pytester = installed_engine
    result = pytester.runpytest(*give(pytester, way, "engine", "x"))
    refused(result, "unknown engine 'x'", "told, transformers")


def test_an_engine_that_cannot_be_imported_is_one_line(installed_engine):
    pytester = installed_engine
    pytester.makepyfile(told_engine="import nothing_of_this_name\n")
    refused(pytester.runpytest("--infer-engine=told"), "'told'", "cannot be imported", "nothing_of_this_name")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("def __init__(self, options):\n        {}['model']", "KeyError: 'model' (told_engine.py:"),
        ("def check(self):\n        raise RuntimeError('no\\nserver')", "RuntimeError: no server (told_engine.py:"),
        ("def encode(self, prompt):\n        return prompt.texts", "AttributeError: "),
        ("def context_length(self):\n        return 1 / 0", "ZeroDivisionError: "),
    ],
    ids=["init", "check", "encode", "context"],
)
def test_a_faulty_engine_is_one_line_that_names_the_place(installed_engine, method, says):
    pytester = installed_engine
    path = pytester.path / "told_engine.py"
    path.write_text(path.read_text() + f"\n\nclass Told(Told):\n    {method}\n")
    pytester.makepyfile(test_it="def test_it(infer, prompt):\n    infer(prompt)\n")
    pytester.path.joinpath("prompts.toml").write_text('[[prompt]]\nname = "a"\ntext = "x"\n')
    result = pytester.runpytest("--infer-engine=told")
    refused(result, "the engine 'told' failed before its model was loaded: ", says, "(told_engine.py:", ", in ")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_suite_of_no_such_name_is_one_line(suite):
    result = suite().runpytest("--infer-prompts=none.toml")
    assert result.ret != 0
    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "none.toml: no such prompt suite" in text


def test_bad_values_are_refused_in_a_suite_that_measures_nothing(pytester):
    pytester.makepyfile("def test_it(): pass\n")
    refused(pytester.runpytest("--infer-rounds=0"), "--infer-rounds")


def test_an_abbreviated_option_is_unknown(suite):
    assert suite().runpytest("--infer-round=1").ret == pytest.ExitCode.USAGE_ERROR


# what needs transformers to be refused: in a process of its own, which may load torch


@pytest.fixture
def real(pytester):
    """A suite on the default engine; the run writes what it had loaded and whether it got as far as a model."""
    pytester.makeconftest(
        textwrap.dedent(
            """
            import pathlib
            import sys

            def pytest_unconfigure():
                loaded = sorted({"torch", "transformers"} & set(sys.modules))
                pathlib.Path("loaded.txt").write_text(" ".join(loaded))
            """
        )
    )
    pytester.makepyfile(test_it="def test_it(infer):\n    infer('one')\n")
    return pytester


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--infer-model=/no/such"], ["/no/such", "no such folder", "reference-moe, smollm2-moe, smollm2"]),
        (["--infer-model=bareword"], ["unknown model 'bareword'", "reference-moe", "owner/name"]),
        (["--infer-dtype=int3"], ["unknown dtype 'int3'", "auto, bfloat16, float16, float32"]),
        (["--infer-device=abacus"], ["device 'abacus'", "cpu"]),
        (["--infer-device=cuda:7"], ["device", "cuda:7", "cpu"]),
    ],
    ids=["path", "bare name", "dtype", "device", "absent device"],
)
def test_what_the_transformers_engine_refuses_before_it_loads(real, args, said):
    refused(real.runpytest_subprocess(*args, timeout=120), *said)


@pytest.mark.parametrize(("name", "value"), [("model", "/no/such"), ("dtype", "int3"), ("device", "abacus")])
def test_what_the_transformers_engine_refuses_of_the_ini_file(real, name, value):
    give(real, "ini", name, value)
    refused(real.runpytest_subprocess(timeout=120), value)


@pytest.mark.parametrize(
    "arg",
    [
        "--infer-engine=x",
        "--infer-rounds=0",
        "--infer-experts=x",
        "--infer-sample=foo=1",
    ],
)
def test_what_is_refused_without_importing_torch(real, arg):
    refused(real.runpytest_subprocess(arg, timeout=120))
    assert real.path.joinpath("loaded.txt").read_text() == ""


@pytest.mark.parametrize(
    ("arg", "known"), [("--infer-attention=x", "sdpa"), ("--infer-experts-implementation=x", "grouped_mm")]
)
def test_what_only_the_model_can_refuse_names_what_it_takes(real, arg, known):
    refused(real.runpytest_subprocess(arg, timeout=120), "'x'", known)


def test_a_folder_that_is_no_model(real):
    real.mkdir("empty")
    refused(real.runpytest_subprocess("--infer-model=./empty", timeout=120), "no config.json")


def test_sampling_defaults_are_those_of_no_change():
    assert Sampling() == Sampling(temperature=1.0, top_p=1.0, seed=0)
