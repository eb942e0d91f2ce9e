"""The other commit's files: a git worktree in a temporary folder, for as long as a run takes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_infer.checkouts import contents
from pytest_infer.checkouts.git import distrust, git, last_line
from pytest_infer.errors import AgainstError, UnknownCommitError

PREFIX = "pytest-infer-"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_LOCK, _MARK, _BASE = "lock", "made-by-pytest-infer", "base"


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
        except OSError as error:
            raise UnknownCommitError(f"{asked} needs git, which cannot be started: {error.strerror}") from None
        if top.returncode or not top.stdout.strip():
            raise UnknownCommitError(f"{asked}{_no_checkout(folder, distrust(top) or last_line(top))}")
        return cls(Path(top.stdout.strip()).resolve())

    def commit(self, rev: str, asked: str = "--infer-against=") -> str:
        """Return the commit that a revision names; raise UnknownCommitError saying what to do if there is none."""
        found = git(self.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
        name = found.stdout.strip()
        if found.returncode == 0 and name:
            return name
        option = "=" in asked
        if self.shallow():
            # What lies between two commits is needed where no option asks for one alone.
            alone = f" (or `git fetch --depth=1 origin {rev}` and give FETCH_HEAD)" if option else ""
            raise UnknownCommitError(
                f"{asked}{rev}: git finds no such commit in this shallow clone; run `git fetch --unshallow`{alone}"
            )
        if not git(self.root, "rev-list", "--max-count=1", "--all", "HEAD", "--ignore-missing").stdout.strip():
            raise UnknownCommitError(f"{asked}{rev}: this repository has no commits yet")
        raise UnknownCommitError(
            f"{asked}{rev}: git finds no such commit; "
            f"give a branch, tag or commit of this repository (after `git fetch`){', or self' if option else ''}"
        )

    def shallow(self) -> bool:
        """Whether older commits were not fetched."""
        return git(self.root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"

    def holds(self, rev: str, path: Path) -> bool:
        """Whether a commit holds that file or folder."""
        if not path.is_relative_to(self.root):
            return False
        place = path.relative_to(self.root).as_posix()
        return git(self.root, "cat-file", "-e", f"{rev}:{'' if place == '.' else place}").returncode == 0

    def dirty(self) -> bool:
        """Whether tracked files differ from the commit that is checked out."""
        return bool(git(self.root, "status", "--porcelain", "--untracked-files=no").stdout.strip())


def _no_checkout(folder: Path, why: str) -> str:
    """Return why a folder cannot be used as a checkout, to be read behind what needs one."""
    if why.startswith("git "):
        return f": {why}"
    if git(folder, "rev-parse", "--is-bare-repository").stdout.strip() == "true":
        return f" needs files, and {folder} is a bare repository: run in a checkout of it (git worktree add)"
    if git(folder, "rev-parse", "--is-inside-git-dir").stdout.strip() == "true":
        return f" needs a git checkout, and {folder} is git's own folder: run beside it"
    return f" needs a git checkout, and {folder} is in none: {why}"


class Worktree:
    """A commit checked out in a folder of its own, its submodules included; `missing` says what of it is not there."""

    def __init__(self, repository: Repository, commit: str) -> None:
        remove_abandoned(repository)
        self._repository = repository
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        except OSError as error:
            raise no_place(error) from error
        self._lock = FileLock(self._folder / _LOCK)
        self.path = self._folder / _BASE
        ready = False
        try:
            claim(self._lock)
            self._mark()
            # Hooks belong to the user's own checkouts: one of them may build for minutes, or write elsewhere.
            added = git(
                repository.root,
                "-c", f"core.hooksPath={os.devnull}",
                "worktree", "add", "--detach", "--force", str(self.path), commit,
            )  # fmt: skip
            if added.returncode:
                raise AgainstError(f"git cannot check {commit[:12]} out: {last_line(added)}")
            self.missing = self.complete()
            ready = True
        finally:
            if not ready:
                self.remove()

    def _mark(self) -> None:
        try:
            (self._folder / _MARK).write_text(str(self.path), encoding="utf-8")
        except OSError as error:
            raise no_place(error) from error

    def complete(self) -> tuple[str, ...]:
        """Bring the submodules to the commit that is checked out now; return lines about what is missing."""
        return tuple(contents.complete(self._repository.root, self.path))

    def remove(self) -> None:
        """Remove the folder and what git knows of it."""
        _remove(self._repository, self.path)
        self._lock.release()


def claim(lock: FileLock) -> None:
    """Take the lock of a folder that is ours; raise AgainstError where nothing can be written there.

    The kernel gives it up with this process, however that ends. Where a file system has no locks, nobody else can take
    the folder for abandoned.
    """
    try:
        lock.acquire()
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise no_place(error) from error


def no_place(error: OSError) -> AgainstError:
    """Return what is said where no temporary folder can be made or filled."""
    return AgainstError(f"no temporary folder: {error.strerror or error}; name another one with TMPDIR")


def _remove(repository: Repository, path: Path) -> None:
    git(repository.root, "worktree", "remove", "--force", "--force", str(path))
    shutil.rmtree(path, ignore_errors=True)
    # Whatever else lies there is not ours.
    with suppress(OSError):
        for name in (_LOCK, _MARK):
            (path.parent / name).unlink(missing_ok=True)
        path.parent.rmdir()
    git(repository.root, "worktree", "prune")


def remove_abandoned(repository: Repository) -> None:
    """Remove what killed runs left: our worktrees of this repository whose lock nobody holds any more."""
    listed = git(repository.root, "worktree", "list", "--porcelain").stdout.splitlines()
    for path in (Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")):
        lock = path.parent / _LOCK
        if not _ours(path) or not lock.exists():
            continue
        try:
            with FileLock(lock, timeout=0):
                _remove(repository, path)
        except (Timeout, OSError, NotImplementedError):
            # It is in use, or this file system has no locks to tell.
            continue


def _ours(path: Path) -> bool:
    """Return whether we made a worktree, and it lies where we made it: a name alone may be anybody's."""
    try:
        marked = (path.parent / _MARK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return path.name == _BASE and path.parent.name.startswith(PREFIX) and marked == str(path)
