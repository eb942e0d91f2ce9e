"""The hooks of a run in which a test asks for us; they are registered with pytest when the first such test is found."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_infer.ab import child, parent
from pytest_infer.errors import InferError
from pytest_infer.pytest_face import (
    exits,
    failures,
    fixtures,
    followers,
    late,
    options,
    parametrize,
    preflight,
    summary,
)
from pytest_infer.pytest_face.session import CLOCK, KEY, InferSession
from pytest_infer.pytest_face.sweep import ordering
from pytest_infer.storage.bridge import ReplayClock

_REFUSED = pytest.StashKey[InferError]()


def start_at_once(config: pytest.Config) -> None:
    """Read the options while pytest is configured, and refuse wrong ones before anything is collected.

    A child of a comparison drops what it must not do before other plugins act on it.
    """
    channel = child.adopt(config)
    try:
        _begin(config, channel, collecting=False)
    except InferError as error:
        raise pytest.UsageError(f"pytest-infer: {error}") from error


def start(config: pytest.Config) -> InferSession | None:
    """Return the state of this run, made now for the first test; None where the ini file's options are wrong.

    pytest would take that for a fault of the test that it collects: it is said when all are collected.
    """
    if KEY in config.stash:
        return config.stash[KEY]
    if _REFUSED in config.stash:
        return None
    try:
        return _begin(config, None, collecting=True)
    except InferError as error:
        config.stash[_REFUSED] = error
        config.pluginmanager.register(RefusedRun(error), "pytest_infer.refusal")
        return None


def _begin(config: pytest.Config, channel: parent.ToParent | None, *, collecting: bool) -> InferSession:
    session = InferSession(config, base=channel is not None)
    side = parent.side(config, session, channel, collecting=collecting)
    config.stash[KEY] = session
    config.pluginmanager.register(Hooks(session), "pytest_infer.hooks")
    if side is not None:
        config.pluginmanager.register(side, "pytest_infer.ab")
    if collecting and not session.world.place.leads:
        followers.silence(config, session.bridge)
    return session


def session_of(config: pytest.Config) -> InferSession:
    """Return the state of this run for a fixture, which may be the first to ask if it is asked for late."""
    session = start(config)
    if session is None:
        pytest.fail(f"pytest-infer: {config.stash[_REFUSED]}", pytrace=False)
    return session


def generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for `prompt` its suite, and one that measures its configurations."""
    run = start(metafunc.config)
    if run is not None:
        parametrize.parametrize(metafunc, run.settings, run.configurations, run.suites, run.model_in_use.context)


def collected(item: pytest.Item) -> None:
    """Start for a test that pytest does not generate, if it is the first: hooks registered now are not told of it."""
    first = KEY not in item.config.stash
    run = start(item.config)
    if first and run is not None:
        run.collected.append(item)


class RefusedRun:
    """Ends a run with wrong options."""

    def __init__(self, error: InferError) -> None:
        self._error = error

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config) -> None:
        """Say it in one line, before anything is measured."""
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(f"pytest-infer: {self._error}") from self._error

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Say it of each test of ours in a worker of xdist's, which would take a refused run for a crash."""
        if fixtures.of_ours(item):
            pytest.fail(f"pytest-infer: {self._error}", pytrace=False)


class Hooks:
    """The hooks, one delegation each."""

    def __init__(self, run: InferSession) -> None:
        self._run = run
        self._models = late.Models()

    @pytest.hookimpl(tryfirst=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Give back what was opened; what is alive now is alive when pytest has ended, too."""
        self._run.close()
        self._run.heap.leave()
        config.stash[options.LAST] = self._run.heap.release

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Say nothing in a rank that follows; pytest and its plugins are configured now, and have said nothing yet."""
        if not self._run.world.place.leads:
            followers.silence(session.config, self._run.bridge)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Let -k find a test by what it is swept over, and remember what -k may leave out."""
        ordering.name(item)
        self._run.collected.append(item)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Bring the tests of a sweep into the order that loads each model once."""
        ordering.reorder(items, interleaved=self._run.settings.interleaved)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Remember which tests were left out on purpose: they are not missing."""
        self._run.deselected.update(item.nodeid for item in items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse what cannot work before anything heavy is done."""
        preflight.check(session, self._run)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Give a measuring test the clock that replays its durations, before its `benchmark` fixture is built."""
        if fixtures.measures(item):
            self._run.heap.between_tests()
            self._models.renew(item)
            clock = item.stash[CLOCK] = ReplayClock()
            marker = item.get_closest_marker("benchmark")
            args, given = ((), {}) if marker is None else (marker.args, marker.kwargs)
            item.add_marker(pytest.mark.benchmark.with_args(*args, **{**given, "timer": clock}), append=False)

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Let the collector find what a fixture held that outlived a test."""
        if fixturedef.scope != "function":
            self._run.heap.release()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Mark a measurement whose test did not pass in the end: it must not become a baseline."""
        report = yield
        # In whatever phase, as a fixture may measure or check; xfail and a skip after the measurement are "skipped".
        if not report.passed:
            self._run.fail(item, report)
        if report.when == "teardown":
            self._run.over.add(item.nodeid)
        if report.failed and not self._run.world.place.leads:
            followers.tell_failure(self._run.world.place, report)
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """When all is measured, gate it: the tests that got worse fail. Of two sides also what an early end leaves."""
        try:
            result = yield
        except BaseException:
            self._run.judge(early=True)
            failures.report_gated(session, self._run.gate)
            raise
        self._run.probing.after()
        self._run.judge()
        failures.report_gated(session, self._run.gate)
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add what concerns the run as a whole to its file."""
        self._run.keeper.complete(output_json, self._run.gate.mark, self._run.probing.stored())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        """After pytest-benchmark has saved the run, finish what lies beside it."""
        if exitstatus == pytest.ExitCode.OK and self._run.gate.exit is None and not session.config.option.collectonly:
            self._run.gate.nothing("the run ended early")
        # With -x or --maxfail a failure ends the run before all is measured, and pytest calls that failed tests too.
        stopped = bool(session.shouldfail) and bool(self._run.unreached())
        complete = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED} and not stopped
        try:
            yield
        except BaseException:
            # pytest-benchmark's gate, whose run is saved by then, or whatever another plugin raises, maybe before.
            complete = complete and self._run.keeper.stored() is not None
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            raise
        finally:
            self._run.keeper.finish(complete=complete)
            exits.finish(session, self._run)
            followers.agree(session, self._run.world)

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
        """Show the table, behind pytest-benchmark's own where those are asked for, and also when its gate raises.

        A run that another one started shows nothing: nobody reads it.
        """
        if self._run.started_by_other:
            yield
            return
        if self._run.keeper.finished and not self._run.tables_asked:
            self._run.bridge.leave_out_of_tables()
        try:
            yield
        finally:
            summary.show(self._run, terminalreporter)
