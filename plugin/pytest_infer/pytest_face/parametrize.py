"""Which tests get prompts and which configurations, and how pytest's parameters say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_infer import prompts as suites
from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import InferError, OptionError, SuiteError
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face import fixtures, late, prompt_tokens
from pytest_infer.pytest_face.options import MARKER
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.pytest_face.sweep import configurations
from pytest_infer.pytest_face.sweep.configurations import Configuration
from pytest_infer.pytest_face.sweep.lengths import Lengths

ARGUMENT = "prompt"
LEVEL = "load_level"
CONFIGURED = ("infer_load", "infer_configuration")
"""The fixtures that a sweep gives its parameters to."""

Cache = dict[Path, tuple[Prompt, ...]]
Context = Callable[[EngineOptions], int | None]
"""Tells the context of the model that options name."""


def parametrize(
    metafunc: pytest.Metafunc,
    settings: Settings,
    found: Sequence[Configuration],
    cache: Cache,
    context: Context,
) -> None:
    """Give a test its prompts, from its marker, the option, or the suite file beside it, and its configurations.

    A test whose `prompt` is its own (a parameter, or a fixture of its own) is left alone, and so is one for which
    there is no suite: our fixture then says what to do. A curve is measured with one prompt of a suite.
    One that measures also gets the parameters of what its engine and model are made from.
    """
    if fixtures.asked_for(metafunc.fixturenames, metafunc._arg2fixturedefs, fixtures.MEASURING):
        late.parametrize(metafunc)
    prompts: tuple[Prompt, ...] = ()
    try:
        if ARGUMENT in metafunc.fixturenames and _is_ours(metafunc, ARGUMENT):
            prompts = prompts_of(metafunc.definition, settings.prompts, cache)
        if settings.curve is not None and prompts:
            prompts = (max(prompts, key=_characters),)
            found = _points(metafunc, settings, settings.curve, found, prompts[0], context)
        elif not settings.sweep:
            found = ()
    except InferError as error:
        raise pytest.Collector.CollectError(str(error)) from error
    if LEVEL in metafunc.fixturenames and settings.load and _is_ours(metafunc, LEVEL):
        metafunc.parametrize(LEVEL, settings.load, ids=[level.name for level in settings.load])
    if prompts:
        metafunc.parametrize(ARGUMENT, prompts, ids=[prompt.name for prompt in prompts])
    if found and all(name in metafunc.fixturenames for name in ("infer", *CONFIGURED)):
        numbered = [replace(configuration, number=number) for number, configuration in enumerate(found)]
        given = [(configurations.load_of(c.settings, settings), c) for c in numbered]
        # Of the session's scope, so that a model is kept until the last test that runs it.
        metafunc.parametrize(CONFIGURED, given, ids=[c.id for c in numbered], indirect=True, scope="session")


def _points(
    metafunc: pytest.Metafunc,
    settings: Settings,
    lengths: Lengths,
    found: Sequence[Configuration],
    prompt: Prompt,
    context: Context,
) -> list[Configuration]:
    """Return every configuration at every length of the curve."""
    points = []
    for configuration in found:
        most = 0
        if lengths.needs_context:
            load = configurations.load_of(configuration.settings, settings)
            longest = settings.context or (context(load) if fixtures.gets_ours(metafunc.definition, "engine") else None)
            if longest is None:
                raise OptionError(
                    "--infer-curve: the model's context is not known; give the lengths (16..1024) or --infer-context N"
                )
            most = longest - prompt_tokens.limits_of(prompt, configuration.settings).max_new_tokens
            if most < 1:
                raise SuiteError(f"prompt {prompt.name!r}: max_new_tokens leave no room in the context of {longest}")
        points += [configurations.at_length(configuration, tokens) for tokens in lengths.up_to(most)]
    return points


def _characters(prompt: Prompt) -> int:
    return len(prompt.text or "") + sum(len(message.content) for message in prompt.messages)


def prompts_of(node: pytest.Item, given: Path | None, cache: Cache) -> tuple[Prompt, ...]:
    """Return a test's prompts; none where no marker, option or file beside it names any. Raises SuiteError."""
    marker = node.get_closest_marker(MARKER)
    if marker is not None:
        if len(marker.args) != 1 or marker.kwargs:
            raise SuiteError(f"{node.nodeid}: write infer_prompts([…]) with one list of prompts")
        return suites.from_marker(marker.args[0], node.nodeid, node.path.parent)
    path = given or node.path.parent / suites.SUITE_FILE
    if given is None and not path.exists():
        return ()
    if path not in cache:
        cache[path] = suites.load(path)
    return cache[path]


def _is_ours(metafunc: pytest.Metafunc, name: str) -> bool:
    for marker in metafunc.definition.iter_markers("parametrize"):
        names: Any = marker.kwargs.get("argnames", marker.args[0] if marker.args else ())
        if name in (names.replace(",", " ").split() if isinstance(names, str) else names):
            return False
    # pytest has no public way to ask which fixture a name resolves to, or what another plugin parametrized.
    return fixtures.gets_ours(metafunc.definition, name) and not any(name in call.params for call in metafunc._calls)
