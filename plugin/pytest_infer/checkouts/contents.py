"""What git leaves out of a worktree: submodules, taken from the user's own checkout, and files that git-lfs keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.checkouts.git import distrust, git, last_line

_LINK = "160000"
_NAMED = 3


def complete(checkout: Path, worktree: Path) -> list[str]:
    """Bring a worktree's submodules to its commit, offline, and return a line for each thing that is missing there.

    The commits come from the repositories that the user's own checkout keeps its submodules in. They are borrowed
    (`git clone --shared`): nothing is written there, and what is made goes with the worktree. Submodules of submodules
    as well.
    """
    told = (git(checkout, "rev-parse", kind).stdout.strip() for kind in ("--git-dir", "--git-common-dir"))
    return _complete(worktree, _Own(checkout, tuple(checkout / folder for folder in told)), "")


@dataclass(frozen=True, slots=True)
class _Own:
    """The user's own checkout, of which there may be no files, and the repositories that belong to it."""

    checkout: Path
    repositories: tuple[Path, ...]


def _complete(worktree: Path, own: _Own, where: str) -> list[str]:
    missing = []
    for path, commit in _links(worktree):
        found = _populate(own, worktree, path, commit)
        if isinstance(found, Path):
            missing += _complete(worktree / path, _Own(own.checkout / path, (found,)), f"{where}{path}/")
        else:
            missing.append(f"submodule {where}{path} is empty there: {found}")
    return missing + _pointers(worktree, where)


def _links(worktree: Path) -> Iterator[tuple[str, str]]:
    """Yield path and commit of each submodule that the worktree's index names."""
    for entry in git(worktree, "ls-files", "--stage", "-z").stdout.split("\0"):
        head, _, path = entry.partition("\t")
        if head.startswith(f"{_LINK} "):
            yield path, head.split()[1]


def _populate(own: _Own, worktree: Path, path: str, commit: str) -> Path | str:
    """Check a submodule's commit out in the worktree; return the repository that it came from, or why it cannot be."""
    target, sources = worktree / path, _sources(own, worktree, path)
    if not sources:
        return "this checkout does not have it either: git submodule update --init --recursive"
    source = next((source for source in sources if _has(source, commit)), None)
    if source is None:
        return f"this checkout's copy of it lacks {commit[:12]}: git submodule foreach --recursive git fetch"
    shutil.rmtree(target, ignore_errors=True)
    quiet = ("-c", f"core.hooksPath={os.devnull}", "-c", "advice.detachedHead=false")
    for folder, arguments in (
        (worktree, ("clone", "--quiet", "--shared", "--no-checkout", str(source), str(target))),
        (target, ("checkout", "--quiet", "--detach", commit)),
    ):
        done = git(folder, *quiet, *arguments)
        if done.returncode:
            return distrust(done) or last_line(done)
    return source


def _has(repository: Path, commit: str) -> bool:
    # One that is kept names a checkout that may be gone.
    place = (f"--git-dir={repository}", f"--work-tree={repository}")
    return git(repository, *place, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def _sources(own: _Own, worktree: Path, path: str) -> list[Path]:
    """Return the repositories of a submodule that the user has: the one in use, and those that git keeps of it."""
    found = []
    if (own.checkout / path / ".git").exists():
        used = git(own.checkout / path, "rev-parse", "--absolute-git-dir")
        found += [Path(used.stdout.strip())] if used.returncode == 0 else []
    # With -z a name may hold spaces.
    named = git(worktree, "config", "-z", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$").stdout
    for entry in named.split("\0"):
        key, _, value = entry.partition("\n")
        name = Path(key.removeprefix("submodule.").removesuffix(".path"))
        # git itself takes no name that leads elsewhere.
        if value == path and not name.is_absolute() and ".." not in name.parts:
            kept = [repository / "modules" / name for repository in own.repositories]
            found += [place for place in kept if (place / "HEAD").is_file()]
    return found


def _pointers(worktree: Path, where: str) -> list[str]:
    """Return a line about the files that git-lfs has not fetched."""
    tracked = git(worktree, "ls-files", "-z", ":(attr:filter=lfs)").stdout.split("\0")
    found = [f"{where}{name}" for name in tracked if name and untrusted.is_pointer(worktree / name)]
    if not found:
        return []
    what = "is a pointer" if len(found) == 1 else "are pointers"
    return [f"{_some(found)} {what} of git-lfs there, not the file itself: git lfs fetch --all"]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
