"""No command lets what a stored run holds reach a terminal, a page of Markdown or a spreadsheet as more than text."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.cli import doctor
from pytest_infer.cli.main import app
from pytest_infer.measure.loading import process
from pytest_infer.metrics.result import of_record
from pytest_infer.records import Loading, LoadingRound, PromptRecord, absent
from pytest_infer.report.show import summary as terminal

DATA = Path(__file__).parents[1] / "data"
NASTY = "=x\x1b[31m\x1b]0;t\x07\u202e\u2066\x9b1m</td><script>alert(1)</script><img src=x>|[a](http://x)`\r\n::error::y"
"""A formula, escapes of a terminal, text set to run right to left, HTML, Markdown, and a second line."""
TWO = {"prompt": {"tags": [NASTY, "b"], "group": NASTY}}
SITE = {"name": NASTY, "layer": 0, "kind": NASTY, "experts": 4, "slots": 4, "k": 2, "expert_bytes": 1024}


@pytest.fixture
def runs(storage, make_block, monkeypatch, tmp_path):
    """Three runs in which every text is nasty, another whose file's name is, and a file that is no run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "3000")  # so that no line is broken within what is looked for
    model = dict.fromkeys(("name", "dtype", "architecture", "experts_implementation", "attention"), NASTY)
    machine = dict.fromkeys(("cpu", "virtualization", "governor", "kernel", "system", "python"), NASTY)
    experts = {
        "check": "passed",
        "tokens": {"prefill": 6, "decode": 40},
        "sites": [SITE],
        "counts": {"prefill": [[6, 3, 2, 1]], "decode": [[40, 30, 10, 0]]},
        "note": NASTY,
    }
    advice = {"rule": NASTY, "severity": "critical", "evidence": NASTY, "suggestion": NASTY, "prompts": [NASTY]}
    for number in range(3):
        blocks = []
        for name, sha in ((NASTY, "a"), (f"{NASTY}2", NASTY)):
            times = [0.1 * 2**number, 0.1001 * 2**number]
            made = make_block(name, **TWO, model=model, machine=machine, ttft_s=times, output_sha256=f"{sha}{number}")
            made["machine"]["accelerators"] = [NASTY]
            made["experts"] = experts
            made["metrics"]["hottest_experts"] = {"value": NASTY, "unit": "text"}
            made["output"]["text"] = NASTY
            made["cautions"] = [{"kind": "rounds were disturbed", "text": NASTY}]
            made["config"] = {NASTY: NASTY}
            made["rounds"]["disturbed"] = {"0": [NASTY], NASTY: []}
            blocks.append(made)
        storage.add(
            blocks,
            name=f"000{number + 1}_{NASTY}.json".replace("/", "") if number == 2 else None,
            commit=f"{number}{NASTY}" if number == 1 else "c" * 40,
            branch=NASTY,
            gate={"result": NASTY, "against": NASTY, "rules": [NASTY]},
            failed={NASTY: blocks[0]} if number else {},
            unmeasured=[NASTY],
            advice=[{**advice, "tests": 2}],
        )
    (storage.folder / "\x1b[31m.json").write_text("{}", encoding="utf-8")
    (storage.folder / "baselines.ini").write_text("[baselines]\n\x1b[31mx = \x1b[31my\n", encoding="utf-8")
    return storage


COMMANDS = [
    "history",
    "history --change-points --metric all",
    "baseline list",
    "baseline set NASTY 1",
    "compare",
    "compare --metric all",
    "compare 1 2 3",
    "compare --by-metric",
    "compare --format markdown",
    "compare 1 2 3 --format markdown",
    "compare --format csv",
    "compare --format json",
    "gate latest --against 1 --no-mark",
    "gate latest --against 1 --no-mark --rule NASTY",
    "gate latest --against 1 --no-mark --rule ttft:5% --rule output:exact --format markdown --allow-different output",
    "gate latest --against 1 --no-mark --format csv",
    "gate latest --against 1 --no-mark --format json",
    "gate latest --against 1 --no-mark --github",
    "report",
    "report 1 2",
    "site public",
    "show",
    "show -v",
    "show 2",
    "show NASTY",
    "experts",
    "experts --by tag",
    "experts --by group --phase both --format markdown",
    "experts --format markdown",
    "experts --format csv",
    "experts --format json",
    "experts -k NASTY",
    "placement",
    "placement --format json",
    "placement --gpu-memory 2KiB --dense-on cpu",
    "placement --gpu-memory 2KiB --dense-on cpu --format llama.cpp",
    "placement --gpu-memory 2KiB --dense-on cpu --format experts",
    "advice",
    "advice --format json",
    "export --all",
    "export --all --wide",
    "export --rounds",
    "export --format jsonl",
    "export --metric NASTY",
]


