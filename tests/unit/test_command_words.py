"""What users write on a command line: a storage as pytest-benchmark takes it, other names of things, flags' help."""

import json
import re
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from pytest_infer.analysis.compare import rules
from pytest_infer.analysis.doctor import requirements
from pytest_infer.analysis.sweep import axes
from pytest_infer.cli import inifile
from pytest_infer.cli.main import app
from pytest_infer.engines import models
from pytest_infer.engines.base import EngineOptions, dtype_named
from pytest_infer.errors import OptionError, alternatives, near
from pytest_infer.metrics import by_key


def run(*words, **more):
    return CliRunner().invoke(app, list(words), **more)


@pytest.fixture
def kept(storage, make_block, tmp_path, monkeypatch):
    """A working folder with a stored run in `kept`, and an empty storage that would be found first."""
    storage.add([make_block()], name="m/0001_a.json")
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("results").rename("kept")
    tmp_path.joinpath("results").mkdir()
    return tmp_path / "kept"


WAYS = [
    ["history", "--storage", "kept"],
    ["history", "--storage=file://kept"],
    ["history", "--storage", "file://./kept"],
    ["--storage", "kept", "history"],
    ["--storage=file://kept", "history"],
    ["--storage=nowhere", "history", "--storage=kept"],
]


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_a_storage_is_taken_as_pytest_benchmark_takes_it(kept, words):
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "0001" in done.stdout


def test_an_absolute_uri_is_one_too_also_for_a_command_of_a_command(kept):
    assert run(f"--storage=file://{kept}", "baseline", "set", "b", "latest").exit_code == 0
    assert "b " in run("baseline", "list", "--storage", f"file://{kept}").stdout


@pytest.mark.parametrize("given", ["elasticsearch+http://host/index", "s3://bucket"])
def test_another_kind_of_storage_is_refused_in_words(given):
    for words in (["history", "--storage", given], ["--storage", given, "history"]):
        done = run(*words)
        assert done.exit_code == 2
        assert "file storage only" in " ".join(done.output.replace("│", " ").split())
    assert inifile.folder_of(given) is None


def test_the_version_is_that_of_the_package():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"pytest-infer {version('pytest-infer')}\n")


# names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("bf16", "bfloat16"), ("BF16", "bfloat16"), ("torch.bfloat16", "bfloat16"), ("fp16", "float16"),
        ("half", "float16"), ("torch.half", "float16"), ("F16", "float16"), ("fp32", "float32"), ("float", "float32"),
        ("auto", "auto"), ("int4", "int4"), ("float8_e4m3fn", "float8_e4m3fn"),
    ],
)  # fmt: skip
def test_a_dtype_has_one_name(given, name):
    assert dtype_named(given) == name
    assert EngineOptions(model="m", dtype=given).dtype == name
    assert axes.named("dtype", given) == name
    assert axes.named("model", given) == given


def test_a_dtype_of_a_rule_is_that_of_the_tests_name():
    (rule,) = rules.parse(["ttft[story-threads=2-dtype=fp16]:5%"])
    assert rule.covers("story", {"threads": "2", "dtype": "float16"})
    assert not rule.covers("story", {"threads": "2", "dtype": "float32"})


def test_the_doctor_takes_other_names_of_a_dtype():
    told = [run("doctor", "--model", models.DEFAULT, "--dtype", name, "--format=json") for name in ("bf16", "bfloat16")]
    assert [json.loads(one.stdout)["model"]["chosen"] for one in told] == ["bfloat16"] * 2
    assert run("doctor", "--model", models.DEFAULT, "--dtype", "bf61").exit_code == 2
    assert requirements.AUTO == "auto"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("tfft", "ttft"), ("TTFT", "ttft"), ("decode-throughput", "decode_throughput"), ("p99", "itl_p99"),
        ("throughput", "decode_throughput"), ("peak-rss", "peak_rss"), ("energy", "energy_j"), ("ttfts", "ttft"),
    ],
)  # fmt: skip
def test_a_metric_that_is_not_there_is_answered_with_the_near_ones(given, meant):
    with pytest.raises(OptionError) as refused:
        rules.metric_named(given)
    line = str(refused.value)
    assert meant in line.partition("did you mean ")[2].partition("?")[0].split(" or ")
    assert len(line) < 160
    assert "`pytest-infer metrics` lists all" in line


def test_what_is_near_nothing_names_the_list_alone():
    for ask in (rules.metric_named, by_key):
        with pytest.raises(OptionError, match=r"^unknown metric 'zzzz'; `pytest-infer metrics` lists all \d+$"):
            ask("zzzz")
    assert near("", ["a", "b"]) == []


def test_few_names_are_all_listed_the_near_one_first():
    line = alternatives("axis", "thread", axes.AXES)
    assert line.startswith("unknown axis 'thread'; did you mean threads? known: attention, batch, ")
    assert alternatives("engine", "x", ()) == "unknown engine 'x'; known: none"


# help


def commands(group, name=()):
    inner = getattr(group, "commands", {})
    yield from (found for key, one in inner.items() for found in commands(one, (*name, key)))
    yield name


@pytest.mark.parametrize("words", [*commands(typer.main.get_command(app))], ids=" ".join)
def test_flags_name_no_type_and_formats_have_one_spelling(words):
    done = run(*words, "--help", env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    assert "--help" in done.output
    assert "bool" not in done.output.lower()
    assert not re.search(r"--(json|markdown|csv|html|jsonl)\b", done.output)
