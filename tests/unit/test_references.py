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
    engine = SimpleNamespace(follows=lambda: True, cannot_follow=lambda _tokens: None)
    asked = Prompt(name="guide", text="x")

    def followed(model):
        return references.of(record.nodeid, asked, record.prompt.limits, model, engine, second)

    references.measured(record, asked, first)
    assert followed(record.model).name == "threads=1"
    assert followed(record.model).dtype == record.model.dtype
    assert followed(replace(record.model, threads=2)).name == "threads=1"
    assert followed(replace(record.model, name="other")) is None


def test_tokens_that_an_engine_cannot_follow_are_named_before_a_round(record):
    notes = []
    references = References(None, notes.append, sweeping=True)
    first, second = (Configuration(settings=None, values={"threads": n}) for n in "12")
    asked, tokens = Prompt(name="guide", text="x"), record.rounds[0].trace.token_ids
    engine = SimpleNamespace(follows=lambda: True, cannot_follow=lambda given: f"not {list(given)}")
    references.measured(record, asked, first)
    limits = replace(record.prompt.limits, max_new_tokens=len(tokens) - 1)
    found = references.of(record.nodeid, asked, limits, record.model, engine, second)
    assert found.problem == f"not {list(tokens[:-1])}", "of what is to be generated alone"
    assert notes == [f"! guide: cannot follow threads=1: {found.problem}"]
