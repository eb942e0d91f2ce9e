"""The fixtures; their bodies import what they need, as every pytest run of an environment loads this module."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_infer.engines.base import Engine, EngineOptions
    from pytest_infer.measure.counters.sampler import SystemSampler
    from pytest_infer.prompts import Prompt
    from pytest_infer.pytest_face.infer import Infer
    from pytest_infer.pytest_face.sweep.configurations import Configuration
    from pytest_infer.pytest_face.under_load import InferUnderLoad
    from pytest_infer.records import Level, ModelInfo

NAMES = frozenset(
    (
        *("engine", "infer", "infer_configuration", "infer_load", "infer_under_load", "load_level", "model", "prompt"),
        "system_sampler",
    )
)
MEASURING = frozenset(("infer", "infer_under_load"))
"""Those that measure."""
LATE = ("engine", "model")
"""What these ask for when nothing can be refused any more, by getfixturevalue."""


def seen_by(item: pytest.Item, name: str) -> Sequence[Any]:
    """Return the fixtures of a name that a test can see, the one that it gets last."""
    # pytest has no public way to ask. A parameter of the test itself is a fixture that nobody else sees.
    manager: Any = item.session._fixturemanager
    own: Any = getattr(item, "_fixtureinfo", None)
    return (own is not None and own.name2fixturedefs.get(name)) or manager.getfixturedefs(name, item) or ()


def is_ours(definition: Any) -> bool:
    """Return whether pytest's definition of a fixture is one of this module's."""
    return bool(definition.func.__module__ == __name__)


def gets_ours(item: pytest.Item, name: str) -> bool:
    """Return whether the fixture of a name that a test gets is ours itself."""
    definitions = seen_by(item, name)
    return bool(definitions) and is_ours(definitions[-1])


def is_pytests(definition: Any) -> bool:
    """Return whether a fixture comes with pytest, as that does which gives a test a parameter of its own."""
    return bool(definition.func.__module__.startswith("_pytest."))


def asked_for(names: Collection[str], definitions: Mapping[str, Sequence[Any]], ours: Collection[str] = NAMES) -> bool:
    """Return whether a test gets one of our fixtures, of those it asks for and their definitions, the nearest last.

    Others have a `model` or a `prompt` of their own; only one that is made from ours asks for it.
    """
    return any(made_from_ours(name, definitions.get(name, ())) for name in ours if name in names)


def of_ours(item: pytest.Item) -> bool:
    """Return whether a test gets one of our fixtures."""
    info = getattr(item, "_fixtureinfo", None)
    return info is not None and asked_for(info.names_closure, info.name2fixturedefs)


def measures(item: pytest.Item) -> bool:
    """Return whether a test asks for what measures, which is ours for it, or of that name and made from ours."""
    asked = MEASURING.intersection(getattr(item, "fixturenames", ()))
    return any(made_from_ours(name, seen_by(item, name)) for name in asked)


def made_from_ours(name: str, definitions: Sequence[Any]) -> bool:
    """Return whether a fixture is ours, or another of that name that is made from ours."""
    return any(map(is_ours, made_from(name, definitions)))


def made_from(name: str, definitions: Sequence[Any]) -> Iterator[Any]:
    """Yield the fixture of a name that a test gets, and those of that name that it is made from."""
    for definition in reversed(definitions):
        yield definition
        if name not in definition.argnames:
            return


@pytest.fixture(scope="session")
def infer_load(request: pytest.FixtureRequest) -> EngineOptions:
    """What a model is loaded with; a sweep gives it each of its loads in turn."""
    from pytest_infer.pytest_face import hooks

    given: EngineOptions = getattr(request, "param", hooks.session_of(request.config).settings.engine_options)
    return given


@pytest.fixture(scope="session")
def infer_configuration(request: pytest.FixtureRequest, infer_load: EngineOptions) -> Configuration:  # noqa: ARG001 - before
    """What a test is measured with; its `values` are what a sweep gives it, by axis."""
    from pytest_infer.pytest_face import hooks
    from pytest_infer.pytest_face.sweep.configurations import Configuration

    given: Configuration | None = getattr(request, "param", None)
    return given or Configuration(settings=hooks.session_of(request.config).settings)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, infer_load: EngineOptions) -> Iterator[Engine]:
    """What generates tokens, as the options name it; override it to benchmark your own inference code."""
    from pytest_infer.pytest_face import hooks

    model_in_use = hooks.session_of(request.config).model_in_use
    yield model_in_use.engine(infer_load)
    model_in_use.close()


@pytest.fixture(scope="session")
def model(engine: Engine, infer_load: EngineOptions, request: pytest.FixtureRequest) -> ModelInfo:
    """The loaded model's description; override it to load yours: `return engine.adopt(my_model, my_tokenizer)`."""
    from pytest_infer.pytest_face import failures, hooks

    return failures.or_fail(lambda: hooks.session_of(request.config).load(engine, infer_load.model))


@pytest.fixture
def prompt() -> Prompt:
    """One prompt of the suite; a test that asks for it is parametrized."""
    pytest.fail(
        "no prompts for this test: put a prompts.toml beside it, name a suite with --infer-prompts FILE, "
        "or mark the test with @pytest.mark.infer_prompts([…])",
        pytrace=False,
    )


@pytest.fixture
def load_level() -> Level:
    """One level of --infer-load; a test that asks for it is parametrized."""
    pytest.skip("a load test: --infer-load says at which levels, as in --infer-load concurrency=1,2,4")


@pytest.fixture
def system_sampler(request: pytest.FixtureRequest) -> SystemSampler:
    """Memory, CPU and disk counters around any block: `with system_sampler() as s: …`, then `s.record`."""
    from pytest_infer.measure.counters.sampler import SystemSampler
    from pytest_infer.pytest_face import hooks

    session = hooks.session_of(request.config)
    return SystemSampler(session.system, session.machine)


@pytest.fixture
def infer(request: pytest.FixtureRequest, benchmark: Any, infer_configuration: Configuration) -> Infer:
    """The measuring loop: call it with a prompt."""
    from pytest_infer.pytest_face import hooks
    from pytest_infer.pytest_face.infer import Infer

    return Infer.of(request, hooks.session_of(request.config), benchmark, infer_configuration)


@pytest.fixture
def infer_under_load(request: pytest.FixtureRequest, benchmark: Any) -> InferUnderLoad:
    """The measurement of a level of load on a server: call it with `load_level`."""
    from pytest_infer.pytest_face import hooks
    from pytest_infer.pytest_face.under_load import InferUnderLoad

    return InferUnderLoad.of(request, hooks.session_of(request.config), benchmark)
