"""The plugin that pytest loads: options, fixtures, and hooks that fetch all else once a test asks for us."""

from __future__ import annotations

import os
from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from pytest_infer.pytest_face import fixtures, options
from pytest_infer.pytest_face.fixtures import (
    engine,
    infer,
    infer_configuration,
    infer_load,
    infer_under_load,
    load_level,
    model,
    prompt,
    system_sampler,
)

__all__ = [
    "engine",
    "infer",
    "infer_configuration",
    "infer_load",
    "infer_under_load",
    "load_level",
    "model",
    "prompt",
    "system_sampler",
]

# Every pytest run of an environment loads this module, and few of them measure. What measuring needs takes long to
# import: each hook does it when it must.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.register(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Let git bisect, where it reads the exit code, skip a commit whose conftest files cannot be loaded."""
    if not options.for_bisect(early_config):
        return (yield)
    from pytest_infer.pytest_face import exits

    return (yield from exits.loading(early_config, parser, args))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Tell git bisect, where it reads the exit code, what a run is to it."""
    if not options.for_bisect(config):
        return (yield)
    from pytest_infer.pytest_face import exits

    return (yield from exits.running(config))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; start at once where options are given, or where this run is one side of a comparison."""
    config.addinivalue_line("markers", f"{options.MARKER}(prompts): the prompts of a test, instead of a suite file")
    # What is added first is done last.
    config.add_cleanup(partial(_end, config))
    if options.given(config) or options.CHILD in os.environ:
        from pytest_infer.pytest_face import hooks

        hooks.start_at_once(config)
    elif os.environ.get("RANK", "0").strip("0") and "WORLD_SIZE" in os.environ:
        from pytest_infer.pytest_face import followers

        config.pluginmanager.register(followers.Held(config), "pytest_infer.held")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    benchmarksession: Any, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> Generator[None, object, object]:
    """Guard pytest-benchmark's look at the machine of a compared run: before anybody knows whose tests are run."""
    from pytest_infer.storage import native

    return (yield from native.comparing(benchmarksession, machine_info, compared_benchmark))


def _end(config: pytest.Config) -> None:
    last = config.stash.get(options.LAST, None)
    if last is not None:
        last()


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for us its prompts and configurations, and the run its other hooks."""
    asked = fixtures.asked_for(metafunc.fixturenames, metafunc._arg2fixturedefs)
    if asked or metafunc.definition.get_closest_marker(options.MARKER) is not None:
        from pytest_infer.pytest_face import hooks

        hooks.generate_tests(metafunc)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give the run its other hooks for a test that pytest does not generate, as a method of a unittest class."""
    if fixtures.of_ours(item):
        from pytest_infer.pytest_face import hooks

        hooks.collected(item)
