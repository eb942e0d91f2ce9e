"""Every error that a user can cause: one clear line that says what to do."""

from __future__ import annotations

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


class ExpertCaptureError(InferError):
    """Expert selections that cannot be recorded, or that do not add up."""


class AgainstError(InferError):
    """Another commit that cannot be measured beside this one."""


class UnknownCommitError(AgainstError):
    """A name of a commit that git does not find, or that there is no git for."""


def alternatives(kind: str, given: str, known: Iterable[str]) -> str:
    """Return the line for an unknown name: "unknown engine 'x'; known: a, b"."""
    return f"unknown {kind} {given!r}; known: {', '.join(sorted(known)) or 'none'}"
