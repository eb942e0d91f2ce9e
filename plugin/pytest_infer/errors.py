"""Every error that a user can cause: one clear line that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InferError(Exception):
    """Base of all errors that the user can fix; the text is shown without a traceback."""


class SuiteError(InferError):
    """A prompt suite that cannot be used: missing file, bad syntax, unknown key, duplicate name, empty text."""


class OptionError(InferError):
    """An option or ini value that cannot be used."""


class ModelError(InferError):
    """A model that cannot be found, built, or loaded."""


class UnknownValueError(ModelError):
    """A name that no model accepts: a typing error, unlike a choice that this model or machine cannot run."""


class EngineError(InferError):
    """An engine that cannot be found, or that broke its contract with the clock."""


class StorageError(InferError):
    """Results that cannot be written or read."""


class NothingStoredError(StorageError):
    """A run that is asked for where none is stored."""


class ExpertCaptureError(InferError):
    """Expert selections that cannot be recorded, or that do not add up."""


class AgainstError(InferError):
    """Another commit that cannot be measured beside this one."""


class SkippedError(AgainstError):
    """A test that the other commit skips before it measures."""


class UnknownCommitError(AgainstError):
    """A name of a commit that git does not find, or that there is no git for."""


_FEW = 20
"""So many names are listed; of more only those that are near."""


def alternatives(kind: str, given: str, known: Iterable[str], listed: str | None = None) -> str:
    """Return the line for an unknown name: "unknown axis 'thread'; did you mean threads? known: batch, cache, threads".

    `listed` is what lists the names where they are too many for a line.
    """
    names = sorted(known)
    close = near(given, names)
    parts = [f"did you mean {' or '.join(close)}?"] if close else []
    if len(names) <= _FEW or listed is None:
        parts.append(f"known: {', '.join(names) or 'none'}")
    else:
        parts.append(f"`{listed}` lists all {len(names)}")
    return f"unknown {kind} {given!r}; {' '.join(parts)}"


def near(given: str, known: Iterable[str]) -> list[str]:
    """Return up to three names that somebody may have meant: near in their letters, or with all the words that he gave.

    Case, and which character stands between words, make no difference.
    """
    plain = {_plain(name): name for name in known}
    wanted = _plain(given)
    close = difflib.get_close_matches(wanted, plain, n=3, cutoff=0.7)
    words = set(wanted.split("_")) - {""}
    close += [name for name in plain if words and words <= set(name.split("_")) and name not in close]
    return [plain[name] for name in close[:3]]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_").replace("/", "_")
