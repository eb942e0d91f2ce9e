"""The options: each declared once, on the command line and as an ini key."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: `--infer-NAME` on the command line, `infer_NAME` (underscores) in the ini file."""

    name: str
    help: str
    metavar: str | None = None
    flag: bool = False
    lines: bool = False
    """Whether it may be given several times, and on several lines of the ini file."""
    bare: bool = False
    """Whether it may stand without its value."""

    @property
    def command_line(self) -> str:
        """Return the option as typed."""
        return f"--infer-{self.name}"

    @property
    def key(self) -> str:
        """Return the ini key, which is also argparse's destination."""
        return "infer_" + self.name.replace("-", "_")


# Copies of what names the models and the axes, which would take long to import: a test holds them equal.
DEFAULT_MODEL = "reference-moe"
BUNDLED_MODELS = ("reference-moe", "smollm2-moe", "smollm2")
SWEEP_AXES = (
    "model",
    "dtype",
    "quantization",
    "experts",
    "attention",
    "compile",
    "engine-args",
    "serve-flags",
    "cache",
    "threads",
    "batch",
    "prompt-tokens",
    "max-new-tokens",
)

OPTIONS = (
    Option(
        name="prompts",
        metavar="FILE",
        help="prompt suite (.toml or .jsonl) for every test; default: prompts.toml beside the test",
    ),
    Option(name="engine", metavar="NAME", help="what generates tokens; default: transformers"),
    Option(
        name="model",
        metavar="MODEL",
        help=f"hub id, local folder, or one of {', '.join(BUNDLED_MODELS)}; default: {DEFAULT_MODEL}",
    ),
    Option(name="revision", metavar="REV", help="branch, tag or commit of a hub model"),
    Option(name="dtype", metavar="DTYPE", help="auto (the model's own), float32, bfloat16, float16; default: auto"),
    Option(name="device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps, …; default: where the model loads"),
    Option(name="threads", metavar="N", help="threads for torch's operators; default: torch's own choice"),
    Option(name="max-new-tokens", metavar="N", help="replace every prompt's own limit"),
    Option(name="ignore-eos", flag=True, help="go on to the limit after an end-of-sequence token"),
    Option(
        name="experts-implementation",
        metavar="NAME",
        help="eager, grouped_mm, batched_mm, …; default: transformers' own",
    ),
    Option(name="attention", metavar="NAME", help="eager, sdpa, flash_attention_2, …; default: transformers' own"),
    Option(name="no-cache", flag=True, help="generate without a KV cache"),
    Option(
        name="sample",
        metavar="SPEC",
        help="sample instead of greedy: temperature=0.7,top_p=0.9,seed=0 (each may be left out)",
    ),
    Option(
        name="compile",
        flag=True,
        help="compile decoding with torch.compile and a static cache; experts are then not recorded",
    ),
    Option(name="trust-remote-code", flag=True, help="run code that comes with a hub model; off by default"),
    Option(
        name="quantization",
        metavar="NAME",
        help="none; int8-dynamic: torch's own, linear layers on the CPU; int8, and int4 on accelerators: weight-only, "
        "by torchao; default: none",
    ),
    Option(
        name="server",
        metavar="URL",
        help="measure a running OpenAI-compatible server: http://127.0.0.1:8080; its key is in the environment: "
        "PYTEST_INFER_SERVER_KEY",
    ),
    Option(
        name="serve",
        metavar="COMMAND",
        help="start a server, measure it, and end it: 'llama-server -m {gguf} --port {port}'",
    ),
    Option(
        name="serve-flags",
        metavar="FLAGS",
        help="what {flags} in the command of --infer-serve stands for; default: nothing",
    ),
    Option(
        name="cache",
        metavar="POLICY",
        help="what a server's cache of prompts may do. bust: nothing, each round's prompt has a nonce ahead of it; "
        "off: the server is asked not to use it; warm: what it likes; default: bust",
    ),
    Option(
        name="server-kind",
        metavar="KIND",
        help="llama (llama-server), vllm, or openai (any other that is compatible); default: the server is asked",
    ),
    Option(
        name="server-pid",
        metavar="PID",
        help="the processes of a running server, commas between several: whose memory and CPU time count, with all "
        "their children; default: who listens to its port",
    ),
    Option(
        name="server-timeout",
        metavar="TIME",
        help="how long nothing may come from a server, while it starts and between two tokens (30s, 5min); "
        "default: 10min",
    ),
    Option(
        name="engine-args",
        metavar="ARGS",
        help="what the engine's own tool takes, as it is typed there, in one string; llamacpp: "
        '--infer-engine-args="-ctk q8_0 --no-mmap"',
    ),
    Option(name="batch", metavar="N", help="feed each prompt N times at once; default: 1"),
    Option(
        name="context",
        metavar="N",
        help="allow N tokens, prompt and generated, whatever the model's config says; default: its limit",
    ),
    Option(name="prompt-tokens", metavar="N", help="cut or repeat each prompt to N tokens; default: as it is"),
    Option(
        name="sweep",
        metavar="AXIS=V1,V2",
        lines=True,
        help=f"measure every prompt with each value, and every combination of several sweeps: {', '.join(SWEEP_AXES)}",
    ),
    Option(
        name="order",
        metavar="ORDER",
        help="of the configurations of a sweep that one loaded model runs: interleaved, prompt by prompt in turns, or "
        "sequential, one after the other; default: interleaved",
    ),
    Option(
        name="curve",
        metavar="LENGTHS",
        bare=True,
        help="measure the longest prompt of a suite at several lengths, its end cut off or repeated: 16..1024 doubles, "
        "16..context goes to the model's limit, 16,100 are two lengths; alone: 16..context",
    ),
    Option(
        name="load",
        metavar="LEVELS",
        lines=True,
        help="levels of load for tests with `load_level`: concurrency=1,2,4 (streams), rate=0.5,1,2 (requests per "
        "second, as a Poisson process; rate=1:constant evenly), throughput (all requests at once), replay (of a trace)",
    ),
    Option(
        name="slo",
        metavar="OBJECTIVES",
        help="what a request under load must keep to be no miss: ttft=500ms,tpot=50ms,latency=10s, any of them",
    ),
    Option(
        name="load-requests",
        metavar="N",
        help="requests of each repetition of a level, at least four a stream; default: 64",
    ),
    Option(
        name="load-limit",
        metavar="TIME",
        help="a repetition of a level ends after this time, and what is not answered by then is a miss; default: 10min",
    ),
    Option(
        name="load-data",
        metavar="DESCRIPTION",
        help="synthetic prompts in place of the suite's under load: prompt_tokens=256,output_tokens=64, with "
        "prefix_tokens=128,prefix_count=4 for shared beginnings, and tokenizer=FOLDER; trace=FILE for replay",
    ),
    Option(
        name="cold-load",
        flag=True,
        help="drop the page cache of the model's files before it is loaded (Linux, no root needed)",
    ),
    Option(name="rounds", metavar="N", help="timed rounds a prompt; default: 5"),
    Option(name="warmup", metavar="N", help="rounds before them that are not recorded; default: 1"),
    Option(
        name="experts",
        metavar="WHAT",
        help="counts: record expert selections in the profile round; trace: and those of each token, in the sidecar "
        "(512 B a token at 64 layers x top-8); off: neither; default: counts",
    ),
    Option(
        name="timeline",
        metavar="WHAT",
        help="on: a helper process samples memory, cores and I/O in the profile round, never in timed ones; "
        "off: it is not started; default: on",
    ),
    Option(
        name="breakdown",
        metavar="WHEN",
        bare=True,
        help="take prefill and decode steps apart by module, in rounds of their own after the profile round: on, off, "
        "or auto, where a round takes at most 10 s; ops: on, and what torch's profiler sees in one more round, with "
        "a trace beside the run; alone: on; default: auto",
    ),
    Option(
        name="advice",
        flag=True,
        help="show all advice at the end of a run, what is fine too; otherwise the most serious piece",
    ),
    Option(
        name="no-profile",
        flag=True,
        help="leave out the profile round: no expert usage, scores, distances of outputs, memory growth, PSS, KV-cache "
        "size, timeline or breakdown of steps, no bytes of a step and MBU, no check for logits that are not finite",
    ),
    Option(name="no-probe", flag=True, help="do not probe the machine's bandwidth and GEMM rate: no MBU, no MFU"),
    Option(
        name="gate",
        metavar="RULES",
        lines=True,
        bare=True,
        help="fail tests that got worse: ttft:5%%, tpot[story]:3%%, decode_throughput>=15, output:exact, "
        "experts:drift<0.02; alone: the ini file's rules, else output:exact, ttft, tpot and peak_rss 5%%; off: no gate",
    ),
    Option(
        name="inconclusive",
        metavar="WHAT",
        help="what becomes of a run whose gate cannot tell: fail: exit code 10; pass: 0, if nothing else is wrong; "
        "default: fail",
    ),
    Option(
        name="accepted",
        metavar="FILE",
        help="regressions that a gate accepts, beside those of commit messages; off: none of either; "
        "default: bench/accepted.toml",
    ),
    Option(
        name="exit",
        metavar="WHOM",
        help="whom the exit code is for: plain: 0 passed, 1 failed, 10 inconclusive, 11 nothing to compare; "
        "bisect: `git bisect run`: 0 good, 1 regressed, 125 everything else, 128 and more ends it; default: plain",
    ),
    Option(
        name="baseline",
        metavar="RUN",
        help="the stored run that the gate compares with (number, commit, branch, tag, path, baseline:NAME); "
        "default: the newest comparable one of committed code, in which no test failed or was left unmeasured, and "
        "which its gate did not call regressed, unless an earlier one has twice as many of the tests or more",
    ),
    Option(
        name="allow-different",
        metavar="KEYS",
        help="compare although these differ: torch, threads, cpu, output, …, or all of machine, software, model",
    ),
    Option(
        name="repeat-disturbed",
        metavar="N",
        help="up to N more rounds a prompt in place of disturbed ones; 0: never; default: 3",
    ),
    Option(
        name="strict-memory",
        flag=True,
        help="refuse to load a model that needs more memory than is available, instead of warning",
    ),
    Option(
        name="replay",
        metavar="RUN",
        help="follow the tokens of a stored run (latest, number, commit, branch, tag, path, baseline:NAME) in the "
        "profile round, and in the timed rounds too where the free output differs: both then did the same work",
    ),
    Option(
        name="text",
        metavar="FILE",
        bare=True,
        help="measure each model's perplexity on a text; alone: on a bundled one that reference-moe was not trained on",
    ),
    Option(name="report", metavar="FILE", help="write the HTML report of the stored run to this file"),
    Option(name="resume", flag=True, help="take finished prompts from the journal of an interrupted run"),
    Option(
        name="against",
        metavar="REV",
        help="measure another commit too, in turns with this checkout, in a worktree of its own; "
        "self: this checkout against itself, which shows the machine's noise",
    ),
    Option(
        name="against-python",
        metavar="PYTHON",
        help="interpreter in which the other commit is installed; default: this one, with the worktree on its path",
    ),
    Option(
        name="against-server",
        metavar="URL",
        help="with a server: measure this running one too, in turns of a round, and judge the difference",
    ),
    Option(
        name="against-serve",
        metavar="COMMAND",
        help="the same with one that is started: another build, or other flags (llama-server -m {gguf} --port {port})",
    ),
    Option(
        name="against-sequential",
        flag=True,
        help="load the two models one after the other, not at once, and measure in blocks A B A of --infer-max-rounds",
    ),
    Option(
        name="turns",
        metavar="WHAT",
        help="with --infer-against: token: each side is a process of its own, and they take turns of a token; "
        "round: this process and another take turns of whole rounds; default: token",
    ),
    Option(
        name="launches",
        metavar="N",
        help="with --infer-against: so many pairs of processes, to average what differs from launch to launch; "
        "default: 8, or as many as fit the memory",
    ),
    Option(
        name="time",
        metavar="TIME",
        help="with --infer-against: measure a prompt until its interval is narrower than the rule's threshold, or for "
        "this long (60s, 2min); default: 60s",
    ),
    Option(
        name="min-pairs",
        metavar="N",
        help="where --infer-against compares whole rounds (--infer-turns=round, or where no turns of a token are "
        "taken): at least N pairs; default: 10",
    ),
    Option(name="max-rounds", metavar="N", help="where --infer-min-pairs counts: at most N pairs; default: 30"),
)
CACHE = ("bust", "off", "warm")
SERVER_KINDS = ("llama", "vllm", "openai")
EXPERTS = ("counts", "trace", "off")
TIMELINE = ("on", "off")
BREAKDOWN = ("on", "auto", "off", "ops")
ROUND = "round"
TURNS = ("token", ROUND)
INTERLEAVED = "interleaved"
ORDERS = (INTERLEAVED, "sequential")
BARE, OFF = "default", "off"
"""What --infer-gate takes in place of rules: those of the ini file, or none. Others that may stand alone take BARE."""
BISECT = "bisect"
"""A copy, as of the models: what --infer-exit takes for `git bisect run`."""
SELF = "self"
"""The revision that compares this checkout with itself."""
MARKER = "infer_prompts"
LAST = pytest.StashKey[Callable[[], None]]()
"""What a run of ours does when all that pytest does at its end is done."""
CHILD = "PYTEST_INFER_AGAINST"
"""The variable that tells a run that it is the other side of a comparison, and where its parent listens."""
SWEPT = "PYTEST_INFER_SWEPT"
"""The variable that tells the other side what is swept: both sides measure the same configurations, whatever the ini
file of either says."""


