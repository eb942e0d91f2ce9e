"""The suite of the user's checkout, laid over every commit: all are measured by the same tests, on the same prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pytest_infer import untrusted
from pytest_infer.checkouts.git import git, last_line
from pytest_infer.checkouts.worktree import Repository
from pytest_infer.errors import AgainstError

_SUITES = (".toml", ".jsonl")
_OF_PYTEST = {"pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml"}
_IDENTITY = ("-c", "user.name=pytest-infer", "-c", "user.email=pytest-infer@localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Entries of git's index, `mode object 0<TAB>path`, by path.

    `ours` replace a commit's own: test modules, prompts and data. `spare` are conftest files and helpers, which are a
    commit's own way to its code: only a commit that lacks one is given the checkout's.
    """

    repository: Repository
    index: Path
    ours: dict[str, str]
    spare: dict[str, str]

    @classmethod
    def of(cls, repository: Repository, tests: Collection[Path], scratch: Path) -> Suite:
        """Return the suite of some test modules, absolute paths in the checkout; `scratch` is a folder for an index."""
        root = repository.root
        modules = {path.relative_to(root).as_posix() for path in tests if path.is_relative_to(root)}
        folders = {PurePosixPath(path).parent for path in modules}
        known = _listed(repository, folders)
        python = {path for path in known if path.endswith(".py")}
        spare = {
            path
            for path in python - modules
            if PurePosixPath(path).name == "conftest.py" or PurePosixPath(path).parent != PurePosixPath()
        }
        data = {path for path in known - python if _is_data(PurePosixPath(path))}
        index = scratch / "index"
        entries = _entries(repository, sorted(modules | spare | data), index)
        return cls(
            repository=repository,
            index=index,
            ours={path: entry for path, entry in entries.items() if path not in spare},
            spare={path: entry for path, entry in entries.items() if path in spare},
        )

    def on(self, commit: str) -> str:
        """Return a commit like another, with this suite; the same one if it has it. Raises AgainstError for git's no.

        No branch holds it: git removes it in time.
        """
        root = self.repository.root
        self._git("read-tree", commit)
        there = set(self._git("ls-files", "-z", "--", *self.spare).split("\0")) if self.spare else set()
        wanted = {**self.ours, **{path: entry for path, entry in self.spare.items() if path not in there}}
        done = git(
            root, "update-index", "--replace", "-z", "--index-info", stdin="\0".join(wanted.values()), index=self.index
        )
        if done.returncode:
            raise AgainstError(f"the suite cannot be laid over {commit[:12]}: {last_line(done)}")
        tree = self._git("write-tree").strip()
        if tree == self._git("rev-parse", f"{commit}^{{tree}}").strip():
            return commit
        message = f"{commit[:12]} with the suite of the checkout"
        return self._git(*_IDENTITY, "commit-tree", tree, "-p", commit, "-m", message).strip()

    def _git(self, *arguments: str) -> str:
        done = git(self.repository.root, *arguments, index=self.index)
        if done.returncode:
            raise AgainstError(f"git {' '.join(arguments[:2])}: {last_line(done)}")
        return done.stdout


def _is_data(path: PurePosixPath) -> bool:
    """Return whether a file beside a test is of the suite; beside the repository's own files only prompts are."""
    if path.name in _OF_PYTEST:
        return False
    return path.parent != PurePosixPath() or path.suffix in _SUITES


def _listed(repository: Repository, folders: Collection[PurePosixPath]) -> set[str]:
    """Return the files of some folders that are tracked or could be, with those of their subfolders.

    Of the repository's top only what lies in it directly: the rest is what the tests are about.
    """
    found: set[str] = set()
    for folder in folders:
        top = folder == PurePosixPath()
        pattern = ":(glob)*" if top else f":(literal){folder}"
        done = git(repository.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern)
        found |= {path for path in done.stdout.split("\0") if path and (repository.root / path).is_file()}
    return found


def _entries(repository: Repository, paths: Sequence[str], index: Path) -> dict[str, str]:
    for arguments, given in (
        (("read-tree", "--empty"), ""),
        (("update-index", "--add", "-z", "--stdin"), "\0".join(paths)),
    ):
        done = git(repository.root, *arguments, stdin=given, index=index)
        if done.returncode:
            raise AgainstError(f"the suite of this checkout cannot be read: {last_line(done)}")
    listed = git(repository.root, "ls-files", "-s", "-z", index=index).stdout.split("\0")
    return {entry.partition("\t")[2]: entry for entry in listed if entry}


def shared(repository: Repository, data: Mapping[str, Path]) -> list[str]:
    """Return the options that name files which every commit shares, as they are the user's own.

    Prompts and texts are; a model is unless it is committed.
    """
    there = {name: path for name, path in data.items() if untrusted.exists(path)}
    return [
        f"--infer-{name}={path}" for name, path in there.items() if name != "model" or not _tracked(repository, path)
    ]


def _tracked(repository: Repository, path: Path) -> bool:
    return bool(git(repository.root, "ls-files", "-z", "--", f":(literal){path}").stdout)
