"""The end of a run, against goldens that were looked at; UPDATE_GOLDENS=1 writes them anew."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from planted import Suites
from rich.cells import cell_len

from pytest_infer.analysis.advice.advice import Advice
from pytest_infer.analysis.advice.evidence import Severity
from pytest_infer.analysis.compare import gate, rules, two_runs
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.analysis.sweep.recommend import recommend
from pytest_infer.records import MeasurementWarning, WarningKind
from pytest_infer.report.show import summary
from pytest_infer.storage import history, results

DATA = Path(__file__).parents[1] / "data"
STEADY = (1.0, 1.004, 0.996, 1.002, 0.998, 1.001)
ROUNDS = (1.0, 1.004, 0.992, 1.006, 0.997)
RULES = ["output:exact", "ttft:3%", "tpot:3%", "peak_rss:3%"]
ADVICE = Advice(
    rule="faster_dtype",
    severity=Severity.INFO,
    evidence="bfloat16 multiplies 2.1× as fast as float32 here",
    suggestion="--infer-dtype bfloat16 may double prefill",
    prompts=("story",),
    tests=3,
)


@pytest.fixture
def stored(storage, make_block):
    """Six like runs, then one whose prompt `story` decodes 12 % slower."""

    def block(name, factor=1.0, decode=1.0):
        middle = {"story": 0.0141, "question": 0.0162, "code": 0.0139}[name]

        def around(value):
            rounds = [value * factor * one for one in ROUNDS]
            return {"value": sorted(rounds)[2], "mean": sum(rounds) / 5, "stdev": 0.005 * value, "rounds": rounds}

        made = make_block(name)
        made["prompt"]["name"] = name
        made["metrics"] |= {
            "ttft_s": around(0.0238),
            "tpot_s": around(middle * decode),
            "itl_p50_s": around(middle * decode),
            "itl_p99_s": around(1.4 * middle * decode),
            "decode_throughput": around(1 / (middle * decode)),
            "total_s": around(0.0238 + 60 * middle * decode),
        }
        return made

    for factor in STEADY:
        storage.add([block(name, factor) for name in ("story", "question", "code")])
    storage.add([block("story", decode=1.12), block("question"), block("code")], commit="d" * 40)
    return storage


def shown(storage, **more):
    """Return the newest run as its end shows it."""
    found = history.load(storage.folder)
    run = found.runs[-1]
    read = results.shown(run.path)
    calm = tuple(replace(one, warnings=(), quiet=(), operators=None) for one in read.results)
    return RunSummary(results=calm, saved=True, **more)


def compared(storage):
    found = history.load(storage.folder)
    run = found.runs[-1]
    return two_runs.since(replace(found, runs=found.before(run)), run.rows)


BUSY = MeasurementWarning(
    kind=WarningKind.DISTURBED,
    text="3 of 5 rounds were disturbed (round 2: waited 12 % of its time for a core): stop what else runs, or "
    "trust medians only",
)


def disturbed(run):
    first, second, third = run.results
    return replace(run, results=(replace(first, warnings=(BUSY,)), replace(second, quiet=(BUSY,)), third))


def again(run, test, **other):
    """Return a run in which another test, or another model of it, measures the first two prompts again."""
    first, second, _ = run.results
    more = [
        replace(one, nodeid=one.nodeid.replace("t[", test), model=replace(one.model, **other))
        for one in (first, second)
    ]
    return replace(run, results=(*run.results, replace(more[0], warnings=(BUSY,)), more[1]))


def gated(pairs):
    return gate.judge(pairs, rules.parse(RULES), against="main (1a2b3c4d)")


def swept(make_row):
    return [
        replace(
            make_row(
                "story",
                test=f"bench/t.py::t[story-threads={threads}]",
                decode_throughput=[rate, rate * 1.01, rate * 0.99],
                ttft_s=[time, time * 1.01, time * 0.99],
            ),
            config={"threads": str(threads)},
        )
        for threads, rate, time in ((1, 40.0, 0.05), (2, 60.0, 0.03), (4, 59.9, 0.0301))
    ]


@pytest.fixture
def case(stored, make_row):
    """Return a function that makes the run of a golden, and how it is shown."""

    suites, names = Suites(make_row), ("story", "question", "code")
    made = {
        "since": lambda: shown(stored, since=compared(stored), advice=(ADVICE,)),
        "first": lambda: shown(stored),
        "disturbed": lambda: disturbed(shown(stored, since=compared(stored), advice=(ADVICE,))),
        "models": lambda: again(shown(stored), "t[other-", name="other", attention="eager"),
        "functions": lambda: again(shown(stored), "test_of_more_than_that["),
        "gate": lambda: shown(stored, gated=gated(suites.stored(decode=1.12, of=("story",), names=names))),
        "against": lambda: shown(stored, gated=gated(suites.turns(decode=1.051, names=names))),
        "sweep": lambda: replace(shown(stored), recommended=recommend(swept(make_row))),
    }
    return lambda name: made[name]()


@pytest.mark.parametrize(
    ("name", "width", "how"),
    [
        ("since", 120, ""),
        ("since", 80, ""),
        ("since", 60, ""),
        ("since", 160, "-v"),
        ("since", 80, "-q"),
        ("since", 100, "colour"),
        ("first", 72, ""),
        ("disturbed", 100, ""),
        ("models", 80, ""),
        ("models", 80, "-q"),
        ("models", 60, ""),
        ("functions", 80, ""),
        ("gate", 100, ""),
        ("against", 80, ""),
        ("sweep", 120, ""),
    ],
)
def test_the_end_of_a_run(case, name, width, how):
    run, show = case(name), summary.quiet if how == "-q" else summary.render
    more = {"verbose": True} if how == "-v" else {}
    text = show(run, width=width, color=how == "colour", **more)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert [line for line in plain if cell_len(line) > width] == []
    assert [line for line in plain if re.search(r"\s$", line)] == []
    path = DATA / f"summary-{name}-{width}{how.replace('-', '') and '-' + how.replace('-', '')}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
