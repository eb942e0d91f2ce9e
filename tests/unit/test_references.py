"""Whose tokens a test of a sweep follows."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face.references import References
from pytest_infer.pytest_face.sweep.configurations import Configuration
from pytest_infer.records import PromptRecord


@pytest.fixture
def record():
    golden = Path(__file__).parents[1] / "data" / "record-1.json"
    return msgspec.json.decode(golden.read_bytes(), type=PromptRecord)


def test_no_model_of_a_sweep_follows_another_ones_tokens(record):
    references = References(None, pytest.fail, sweeping=True)
    first, second = (Configuration(settings=None, values={"threads": n}) for n in "12")
    engine = SimpleNamespace(follows=lambda: True)
    asked = Prompt(name="guide", text="x")

    def followed(model):
        return references.of(record.nodeid, asked, record.prompt.limits, model, engine, second)

    references.measured(record, asked, first)
    assert followed(record.model).name == "threads=1"
    assert followed(replace(record.model, threads=2)).name == "threads=1"
    assert followed(replace(record.model, name="other")) is None
