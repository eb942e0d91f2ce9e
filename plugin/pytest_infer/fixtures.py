"""The fixtures: engine, model, prompt, infer, system_sampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pytest_infer import prompts
from pytest_infer import session as sessions
from pytest_infer.engines.base import Engine
from pytest_infer.errors import InferError
from pytest_infer.measure.sampler import SystemSampler
from pytest_infer.prompts import Prompt
from pytest_infer.records import ModelInfo, PromptRecord


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """What generates tokens, as the options name it; override it to benchmark your own inference code."""
    made = sessions.of(request.config).default_engine()
    yield made
    made.close()


@pytest.fixture(scope="session")
def model(engine: Engine, request: pytest.FixtureRequest) -> ModelInfo:
    """The loaded model's description; override it to load yours: `return engine.adopt(my_model, my_tokenizer)`."""
    try:
        return sessions.of(request.config).load(engine)
    except InferError as error:
        refusal = str(error)
    pytest.fail(refusal, pytrace=False)


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

    def __init__(self, request: pytest.FixtureRequest, benchmark: object) -> None:
        self._request = request
        self._benchmark = benchmark
        self._session = sessions.of(request.config)

    def __call__(self, prompt: Prompt | str) -> PromptRecord:
        """Run the warm-up, timed and profile rounds of a prompt, keep the results, and return the record."""
        __tracebackhide__ = True
        if isinstance(prompt, str):
            prompt = Prompt(name=self._request.node.name, text=prompt)
        try:
            return self._measured(prompt)
        except InferError as error:
            refusal = str(error)
        # Outside the handler, or pytest would show the error twice, as a chain.
        self._session.live.clear()
        pytest.fail(refusal, pytrace=False)

    def _measured(self, prompt: Prompt) -> PromptRecord:
        session, nodeid = self._session, self._request.node.nodeid
        session.bridge.check(self._benchmark)
        prompts.check(prompt, f"{nodeid}: infer()")
        record = session.keeper.resumed(nodeid, prompt.content_sha256, session.limits(prompt))
        if record is None:
            # Asked for late, so that what is refused is refused before a model is loaded.
            engine = self._request.getfixturevalue("engine")
            model = self._request.getfixturevalue("model")
            record = session.measure(nodeid, prompt, engine, model)
        if session.bridge.disabled:
            session.bridge.spend(self._benchmark)
            return record
        clock = self._request.node.stash[sessions.CLOCK]
        self._request.node.stash[sessions.BENCHMARK] = self._benchmark
        group = prompt.group or getattr(self._benchmark, "group", None)
        session.keeper.keep(
            record,
            lambda phases, block: session.bridge.hand_over(
                self._benchmark, clock, phases, block, params=self._params(prompt), group=group
            ),
        )
        session.loop.finished(record)
        return record

    def _params(self, prompt: Prompt) -> dict[str, Any]:
        callspec = getattr(self._request.node, "callspec", None)
        given = callspec.params if callspec is not None else {}
        plain = {k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in given.items() if k != "prompt"}
        return {"prompt": prompt.name, **plain}


@pytest.fixture
def infer(request: pytest.FixtureRequest, benchmark: Any) -> Infer:
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
    return Infer(request, benchmark)
