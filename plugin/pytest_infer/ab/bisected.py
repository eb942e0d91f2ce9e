"""pytest's plugin in the runs of `pytest-infer bisect`, which starts them with it: what is collected and imported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_infer.ab import arguments
from pytest_infer.checkouts.imports import BENCH, CHECKOUT, TOLD, imported_from
from pytest_infer.pytest_face import command_line
from pytest_infer.pytest_face import session as sessions
from pytest_infer.pytest_face.option_reader import OptionReader
from pytest_infer.pytest_face.options import CHILD
from pytest_infer.pytest_face.preflight import measuring
from pytest_infer.pytest_face.settings import Settings

_MEASURES = CHILD in os.environ
"""Whether this is a process that a step's comparison started, which gets all arguments too."""


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Measure this folder where the arguments name no tests: only pytest knows which word is an option's value."""
    bench = os.environ.get(BENCH)
    if bench and not arguments.selects(command_line.words(config), command_line.options_of(config)):
        config.args[:] = [bench]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell which tests measure, where they lie, how much of them, and the arguments that are no tests."""
    config, items = session.config, measuring(session.items)
    if sessions.KEY not in config.stash:
        # Nothing measures, or nothing could be collected: pytest says so.
        return
    settings = config.stash[sessions.KEY].settings
    _tell(
        root=str(config.rootpath),
        options=arguments.but_tests(command_line.words(config), command_line.options_of(config)),
        tests=[item.nodeid for item in items],
        files=sorted({str(item.path) for item in items}),
        amounts=[settings.time_s, settings.launches, settings.max_rounds],
        text=settings.text is not None,
        data={name: str(path) for name, path in arguments.data(config).items()},
        refused=_refused(config, settings),
    )


def _refused(config: pytest.Config, settings: Settings) -> list[str]:
    """Return the options that each step would follow beside its own, wherever they are set."""
    found = {
        "--infer-gate": OptionReader(config).typed("gate"),
        "--infer-against-python": settings.against_python,
        "--infer-resume": settings.resume,
        "--benchmark-disable": config.getoption("benchmark_disable", False),
    }
    return [name for name, there in found.items() if there]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logfinish() -> None:
    """Tell it before it is said that a test is over: a process that then takes long to end is killed."""
    if _MEASURES:
        _tell_imported()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Tell which modules came from the checkout that is not measured."""
    _tell_imported()


def _tell_imported() -> None:
    if CHECKOUT in os.environ:
        _tell(foreign=imported_from(Path(os.environ[CHECKOUT])))


def _tell(**what: object) -> None:
    path = Path(os.environ[TOLD])
    if _MEASURES:
        # It knows what it imported itself, later than whoever started it may ask.
        path = path.with_name(f"{path.name}.{os.getpid()}")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known != (told := {**known, **what}):
        path.write_text(json.dumps(told), encoding="utf-8")
