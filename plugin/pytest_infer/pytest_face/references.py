"""Whose tokens each test follows: a stored run's with --infer-replay, or those of a sweep's first configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_infer import untrusted
from pytest_infer.engines.base import Engine
from pytest_infer.errors import StorageError
from pytest_infer.measure import following
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face.sweep.configurations import Configuration
from pytest_infer.records import ExpertUsage, Limits, ModelInfo, PromptRecord, Reference
from pytest_infer.storage import history, results, sidecar
from pytest_infer.storage.runs import Row, Run

OTHER_WORK = ("model", "prompt-tokens", "max-new-tokens")
"""The axes of a sweep whose values are different work: no configuration follows one that differs in them."""


class References:
    """Finds the reference of each test. `note` takes lines for the summary."""

    def __init__(self, replay: str | None, note: Callable[[str], None], *, sweeping: bool) -> None:
        self._replay = replay
        self._note = note
        self._sweeping = sweeping and replay is None
        self._run: Run | None = None
        self._stored: dict[str, Reference] = {}
        self._first: dict[object, Reference] = {}

    def prepare(self, storage: Path | None, planned: Mapping[str, Prompt | None]) -> None:
        """Before anything is measured: read the run that is to be replayed.

        Raises:
            StorageError: there is no such run, or it has nothing of the planned tests to follow.
        """
        if self._replay is None:
            return
        if storage is None or not untrusted.is_dir(storage):
            raise StorageError("--infer-replay names a stored run, and there is no storage folder")
        try:
            run = self._run = history.load(storage, self._note).select(self._replay)
            arrays = sidecar.read(run.path)
        except StorageError as error:
            raise StorageError(f"--infer-replay: {error}") from error
        if not arrays:
            missing = sidecar.path_for(run.path).name
            raise StorageError(f"--infer-replay: run {run.label} has no {missing} beside it, which holds its tokens")
        self._stored = {
            row.test: found for row in run.rows if (found := _reference(row, run.label, arrays)) is not None
        }
        followed = [nodeid for nodeid, prompt in planned.items() if prompt is None or self._row(nodeid, prompt)]
        if not followed:
            raise StorageError(f"--infer-replay: run {run.label} has none of the prompts that are to be measured")
        if len(followed) < len(planned):
            self._note(
                f"--infer-replay: {len(planned) - len(followed)} of {len(planned)} prompts are not in run {run.label}: "
                "they follow nothing"
            )

    def _row(self, nodeid: str, prompt: Prompt) -> Row | None:
        """Return the row of a test, or of a sweep's test that of its prompt alone."""
        if self._run is None:
            return None
        rows = [row for row in self._run.rows if row.test in self._stored]
        fits = [row for row in rows if row.prompt.content_sha256 == prompt.content_sha256]
        own = [row for row in fits if row.test == nodeid]
        return next(iter(own or [row for row in fits if row.name == prompt.name and not row.config]), None)

    def traces(self, configuration: Configuration, positions: int, reference: Reference | None) -> bool:
        """Return whether each token's experts are to be recorded, so that they can be compared."""
        swept = self._sweeping and bool(configuration.values) and positions <= following.MOST_TRACED
        return swept or (reference is not None and reference.experts is not None)

    def of(
        self,
        nodeid: str,
        prompt: Prompt,
        limits: Limits,
        model: ModelInfo,
        engine: Engine,
        configuration: Configuration,
    ) -> Reference | None:
        """Return whose tokens a test follows, cut to its own limit; None where there is nobody."""
        row = self._row(nodeid, prompt)
        found = self._first.get(_work(prompt, configuration, model)) if row is None else self._stored[row.test]
        if found is None:
            return None
        if row is None and not engine.follows():
            return None
        if not engine.follows():
            self._note(f"--infer-replay: {following.CANNOT}: what is generated otherwise is not compared")
        found = following.cut(found, limits.max_new_tokens)
        problem = following.unknown(found.tokens, model.vocabulary) or engine.cannot_follow(found.tokens)
        if problem is not None:
            self._note(f"! {prompt.name}: cannot follow {found.name}: {problem}")
        return replace(found, problem=problem)

    def measured(self, record: PromptRecord, prompt: Prompt, configuration: Configuration) -> None:
        """Take a test that was measured: of a sweep, the first of the same work is what the others follow."""
        work = _work(prompt, configuration, record.model)
        if not self._sweeping or not configuration.values or work in self._first:
            return
        profile = record.profile
        tokens = record.rounds[0].trace.token_ids
        if not tokens:
            return
        self._first[work] = Reference(
            name=configuration.label,
            tokens=tokens,
            free=tokens,
            scores=None if profile is None else profile.scores,
            scores_absent=None if profile is None else profile.scores_absent,
            experts=None if profile is None else profile.experts,
            dtype=record.model.dtype,
        )


def _work(prompt: Prompt, configuration: Configuration, model: ModelInfo) -> object:
    values = tuple(configuration.values.get(axis) for axis in OTHER_WORK)
    # A test's own model, which no axis names, is other work too.
    return prompt.name, prompt.content_sha256, model.name, model.engine, values


def _reference(row: Row, label: str, arrays: Mapping[str, Any]) -> Reference | None:
    """Return what a stored run has of a test; None where it has no tokens of it."""
    scores = sidecar.scores(arrays, row.test)
    ids = arrays.get(f"{row.test}|scores|tokens")
    ids = arrays.get(f"{row.test}|0|token_ids") if ids is None else ids[0]
    if ids is None or not len(ids) or min(ids) < 0:
        return None
    tokens = tuple(int(number) for number in ids)
    return Reference(
        name=label,
        tokens=tokens,
        free=tokens,
        scores=None if scores is None else replace(scores, vocabulary=row.scores.vocabulary or 0),
        scores_absent=row.scores.absent or "it was stored without",
        experts=_traced(row, arrays),
        dtype=row.model.dtype,
    )


def _traced(row: Row, arrays: Mapping[str, Any]) -> ExpertUsage | None:
    """Return the expert usage with its trace; None where the run kept none."""
    usage = results.usage_of(row.experts)
    if usage is None:
        return None
    traces = [arrays.get(sidecar.expert_key(row.test, site.name)) for site in usage.sites]
    gates = [arrays.get(sidecar.gates_key(row.test, site.name)) for site in usage.sites]
    if any(trace is None for trace in traces):
        return None
    known = tuple(gate.tobytes() for gate in gates if gate is not None)
    return replace(
        usage,
        trace=tuple(trace.tobytes() for trace in traces if trace is not None),
        trace_weights=known if len(known) == len(gates) else None,
    )
