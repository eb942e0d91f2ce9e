"""Options that an engine of somebody's own does not follow: refused before a run where that is certain, else named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pytest_infer.analysis.sweep.axes import AXES
from pytest_infer.engines.base import Engine
from pytest_infer.errors import OptionError
from pytest_infer.pytest_face import fixtures
from pytest_infer.pytest_face.settings import OF_ENGINES, Settings

ENGINE = "engine"
"""The option that chooses an engine, among those that one made by a fixture cannot follow."""
_TELLING = frozenset({"engine", "infer_load", "pytestconfig", "request"})
"""The fixtures from which one that makes an engine can learn of the options."""

Definitions = Callable[[str], Any]
"""Gives the fixtures of a name that a test can see, the one that it gets last."""


def deaf(definitions: Definitions) -> bool:
    """Return whether the fixture that makes a test's engine cannot learn of any option."""
    seen, waiting = {ENGINE}, [ENGINE]
    while waiting:
        found = definitions(waiting.pop())
        asked = set(found[-1].argnames) if found and not fixtures.is_pytests(found[-1]) else set()
        if asked & _TELLING:
            return False
        waiting += asked - seen
        seen |= asked
    return True


def check_fixtures(deaf_tests: Collection[str], tests: int, settings: Settings, note: Callable[[str], None]) -> None:
    """Refuse options of the engine if every test makes its own without them; name them if some do, or an ini file.

    Raises:
        OptionError: an option on the command line has no effect at all.
    """
    if not deaf_tests or not settings.given:
        return
    if len(deaf_tests) == tests:
        who = f"the `engine` fixture that {next(iter(deaf_tests))} overrides"
        _refuse(settings.given, who, "let that fixture take `infer_load`, which holds them")
    which = f"{len(deaf_tests)} of {tests} tests, which make their own engine"
    note(f"! {', '.join(place for _, place in settings.given)}: no effect on {which}")


def check_engine(engine: Engine, settings: Settings) -> None:
    """Raise OptionError for options on the command line, and axes, that an installed engine says it does not follow."""
    fields = {axis: OF_ENGINES.get(AXES[axis].option.removeprefix("--infer-")) for axis, _ in settings.sweep}
    swept = {field: f"--infer-sweep: {axis}" for axis, field in fields.items() if field is not None}
    ignored = ignored_by(engine, dict(settings.given))
    if unmoved := ignored_by(engine, swept):
        raise OptionError(
            f"{', '.join(unmoved.values())}: the engine {settings.engine!r} does not follow it: sweep other axes"
        )
    if ignored:
        _refuse(ignored.items(), f"the engine {settings.engine!r}", "name in Engine.honours() what it does follow")


def name_ignored(engine: Engine, settings: Settings, note: Callable[[str], None], *, chosen: bool) -> None:
    """Note the options that the engine of a test does not follow; `chosen` says that --infer-engine made it."""
    given = {field: place for field, place in settings.given if not (chosen and field == ENGINE)}
    if not given:
        return
    if engine.honours() is None:
        note(f"{', '.join(given.values())}: the engine does not say whether it follows them (Engine.honours)")
    elif ignored := ignored_by(engine, given):
        places = ", ".join(ignored.values())
        note(f"! {places}: no effect: the engine, or the model that was adopted, does not follow them")


def ignored_by(engine: Engine, given: Mapping[str, str]) -> dict[str, str]:
    """Return those of the given options, by field, that an engine says it does not follow, with their places."""
    honours = engine.honours()
    if honours is None:
        return {}
    return {field: place for field, place in given.items() if field not in honours and field != ENGINE}


def _refuse(given: Iterable[tuple[str, str]], who: str, remedy: str) -> None:
    typed = [place for _, place in given if place.startswith("--")]
    if typed:
        raise OptionError(
            f"{', '.join(typed)}: {who} does not follow {'it' if len(typed) == 1 else 'them'}: "
            f"leave out what has no effect, or {remedy}"
        )
