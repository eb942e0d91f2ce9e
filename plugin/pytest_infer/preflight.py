"""Checks between collection and the first test: everything that can be refused before a model is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infer import showing
from pytest_infer.analysis import requirements
from pytest_infer.analysis.requirements import Room
from pytest_infer.engines.base import Engine
from pytest_infer.errors import InferError, ModelError
from pytest_infer.measure import host
from pytest_infer.prompts import Prompt
from pytest_infer.prompts import check as check_prompt
from pytest_infer.session import InferSession
from pytest_infer.units import size

_OWN_FIXTURES = "pytest_infer.fixtures"


def measuring(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests that ask for `infer` and are not skipped outright."""
    return [
        item
        for item in items
        if "infer" in getattr(item, "fixturenames", ()) and not any(True for _ in item.iter_markers("skip"))
    ]


def check(collected: pytest.Session, session: InferSession) -> None:
    """Refuse what cannot work, in one line; raises pytest.UsageError."""
    items = measuring(collected.items)
    if items and not session.bridge.available:
        raise pytest.UsageError("pytest-infer keeps its results in pytest-benchmark: leave out -p no:benchmark")
    if not items or session.config.option.collectonly or session.bridge.parallel:
        return
    for item in items:
        _check_benchmark(collected, item)
    try:
        session.keeper.prepare()
        showing.check(session)
        session.gate.prepare(session.keeper.storage)
        _check_engine(collected, items, session)
    except InferError as error:
        raise pytest.UsageError(f"pytest-infer: {error}") from error
    finally:
        session.live.clear()
    session.keeper.planned = tuple(item.nodeid for item in items)


def _check_engine(collected: pytest.Session, items: list[pytest.Item], session: InferSession) -> None:
    """Find the model and see that every prompt fits it, unless the tests bring their own engine or model."""
    own = [item for item in items if _resolves_to_ours(collected, item, "engine")]
    if not own:
        return
    engine = session.default_engine()
    own = [item for item in own if _resolves_to_ours(collected, item, "model")]
    if not own:
        return
    engine.check()
    longest = 0
    for item in own:
        prompt = _prompt_of(item)
        if prompt is not None:
            check_prompt(prompt, item.nodeid)
            ids, _ = session.encode(engine, prompt)
            longest = max(longest, len(ids) + session.limits(prompt).max_new_tokens)
    _check_memory(engine, longest, session)


def _check_memory(engine: Engine, context: int, session: InferSession) -> None:
    """Warn, or refuse with --infer-strict-memory, before the kernel would kill the run for want of memory."""
    held, limit = engine.checkpoint(), session.machine.memory_limit_bytes
    if held is None or limit is None:
        return
    # Interpreter and libraries are loaded by now: their memory is no longer available to anybody.
    room = Room(limit_bytes=limit, available_bytes=host.available_bytes(), runtime_bytes=0)
    dtype = session.settings.engine_options.dtype
    try:
        needs = requirements.of(held, room, context=context or None, dtype=dtype)
    except InferError:
        # A size that nobody tells is no reason to stop.
        return
    need, free = needs.chosen, room.available_bytes
    most = limit if free is None else min(limit, free)
    if need.minimum_bytes <= most:
        return
    line = (
        f"{needs.name} in {need.dtype} takes {size(need.minimum_bytes)} (weights and KV cache), and {size(most)} are "
        f"available: pytest-infer doctor --model {session.settings.engine_options.model} says what would fit"
    )
    if session.settings.strict_memory:
        raise ModelError(f"{line}; or leave out --infer-strict-memory")
    session.note(f"! {line}")
    # At once as well: a killed run shows no summary.
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        session.live.clear()
        reporter.ensure_newline()
        reporter.write_line(f"pytest-infer: {line}", yellow=True)


def _check_benchmark(collected: pytest.Session, item: pytest.Item) -> None:
    """Refuse a `benchmark` fixture that is not pytest-benchmark's, which would end in an internal error of its own."""
    owner = _module_of(collected, item, "benchmark")
    if owner is not None and owner != "pytest_benchmark.plugin":
        raise pytest.UsageError(
            f"pytest-infer: the `benchmark` fixture is {owner}'s, not pytest-benchmark's; "
            "disable the plugin that replaces it (-p no:NAME) or rename the fixture"
        )


def _prompt_of(item: pytest.Item) -> Prompt | None:
    callspec = getattr(item, "callspec", None)
    prompt = callspec.params.get("prompt") if callspec is not None else None
    return prompt if isinstance(prompt, Prompt) else None


def _resolves_to_ours(collected: pytest.Session, item: pytest.Item, name: str) -> bool:
    return _module_of(collected, item, name) == _OWN_FIXTURES


def _module_of(collected: pytest.Session, item: pytest.Item, name: str) -> str | None:
    """Return the module that defines the fixture to which a name resolves for a test."""
    # pytest has no public way to ask.
    manager: Any = collected._fixturemanager
    definitions: Any = manager.getfixturedefs(name, item)
    return str(definitions[-1].func.__module__) if definitions else None
