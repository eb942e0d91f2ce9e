"""Which tests get prompts, and which prompts they get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_infer import prompts as suites
from pytest_infer.errors import SuiteError
from pytest_infer.prompts import Prompt

ARGUMENT = "prompt"
MARKER = "infer_prompts"
_OWN_FIXTURES = "pytest_infer.fixtures"

Cache = dict[Path, tuple[Prompt, ...]]


def parametrize(metafunc: pytest.Metafunc, given: Path | None, cache: Cache) -> None:
    """Parametrize a test that asks for our `prompt`, from its marker, the option, or the suite file beside it.

    A test whose `prompt` is its own (a parameter, or a fixture of its own) is left alone, and so is one for which
    there is no suite: our fixture then says what to do.
    """
    if ARGUMENT not in metafunc.fixturenames or not _is_ours(metafunc):
        return
    try:
        found = _prompts_for(metafunc, given, cache)
    except SuiteError as error:
        raise pytest.Collector.CollectError(str(error)) from error
    if found:
        metafunc.parametrize(ARGUMENT, found, ids=[prompt.name for prompt in found])


def _prompts_for(metafunc: pytest.Metafunc, given: Path | None, cache: Cache) -> tuple[Prompt, ...]:
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is not None:
        if len(marker.args) != 1 or marker.kwargs:
            raise SuiteError(f"{metafunc.definition.nodeid}: write infer_prompts([…]) with one list of prompts")
        return suites.from_marker(marker.args[0], metafunc.definition.nodeid)
    path = given or metafunc.definition.path.parent / suites.SUITE_FILE
    if given is None and not path.exists():
        return ()
    if path not in cache:
        cache[path] = suites.load(path)
    return cache[path]


def _is_ours(metafunc: pytest.Metafunc) -> bool:
    for marker in metafunc.definition.iter_markers("parametrize"):
        names: Any = marker.kwargs.get("argnames", marker.args[0] if marker.args else ())
        if ARGUMENT in (names.replace(",", " ").split() if isinstance(names, str) else names):
            return False
    # pytest has no public way to ask which fixture a name resolves to, or what another plugin parametrized.
    definitions = metafunc._arg2fixturedefs.get(ARGUMENT) or ()
    if not definitions or definitions[-1].func.__module__ != _OWN_FIXTURES:
        return False
    return not any(ARGUMENT in call.params for call in metafunc._calls)
