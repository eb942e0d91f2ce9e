"""Which tests may stand in one table, those of one model in one configuration; what tells tables and tests apart."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from pytest_infer.records import ModelInfo
    from pytest_infer.storage.schema import Model

NAMES = (
    *("name", "engine", "engine_args", "quantization", "dtype", "device", "threads"),
    *("attention", "experts_implementation", "revision", "weights_sha256"),
)
"""The fields of a model that tell it from another one of the same run."""


class Measured(Protocol):
    """A test with its configuration and its model, measured just now or stored."""

    @property
    def config(self) -> Mapping[str, str]:
        """Return the swept options, by axis."""

    @property
    def model(self) -> ModelInfo | Model:
        """Return what was measured."""


_Test = TypeVar("_Test", bound=Measured)


def named(model: ModelInfo | Model) -> dict[str, str | int]:
    """Return what tells a model from others, by field, as far as it is known."""
    return {field: value for field in NAMES if (value := getattr(model, field)) is not None}


def key(test: Measured) -> tuple[object, ...]:
    """Return what is equal for tests that may stand in one table."""
    return tuple(test.config.items()), tuple(named(test.model).items())


def groups(tests: Iterable[_Test]) -> list[tuple[_Test, ...]]:
    """Return the tests of each table, in the order of their first ones: a mean over others would say nothing."""
    found: dict[tuple[object, ...], list[_Test]] = {}
    for test in tests:
        found.setdefault(key(test), []).append(test)
    return [tuple(tests) for tests in found.values()]


def tables(tests: Iterable[_Test]) -> list[tuple[tuple[_Test, ...], list[str]]]:
    """Return the same, each table with what tells its model apart, as `apart` has it."""
    found = groups(tests)
    return list(zip(found, apart([(of[0].config, named(of[0].model)) for of in found]), strict=True))


def apart(found: Sequence[tuple[Mapping[str, str], Mapping[str, str | int]]]) -> list[list[str]]:
    """Return what tells each model from others in the same configuration, in words; nothing where there is one model.

    Given are the configurations, and what `named` says of the models.
    """
    words = []
    for config, model in found:
        rivals = [other for of, other in found if of == config]
        differ = [field for field in NAMES if len({other.get(field) for other in rivals}) > 1]
        words.append([_word(field, model[field]) for field in differ if field in model])
    return words


def _word(field: str, value: str | int) -> str:
    if field == "threads":
        return f"{value} thread{'' if value == 1 else 's'}"
    return f"weights {str(value)[:8]}" if field == "weights_sha256" else str(value)


def titles(names: dict[str, str]) -> dict[str, str]:
    """Return how people call each test, by its id: by the name given, or where several have that by its own.

    Its own name is what stands behind its file in its id, or the whole id where that is not enough.
    """
    times = Counter(names.values())
    own = {test: test.partition("::")[2] or test for test, name in names.items() if times[name] > 1}
    owners = Counter(own.values())
    return names | {test: name if owners[name] == 1 else test for test, name in own.items()}


def unique(names: Iterable[str]) -> list[str]:
    """Return names, numbered where one is there already: what is chosen is found by its name."""
    found: dict[str, None] = {}
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        found[next(one for one in itertools.chain([name], numbered) if one not in found)] = None
    return list(found)
