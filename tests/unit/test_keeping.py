"""A record that is kept: what the test gets back, what later changes of it leave, and who may take it up again."""

from dataclasses import replace
from pathlib import Path

import pytest
import scored

from pytest_infer.engines import models
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.checkpoint import source
from pytest_infer.measure.machine import description
from pytest_infer.metrics import summarize
from pytest_infer.pytest_face import saving
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


class Options:
    """As much of the settings as a key is made of."""

    def __init__(self, **engine):
        vars(self).update(dict.fromkeys(saving._MATTER), engine_options=EngineOptions(**engine))


class NotSaving:
    saving = False


def key_of(record, *, machine=None, model="reference-moe", **more):
    settings = Options(model=model)
    vars(settings).update(more, resume=False)
    keeper = Keeper(settings, NotSaving(), Path(), lambda line: None)
    keeper.prepare(machine or description.describe())
    return keeper._key(record.prompt.content_sha256, record.prompt.limits, settings)


def test_a_record_is_taken_up_on_the_same_machine_with_the_same_packages(measured, monkeypatch, tmp_path):
    here = description.describe()
    first = key_of(measured, machine=here)
    assert key_of(measured) == first
    assert key_of(measured, machine=replace(here, cpu="another")) != first
    monkeypatch.syspath_prepend(str(tmp_path))
    assert key_of(measured) == first
    (tmp_path / "torch-99.0.dist-info").mkdir()
    assert key_of(measured) != first


def test_a_record_of_another_load_is_not_taken_up(measured):
    assert key_of(measured, cold_load=True) != key_of(measured)


def test_a_record_of_a_model_that_was_written_anew_is_not_taken_up(measured, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = key_of(measured, model=str(tmp_path))
    assert key_of(measured, model=str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert key_of(measured, model=str(tmp_path)) != first


def test_a_hub_model_is_told_by_the_commit_in_the_cache(monkeypatch):
    monkeypatch.setattr(models, "local_folder", lambda name, revision: Path("cache/snapshots/abc"))
    assert source.state("owner/name", None) == "abc"
    assert source.state("reference-moe", None) is source.state("", None) is None


@pytest.mark.parametrize("name", ["user/model:q4", "a/b--c", "team/llama:prod", "./nowhere", "nowhere"])
def test_a_name_that_the_hub_would_refuse_tells_nothing(name):
    assert source.state(name, None) is None


def test_all_parts_of_a_split_file_count(tmp_path):
    names = [str(tmp_path / f"m-0000{n}-of-00002.gguf") for n in (1, 2)]
    for name in names:
        Path(name).write_bytes(b"a part")
    first = source.state(names[0], None)
    Path(names[1]).write_bytes(b"another part")
    assert source.state(names[0], None) != first


def test_a_trace_beside_a_file_of_pytest_benchmarks_own_is_named_too(keeper, measured, tmp_path):
    operators = replace(measured.breakdown.operators, trace=b"a trace")
    record = replace(measured, breakdown=replace(measured.breakdown, operators=operators))
    keeper.keep(record, None, lambda phases, block: None)
    assert keeper.trace(record.nodeid) is None
    keeper._json_file = tmp_path / "run.json"
    keeper._json_file.touch()
    assert (tmp_path / keeper.trace(record.nodeid)).read_bytes() == b"a trace"
