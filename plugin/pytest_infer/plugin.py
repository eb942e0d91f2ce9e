"""The pytest hooks, one delegation each."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

import pytest

from pytest_infer.ab import child, hooks
from pytest_infer.errors import InferError
from pytest_infer.pytest_face import gate_failures, html_report, options, parametrize, preflight
from pytest_infer.pytest_face.fixtures import (
    engine,
    infer,
    infer_configuration,
    infer_load,
    model,
    prompt,
    system_sampler,
)
from pytest_infer.pytest_face.session import CLOCK, KEY, InferSession, of
from pytest_infer.pytest_face.sweep import ordering
from pytest_infer.report.show.live import LiveLine
from pytest_infer.report.show.summary import write_summary
from pytest_infer.storage.bridge import ReplayClock
from pytest_infer.storage.native import align_noise

__all__ = ["engine", "infer", "infer_configuration", "infer_load", "model", "prompt", "system_sampler"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.register(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read the options into the state of this run, before other plugins act on what a child run must not do."""
    channel = child.adopt(config)
    config.addinivalue_line("markers", f"{parametrize.MARKER}(prompts): the prompts of a test, instead of a suite file")
    try:
        run = config.stash[KEY] = InferSession(config, base=channel is not None)
    except InferError as error:
        raise pytest.UsageError(f"pytest-infer: {error}") from error
    hooks.attach(config, run, channel)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give back what was opened."""
    if KEY in config.stash:
        of(config).close()


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that ask for `prompt` their suite, and those that measure their configurations."""
    run = of(metafunc.config)
    parametrize.parametrize(metafunc, run.settings, run.configurations, run.suites, run.in_use.context)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let -k find a test by what it is swept over."""
    ordering.name(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring the tests of a sweep into the order that loads each model once."""
    ordering.reorder(items, interleaved=of(config).settings.interleaved)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse what cannot work before anything heavy is done."""
    preflight.check(session, of(session.config))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a measuring test the clock that replays its durations, before its `benchmark` fixture is built."""
    if "infer" in getattr(item, "fixturenames", ()):
        clock = item.stash[CLOCK] = ReplayClock()
        marker = item.get_closest_marker("benchmark")
        given = dict(marker.kwargs) if marker is not None else {}
        item.add_marker(pytest.mark.benchmark(**{**given, "timer": clock}), append=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Mark a measurement whose test did not pass in the end: it must not become a baseline."""
    report = yield
    # In whatever phase, as a fixture may measure or check; xfail and a skip after the measurement are "skipped" here.
    if not report.passed:
        of(item.config).fail(item)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Take the terminal for the live line."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    capture = session.config.pluginmanager.get_plugin("capturemanager")
    if reporter is not None and session.config.get_verbosity() >= 0:
        suspend = capture.global_and_fixture_disabled if capture is not None else nullcontext
        of(session.config).live = LiveLine(reporter._tw._file, suspend, lambda: reporter._tw.width_of_current_line)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember which tests were left out on purpose: they are not missing."""
    if items:
        of(items[0].config).deselected.update(item.nodeid for item in items)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """When all is measured, gate it: the tests that got worse fail."""
    result = yield
    run = of(session.config)
    run.probing.after()
    run.judge()
    gate_failures.report_failures(session, run.gate)
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what concerns the run as a whole to its file."""
    run = of(config)
    run.keeper.complete(output_json, run.gate.mark, run.probing.stored())


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> Generator[None, Any, Any]:
    """Keep noise and a storage outside the working folder from upsetting pytest-benchmark's comparison."""
    align_noise(machine_info, compared_benchmark)
    try:
        return (yield)
    except ValueError:
        # pytest-benchmark words its warning with a path relative to the working folder, where there may be none.
        of(config).note("the compared run was made on another machine, or with other software")
        return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
    """After pytest-benchmark has saved the run, finish what lies beside it."""
    yield
    keeper = of(session.config).keeper
    keeper.finish(complete=exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED})
    gated = of(session.config).gate.exit
    if exitstatus == pytest.ExitCode.OK and keeper.save_failed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif exitstatus == pytest.ExitCode.OK and gated is not None:
        session.exitstatus = gated.value


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Show the table, behind pytest-benchmark's own, and also when its gate raises."""
    try:
        yield
    finally:
        run = of(config)
        html_report.write(run)
        write_summary(terminalreporter, run.summary())
        run.gate.publish(os.environ, terminalreporter.write)
