"""The order of a sweep's tests: each model's together, and within them one configuration after another or in turns."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_infer.analysis.sweep import axes
from pytest_infer.engines.base import EngineOptions
from pytest_infer.pytest_face.parametrize import CONFIGURED
from pytest_infer.pytest_face.sweep.configurations import Configuration

_Key = tuple[int, int, int]
_Name = tuple[object, ...]


def swept(item: pytest.Item) -> tuple[EngineOptions, Configuration] | None:
    """Return what a test's model is loaded with and its configuration, or None for a test that is not swept."""
    callspec = getattr(item, "callspec", None)
    given = callspec.params if callspec is not None else {}
    load, configuration = (given.get(name) for name in CONFIGURED)
    if isinstance(load, EngineOptions) and isinstance(configuration, Configuration):
        return load, configuration
    return None


def name(item: pytest.Item) -> None:
    """Add names that -k finds, `threads:2` for threads=2: its expressions know no equals sign."""
    found = swept(item)
    if found is not None:
        item.extra_keyword_matches.update(f"{axis}:{value}" for axis, value in found[1].values.items())


def reorder(items: list[pytest.Item], *, interleaved: bool) -> None:
    """Reorder the swept tests among the places that they hold.

    All tests of one load are together, so that it is made once. Within it, configuration by configuration, or with
    `interleaved` prompt by prompt: each prompt, at each length, is measured with every configuration before the next,
    and each time another of them begins, so that what drifts favours none.
    """
    found = {position: pair for position, item in enumerate(items) if (pair := swept(item)) is not None}
    if not found:
        return
    loads: dict[EngineOptions, list[Configuration]] = {}
    for load, configuration in found.values():
        loads.setdefault(load, []).append(configuration)
    # What is compared is the same test at the same lengths: those are together, whatever runs them in turns.
    works = _ranks(_work(items[position], pair[1]) for position, pair in found.items())
    keys: dict[int, _Key] = {}
    for position, (load, configuration) in found.items():
        own = sorted(loads[load], key=lambda one: one.number)
        choices = _ranks(_choice(one) for one in own)
        turn, work = choices[_choice(configuration)], works[_work(items[position], configuration)]
        within = (work, (turn - work) % len(choices)) if interleaved else (configuration.number, position)
        keys[position] = (own[0].number, *within)
    ordered = [items[position] for position in sorted(keys, key=keys.__getitem__)]
    for position, item in zip(sorted(found), ordered, strict=True):
        items[position] = item


def last_of_loads(items: Iterable[pytest.Item]) -> frozenset[str]:
    """Return the node id of each load's last test, of tests in their order; none of a load that has one test.

    None at all where there is one load: there is nothing that it is compared with.
    """
    loads: dict[EngineOptions, list[str]] = {}
    for item in items:
        if (found := swept(item)) is not None:
            loads.setdefault(found[0], []).append(item.nodeid)
    return frozenset(tests[-1] for tests in loads.values() if len(tests) > 1 and len(loads) > 1)


def _work(item: pytest.Item, configuration: Configuration) -> _Name:
    return (axes.without(item.nodeid, configuration.values), *axes.workload(configuration.values).items())


def _choice(configuration: Configuration) -> _Name:
    return tuple(axes.choices(configuration.values).items())


def _ranks(names: Iterable[_Name]) -> dict[_Name, int]:
    return {name: rank for rank, name in enumerate(dict.fromkeys(names))}
