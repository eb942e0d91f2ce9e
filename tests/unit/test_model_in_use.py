"""One engine at a time, and what is said of the model that it runs."""

import pytest

from pytest_infer.engines.base import Engine, EngineOptions
from pytest_infer.pytest_face import model_in_use
from pytest_infer.pytest_face.model_in_use import ModelInUse
from pytest_infer.records import ModelInfo


class Fake(Engine):
    def __init__(self, said):
        self.said = said

    def adapt(self, options):
        self.said.append(f"adapt {options.threads}")
        return ModelInfo(name="adapted", engine="fake", threads=options.threads)

    def close(self):
        self.said.append("close")


@pytest.fixture
def said():
    return []


@pytest.fixture
def uses(monkeypatch, said):
    monkeypatch.setattr(model_in_use.lookup, "create", lambda _name, _options: Fake(said))
    return ModelInUse("fake", said.append, lambda: said.append("closing"))


def info(name, **more):
    return ModelInfo(name=name, engine="fake", threads=1, **more)


def test_another_model_that_an_engine_adopts_is_described_as_itself(uses):
    options = EngineOptions(model="reference-moe")
    engine = uses.engine(options)
    first, second = info("first"), info("second")
    assert uses.adapt(engine, first, options) is first
    assert uses.adapt(engine, first, options) is first
    assert uses.adapt(engine, second, options) is second
    assert uses.adapt(engine, second, options) is second


def test_other_options_are_told_to_the_engine_and_the_load_is_kept(uses, said):
    options = EngineOptions(model="reference-moe", threads=1)
    engine = uses.engine(options)
    loaded = info("first", load_s=2.5, weights_sha256="abc")
    assert uses.adapt(engine, loaded, options) is loaded
    for _ in range(2):
        adapted = uses.adapt(engine, loaded, EngineOptions(model="reference-moe", threads=2))
        assert (adapted.name, adapted.threads, adapted.load_s, adapted.weights_sha256) == ("adapted", 2, 2.5, "abc")
    assert said == ["adapt 2"]


def test_an_engine_of_a_tests_own_is_left_alone(uses, said):
    uses.engine(EngineOptions(model="reference-moe"))
    own = info("own")
    assert uses.adapt(Fake(said), own, EngineOptions(model="reference-moe", threads=7)) is own
    assert said == []


def test_all_let_go_of_an_engine_before_it_is_closed_and_before_the_next_is_made(uses, said):
    first = uses.engine(EngineOptions(model="a"))
    assert uses.engine(EngineOptions(model="a")) is first
    assert uses.engine(EngineOptions(model="b")) is not first
    assert said == ["closing", "close"]
    uses.close()
    uses.close()
    assert said == ["closing", "close"] * 2
