"""What a test's `infer` asks for late, of which pytest knows nothing: its parameters, and when it must be made anew."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_infer.pytest_face import fixtures


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test the parameters of what is asked for late, as if it asked for that itself."""
    asked = metafunc.fixturenames
    # pytest has no public way to ask what a fixture is made from.
    manager: Any = metafunc.definition.session._fixturemanager
    names, found = manager.getfixtureclosure(
        parentnode=metafunc.definition,
        initialnames=tuple(name for name in fixtures.LATE if name not in asked),
        ignore_args=frozenset(asked),
    )
    for name in names:
        made_from = fixtures.made_from(name, found.get(name, ()))
        given = next((definition for definition in made_from if definition.params is not None), None)
        if given is not None:
            # pytest lets nothing else be parametrized; it stays one that is made when it is asked for.
            asked.append(name)
            metafunc.parametrize(name, given.params, indirect=True, scope=given.scope, ids=given.ids)
            asked.remove(name)


class Models:
    """Sees to it that a test's model is the one that its engine holds.

    pytest keeps what a fixture returned even where another folder has another `engine` for it, and does not know that
    one engine holds one model at a time.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Any, Any]] = []
        """The fixtures of engines, each with that of the model that it holds."""

    def renew(self, item: pytest.Item) -> None:
        """Before a test: let pytest make its model anew, if a test before it had only one of the two fixtures."""
        engine, model = (fixtures.seen_by(item, name)[-1] for name in fixtures.LATE)
        if (engine, model) in self._held:
            return
        kept = [held for held in self._held if engine not in held and model not in held]
        if len(kept) < len(self._held):
            request: Any = getattr(item, "_request", None)
            model.finish(request)
        self._held = [*kept, (engine, model)]
