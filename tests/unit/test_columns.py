"""The summary's columns are those that the table of metrics declares, in each of its three forms."""

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.metrics import METRICS, Direction, Kind, Metric, columns, read
from pytest_infer.metrics.metric import Column
from pytest_infer.metrics.result import of_record
from pytest_infer.records import PromptRecord
from pytest_infer.report.html import overview, stored
from pytest_infer.report.show import exports
from pytest_infer.report.show.summary import render
from pytest_infer.report.show.table import NARROW
from pytest_infer.storage import block, runs
from pytest_infer.units import Unit

DATA = Path(__file__).parents[1] / "data"


def metric(column):
    return Metric(
        "zeal",
        "zealous",
        Unit.COUNT,
        Direction.NEUTRAL,
        Kind.COUNTED,
        read.once(lambda _: 12345),
        "",
        "",
        column=column,
    )


@pytest.fixture
def declare(monkeypatch):
    """Return a function that puts a metric before those of a copy of the table."""

    def declared(column):
        table = (metric(column), *METRICS)
        for name, module in list(sys.modules.items()):
            if name.startswith("pytest_infer.") and getattr(module, "METRICS", None) is METRICS:
                monkeypatch.setattr(module, "METRICS", table)

    return declared


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def terminal(record, width):
    return render(RunSummary(results=(of_record(record),)), width=width, color=False)


def html(record, storage):
    run = storage.add([block.build(record)])
    return overview.suite(stored.read(runs.read(run)).tests, summed=True)


def test_the_columns_are_those_of_the_table():
    headings = [shown.heading for shown in columns().values()]
    assert headings == ["TTFT", "ITL p50", "ITL p99", "decode", "peak", "CPU"]


def test_a_column_of_a_metric_is_in_all_three_forms(record, storage, declare):
    declare(Column("Zeal"))
    wide = terminal(record, 160)
    assert "Zeal" in wide
    assert "12345" in wide
    assert "  Zeal 12,345 · TTFT " in terminal(record, NARROW - 1)
    table = html(record, storage)
    assert [head.text for head in table.heads][2] == "zealous"
    assert table.rows[0][2].text == "12345"


def test_a_metric_without_one_is_in_none(record, storage, declare):
    declare(None)
    for text in (terminal(record, 160), terminal(record, NARROW - 1), str(html(record, storage))):
        assert "12345" not in text.replace(",", "")
        assert "zeal" not in text.lower()


def test_a_bare_one_goes_without_its_heading_where_the_terminal_is_narrow(record, declare):
    declare(Column("Zeal", bare=True))
    assert "  12,345 · TTFT " in terminal(record, NARROW - 1)


def test_one_that_is_not_brief_is_on_the_card_only(record, storage, declare):
    declare(Column("Zeal", brief=False))
    for text in (terminal(record, 160), terminal(record, NARROW - 1)):
        assert "zeal" not in text.lower()
    assert html(record, storage).rows[0][2].text == "12345"


def test_tokens_that_a_server_does_not_tell_are_a_dash_in_all_three_forms(record):
    untold = replace(record, rounds=tuple(replace(r, trace=replace(r.trace, prompt_tokens=0)) for r in record.rounds))
    found = RunSummary(results=(of_record(untold),))
    assert found.results[0].figures["prompt_tokens"].value is None
    generated = found.results[0].figures["generated_tokens"].value
    for text in (terminal(untold, 160), terminal(untold, NARROW - 1), exports.as_markdown(found, heading="")):
        assert f"—+{generated}" in text
