"""The other side of a comparison, a commit or a server: its name, its files, and how its run is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Action
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from pytest_infer.ab import arguments, protocol
from pytest_infer.ab.child_process import ChildProcess, Command
from pytest_infer.checkouts import imports
from pytest_infer.checkouts.worktree import Repository, Worktree, claim, no_place
from pytest_infer.engines import models
from pytest_infer.errors import AgainstError, UnknownCommitError
from pytest_infer.pytest_face import command_line
from pytest_infer.pytest_face.options import SELF, SWEPT
from pytest_infer.pytest_face.selection import repeats
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.records import AgainstInfo

_SCRATCH, _LOCK = "pytest-infer-cache-", "lock"


class OtherCommit:
    """The other side, a commit or a server: found before anything is collected, started when it is needed."""

    def __init__(self, config: pytest.Config, session: InferSession) -> None:
        if os.name == "nt":
            raise AgainstError("--infer-against does not work on Windows, where a pipe cannot be handed on; use WSL")
        rev = session.settings.against or SELF
        self._config = config
        self._session = session
        self._rev = rev
        self._server = session.settings.other_server
        self._self = rev == SELF or self._server is not None
        repository = self._repository()
        self._repository_found = repository
        self._worktree: Worktree | None = None
        self.process: ChildProcess | None = None
        self.new: frozenset[str] = frozenset()
        self.unpassed: set[str] = set()
        self._told = False
        self.info = AgainstInfo(
            rev=rev,
            commit=self._commit(repository),
            dirty=repository is not None and repository.dirty(),
            sequential=session.settings.against_sequential,
        )
        self._scratch, self._lock = _scratch()

    def _repository(self) -> Repository | None:
        try:
            return Repository.of(self._config.rootpath)
        except AgainstError:
            if self._self:
                return None
            raise

    def _commit(self, repository: Repository | None) -> str:
        """Return the other side's commit; none for a server, and where this checkout has none yet."""
        if repository is None or self._server is not None:
            return ""
        try:
            return repository.commit("HEAD" if self._self else self._rev)
        except UnknownCommitError:
            if self._self:
                return ""
            raise

    @property
    def name(self) -> str:
        """Return how errors name the other side."""
        if self._server is not None:
            return "the other server"
        return "the other side" if self._self else f"{self._rev} ({self.info.commit[:12]})"

    @property
    def scratch(self) -> Path:
        """Return a folder for files of this run, which is removed at its end."""
        return self._scratch

    def start(self, planned: tuple[str, ...], ends: tuple[int, int] | None = None) -> ChildProcess:
        """Start the other side, which then waits; raise AgainstError when it can't run any of the planned tests."""
        self._session.live.show(f"collecting {self.name} …")
        checkout, worktree = self._checked_out()
        hello = protocol.Hello(
            planned=planned,
            impossible=tuple(sorted(self._session.impossible)),
            checkout=None if self._self else str(checkout),
            worktree=None if self._self else str(worktree),
        )
        process = ChildProcess(self._command(imports.Move(checkout, worktree)), ends, self._session.note)
        try:
            process.greet(hello)
            self._missing_in(process.ready(), planned)
        except BaseException:
            process.close()
            raise
        finally:
            self._session.live.clear()
        self.process = process
        return process

    def start_own(self, ends: tuple[int, int]) -> ChildProcess:
        """Start this checkout in a process of its own, as the other side is; `ChildProcess.ready` waits for it."""
        root = self._config.rootpath.resolve()
        command = replace(self._command(imports.Move(root, root)), name="this checkout")
        return ChildProcess(command, ends, self._session.note)

    def ended(self, nodeid: str, why: str | None) -> None:
        """Note why a test did not pass on the other side after it was measured there, if it did not."""
        if why is not None:
            self.unpassed.add(nodeid)
            self._session.note(f"! {nodeid} was measured in {self.name}, but then {why}")

    def _missing_in(self, ready: protocol.Ready, planned: tuple[str, ...]) -> None:
        if set(ready.new) == set(planned):
            raise AgainstError(
                f"{self.name} has none of the tests that are to be measured: there is nothing to compare"
            )
        if self._told:
            return
        self._told, self.new = True, frozenset(ready.new)
        by_id = any("::" in name for name in arguments.selects(self._given, self._options))
        # Whoever names tests one by one, or repeats what failed, does not ask for others.
        missing = () if by_id or repeats(self._config) else ready.missing
        self._session.missing = tuple(test for test in missing if test not in self._session.deselected)

    def _checked_out(self) -> tuple[Path, Path]:
        repository = self._repository_found
        if repository is None or self._self:
            root = self._config.rootpath.resolve()
            return root, root
        if self._worktree is None:
            self._worktree = Worktree(repository, self.info.commit)
            for line in self._worktree.missing:
                self._session.note(f"! {self.name}: {line}")
        return repository.root, self._worktree.path

    @property
    def _given(self) -> list[str]:
        return command_line.words(self._config)

    @property
    def _options(self) -> Mapping[str, Action]:
        return command_line.options_of(self._config)

    def _command(self, move: imports.Move) -> Command:
        cwd = self._config.invocation_params.dir.resolve()
        if not move.path(cwd).is_dir():
            raise AgainstError(
                f"{self.name} has no folder {cwd.relative_to(move.checkout)}: start pytest in another one"
            )
        options, python = self._options, self._session.settings.against_python
        given = arguments.moved(self._given, options, move, cwd, pyargs=self._config.option.pyargs)
        asked, left = (arguments.selects(args, options) for args in (self._given, given))
        if asked and not left:
            raise AgainstError(f"{self.name} has no {', '.join(asked)}: there is nothing to compare")
        path = (
            imports.python_path(sys.path, os.environ.get("PYTHONPATH", ""), imports.PACKAGE.parent, move)
            if python is None
            else []
        )
        return Command(
            name=self.name,
            arguments=[*self._interpreter(cwd, python), "-m", "pytest", *self._own_arguments(python, move), *given],
            cwd=move.path(cwd),
            environment={
                **arguments.environment(
                    os.environ,
                    options,
                    move,
                    cwd,
                    python_path=path,
                    read_in=partial(command_line.read_in, self._config),
                ),
                SWEPT: arguments.swept(self._session.settings, move, cwd),
            },
        )

    def _interpreter(self, cwd: Path, given: str | None) -> list[str]:
        if given is None:
            # -O, -X dev and the like change how fast Python runs.
            return [sys.executable, *subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
        # A path is meant from here, not from the worktree; its links stay, as they lead out of a virtual environment.
        found = shutil.which(str(cwd / models.expanded(given)) if os.sep in given else given)
        if found is None:
            raise AgainstError(f"--infer-against-python: there is no program {given}")
        return [found]

    def _own_arguments(self, python: str | None, move: imports.Move) -> list[str]:
        has = self._config.pluginmanager.hasplugin
        # Both sides' tests are known by their ids, which begin there: an ini file may be new, or gone.
        own = [f"--rootdir={move.path(self._config.rootpath.resolve())}"]
        own += arguments.uncommitted(self._config, move)
        # With `self` it would be the parent's own, and tell later runs what failed last.
        own += ["-o", f"cache_dir={self._scratch}"] if has("cacheprovider") else []
        if python is None:
            # An ini file may ask for them, and they act before this package is asked.
            own += ["-n0"] if has("xdist") else []
            own += ["--no-cov"] if has("pytest_cov") else []
        return own

    def stop(self) -> None:
        """End the other process."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def close(self) -> None:
        """End the other process and remove its files."""
        self.stop()
        if self._worktree is not None:
            self._worktree.remove()
            self._worktree = None
        self._lock.release()
        shutil.rmtree(self._scratch, ignore_errors=True)


def _scratch() -> tuple[Path, FileLock]:
    """Return a folder for files of this run, and the lock that says whose it is; remove those that killed runs left.

    Raises AgainstError where none can be made.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*/{_LOCK}"):
        # It is in use, another user's, or on a file system without locks.
        with suppress(Timeout, OSError, NotImplementedError), FileLock(left, timeout=0):
            shutil.rmtree(left.parent, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    except OSError as error:
        raise no_place(error) from error
    lock = FileLock(folder / _LOCK)
    try:
        claim(lock)
    except AgainstError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, lock
