"""The other commit's files: a git worktree in a temporary folder, for as long as a run takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_infer.errors import AgainstError, UnknownCommitError

PREFIX = "pytest-infer-"
_LOCK = "lock"
_TIMEOUT_S = 600
"""A checkout of large files from a slow disk takes minutes; git that waits for a password takes for ever."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A git checkout, by its top folder."""

    root: Path

    @classmethod
    def of(cls, folder: Path, asked: str = "--infer-against") -> Repository:
        """Return the checkout that a folder is in; raise UnknownCommitError, naming who asked, if it is in none."""
        try:
            top = git(folder, "rev-parse", "--show-toplevel")
        except FileNotFoundError:
            raise UnknownCommitError(f"{asked} needs git, which is not on the PATH") from None
        if top.returncode or not top.stdout.strip():
            raise UnknownCommitError(f"{asked} needs a git checkout, and {folder} is in none: {last_line(top)}")
        return cls(Path(top.stdout.strip()).resolve())

    def commit(self, rev: str, asked: str = "--infer-against=") -> str:
        """Return the commit that a revision names; raise UnknownCommitError saying what to do if there is none."""
        found = git(self.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
        name = found.stdout.strip()
        if found.returncode == 0 and name:
            return name
        shallow = git(self.root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        if shallow:
            raise UnknownCommitError(
                f"{asked}{rev}: git finds no such commit in this shallow clone; "
                f"run `git fetch --unshallow` (or `git fetch --depth=1 origin {rev}` and give FETCH_HEAD)"
            )
        raise UnknownCommitError(
            f"{asked}{rev}: git finds no such commit; "
            f"give a branch, tag or commit of this repository (after `git fetch`){', or self' if '=' in asked else ''}"
        )

    def holds(self, rev: str, path: Path) -> bool:
        """Whether a commit holds that file or folder."""
        if not path.is_relative_to(self.root):
            return False
        place = path.relative_to(self.root).as_posix()
        return git(self.root, "cat-file", "-e", f"{rev}:{'' if place == '.' else place}").returncode == 0

    def dirty(self) -> bool:
        """Whether tracked files differ from the commit that is checked out."""
        return bool(git(self.root, "status", "--porcelain", "--untracked-files=no").stdout.strip())


class Worktree:
    """A commit checked out in a folder of its own."""

    def __init__(self, repository: Repository, commit: str) -> None:
        remove_abandoned(repository)
        self._repository = repository
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        # The kernel gives it up with this process, however that ends.
        self._lock = FileLock(self._folder / _LOCK)
        self._lock.acquire()
        self.path = self._folder / "base"
        ready = False
        try:
            # Hooks belong to the user's own checkouts: one of them may build for minutes, or write elsewhere.
            added = git(
                repository.root,
                "-c", f"core.hooksPath={os.devnull}",
                "worktree", "add", "--detach", "--force", str(self.path), commit,
            )  # fmt: skip
            if added.returncode:
                raise AgainstError(f"git cannot check {commit[:12]} out: {last_line(added)}")
            ready = True
        finally:
            if not ready:
                self.remove()

    def remove(self) -> None:
        """Remove the folder and what git knows of it."""
        _remove(self._repository, self.path)
        self._lock.release()


def _remove(repository: Repository, path: Path) -> None:
    git(repository.root, "worktree", "remove", "--force", "--force", str(path))
    shutil.rmtree(path.parent, ignore_errors=True)
    git(repository.root, "worktree", "prune")


def remove_abandoned(repository: Repository) -> None:
    """Remove what killed runs left: our worktrees of this repository whose lock nobody holds any more."""
    listed = git(repository.root, "worktree", "list", "--porcelain").stdout.splitlines()
    for path in (Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")):
        lock = path.parent / _LOCK
        if not path.parent.name.startswith(PREFIX) or not lock.exists():
            continue
        try:
            with FileLock(lock, timeout=0):
                _remove(repository, path)
        except (Timeout, OSError, NotImplementedError):
            # It is in use, or this file system has no locks to tell.
            continue


def git(
    folder: Path, *arguments: str, stdin: str | None = None, index: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what git, started in a folder, ends with; raise AgainstError if it does not end.

    `index` is used in place of the checkout's own.
    """
    # In a git hook these name the repository of the hook, whatever the folder.
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_A_HOOK}
    own = {} if index is None else {"GIT_INDEX_FILE": str(index)}
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**inherited, **own, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
            input=stdin or "",
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=_TIMEOUT_S,
            # Ctrl-C is for us: git is asked to clean up after it.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise AgainstError(f"`git {arguments[0]}` did not end within {_TIMEOUT_S} s") from None


_OF_A_HOOK = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"}


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what git said last, which is why it failed."""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"git ended with {done.returncode}"
