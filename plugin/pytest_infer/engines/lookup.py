"""Engines by name, through the entry-point group `pytest_infer.engines`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import cast

from pytest_infer.engines.base import Engine, EngineOptions
from pytest_infer.errors import EngineError, alternatives

GROUP = "pytest_infer.engines"


def names() -> list[str]:
    """Return the names of the installed engines, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def check_name(name: str) -> None:
    """Raise EngineError naming the installed engines if there is none of that name."""
    if name not in names():
        raise EngineError(alternatives("engine", name, names()))


def create(name: str, options: EngineOptions) -> Engine:
    """Return a new engine of that name, not loaded yet; raise EngineError if there is none or it cannot be imported."""
    check_name(name)
    entry = next(entry for entry in entry_points(group=GROUP) if entry.name == name)
    try:
        factory = cast("Callable[[EngineOptions], Engine]", entry.load())
    except (ImportError, AttributeError) as error:
        raise EngineError(f"engine {name!r} ({entry.value}) cannot be imported: {error}") from error
    return factory(options)
