"""Where code is imported from: an import path moved to another checkout, and what still comes from the first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""This package, which is the harness of both sides, whichever checkout it lies in."""

TOLD, CHECKOUT, BENCH = "PYTEST_INFER_BISECT", "PYTEST_INFER_BISECT_FROM", "PYTEST_INFER_BISECT_BENCH"
"""The variables that give a run of a bisection the file to tell in, the checkout that nothing may come from, and the
folder to measure where no tests are named."""


@dataclass(frozen=True, slots=True)
class Move:
    """From a checkout to another one of the same repository; to itself it changes nothing."""

    checkout: Path
    worktree: Path

    def holds(self, path: Path) -> bool:
        """Whether the path lies in the parent's checkout."""
        return self._place(path) is not None

    def path(self, path: Path) -> Path:
        """Return a path's counterpart; outside the checkout it is its own."""
        place = self._place(path)
        return path if place is None else self.worktree / place

    def _place(self, path: Path) -> Path | None:
        """Return where in the parent's checkout a path lies; None elsewhere.

        Links that lead there are followed; what is a link there may be another one in the other checkout.
        """
        for folder in (*reversed(path.parents), path):
            real = folder.resolve()
            if real.is_relative_to(self.checkout):
                found = real / path.relative_to(folder)
                other = self.checkout != self.worktree and found.is_relative_to(self.worktree)
                return None if other else found.relative_to(self.checkout)
        return None


def installed_in(checkout: Path) -> list[Path]:
    """Return the folders of this interpreter, but for one that holds the checkout, like /usr for /usr/src/app."""
    prefixes = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    return [prefix for prefix in prefixes if not checkout.is_relative_to(prefix)]


def python_path(entries: Sequence[str], given: str, home: Path, move: Move) -> list[str]:
    """Return the child's PYTHONPATH: the harness's own folder, then the parent's entries moved to the other checkout.

    It comes before site-packages, so that it wins over what an editable install (a `.pth` file) adds to the end.
    `entries` is the parent's `sys.path`, `given` its PYTHONPATH, `home` the folder that this package is imported from.
    """
    prefixes = installed_in(move.checkout)
    outside = [Path(entry).resolve() for entry in given.split(os.pathsep) if entry]
    found = [] if any(home.is_relative_to(prefix) for prefix in prefixes) else [home]
    for entry in entries:
        path = Path(entry).resolve()
        installed = any(path.is_relative_to(prefix) for prefix in prefixes)
        if not entry or path == home or installed or not (move.holds(path) or path in outside):
            continue
        found.append(move.path(path))
    return [str(path) for path in dict.fromkeys(found)]


def imported_from(checkout: Path, *, but: Sequence[Path] = ()) -> dict[str, str]:
    """Return the modules that came from a checkout, with their files: not this package, nor what is installed there.

    `but` are folders in it that do not count.
    """
    allowed = [*installed_in(checkout), PACKAGE, *but]
    return {
        name: str(file)
        for name, file in _files()
        if file.is_relative_to(checkout) and not any(file.is_relative_to(folder) for folder in allowed)
    }


def _files() -> Iterator[tuple[str, Path]]:
    # From their dictionaries: to ask a lazy module for an attribute may import half of a library.
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str):
            yield name, Path(os.path.realpath(file))
