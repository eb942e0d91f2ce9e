"""The exit code of a run: pytest's own before the gate's, and what `git bisect run` is told in place of either."""

from __future__ import annotations

import copy
import sys
import traceback
from collections.abc import Generator

import pytest

from pytest_infer import untrusted
from pytest_infer.analysis.compare.ending import INTERRUPTED, SKIP, STOP
from pytest_infer.analysis.compare.verdicts import Exit, Verdict
from pytest_infer.checkouts.worktree import Repository
from pytest_infer.errors import InferError, OptionError, StorageError, UnknownCommitError, UnknownValueError
from pytest_infer.pytest_face.session import KEY, InferSession

_OF_THE_COMMAND = (OptionError, StorageError, UnknownCommitError, UnknownValueError)
"""Errors that every commit would end with."""


def finish(session: pytest.Session, run: InferSession) -> None:
    """Let the gate say how a run ends that is all right otherwise, as pytest and all its plugins leave it."""
    if session.exitstatus != pytest.ExitCode.OK:
        return
    gate = run.gate
    if run.keeper.save_failed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    elif gate.code is not None:
        session.exitstatus = gate.code


def loading(config: pytest.Config, parser: pytest.Parser, args: list[str]) -> Generator[None, object, object]:
    """For git bisect: while conftest files are loaded; one that fails is the commit's fault, a wrong option is not."""
    known = config.known_args_namespace
    if known.help or known.version:
        return (yield)
    try:
        found = yield
        # As pytest is about to: what it would refuse then, nobody could tell git any more.
        parser.parse(args, namespace=copy.copy(config.option))
    except pytest.UsageError as error:
        _say(error)
        raise SystemExit(STOP) from None
    except Exception as error:  # noqa: BLE001 - whatever a conftest file raises
        traceback.print_exception(error.__cause__ or error)
        _say("the conftest files of this commit cannot be loaded")
        raise SystemExit(SKIP) from None
    return found


def running(config: pytest.Config) -> Generator[None, object, object]:
    """For git bisect: around the whole run."""
    watch = _Watch()
    config.pluginmanager.register(watch, "pytest_infer.exits")
    known = config.known_args_namespace
    try:
        code = yield
    except pytest.UsageError as error:
        _say(error)
        return _refused(config, error)
    except Exception:  # noqa: BLE001 - of a plugin, at the end of a run
        traceback.print_exc()
        return SKIP
    if known.help or known.version or not isinstance(code, int):
        return code
    if code == pytest.ExitCode.INTERRUPTED and watch.interrupted:
        return INTERRUPTED
    return _told(code, config.stash.get(KEY, None))


def _told(code: int, run: InferSession | None) -> int:
    """Return what a run's own exit code is for git bisect."""
    if code >= STOP:
        return code
    gated = None if run is None else run.gate.result
    if gated is None:
        return SKIP
    if code == pytest.ExitCode.OK:
        return gated.code
    regressed = any(judgement.verdict is Verdict.REGRESSED for judgement in gated.judgements)
    return Exit.REGRESSED.value if code == pytest.ExitCode.TESTS_FAILED and regressed else SKIP


def _refused(config: pytest.Config, error: pytest.UsageError) -> int:
    """Return what a refusal is: of the command, which is wrong for every commit, or of what this commit holds."""
    cause = error.__cause__
    if isinstance(cause, InferError):
        return STOP if isinstance(cause, _OF_THE_COMMAND) else SKIP
    # Another plugin's own kind of it is a verdict on this run; a path that the other commit has is missing in this one.
    return STOP if type(error) is pytest.UsageError and not _lacks(config) else SKIP


def _lacks(config: pytest.Config) -> bool:
    """Return whether this commit lacks a file or folder to be tested that the one it is compared with has."""
    rev, here = config.getoption("infer_against"), config.invocation_params.dir
    paths = [here / argument.partition("::")[0] for argument in config.args]
    missing = [path for path in paths if not untrusted.exists(path)]
    if rev is None or not missing:
        return False
    try:
        repository = Repository.of(here)
    except InferError:
        return False
    return all(repository.holds(rev, path) for path in missing)


class _Watch:
    """Sees whether somebody interrupted the run: pytest ends with the same code when tests cannot be collected."""

    interrupted = False

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell an interrupt, or a call of pytest.exit without a code of its own, from a run that pytest broke off."""
        told = getattr(excinfo.value, "returncode", None)
        self.interrupted = not isinstance(excinfo.value, pytest.Session.Interrupted) and told is None


def _say(what: object) -> None:
    for line in str(what).splitlines():
        sys.stderr.write(f"ERROR: {line}\n")