def inert(text):
    """Fail where a character would do more than be seen."""
    wrong = {char for char in text if char != "\n" and not char.isprintable()}
    assert not wrong, [line for line in text.splitlines() if not line.isprintable()][:3]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(runs, command, monkeypatch):
    summary = runs.folder / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    arguments = [NASTY if word == "NASTY" else word for word in command.split()]
    result = CliRunner().invoke(app, [*arguments, "--storage", str(runs.folder)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.output
    inert(result.output)
    if "markdown" in command:
        assert "alert(1)" in result.stdout
        markdown(result.stdout)
    if "csv" in command or command.startswith("export --"):
        cells = [cell for row in csv.reader(io.StringIO(result.stdout)) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    if "json" in command and "jsonl" not in command:
        json.loads(result.stdout)
    if "--github" in command:
        workflow = [line for line in result.stdout.splitlines() if line.startswith("::")]
        assert workflow
        assert all(re.match(r"::(error|warning) title=", line) for line in workflow)
        markdown(summary.read_text(encoding="utf-8"))


def test_a_sweep_and_its_curves(storage, make_block, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3000")
    rows = []
    for value, level in (("1", 0.1), (f"2{NASTY}", 0.2)):
        for tokens in (16, 64, 256, 1024):
            times = [level * tokens * (1 + n / 1e3) for n in range(5)]
            made = make_block(f"{NASTY}{tokens}", prompt_tokens=tokens, ttft_s=times, tpot_s=times)
            made["config"] = {NASTY: value}
            made["curve"] = {"axis": "prompt_tokens", "value": tokens}
            test = f"bench/t.py::t[{NASTY}{tokens}-{value}]"
            extra = {"pytest_infer": made}
            rows.append({"fullname": test, "name": test, "stats": {"median": times[2]}, "extra_info": extra})
    storage.add(rows)
    result = CliRunner().invoke(app, ["show", "--storage", str(storage.folder)])
    assert result.exit_code == 0, result.output
    assert "script" in result.stdout
    inert(result.output)


def test_change_points(storage, make_block):
    for number in range(16):
        level = 0.1 if number < 8 else 0.2
        only = ("ttft_s", "prompt_tokens", "generated_tokens")
        storage.add([make_block(NASTY, only=only, ttft_s=level + number / 1e5)], branch=NASTY, commit=f"{number:040}")
    result = CliRunner().invoke(app, ["history", "--change-points", "--storage", str(storage.folder)])
    assert "+10" in result.stdout
    assert "script" in result.stdout
    inert(result.output)


def markdown(text):
    """Fail where text of a run is markup: a tag, a link, or another cell."""
    inert(text)
    assert not re.findall(r"<(?!/?(?:details|summary)>)", text)
    assert "](http" not in text.replace("\\]", "")


@pytest.mark.parametrize("width", [60, 3000])
@pytest.mark.parametrize("verbose", [False, True])
def test_the_summary_at_the_end_of_a_run(width, verbose):
    record = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    result = of_record(
        dataclasses.replace(
            record,
            prompt=dataclasses.replace(record.prompt, name=NASTY),
            model=dataclasses.replace(record.model, name=NASTY, dtype=NASTY, experts_implementation=NASTY),
            machine=dataclasses.replace(record.machine, cpu=NASTY, accelerators=(NASTY,)),
            output=dataclasses.replace(record.output, text=NASTY),
            warnings=tuple(dataclasses.replace(warning, text=NASTY) for warning in record.warnings),
        )
    )
    run = RunSummary(results=(result, result), failed=(NASTY,), unmeasured=(NASTY,), notes=(NASTY,))
    shown = terminal.render(run, width=width, color=False, verbose=verbose)
    assert "script" in shown
    inert(shown)


@pytest.mark.parametrize("form", ["terminal", "json"])
def test_loads(monkeypatch, form):
    record = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    one = record.rounds[0]
    unknown = absent(NASTY)
    load = Loading(**dict.fromkeys((field.name for field in dataclasses.fields(Loading)), unknown))

    def ask(request, tell):
        asked = {"asked": request.cache, "model": NASTY, "load_s": 1.0, "problem": NASTY}
        return LoadingRound(**asked, load=load, first=one, again=one, whole=one.counters)

    monkeypatch.setattr(process, "ask", ask)
    result = CliRunner().invoke(app, ["loading", "--model", NASTY, "--format", form])
    assert result.exit_code == 0, result.output
    assert "script" in result.stdout
    inert(result.output)


@pytest.mark.parametrize("form", ["terminal", "json"])
def test_the_doctor(tmp_path, monkeypatch, form):
    monkeypatch.setenv("PYTEST_INFER_CACHE", str(tmp_path / "cache"))
    described = doctor.description.describe()
    described = dataclasses.replace(described, cpu=NASTY, virtualization=NASTY, kernel=NASTY, accelerators=(NASTY,))
    monkeypatch.setattr(doctor.description, "describe", lambda: described)
    folder = tmp_path / "\x1b[31m\u202e"
    folder.mkdir()
    config = {"model_type": NASTY, "architectures": [NASTY], "dtype": NASTY}
    for content in (config, {**config, "model_type": "llama"}):
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
        result = CliRunner().invoke(app, ["doctor", "--model", str(folder), "--format", form])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        inert(result.output)
    plain = CliRunner().invoke(app, ["doctor", "--format", form])
    assert plain.exit_code == 0
    inert(plain.output)
