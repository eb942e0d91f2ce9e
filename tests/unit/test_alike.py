"""Several models in a run, and several tests of a prompt: each has its own table, means and name."""

import json
from dataclasses import replace

import pytest
from test_html_report import Page
from typer.testing import CliRunner

from pytest_infer.analysis import alike
from pytest_infer.analysis.load.curve import Estimate, LoadCurve, Point
from pytest_infer.analysis.sweep import curve
from pytest_infer.cli.main import app
from pytest_infer.records import CurvePoint, Level, LevelKind
from pytest_infer.report import load
from pytest_infer.report.html import page
from pytest_infer.report.site import entry
from pytest_infer.report.text import collected, console

OTHER = {"name": "other", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("names", "titles"),
    [
        ({"t.py::t[a]": "a", "t.py::t[b]": "b"}, ["a", "b"]),
        ({"t.py::t[a]": "a", "t.py::more[a]": "a", "t.py::t[b]": "b"}, ["t[a]", "more[a]", "b"]),
        ({"t.py::t[x-a]": "a", "t.py::t[y-a]": "a"}, ["t[x-a]", "t[y-a]"]),
        ({"a/t.py::t[a]": "a", "b/t.py::t[a]": "a"}, ["a/t.py::t[a]", "b/t.py::t[a]"]),
        ({"a/t.py::t[a]": "a", "b/t.py::t[a]": "a", "b/t.py::u[a]": "a"}, ["a/t.py::t[a]", "b/t.py::t[a]", "u[a]"]),
        ({"a": "same", "b": "same"}, ["a", "b"]),
    ],
)
def test_tests_of_one_name_go_by_what_tells_them_apart(names, titles):
    assert list(alike.titles(names).values()) == titles


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([({}, {"name": "a"})], [[]]),
        ([({}, {"name": "a", "threads": 1}), ({}, {"name": "a", "threads": 2})], [["1 thread"], ["2 threads"]]),
        ([({}, {"name": "a", "weights_sha256": "0123456789"}), ({}, {"name": "a"})], [["weights 01234567"], []]),
        # What a sweep made different is told by its configuration.
        ([({"dtype": "x"}, {"name": "a", "dtype": "x"}), ({"dtype": "y"}, {"name": "a", "dtype": "y"})], [[], []]),
        (
            [(config, {"name": name}) for config in ({"batch": "1"}, {"batch": "2"}) for name in "ab"],
            [["a"], ["b"], ["a"], ["b"]],
        ),
    ],
)
def test_models_are_told_apart_by_what_differs(found, words):
    assert alike.apart(found) == words


@pytest.fixture
def stored(storage, make_block):
    """A run of two prompts on two models."""

    def block(name, model, value):
        made = make_block(name, model=model, ttft_s=value)
        test = f"bench/t.py::t[{made['model']['name']}-{name}]"
        return {"name": test, "fullname": test, "stats": {"median": value}, "extra_info": {"pytest_infer": made}}

    def add(**whole):
        first = [block("a", {}, 0.1), block("b", {}, 0.3)]
        storage.add([*first, block("a", OTHER, 0.5), block("b", OTHER, 0.7)], **whole)
        return storage

    return add


def run(storage, *arguments):
    return CliRunner().invoke(app, [*arguments, f"--storage={storage.folder}"])


def averages(storage):
    told = json.loads(run(storage, "show", "--format=json").output)["averages"]
    return [(one["model"]["name"], one["metrics"]["ttft_s"]["mean"], one["config"]) for one in told]


TRUE = [("hand-made", pytest.approx(0.2), {}), ("other", pytest.approx(0.6), {})]


def test_averages_are_of_one_model(stored):
    assert averages(stored()) == TRUE


def test_averages_that_an_older_version_mixed_are_worked_out(stored):
    assert averages(stored(averages=[{"metrics": {"ttft_s": {"mean": 0.4, "prompts": 4}}}])) == TRUE


def test_those_that_are_stored_with_their_models_are_kept(stored):
    kept = [{"model": {"name": name}, "metrics": {"ttft_s": {"mean": 7.0, "prompts": 2}}} for name in "xy"]
    assert averages(stored(averages=kept)) == [("x", 7.0, {}), ("y", 7.0, {})]


def test_the_json_of_a_test_tells_its_model(stored):
    told = json.loads(run(stored(), "show", "--format=json").output)["tests"]
    assert [test["model"]["name"] for test in told] == ["hand-made", "hand-made", "other", "other"]


def test_exported_averages_tell_their_model(stored):
    rows = run(stored(), "export", "--suite", "--format=jsonl", "--metric=ttft").output.splitlines()
    told = [(row["model"], row["dtype"], row["mean"]) for row in map(json.loads, rows)]
    assert told == [("hand-made", "float32", pytest.approx(0.2)), ("other", "bfloat16", pytest.approx(0.6))]