def register(parser: pytest.Parser) -> None:
    """Declare every option and its ini key."""
    group = parser.getgroup("infer", "benchmarks of language-model inference (pytest-infer)")
    for option in OPTIONS:
        given: dict[str, Any] = {"action": "store_true"} if option.flag else {"metavar": option.metavar}
        given |= {"action": "append"} if option.lines else {}
        given |= {"nargs": "?", "const": BARE} if option.bare else {}
        group.addoption(option.command_line, dest=option.key, default=None, help=option.help, **given)
        kind: dict[str, Any] = {"type": "linelist", "default": []} if option.lines else {"default": ""}
        parser.addini(option.key, f"default of {option.command_line}: {option.help}", **kind)


def for_bisect(config: pytest.Config) -> bool:
    """Return whether the exit code is for `git bisect run`, as far as is known before all plugins are loaded."""
    if CHILD in os.environ:
        return False
    given = getattr(config.known_args_namespace, "infer_exit", None)
    # A value of another type is refused where the options are read.
    with suppress(TypeError, pytest.UsageError):
        given = config.getini("infer_exit") if given is None else given
    return bool(given == BISECT)


def given(config: pytest.Config) -> bool:
    """Return whether any of them stands on the command line."""
    return any(config.getoption(option.key) is not None for option in OPTIONS)
