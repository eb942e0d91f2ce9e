"""Every engine of the package is registered, documented, and has the methods that the protocol leaves to it."""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
from test_import_graph import PACKAGE, modules

from pytest_infer.engines.base import Engine
from pytest_infer.engines.lookup import GROUP

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "engines.md"
OWN = ("load", "encode", "decode", "generate")
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")


def registered():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["entry-points"][GROUP]


def engine(name):
    module, _, attribute = registered()[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def test_every_engine_in_its_room_is_registered():
    """Looked for in the text: importing all of engines/ would need torch."""
    found = {
        f"pytest_infer.{module}:{line.split()[1].partition('(')[0]}"
        for module, path in modules().items()
        if path.is_relative_to(PACKAGE / "engines")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("class ") and line.endswith("(Engine):")
    }
    assert found == set(registered().values())


@pytest.mark.parametrize("name", registered() if PAGE.exists() else ())
def test_an_engine_has_the_methods_that_the_protocol_leaves_to_it(name):
    made = engine(name)
    assert Engine in made.__mro__
    left = [method for method in OWN if getattr(made, method) is getattr(Engine, method)]
    assert left == ([] if made.respond is Engine.respond else ["generate"])
    (argument,) = list(inspect.signature(made).parameters.values())
    assert argument.annotation == "EngineOptions"


@pytest.mark.parametrize("name", registered() if PAGE.exists() else ())
def test_an_engine_is_named_on_its_page(name):
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")
