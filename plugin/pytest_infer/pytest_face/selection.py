"""Which tests a run was to have: the paths and node ids that were named, and what options leave out again."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from _pytest.mark import KeywordMatcher
from _pytest.mark.expression import Expression

from pytest_infer import untrusted
from pytest_infer.storage.runs import Row, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The paths and node ids that pytest was given, and what options made of them.

    `left_out` are tests that -k, -m or another plugin took out again, and `kept` the others. `levels` and `configs` are
    what options ask for, and `points` what of these tests of a suite are measured with: the lengths of a curve.
    `prompts` are the names in the suites of these tests, `suites` is how stored runs name them, and `typed` says that
    one was typed for all.
    """

    config: pytest.Config
    left_out: Collection[str]
    kept: Collection[str]
    levels: Collection[str]
    configs: Collection[Mapping[str, str]]
    points: Collection[Mapping[str, str]]
    prompts: Collection[str]
    suites: Collection[str]
    typed: bool

    def covers(self, row: Row, before: Run) -> bool:
        """Return whether a test of an earlier run that is not there any more would have been part of this run.

        Where nobody knows which suite that run had, it is taken for the one of this run.
        """
        nodeid = row.test
        if nodeid in self.left_out or repeats(self.config) or self._ignored(nodeid) or not self._measures(row, before):
            return False
        base, root = self.config.invocation_params.dir, self.config.rootpath
        for argument in self.config.args:
            path, _, inner = argument.partition("::")
            place = os.path.relpath(base / path, root).replace(os.sep, "/")
            wanted = f"{place}::{inner}" if inner else place
            if place == "." or nodeid == wanted or nodeid.startswith((f"{wanted}/", f"{wanted}::", f"{wanted}[")):
                return self._chosen(row)
        return False

    def _measures(self, row: Row, before: Run) -> bool:
        """Return whether this run asks for a test's level or configuration, and for its prompt or the same suite.

        Only a suite that was typed, for either run, is another on purpose.
        """
        if row.under_load is not None:
            return row.name in self.levels
        if not _of_suite(row):
            return row.config in self.configs
        same = before.suite is None or before.suite in self.suites
        other = not same and (self.typed or row.name in before.typed_prompts)
        return row.config in self.points and (not other or row.name in self.prompts)

    def _chosen(self, row: Row) -> bool:
        """Return whether -k, -m and --deselect would have left a test in: -m as it did others of its function."""
        given = self.config.option
        if row.test.startswith(tuple(given.deselect or ())):
            return False
        marked_out = set(map(_function, self.left_out)) - set(map(_function, self.kept))
        if given.markexpr and _function(row.test) in marked_out:
            return False
        path, *inner = row.test.split("::")
        names = {*path.split("/"), *inner, *(f"{axis}:{value}" for axis, value in row.config.items())}
        keyword = given.keyword.strip()
        return not keyword or Expression.compile(keyword).evaluate(KeywordMatcher(names))

    def _ignored(self, nodeid: str) -> bool:
        """Return whether --ignore or --ignore-glob leaves out a test's file, or a folder that this lies in."""
        file = self.config.rootpath / nodeid.partition("::")[0]
        places = [file, *file.parents]
        globs = map(str, _given(self.config, "ignore_glob"))
        return not set(_given(self.config, "ignore")).isdisjoint(places) or any(
            fnmatch(str(place), glob) for glob in globs for place in places
        )


def _of_suite(row: Row) -> bool:
    """Return whether pytest gave a test its prompt, whose name then stands in its id; what is not ASCII is escaped."""
    given = row.test.partition("[")[2]
    return any(name in given for name in (row.name, row.name.encode("unicode_escape").decode("ascii")))


def _function(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def ignores_tests(config: pytest.Config) -> bool:
    """Return whether --ignore may leave out tests of what was named: it names a place within, or patterns."""
    here = config.invocation_params.dir
    named = [Path(os.path.normpath(here / argument)) for argument in config.args]
    ignored = _given(config, "ignore")
    within = any(untrusted.exists(path) and path.is_relative_to(folder) for path in ignored for folder in named)
    return within or bool(config.getoption("ignore_glob"))


def repeats(config: pytest.Config) -> bool:
    """Return whether --lf or --sw goes on where the last run failed: pytest does not say what it then leaves out."""
    return any(config.getoption(option, False) for option in ("lf", "stepwise"))


def _given(config: pytest.Config, option: str) -> list[Path]:
    """Return the paths or patterns that an option names, from where pytest was started."""
    here = config.invocation_params.dir
    return [Path(os.path.normpath(here / name)) for name in config.getoption(option) or ()]
