"""Stored runs as a flat table: each row by hand, in every form, and nothing in it that a program would run."""

import csv
import json
import re
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.history import table as tidy
from pytest_infer.analysis.history.table import PART
from pytest_infer.cli.main import app
from pytest_infer.metrics import METRICS
from pytest_infer.report import text
from pytest_infer.report.history import tables
from pytest_infer.storage import history

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
ONLY = ("ttft_s", "load_s", "output_sha256", "peak_rss_bytes")


def export(storage, *arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--storage", str(storage.folder)])


def table(storage, *arguments):
    result = export(storage, *arguments)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(result.output.splitlines()))


@pytest.fixture
def two(storage, make_block):
    """Two runs; the second has a disturbed round and was swept."""
    for times, sha in (([0.2, 0.3, 0.4], "a"), ([0.1, 0.2, 0.6], "b")):
        made = make_block("guide", only=ONLY, ttft_s=times, load_s=1.5, output_sha256=sha, peak_rss_bytes=[7, 7, 7])
        if sha == "b":
            made["config"] = {"threads": "2"}
            made["rounds"]["disturbed"] = {"1": ["steal"]}
        storage.add([made])
    return storage


def test_a_row_a_figure(two):
    rows = table(two)
    assert [row["metric"] for row in rows] == ["ttft_s", "load_s", "peak_rss_bytes", "output_sha256"]
    ttft, load, peak, output = rows
    about = {
        "run": "0002",
        "time": "2026-01-01T00:02:00+00:00",
        "commit": "c" * 40,
        "branch": "main",
        "dirty": "false",
        "gate": "",
        "model": "hand-made",
        "dtype": "float32",
        "device": "cpu",
        "threads": "2",
        "cpu": "A CPU",
        "test": "bench/t.py::t[guide]",
        "prompt": "guide",
        "group": "short",
        "tags": "one;two",
        "config.threads": "2",
    }
    assert {key: ttft[key] for key in about} == about
    assert ttft["file"].endswith("0002_cccccccc_x.json")
    assert {key: ttft[key] for key in ("unit", "better", "value", "text", "n", "quality")} == {
        "unit": "s",
        "better": "lower",
        "value": "0.2",
        "text": "",
        "n": "3",
        "quality": "exact",
    }
    # (0.1 + 0.2 + 0.6) / 3 and the root of (0.04 + 0.01 + 0.09) / 2
    assert float(ttft["mean"]) == pytest.approx(0.3)
    assert float(ttft["stdev"]) == pytest.approx(0.07**0.5)
    assert (load["value"], load["mean"], load["stdev"], load["n"]) == ("1.5", "1.5", "", "1")
    assert (peak["value"], peak["stdev"]) == ("7.0", "0.0")
    assert (output["value"], output["text"], output["mean"]) == ("", "b", "")


def test_a_row_a_round(two):
    rows = table(two, "--rounds")
    ttft = [(r["round"], r["value"], r["disturbed"]) for r in rows if r["metric"] == "ttft_s"]
    assert ttft == [("0", "0.1", "false"), ("1", "0.2", "true"), ("2", "0.6", "false")]
    assert [(r["round"], r["value"], r["disturbed"]) for r in rows if r["metric"] == "load_s"] == [("", "1.5", "")]
    assert "output_sha256" not in {r["metric"] for r in rows}


def test_a_row_a_test(two):
    first, second = table(two, "--wide", "--all")
    assert list(second)[-len(METRICS) :] == [metric.key for metric in METRICS]
    assert (first["config.threads"], second["config.threads"]) == ("", "2")
    assert (second["n"], second["ttft_s"], second["load_s"], second["output_sha256"]) == ("3", "0.2", "1.5", "b")
    assert second["tpot_s"] == ""


def test_a_row_a_round_with_all_metrics_beside_each_other(two):
    rows = table(two, "1", "--wide", "--rounds")
    assert [(r["round"], r["ttft_s"], r["load_s"]) for r in rows] == [
        ("0", "0.2", "1.5"),
        ("1", "0.3", "1.5"),
        ("2", "0.4", "1.5"),
    ]


