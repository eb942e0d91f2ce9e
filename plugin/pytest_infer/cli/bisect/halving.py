"""git's own bisection, kept in a worktree of ours: the user's checkout, index and bisection are never touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pytest_infer.checkouts.git import git, last_line
from pytest_infer.checkouts.worktree import Repository
from pytest_infer.errors import AgainstError, OptionError

_FIELDS = "%h%x00%an%x00%ad%x00%s"


class Mark(StrEnum):
    """What git is told of a commit."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit as people know it."""

    hash: str
    short: str
    author: str
    date: str
    subject: str
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ends:
    """Two commits, by their full hashes, of which the first is an ancestor of the second."""

    good: str
    bad: str

    @classmethod
    def of(cls, repository: Repository, good: str, bad: str) -> Ends:
        """Return the ends that two revisions name.

        Raises UnknownCommitError for one that names none, OptionError where there is nothing in between to be found.
        """
        found = cls(repository.commit(good, "GOOD "), repository.commit(bad, "BAD "))
        if found.good == found.bad:
            raise OptionError(f"GOOD {good} and BAD {bad} are the same commit, {found.good[:12]}")
        if not _ancestor(repository, found.good, found.bad):
            if repository.shallow():
                raise OptionError(
                    f"git does not know what lies between GOOD {good} and BAD {bad} in this shallow clone; "
                    "run `git fetch --unshallow`"
                )
            if _ancestor(repository, found.bad, found.good):
                raise OptionError(f"GOOD {good} comes after BAD {bad}: give the older commit first")
            base = git(repository.root, "merge-base", found.good, found.bad).stdout.strip()
            hint = f"; {base[:12]} is of both" if base else ""
            raise OptionError(f"GOOD {good} is no ancestor of BAD {bad}: give an older commit of BAD's history{hint}")
        return found


def _ancestor(repository: Repository, older: str, newer: str) -> bool:
    return git(repository.root, "merge-base", "--is-ancestor", older, newer).returncode == 0


class Halving:
    """A bisection between two ends; every method raises AgainstError where git refuses."""

    def __init__(self, folder: Path, ends: Ends, *, first_parent: bool = False) -> None:
        """Begin in a worktree; nothing is checked out there by git's bisection."""
        self._folder = folder
        self._ends = ends
        self._line = ["--first-parent"] if first_parent else []
        self._skipped: set[str] = set()
        self._git("bisect", "start", "--no-checkout", *self._line, ends.bad, ends.good)

    def suspects(self) -> list[str]:
        """Return the commits of which one is the first bad one, newest first."""
        good = self._git("for-each-ref", "--format=%(objectname)", "refs/bisect/good-*").split()
        return self._git("rev-list", *self._line, "refs/bisect/bad", "--not", *good).split()

    def found(self) -> bool:
        """Return whether there is no commit left that could be measured."""
        return all(commit in self._skipped for commit in self.suspects()[1:])

    def next(self) -> str:
        """Return the commit to be measured."""
        return self._git("rev-parse", "--verify", "BISECT_HEAD").strip()

    def steps(self) -> int:
        """Return about how many steps are left."""
        left = len([commit for commit in self.suspects() if commit not in self._skipped])
        return max(0, left - 1).bit_length()

    def tell(self, commit: str, mark: Mark) -> None:
        """Tell git what a commit is."""
        if mark is Mark.SKIP:
            self._skipped.add(commit)
        done = git(self._folder, "bisect", mark.value, commit)
        # 2 says that only skipped commits are left.
        if done.returncode not in (0, 2):
            raise AgainstError(f"git bisect {mark.value} {commit[:12]}: {last_line(done)}")

    def best_good(self) -> str:
        """Return the good commit that leaves the fewest suspects."""
        good = self._git("for-each-ref", "--format=%(objectname)", "refs/bisect/good-*").split() or [self._ends.good]
        return min(good, key=lambda commit: len(self._git("rev-list", "refs/bisect/bad", "--not", commit).split()))

    def _git(self, *arguments: str) -> str:
        done = git(self._folder, *arguments)
        if done.returncode:
            raise AgainstError(f"git {arguments[0]}: {last_line(done)}")
        return done.stdout


def described(repository: Repository, commits: Sequence[str]) -> list[Commit]:
    """Return what people know of commits."""
    found = []
    for commit in commits:
        shown = git(
            repository.root, "show", "-s", "--no-show-signature", "--date=iso", f"--format={_FIELDS}%x00%P", commit
        )
        short, author, date, subject, parents = (shown.stdout.rstrip("\n").split("\0") + [""] * 5)[:5]
        found.append(
            Commit(hash=commit, short=short, author=author, date=date, subject=subject, parents=tuple(parents.split()))
        )
    return found
