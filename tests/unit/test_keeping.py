"""A record that is kept: what the test gets back, and what later changes of it leave as it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import scored

from pytest_infer.metrics import summarize
from pytest_infer.pytest_face.saving import Keeper
from pytest_infer.records import Drift


@pytest.fixture
def keeper():
    return Keeper(None, None, Path(), lambda line: None)


@pytest.fixture
def measured():
    reference = scored.logits()
    return replace(scored.record(scored.around(reference, 0.5), reference=reference), fidelity=None)


def test_a_test_gets_its_record_with_the_distance_from_what_it_followed(keeper, measured):
    assert summarize(measured)["kl"].value is None
    assert summarize(keeper.keep(measured, None, lambda phases, block: None))["kl"].value > 0


def test_a_sweep_keeps_the_distance_of_its_last_test(keeper, measured):
    keeper.keep(measured, None, lambda phases, block: None)
    drift = Drift(test="first", apart_s=1.0, ratios={})
    keeper.drifted(measured.nodeid, drift, None)
    keeper.renew(lambda record: replace(record, warnings=()) if record.drift else record)
    assert keeper.finished[measured.nodeid].block["metrics"]["kl"]["value"] > 0