def test_a_row_an_average_of_the_suite(storage, make_block):
    older = [make_block("a", ttft_s=0.2), make_block("b", ttft_s=0.4)]
    storage.add(older)
    stored = {"ttft_s": {"mean": 7.0, "stdev": 0.5, "prompts": 3}, "load_s": {"mean": 1.0, "prompts": 1}}
    suites = [{"config": {"threads": "2"}, "metrics": stored, "against": {"ttft_s": {"mean": 8.0, "prompts": 1}}}]
    storage.add(older, averages=suites)
    first, second, load = table(storage, "--all", "--suite", "--metric", "ttft", "--metric", "load_s")[-3:]
    assert (first["run"], first["metric"], first["config.threads"], first["n"]) == ("0001", "load_s", "", "2")
    told = {key: second[key] for key in ("run", "mean", "stdev", "n", "against_mean", "against_stdev", "against_n")}
    assert told == {
        "run": "0002",
        "mean": "7.0",
        "stdev": "0.5",
        "n": "3",
        "against_mean": "8.0",
        "against_stdev": "",
        "against_n": "1",
    }
    assert (load["metric"], load["config.threads"], load["unit"]) == ("load_s", "2", "s")
    # Of the chosen tests alone they are worked out.
    (chosen,) = table(storage, "2", "--suite", "-k", "[b]", "--metric", "ttft")
    assert (chosen["mean"], chosen["stdev"], chosen["n"]) == ("0.4", "", "1")


def test_averages_that_are_worked_out_are_those_that_were_stored(storage, make_block):
    blocks = [make_block("a", ttft_s=0.2), make_block("b", ttft_s=0.4)]
    for block, before in zip(blocks, (0.1, 0.3), strict=True):
        block["against"] = {"rev": "main", "commit": "d" * 40, "metrics": {"ttft_s": {"value": before}}}
    failed = {"bench/t.py::t[c]": make_block("c", ttft_s=0.9)}
    stored = {
        "metrics": {"ttft_s": {"mean": 0.5, "stdev": statistics.stdev([0.2, 0.4, 0.9]), "prompts": 3}},
        "against": {"ttft_s": {"mean": 0.2, "stdev": statistics.stdev([0.1, 0.3]), "prompts": 2}},
    }
    storage.add(blocks, failed=failed, averages=[stored])
    (kept,) = table(storage, "--suite", "--metric", "ttft")
    (chosen,) = table(storage, "--suite", "--metric", "ttft", "-k", "bench")
    numbers = ("mean", "stdev", "n", "against_mean", "against_stdev", "against_n")
    assert [float(chosen[key]) for key in numbers] == pytest.approx([float(kept[key]) for key in numbers])


@pytest.mark.parametrize("also", ["--wide", "--rounds"])
def test_the_suites_averages_are_a_table_of_their_own(two, also):
    result = export(two, "--suite", also)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "leave out --wide and --rounds" in result.output


def test_the_suites_averages_as_parquet_and_without_a_damaged_run(two, tmp_path, make_block):
    parquet = pytest.importorskip("pyarrow.parquet")
    two.add([make_block()], averages=5)
    result = export(two, "--all", "--suite", "-o", tmp_path / "s.parquet")
    assert (result.exit_code, result.output.count("left out: ")) == (0, 1)
    read = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert [(row["run"], row["metric"], row["n"]) for row in read][:2] == [("0001", "ttft_s", 1), ("0001", "load_s", 1)]


def test_what_is_chosen(two):
    assert {row["run"] for row in table(two, "--all")} == {"0001", "0002"}
    assert {row["run"] for row in table(two, "1", "2")} == {"0001", "0002"}
    assert [row["metric"] for row in table(two, "--metric", "ttft")] == ["ttft_s"]
    assert table(two, "-k", "nobody") == []


@pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")
def test_what_the_page_reads_with_pandas_has_the_columns_that_it_asks_for(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    (file,) = re.findall(r'read_csv\("(.*)"\)', page)
    (command,) = re.findall(rf"^pytest-infer export (.*-o {file})\b", page, re.MULTILINE)
    assert export(two, *command.split()).output == ""
    (row, *_) = csv.DictReader(tmp_path.joinpath(file).read_text().splitlines())
    asked = {"metric", *re.findall(r'(?:index|columns|values)="(\w+)"', page)}
    assert asked == {"metric", "time", "prompt", "value"}
    assert asked <= set(row)


def test_tags_that_are_null_are_none(storage, make_block):
    made = make_block("guide", only=ONLY)
    made["prompt"]["tags"] = None
    storage.add([made])
    assert {row["tags"] for row in table(storage)} == {""}


@pytest.mark.parametrize("tags", [5, "one"])
def test_tags_that_are_no_list_are_one_line(storage, make_block, tags):
    made = make_block("guide", only=ONLY)
    made["prompt"]["tags"] = tags
    path = storage.add([made])
    result = export(storage)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert f"{path}: not a run of pytest-benchmark: Expected `array | null`" in result.output


def test_a_run_that_is_exported_is_not_kept_in_memory(two):
    runs = history.load(two.folder).runs
    shape = tidy.Shape()
    assert tidy.columns(runs, shape)
    assert len(list(tidy.table(runs, shape))) == 8
    assert not [run for run in runs if "rows" in vars(run)]


def test_json_lines(two, tmp_path):
    file = tmp_path / "runs.jsonl"
    assert export(two, "--all", "-o", file).output == ""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 8
    assert (rows[0]["tags"], rows[0]["dirty"], rows[0]["config.threads"]) == (["one", "two"], False, None)
    assert (rows[0]["time"], rows[0]["value"]) == ("2026-01-01T00:01:00+00:00", 0.3)


def test_a_private_file_stays_private(two, tmp_path):
    file = tmp_path / "runs.csv"
    file.touch(mode=0o600)
    assert export(two, "-o", file).output == ""
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("run,")


@pytest.mark.parametrize("shape", [(), ("--rounds",), ("--wide",), ("--wide", "--rounds")])
def test_parquet_has_a_type_for_each_column(two, tmp_path, shape):
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "runs.parquet"
    assert export(two, "--all", *shape, "-o", file).output == ""
    found = pq.read_table(file)
    types = {field.name: str(field.type) for field in found.schema}
    assert types["time"] == "timestamp[us, tz=UTC]"
    assert types["tags"] == "list<element: string>"
    assert (types["threads"], types["dirty"], types["config.threads"]) == ("int64", "bool", "string")
    lines = [json.loads(line) for line in export(two, "--all", *shape, "--format", "jsonl").output.splitlines()]
    rows = found.to_pylist()
    for row in rows:
        row["time"] = row["time"].isoformat()
    assert rows == lines


def test_without_pyarrow_one_line_says_what_to_do(two, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    result = export(two, "-o", tmp_path / "x.parquet")
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "pytest-infer: --format parquet needs pyarrow: pip install 'pytest-infer[parquet]', "
        "or take --format csv or jsonl"
    ]
    assert list(tmp_path.glob("*parquet")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "x.txt"), "csv, jsonl or parquet?"),
        (("--all", "1"), "leave out"),
        (("-o", "file/x.csv"), "cannot be written"),
        (("--metric", "speed"), "speed"),
        (("7",), "no run '7'"),
    ],
)
def test_refusals_are_one_line(two, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("file").touch()
    result = export(two, *arguments)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert said in result.output


def test_parquet_is_not_written_to_a_terminal(two):
    pytest.importorskip("pyarrow")
    assert "name a file with -o" in export(two, "--format", "parquet").output


def test_a_run_of_plain_pytest_benchmark_has_its_time(storage):
    storage.add([{"fullname": "t.py::plain", "name": "plain", "stats": {"median": 1.0, "data": [1.0, 1.0]}}])
    (row,) = table(storage)
    assert (row["metric"], row["value"], row["n"], row["model"]) == ("total_s", "1.0", "2", "")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\uff1d1", "'\uff1d1"),
        ("\t=1", "\\t=1"),
        ("a\x1b[31m\r\n", "a\\x1b[31m\\r\\n"),
        ("plain = ü", "plain = ü"),
        (("=a", "b"), "'=a;b"),
        (("a", "=b", "c", "+d"), "a;'=b;c;'+d"),
        ("a;=HYPERLINK(1);-", "a;'=HYPERLINK(1);'-"),
        ('a;"=1', "a;'\"=1"),
        ("a; b;c-d", "a; b;c-d"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_no_cell_is_a_formula(value, written):
    assert text.csv_cell(value) == written


def test_names_are_verbatim_where_nothing_can_run_them(storage, make_block):
    storage.add([make_block("=cmd|' /C calc'!A0\u202e", only=ONLY)])
    assert table(storage)[0]["prompt"] == "'=cmd|' /C calc'!A0\\u202e"
    line = export(storage, "--format", "jsonl").output.splitlines()[0]
    assert line.isascii()
    assert json.loads(line)["prompt"] == "=cmd|' /C calc'!A0\u202e"


def test_every_column_has_one_type(two):
    pytest.importorskip("pyarrow")
    texts = {"output_sha256", "hottest_experts", "load_cache"}
    assert {metric.key for metric in METRICS if str(tables._type(metric.key)) == "string"} == texts


@pytest.fixture
def apart(storage, make_block):
    """Return a run of two tests, of one of which a step was taken apart."""
    part = {"role": "experts", "seconds": 0.03, "calls": 4.0, "error_s": 0.001, "read_bytes": 7.0}
    step = {"observed": 4, "bare": 4, "step_s": 0.04, "cost_s": 0.0, "parts": [part, {"role": "head", "seconds": 0.01}]}
    whole, without = make_block("a"), make_block("b")
    whole["breakdown"] = {"clock": "host", "decode": step}
    without["breakdown"] = {"absent": "a long round"}
    storage.add([whole, without])
    return storage


def test_a_row_a_part_of_a_step(apart):
    experts, head = table(apart, "--breakdown")
    told = {key: experts[key] for key in PART}
    assert told == {
        "phase": "decode", "role": "experts", "seconds": "0.03", "error_s": "0.001", "share": "0.75", "calls": "4.0",
        "read_bytes": "7.0", "flops": "",
    }  # fmt: skip
    assert (head["prompt"], head["role"], head["error_s"]) == (experts["prompt"], "head", "")
    assert table(apart, "--breakdown", "-k", "[b]") == []


def test_parts_without_a_time_have_no_share(storage, make_block):
    made = make_block("a")
    step = {"observed": 4, "bare": 4, "step_s": 0.0, "cost_s": 0.0, "parts": [{"role": "head", "seconds": 0.0}]}
    made["breakdown"] = {"clock": "host", "decode": step}
    storage.add([made])
    (head,) = table(storage, "--breakdown")
    assert (head["role"], head["share"]) == ("head", "")


@pytest.mark.parametrize(
    "shape", [(), ("--rounds",), ("--wide",), ("--wide", "--rounds"), ("--suite",), ("--breakdown",)]
)
def test_whatever_is_exported_is_of_its_columns_type(apart, monkeypatch, shape):
    # Also where pyarrow is not installed, as where we test.
    kinds = {"string": str, "float64": (float, int), "int64": int, "bool_": bool, "timestamp": str, "list_": list}
    types = {name: lambda *_, kind=kind, **__: kind for name, kind in kinds.items()}
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(**types))
    rows = [json.loads(line) for line in export(apart, *shape, "--format", "jsonl").output.splitlines()]
    assert rows
    told = [(key, value) for row in rows for key, value in row.items() if value is not None]
    assert [(key, value) for key, value in told if not isinstance(value, tables._type(key))] == []


@pytest.mark.parametrize("also", ["--wide", "--rounds", "--suite", "--metric=ttft"])
def test_the_parts_of_steps_are_a_table_of_their_own(two, also):
    result = export(two, "--breakdown", also)
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "leave out --suite, --wide, --rounds and --metric" in result.output
