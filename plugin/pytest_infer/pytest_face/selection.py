"""Which tests a run was to have: the paths and node ids that were named, and what options leave out again."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pytest_infer import untrusted


@dataclass(frozen=True, slots=True)
class Selection:
    """The paths and node ids that pytest was given, and the tests that -k, -m or another plugin took out again."""

    config: pytest.Config
    deselected: Collection[str]

    def covers(self, nodeid: str) -> bool:
        """Return whether a test that is not there any more would have been part of this run."""
        if nodeid in self.deselected or repeats(self.config) or self._ignored(nodeid):
            return False
        base, root = self.config.invocation_params.dir, self.config.rootpath
        for argument in self.config.args:
            path, _, inner = argument.partition("::")
            place = os.path.relpath(base / path, root).replace(os.sep, "/")
            wanted = f"{place}::{inner}" if inner else place
            if place == "." or nodeid == wanted or nodeid.startswith((f"{wanted}/", f"{wanted}::", f"{wanted}[")):
                return True
        return False

    def _ignored(self, nodeid: str) -> bool:
        """Return whether --ignore or --ignore-glob leaves out a test's file, or a folder that this lies in."""
        file = self.config.rootpath / nodeid.partition("::")[0]
        places = [file, *file.parents]
        globs = map(str, _given(self.config, "ignore_glob"))
        return not set(_given(self.config, "ignore")).isdisjoint(places) or any(
            fnmatch(str(place), glob) for glob in globs for place in places
        )


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
