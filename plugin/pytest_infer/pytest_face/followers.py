"""Ranks that follow the first one: they measure as it does, and neither show, store nor judge anything."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import pytest
from _pytest.config import create_terminal_writer
from _pytest.junitxml import xml_key

from pytest_infer.measure.ranks import Place, World
from pytest_infer.report.text import encodable, printable
from pytest_infer.storage.bridge import Bridge


def silence(config: pytest.Config, bridge: Bridge) -> None:
    """Take the terminal and the files from a rank that follows; harmless when it is done twice."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter._tw = create_terminal_writer(config, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    if bridge.available:
        bridge.mute()
    # pytest's own files are those of the first rank too.
    written = config.stash.get(xml_key, None)
    if written is not None:
        del config.stash[xml_key]
        config.pluginmanager.unregister(written)
    for name in ("lfplugin", "nfplugin"):
        if config.pluginmanager.has_plugin(name):
            config.pluginmanager.unregister(name=name)


class Held:
    """Holds back what pytest says before it has found a test of ours, in a process that follows if there is one."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._before: Any = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Begin, before pytest says anything."""
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            self._before = reporter._tw
            reporter._tw = create_terminal_writer(self._config, io.StringIO())

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self) -> None:
        """Say it after all where no test was ours: another kind of run has something to say in each process."""
        self.release()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Say it where the collection did not come to its end."""
        self.release()

    def release(self) -> None:
        """Give the terminal back, unless it was taken meanwhile."""
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        held = None if reporter is None else reporter._tw._file
        if self._before is not None and isinstance(held, io.StringIO):
            reporter._tw = self._before
            self._before.write(encodable(held.getvalue(), self._before._file))
        self._before = None


def agree(session: pytest.Session, world: World) -> None:
    """Let all ranks end with one exit code; the summary is written by now, so what is new stands below it."""
    if world.place.alone:
        return
    session.exitstatus, lines = world.agreed(int(session.exitstatus))
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    for line in lines if reporter is not None else ():
        reporter.write_line(printable(line), red=True)


def tell_failure(place: Place, report: pytest.TestReport) -> None:
    """Say in one line what failed in a rank whose terminal is silent: it may be the only one."""
    crash: Any = getattr(report.longrepr, "reprcrash", None)
    lines = (report.longreprtext if crash is None else crash.message).strip().splitlines() or ["it failed"]
    why = lines[-1 if crash is None else 0]
    sys.stderr.write(printable(f"pytest-infer: rank {place.rank}: {report.nodeid} ({report.when}): {why}") + "\n")
