"""Which tests this run's command line asked for, those among them that do not exist any more included."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True)
class Selection:
    """The paths and node ids that pytest was given, and the tests that -k, -m or another plugin took out again."""

    config: pytest.Config
    deselected: Collection[str]

    def covers(self, nodeid: str) -> bool:
        """Return whether a test that is not there any more would have been part of this run."""
        if nodeid in self.deselected:
            return False
        base, root = self.config.invocation_params.dir, self.config.rootpath
        for argument in self.config.args:
            path, _, inner = argument.partition("::")
            place = os.path.relpath(base / path, root).replace(os.sep, "/")
            wanted = f"{place}::{inner}" if inner else place
            if place == "." or nodeid == wanted or nodeid.startswith((f"{wanted}/", f"{wanted}::", f"{wanted}[")):
                return True
        return False
