"""What is accepted of a run's regressions: read before anything is measured, as far as the base is known then."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from pytest_infer.analysis.compare.accepted import Accepted, check_covered, parse
from pytest_infer.checkouts import accepted
from pytest_infer.errors import OptionError
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.storage.runs import Run


class Acceptances:
    """Those of one run, started in a folder. `names` are what its prompts go by, where all of them were collected."""

    def __init__(self, settings: Settings, folder: Path, note: Callable[[str], None]) -> None:
        self.found: tuple[Accepted, ...] = ()
        self.names: Collection[str] | None = None
        self._settings = settings
        self._folder = folder
        self._note = note
        self._base: str | None = None

    def read(self, base: str | None) -> None:
        """Read what is accepted since a commit, as far as that is known; raise OptionError for what makes no sense."""
        if not self._settings.accepts:
            return
        found = accepted.read(self._folder, self._settings.accepted, base)
        if found.unread is not None:
            self._note(f"gate: nothing is accepted: {found.unread}")
        parsed = parse(found.written)
        # Without the base nobody knows which entries of the file are of old.
        if base is not None and self.names is not None:
            check_covered(parsed, self.names)
        self.found, self._base = parsed, base

    def since(self, before: Run) -> tuple[Accepted, ...]:
        """Return the same since a run that may have been found in the end: what was measured by then is not lost."""
        if before.commit != self._base:
            try:
                self.read(before.commit)
            except OptionError as error:
                self._note(f"! gate: nothing is accepted: {error}")
                return ()
        return self.found
