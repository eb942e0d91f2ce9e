"""What the `infer` fixture is: the measuring loop of one test."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infer import prompts
from pytest_infer.measure import answers
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face import failures, honoured, prompt_tokens
from pytest_infer.pytest_face.parametrize import CONFIGURED
from pytest_infer.pytest_face.session import BENCHMARK, CLOCK, InferSession
from pytest_infer.pytest_face.sweep.configurations import Configuration
from pytest_infer.records import PromptRecord


class Infer:
    """Measures a prompt: `record = infer(prompt)`; once a test."""

    def __init__(
        self, request: pytest.FixtureRequest, session: InferSession, benchmark: object, configuration: Configuration
    ) -> None:
        self._request = request
        self._session = session
        self._benchmark = benchmark
        self._configuration = configuration

    @classmethod
    def of(
        cls, request: pytest.FixtureRequest, session: InferSession, benchmark: object, configuration: Configuration
    ) -> Infer:
        """Return it for a test; let a test fail that cannot be measured, whatever its prompt."""
        if session.bridge.parallel:
            pytest.fail(
                "benchmarks are refused under pytest-xdist: tests that run beside each other slow each other; use -n 0",
                pytrace=False,
            )
        if CLOCK not in request.node.stash:
            pytest.fail(
                "`infer` must be among the arguments of the test or of its fixtures: getfixturevalue comes too late",
                pytrace=False,
            )
        return cls(request, session, benchmark, configuration)

    def __call__(self, prompt: Prompt | str) -> PromptRecord:
        """Run the warm-up, timed and profile rounds of a prompt, keep the results, and return the record."""
        __tracebackhide__ = True
        if isinstance(prompt, str):
            prompt = Prompt(name=self._request.node.name, text=prompt)
        return failures.or_fail(lambda: self._measured(prompt), self._session.live.clear)

    def _measured(self, prompt: Prompt) -> PromptRecord:
        session, nodeid, settings = self._session, self._request.node.nodeid, self._configuration.settings
        session.bridge.check(self._benchmark)
        prompts.check(prompt, f"{nodeid}: infer()")
        limits = prompt_tokens.limits_of(prompt, settings)
        record = session.keeper.resumed(nodeid, prompt.content_sha256, limits, settings)
        if record is not None:
            session.remeasure.resumed()
            return self._keep(record, prompt)
        record = session.measure_elsewhere(nodeid, prompt, self._configuration)
        if record is not None:
            return self._keep(record, prompt)
        # Asked for late, so that what is refused is refused before a model is loaded.
        engine = self._request.getfixturevalue("engine")
        model = answers.model(self._request.getfixturevalue("model"), "the fixture `model`")
        if nodeid not in session.deaf:
            honoured.name_ignored(engine, session.settings, session.note, chosen=session.model_in_use.made(engine))
        model = session.model_in_use.adapt(engine, model, settings.engine_options)
        record = session.measure(nodeid, prompt, engine, model, self._configuration)
        if session.bridge.disabled:
            session.bridge.spend(self._benchmark)
            return record
        record = self._keep(session.verified(record), prompt)
        drift = session.remeasure.after(nodeid, lambda options: session.model_in_use.adapt(engine, model, options))
        return record if drift is None else session.keeper.drifted(nodeid, drift, settings)

    def _keep(self, record: PromptRecord, prompt: Prompt) -> PromptRecord:
        session, settings = self._session, self._configuration.settings
        clock = self._request.node.stash[CLOCK]
        self._request.node.stash[BENCHMARK] = self._benchmark
        group = prompt.group or getattr(self._benchmark, "group", None)
        record = session.keeper.keep(
            record,
            settings,
            lambda phases, block: session.bridge.hand_over(
                self._benchmark, clock, phases, block, params=self._params(prompt), group=group
            ),
        )
        session.loop.finished(record)
        session.references.measured(record, prompt, self._configuration)
        return record

    def _params(self, prompt: Prompt) -> dict[str, Any]:
        callspec = getattr(self._request.node, "callspec", None)
        given = callspec.params if callspec is not None else {}
        ours = ("prompt", *CONFIGURED)
        plain = {k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in given.items() if k not in ours}
        return {"prompt": prompt.name, **plain, **self._configuration.values}