def test_markdown_has_a_table_a_model(stored):
    lines = run(stored(), "show", "--format=markdown").output.splitlines()
    starts = [line for line in lines if line.startswith(("**", "| a |", "| b |", "| mean |"))]
    assert [line.split(" | ")[0] for line in starts[1:]] == [
        *("**hand-made · float32**", "| a", "| b", "| mean"),
        *("**other · bfloat16**", "| a", "| b", "| mean"),
    ]
    assert [line.split(" | ")[2] for line in starts if line.startswith("| mean")] == ["200 ms", "600 ms"]


def test_the_terminal_has_a_table_a_model(stored):
    lines = run(stored(), "show").output.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("hand-made ·", "other ·", "a ", "b ", "mean "))] == [
        *("hand-made", "a", "b", "mean"),
        *("other", "a", "b", "mean"),
    ]


def test_a_long_name_of_a_tests_own_is_cut_where_it_tells_nothing(storage, make_block, monkeypatch):
    tests = [
        f"bench/{folder}/test_all_prompts.py::test_of_a_kernel_of_ours[{kind}]"
        for folder in "ab"
        for kind in ("on", "off")
    ]
    rows = [
        {"name": t, "fullname": t, "stats": {"median": 1.0}, "extra_info": {"pytest_infer": make_block("a")}}
        for t in tests
    ]
    storage.add(rows)
    monkeypatch.setenv("COLUMNS", "72")
    lines = [line.split()[0] for line in run(storage, "show").output.splitlines() if line.startswith("bench/")]
    assert len({*lines}) == 4
    assert all("…" in line for line in lines)


def test_the_report_has_a_table_and_the_facts_of_each_model(stored):
    runs = stored().load().runs
    found = Page(page.render(runs[-1], runs))
    assert runs[-1].model == "hand-made float32, other bfloat16"
    for name in ("hand-made · float32", "other · bfloat16"):
        assert f"{name} · median of the timed rounds, a row a prompt" in found.shown
        assert f"Model and engine · {name}" in found.shown
    suites = found.shown.partition("The suite")[2].partition("Advice")[0]
    assert suites.count("± sd") == 2
    assert "mean of 4 prompts" not in found.shown


def test_of_many_models_two_are_named(storage, make_block):
    storage.add([make_block("a", model={"name": name}) for name in "abcd"])
    assert storage.load().runs[-1].model == "a float32, b float32 and 2 more"


def test_an_entry_of_a_site_has_no_mean_over_models(stored):
    runs = stored().load().runs
    found = page.stored.read(runs[-1])
    assert entry.of(runs[-1], found.tests, None, None, None).figures == {}
    assert entry.of(runs[-1], found.tests[:2], None, None, None).figures["ttft_s"] == pytest.approx(0.2)


def loaded(*tests):
    def point(test):
        level = Level(kind=LevelKind.CONCURRENCY, value=2.0)
        name = f"{test[:-1]}{'-' if '[' in test else '['}{level.name}]"
        return Point(level=level, test=name, figures={"level_throughput": Estimate(value=1.0)}, repetitions={})

    return tuple(
        LoadCurve(test=test, kind=LevelKind.CONCURRENCY, arrivals=None, points=(point(test),), knee=None)
        for test in tests
    )


def test_levels_of_several_tests_are_told_apart():
    shown = console(100, color=False)
    curves = loaded("t.py::t[a]", "t.py::t[b]")
    load.write(shown, [replace(one, points=(replace(one.points[0], marks=("x",)),)) for one in curves])
    text = collected(shown)
    assert "t[a-concurrency=2] !" in text
    assert "t[b-concurrency=2] !" in text
    assert "\n| t\\[a-concurrency=2\\] |" in "\n".join(load.markdown(curves))
    shown = console(100, color=False)
    load.write(shown, curves[:1])
    assert "\nconcurrency=2 " in collected(shown)


def test_curves_of_several_tests_are_told_apart(make_row):
    rows = [
        replace(
            make_row("long", test=f"t.py::{test}[long-prompt-tokens={tokens}]", ttft_s=[0.1 * tokens] * 2),
            config={"prompt-tokens": str(tokens)},
            curve=CurvePoint(axis="prompt_tokens", value=tokens),
        )
        for test in ("one", "other")
        for tokens in (16, 32)
    ]
    assert [found.prompt for found in curve.curves(rows)] == ["one[long]", "other[long]"]
    assert [found.prompt for found in curve.curves(rows[:2])] == ["long"]
