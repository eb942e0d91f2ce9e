"""The fixtures: engine, model, prompt, infer, system_sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pytest_infer import prompts
from pytest_infer.engines.base import Engine, EngineOptions
from pytest_infer.measure.counters.sampler import SystemSampler
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face import encoding, failures
from pytest_infer.pytest_face import session as sessions
from pytest_infer.pytest_face.parametrize import CONFIGURED
from pytest_infer.pytest_face.sweep.configurations import Configuration
from pytest_infer.records import ModelInfo, PromptRecord


@pytest.fixture(scope="session")
def infer_load(request: pytest.FixtureRequest) -> EngineOptions:
    """What a model is loaded with; a sweep gives it each of its loads in turn."""
    given: EngineOptions = getattr(request, "param", sessions.of(request.config).settings.engine_options)
    return given


@pytest.fixture(scope="session")
def infer_configuration(request: pytest.FixtureRequest, infer_load: EngineOptions) -> Configuration:  # noqa: ARG001 - before
    """What a test is measured with; its `values` are what a sweep gives it, by axis."""
    given: Configuration | None = getattr(request, "param", None)
    return given or Configuration(settings=sessions.of(request.config).settings)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, infer_load: EngineOptions) -> Iterator[Engine]:
    """What generates tokens, as the options name it; override it to benchmark your own inference code."""
    in_use = sessions.of(request.config).in_use
    yield in_use.engine(infer_load)
    in_use.close()


@pytest.fixture(scope="session")
def model(engine: Engine, infer_load: EngineOptions, request: pytest.FixtureRequest) -> ModelInfo:
    """The loaded model's description; override it to load yours: `return engine.adopt(my_model, my_tokenizer)`."""
    return failures.told(lambda: sessions.of(request.config).load(engine, infer_load.model))


@pytest.fixture
def prompt() -> Prompt:
    """One prompt of the suite; a test that asks for it is parametrized."""
    pytest.fail(
        "no prompts for this test: put a prompts.toml beside it, name a suite with --infer-prompts FILE, "
        "or mark the test with @pytest.mark.infer_prompts([…])",
        pytrace=False,
    )


@pytest.fixture
def system_sampler(request: pytest.FixtureRequest) -> SystemSampler:
    """Memory, CPU and disk counters around any block: `with system_sampler() as s: …`, then `s.record`."""
    session = sessions.of(request.config)
    return SystemSampler(session.system, session.machine)


class Infer:
    """Measures a prompt: `record = infer(prompt)`; once a test."""

    def __init__(self, request: pytest.FixtureRequest, benchmark: object, configuration: Configuration) -> None:
        self._request = request
        self._benchmark = benchmark
        self._configuration = configuration
        self._session = sessions.of(request.config)

    def __call__(self, prompt: Prompt | str) -> PromptRecord:
        """Run the warm-up, timed and profile rounds of a prompt, keep the results, and return the record."""
        __tracebackhide__ = True
        if isinstance(prompt, str):
            prompt = Prompt(name=self._request.node.name, text=prompt)
        return failures.told(lambda: self._measured(prompt), self._session.live.clear)

    def _measured(self, prompt: Prompt) -> PromptRecord:
        session, nodeid, settings = self._session, self._request.node.nodeid, self._configuration.settings
        session.bridge.check(self._benchmark)
        prompts.check(prompt, f"{nodeid}: infer()")
        limits = encoding.limits_of(prompt, settings)
        record = session.keeper.resumed(nodeid, prompt.content_sha256, limits, settings)
        if record is not None:
            session.returning.resumed()
            self._keep(record, prompt)
            return record
        # Asked for late, so that what is refused is refused before a model is loaded.
        engine = self._request.getfixturevalue("engine")
        model = self._request.getfixturevalue("model")
        model = session.in_use.adapt(engine, model, settings.engine_options)
        record = session.measure(nodeid, prompt, engine, model, self._configuration)
        if session.bridge.disabled:
            session.bridge.spend(self._benchmark)
            return record
        self._keep(record, prompt)
        drift = session.returning.back(nodeid, lambda options: session.in_use.adapt(engine, model, options))
        return record if drift is None else session.keeper.drifted(record, drift, settings)

    def _keep(self, record: PromptRecord, prompt: Prompt) -> None:
        session, settings = self._session, self._configuration.settings
        clock = self._request.node.stash[sessions.CLOCK]
        self._request.node.stash[sessions.BENCHMARK] = self._benchmark
        group = prompt.group or getattr(self._benchmark, "group", None)
        session.keeper.keep(
            record,
            settings,
            lambda phases, block: session.bridge.hand_over(
                self._benchmark, clock, phases, block, params=self._params(prompt), group=group
            ),
        )
        session.loop.finished(record)

    def _params(self, prompt: Prompt) -> dict[str, Any]:
        callspec = getattr(self._request.node, "callspec", None)
        given = callspec.params if callspec is not None else {}
        ours = ("prompt", *CONFIGURED)
        plain = {k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in given.items() if k not in ours}
        return {"prompt": prompt.name, **plain, **self._configuration.values}


@pytest.fixture
def infer(request: pytest.FixtureRequest, benchmark: Any, infer_configuration: Configuration) -> Infer:
    """The measuring loop: call it with a prompt."""
    session = sessions.of(request.config)
    if session.bridge.parallel:
        pytest.fail(
            "benchmarks are refused under pytest-xdist: tests that run beside each other slow each other; use -n 0",
            pytrace=False,
        )
    if sessions.CLOCK not in request.node.stash:
        pytest.fail(
            "`infer` must be among the arguments of the test or of its fixtures: getfixturevalue comes too late",
            pytrace=False,
        )
    return Infer(request, benchmark, infer_configuration)
