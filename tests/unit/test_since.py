"""What changed since the last run, in the summary of a run and of a stored one."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.metrics.result import of_record
from pytest_infer.records import PromptRecord
from pytest_infer.report.show import table
from pytest_infer.report.text import collected, console

DATA = Path(__file__).parents[1] / "data"
CALM = [0.1, 0.1001, 0.0999, 0.1002, 0.0998, 0.1, 0.1001, 0.0999, 0.1, 0.1]


def times(factor):
    return [value * factor for value in CALM]


@pytest.fixture
def stored(storage, make_block):
    """Return a function that stores six equal runs and one whose figures are `changes` of a prompt."""

    def store(changes, *, others=("other",), before=("guide", "other")):
        for number in range(6):
            storage.add([make_block(name, ttft_s=times(1 + number / 1000), tpot_s=CALM) for name in before])
        blocks = [make_block("guide", **{"ttft_s": CALM, "tpot_s": CALM} | changes)]
        storage.add([*blocks, *(make_block(name, ttft_s=CALM, tpot_s=CALM) for name in others)])
        return storage

    return store


def shown(storage, *arguments, width=160):
    result = CliRunner().invoke(app, ["show", f"--storage={storage.folder}", *arguments], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.parametrize(
    ("changes", "row", "whole"),
    [
        ({"tpot_s": times(1.2)}, "decode 20 % slower [", "decode of guide 20 % slower"),
        ({"tpot_s": times(0.8)}, "decode 20 % faster [", "decode of guide 20 % faster"),
        ({"ttft_s": times(1.3)}, "prefill 29 % slower [", "prefill of guide 29 % slower"),
        ({}, "decode 0.0 % [", "no change beyond"),
    ],
    ids=["decode slower", "decode faster", "prefill slower", "unchanged"],
)
def test_a_row_says_what_moved_and_a_line_what_it_comes_to(stored, changes, row, whole):
    lines = shown(stored(changes))
    (guide,) = [line for line in lines if line.startswith("guide ")]
    assert row in guide
    (line,) = [line for line in lines if line.startswith("since 0006 ")]
    assert whole in line


def test_a_run_before_which_there_is_none_has_no_such_column(storage, make_block):
    storage.add([make_block("guide")])
    assert "since" not in " ".join(shown(storage))


@pytest.mark.parametrize("width", [60, 72, 80, 120, 160])
def test_at_every_width_nothing_is_lost(stored, width):
    lines = shown(stored({"tpot_s": times(1.2)}), width=width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    rate = "22.2 tok/s ± 0.0 %" if width < table.NARROW else "22.2 ± 0.0 %"
    for told in ("decode 20 % slower [", rate, "400", "L0E0 L0E1 L1E0", "6+5", "since 0006"):
        assert told in text, told


def test_a_prompt_that_cannot_be_compared_says_why_and_a_new_one_that_it_is(stored, storage, make_block):
    storage = stored({}, others=("brand-new",), before=("guide",))
    (new,) = [line for line in shown(storage) if line.startswith("brand-new ")]
    assert new.endswith(" new")
    storage.add([make_block("guide", tpot_s=CALM, machine={"cpu": "another one"})])
    (row,) = [line for line in shown(storage) if line.startswith("guide ")]
    assert "not compared: " in row


def test_tests_that_were_left_out_are_not_missing(stored):
    assert "missing" not in " ".join(shown(stored({}, others=())))


def test_what_the_gate_tells_is_not_told_twice(stored, make_block):
    storage = stored({})
    storage.add([make_block("guide", tpot_s=CALM)], gate={"result": "passed", "rules": ["tpot:5%"], "against": "0006"})
    text = " ".join(shown(storage))
    assert "gate against 0006: passed" in text
    assert "since" not in text


def test_the_spread_is_that_of_the_rounds():
    record = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    figures = of_record(record).figures
    rounds = figures["ttft_s"].rounds
    mean = sum(rounds) / len(rounds)
    sd = (sum((value - mean) ** 2 for value in rounds) / (len(rounds) - 1)) ** 0.5
    assert table.spread(figures["ttft_s"]) == f"± {100 * sd / mean:.1f} %"
    single = dataclasses.replace(record, rounds=record.rounds[:1])
    assert table.spread(of_record(single).figures["ttft_s"]) == ""


def test_a_dense_model_has_no_column_of_experts():
    record = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    dense = dataclasses.replace(
        record, profile=dataclasses.replace(record.profile, experts=None, experts_absent="dense")
    )
    found = []
    for one in (record, dense):
        on = console(160, color=False)
        table.write(on, [of_record(one)], None)
        found.append("experts" in collected(on))
    assert found == [True, False]


def test_programs_get_spread_and_change(stored):
    storage = stored({"tpot_s": times(1.2)})
    told = json.loads("\n".join(shown(storage, "--format", "json")))
    assert told["since"]["run"].endswith(".json")
    changes = [j for j in told["since"]["judgements"] if j["test"].endswith("[guide]") and j["metric"] == "tpot_s"]
    assert [j["verdict"] for j in changes] == ["regressed"]
    assert "decode of guide 20 % slower" in told["since"]["headline"]
    text = "\n".join(shown(storage, "--format", "markdown"))
    assert r"decode 20 % slower \[" in text
    assert "22.2 tok/s ± 0.0 %" in text
    assert "since 0006" in text
