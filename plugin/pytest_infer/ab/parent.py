"""The hooks of the side that compares: when the other commit is found, started and ended."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from _pytest import runner

from pytest_infer.ab import child, protocol
from pytest_infer.ab.launches import Launches
from pytest_infer.ab.other_commit import OtherCommit
from pytest_infer.ab.turns import LockStep, Sequential
from pytest_infer.errors import AgainstError
from pytest_infer.pytest_face.options import ROUND
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.pytest_face.settings import Settings

ToParent = protocol.Channel[protocol.FromParent]


def side(
    config: pytest.Config, session: InferSession, channel: ToParent | None, *, collecting: bool
) -> child.Child | Parent | None:
    """Return the hooks of one side of a comparison, if this run is one: a child has a channel, a parent its option.

    `collecting` says that pytest's session has started. Raises AgainstError for what cannot be compared then.
    """
    if channel is not None or session.settings.against is not None:
        # The parent judges pairs between rounds. What it needs for that is loaded on both sides, and before any round:
        # else its memory would grow by scipy, and only its.
        from pytest_infer.analysis.compare import gate, noise  # noqa: F401, PLC0415
    if channel is not None:
        found = session.loop = child.Child(session, channel)
        return found
    if session.settings.against is None or config.option.collectonly:
        return None
    parent = Parent(session)
    if collecting:
        parent.find(config)
    return parent


def _sides(settings: Settings) -> type[LockStep | Sequential | Launches]:
    if settings.against_sequential:
        return Sequential
    return LockStep if settings.turns == ROUND else Launches


class Parent:
    """The hooks of the parent's side."""

    def __init__(self, session: InferSession) -> None:
        self._session = session
        self._other: OtherCommit | None = None
        self._sides: LockStep | Sequential | Launches | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Find the commit before anything is collected."""
        if self._other is not None:
            return
        try:
            self.find(session.config)
        except AgainstError as error:
            raise pytest.UsageError(f"pytest-infer: {error}") from error

    def find(self, config: pytest.Config) -> None:
        """Find the commit; raise AgainstError for what cannot be compared.

        The ini file's comparison is for runs that measure, and no trouble to others.
        """
        bridge, asked = self._session.bridge, self._session.settings.gate_asked
        if bridge.off and not asked:
            return
        if bridge.available and bridge.parallel:
            raise AgainstError("--infer-against measures one process at a time: use -n 0")
        if bridge.available and bridge.disabled:
            raise AgainstError("--infer-against compares nothing with --benchmark-disable")
        self._other = OtherCommit(config, self._session)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self) -> None:
        """Start the other side, after this one has refused what can be refused."""
        if self._other is None or not self._session.keeper.planned:
            return
        self._sides = self._session.loop = _sides(self._session.settings)(self._session, self._other)
        try:
            self._sides.start()
        except AgainstError as error:
            raise pytest.UsageError(f"pytest-infer: {error}") from error
        finally:
            self._session.live.clear()
        self._session.against = self._other.info

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test of the comparison as pytest does where a plugin would repeat it: its first failure counts."""
        plugins = item.config.pluginmanager
        if item.nodeid not in self._session.keeper.planned or not any(map(plugins.has_plugin, child.REPEATS)):
            return None
        return runner.pytest_runtest_protocol(item, nextitem)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Take a test that ended without passing or failing, which the other side measures and passes, as missing."""
        session = self._session
        kept = session.keeper.finished.get(nodeid)
        if self._sides is None or self._other is None or nodeid not in session.keeper.planned:
            return
        if nodeid in session.failed or nodeid in self._other.new or not (kept is None or kept.failed):
            return
        try:
            there = self._sides.has(nodeid) if kept is None else nodeid not in self._other.unpassed
        except AgainstError as error:
            session.note(f"! {error}")
            return
        if there and nodeid not in session.missing:
            session.missing = (*session.missing, nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Let the other side measure what it measures before and after our tests, however these end."""
        if self._sides is None:
            return (yield)
        self._sides.before()
        interrupted = True
        try:
            result = yield
            interrupted = False
        except session.Failed:
            interrupted = False
            raise
        finally:
            for line in self._sides.after(interrupted=interrupted):
                self._session.note(f"! {line}")
                # There is no test to fail any more.
                session.testsfailed += 1
        return result

    def pytest_unconfigure(self) -> None:
        """End the other side, however the run ended."""
        if isinstance(self._sides, Launches):
            self._sides.close()
        if self._other is not None:
            self._other.close()
