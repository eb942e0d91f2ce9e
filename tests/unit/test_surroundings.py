"""The line about what a process was given: where it is shown, and when there is nothing to show."""

import dataclasses
from pathlib import Path

import msgspec
import pytest

from pytest_infer.analysis.doctor import pitfalls
from pytest_infer.analysis.doctor.checkup import Checkup
from pytest_infer.analysis.run_summary import RunSummary
from pytest_infer.measure.machine.host import Host
from pytest_infer.metrics import result
from pytest_infer.records import PromptRecord
from pytest_infer.report import doctor, surroundings
from pytest_infer.report.show import summary

DATA = Path(__file__).parents[1] / "data"
SET = {"environment": {"LD_PRELOAD": "libjemalloc.so", "OMP_NUM_THREADS": "1"}, "scheduling": {"nice": "10"}}
LINE = "set here: LD_PRELOAD=libjemalloc.so · OMP_NUM_THREADS=1 · niceness 10"


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def with_machine(record, **changes):
    return dataclasses.replace(record, machine=dataclasses.replace(record.machine, **changes))


@pytest.mark.parametrize(
    ("environment", "granted", "line"),
    [
        (None, None, None),
        ({}, {"nice": "0", "policy": "other", "cpu_weight": "100", "memory_nodes": "0", "turbo": "on"}, None),
        (SET["environment"], SET["scheduling"], LINE),
        ({}, {"policy": "batch", "cpu_weight": "20"}, "set here: scheduled as batch · CPU weight 20"),
        ({}, {"memory_policy": "bind:1", "turbo": "off"}, "set here: memory policy bind:1 · turbo off"),
    ],
)
def test_the_line(environment, granted, line):
    assert surroundings.line(environment, granted) == line


def test_a_run_shows_it_once(record):
    def render(**changes):
        results = (result.of_record(with_machine(record, **changes)),) * 2
        return summary.render(RunSummary(results=results), width=100, color=False, verbose=True)

    assert render(**SET).splitlines().count(LINE) == 1
    assert "set here" not in render(environment={}, scheduling={"nice": "0"})


def test_the_doctor_shows_it_and_warns_of_niceness(record):
    machine = with_machine(record, **SET).machine
    found = Checkup(machine=machine, host=Host(), pitfalls=pitfalls.find(machine, Host()), probe=None, model=None)
    text = doctor.render(found, width=100, color=False)
    assert LINE in text
    assert "niceness of 10: whatever else wants a core goes first" in text
    calm = with_machine(record, environment={}, scheduling={"nice": "-5"}).machine
    assert "niceness" not in "".join(p.evidence for p in pitfalls.find(calm, Host()))
