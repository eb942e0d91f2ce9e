"""Stored runs in the order of time, and the names by which one is chosen."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.checkouts.git import why_not_in
from pytest_infer.errors import NothingStoredError, StorageError
from pytest_infer.storage import baselines, shared_work
from pytest_infer.storage.code import resolve
from pytest_infer.storage.index import Digest, Digests, Index, State, state_of
from pytest_infer.storage.runs import Run, number_of, read

_DIGITS = re.compile(r"[0-9]{1,18}")  # Python refuses to read numbers of thousands of digits
_HEX = re.compile(r"[0-9a-f]{4,40}")
_SAVED = re.compile(r"_\d{8}_\d{6}(?!\d)")
"""When a file was saved, in UTC, as pytest-benchmark names it."""


@dataclass(frozen=True)
class History:
    """All runs of a storage folder, oldest first, and the files that could not be read, with a line each.

    `copies` are the files of each run, by its identity.
    """

    folder: Path
    runs: tuple[Run, ...]
    warnings: tuple[str, ...] = ()
    unread: tuple[Path, ...] = ()
    copies: Mapping[tuple[datetime, str | None], Sequence[Path]] = field(default_factory=dict)

    def files_of(self, run: Run) -> Sequence[Path]:
        """Return the file of a run, and the copies of it."""
        return self.copies.get(run.identity, (run.path,))

    def newer_unread(self, run: Run) -> list[Path]:
        """Return the run files that could not be read and are newer than a run."""
        found = [other.path for other in self.runs if other.known_damage is not None and other.time > run.time]
        return found + [path for path in self.unread if _is_newer(path, run)]

    def digests(self, kind: type[Digest], maker: str) -> Digests[Digest]:
        """Return what the code `maker` worked out of the tests of these runs, each of the type `kind`."""
        return Digests(self.folder, kind, maker)

    def other_than(self, run: Run) -> History:
        """Return the history without a run, and without copies of its file."""
        return replace(self, runs=tuple(other for other in self.runs if other.identity != run.identity))

    def before(self, run: Run) -> tuple[Run, ...]:
        """Return the runs made earlier."""
        return tuple(r for r in self.runs if r.time < run.time and r.path != run.path)

    def select(self, selector: str, *, strict: bool = False) -> Run:
        """Return the run that a selector names, the newest where it names several; raise StorageError for none.

        A path; a number (7, 0007); `latest`, `latest~1`; `commit:`, `branch:`, `tag:` and `baseline:NAME`; without a
        prefix whatever of them fits first: path, number, latest, baseline, commit, branch, and what git can resolve.

        With `strict` none takes the place of a newer one that cannot be told, and that may be the one which is meant.
        """
        how, found = self._named(selector)
        _ = found.rows  # whoever names a run is told at once what is wrong with it
        for doubt in self._doubts(how, found, selector) if strict and how not in ("path", "baseline") else ():
            raise StorageError(f"{doubt}, or name a run by its file")
        return found

    def _doubts(self, how: str, found: Run, selector: str) -> Iterator[str]:
        """Yield what may be a newer run that a selector fits, and what to do about it."""
        for path in self.newer_unread(found):
            if how != "number" or _has_number(path, selector.rpartition(":")[2]):
                yield f"{path.name} is newer than {found.label} and cannot be read: mend it"
        if how == "number":
            return
        # Imported late: locks take time to load, and most commands ask for no run so strictly.
        from pytest_infer.storage import journal  # noqa: PLC0415

        for other in self.runs:
            same = other.branch == found.branch if how == "branch" else other.commit == found.commit
            if (same or how == "latest") and other.time < found.time and _is_numbered_after(other.path, found.path):
                yield f"{other.label} has a higher number than {found.label} and an earlier time: measure again"
        # One that was stored nevertheless, as after Ctrl-C, began before its time.
        newest = max(self.runs, key=lambda run: run.time)
        if journal.left_since(self.folder, newest.time):
            yield f"a run begun after {newest.label} was interrupted: go on with it (--infer-resume), measure again"

    def _named(self, selector: str) -> tuple[str, Run]:
        """Return the run, and by which kind of name it was found."""
        if selector.endswith(".json") and untrusted.is_file(Path(selector)):
            named = read(Path(selector))
            # What a gate failed stays failed in a copy that was made before.
            same = (run for run in self.runs if run.identity == named.identity)
            told = next((run.gate for run in same if run.regressed or named.gate is None), named.gate)
            return "path", replace(named, gate=told)
        kind, colon, name = selector.partition(":")
        if colon and kind not in _SELECTORS:
            raise StorageError(f"unknown selector {kind}:…; known: {', '.join(f'{k}:' for k in _SELECTORS)}")
        tried = (kind,) if colon else tuple(_SELECTORS)
        for how in tried:
            found = _SELECTORS[how](self, name if colon else selector)
            if found is not None:
                return how, found
        if not self.runs:
            raise NothingStoredError(
                f"no run {selector!r}: none is stored in {self.folder}; `pytest bench --benchmark-autosave` makes one, "
                "or name the storage with --storage"
            )
        # A name that git alone could resolve.
        refused = why_not_in(Path.cwd())
        raise StorageError(
            f"no run {selector!r} among the {len(self.runs)} in {self.folder}; `pytest-infer history` lists them"
            + (f"; names of commits are not resolved: {refused}" if refused is not None else "")
        )


def _is_numbered_after(path: Path, other: Path) -> bool:
    """Return whether a run file was written after another of its folder, by their numbers, whatever clocks said."""
    later, earlier = number_of(path), number_of(other)
    return path.parent == other.parent and later is not None and earlier is not None and int(later) > int(earlier)


def _is_newer(unread: Path, run: Run) -> bool:
    """Return whether a file that cannot be read is newer than a run.

    Numbers are those of one folder: in another one, or without them, the time in the file's name counts, as
    pytest-benchmark writes it, else that of its last change. A file without a number among those that have one (a
    report, a lock) is no run.
    """
    number, own = number_of(unread), number_of(run.path)
    if own is not None and (number is None or unread.parent == run.path.parent):
        return number is not None and int(number) > int(own)
    saved = _SAVED.search(unread.name)
    with suppress(ValueError):
        if saved is not None:
            return datetime.strptime(f"{saved[0]}+0000", "_%Y%m%d_%H%M%S%z") > run.time
    try:
        return unread.stat().st_mtime > run.time.timestamp()
    except OSError:
        return False


def load(folder: Path, tell: Callable[[str], None] | None = None) -> History:
    """Read all runs under a storage folder; damaged files are left out with one warning each.

    Of copies of a run's file one counts: one that a gate has marked if there is any, before others one with a number,
    as those without may be written again. `tell` takes the warnings of those whose damage shows only when their tests
    are read.
    """
    if not untrusted.is_dir(folder):
        raise StorageError(f"{folder}: no such folder; name the storage with --storage")
    index, depth = Index(folder), len(folder.parts)
    found: dict[Path, Run | StorageError] = {}
    new: dict[Path, State] = {}
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.parts[depth:]):
            continue
        try:
            state = state_of(path.stat())
        except OSError as error:
            found[path] = StorageError(f"{path}: {error.strerror}")
            continue
        known = index.get(path, state, tell)
        if known is None:
            new[path] = state
        found[path] = known if known is not None else StorageError(f"{path}: not read")  # it is, below
    size = sum(state[0] for state in new.values())
    for path, read_now in zip(new, shared_work.by_all_cores(_read_all, list(new), size), strict=True):
        found[path] = read_now
        if isinstance(read_now, Run):
            index.put(read_now, new[path])
            found[path] = replace(read_now, tell=tell)
    index.save()
    every = [one for one in found.values() if isinstance(one, Run)]
    once: dict[tuple[datetime, str | None], Run] = {}
    copies: dict[tuple[datetime, str | None], list[Path]] = {}
    for run in sorted(every, key=lambda run: (run.time, run.number is None, run.path.name)):
        copies.setdefault(run.identity, []).append(run.path)
        if run.identity not in once or (run.gate is not None and once[run.identity].gate is None):
            once[run.identity] = run
    unread = {path: error for path, error in found.items() if isinstance(error, StorageError)}
    warnings = tuple(f"left out: {error}" for error in unread.values())
    return History(folder=folder, runs=tuple(once.values()), warnings=warnings, unread=tuple(unread), copies=copies)


def _read_all(paths: Sequence[Path]) -> list[Run | StorageError]:
    """Return the run of each file, or why it is none."""
    found: list[Run | StorageError] = []
    for path in paths:
        try:
            found.append(read(path))
        except StorageError as error:
            found.append(error)
    return found


def _newest(runs: Iterable[Run]) -> Run | None:
    return max(runs, key=lambda run: run.time, default=None)


def _sound(runs: Sequence[Run], number: int) -> Run | None:
    """Return that one of the runs whose tests can be read, counted from 0, and tell of those it had to leave out.

    Where they are too few it is one that cannot: whoever named it is told why.
    """
    found = next(islice((run for run in runs if run.damage is None), number, None), None)
    if found is None:
        return next((run for run in runs if run.damage is not None), None)
    for run in runs[: runs.index(found)]:
        _ = run.readable
    return found


def _by_number(history: History, name: str) -> Run | None:
    if not _DIGITS.fullmatch(name):
        return None
    return _newest(r for r in history.runs if any(_has_number(path, name) for path in history.files_of(r)))


def _has_number(path: Path, name: str) -> bool:
    number = number_of(path)
    return number is not None and int(number) == int(name)


def _by_age(history: History, name: str) -> Run | None:
    word, _, back = name.partition("~")
    if word != "latest" or (back and not _DIGITS.fullmatch(back)):
        return None
    return _sound(history.runs[::-1], int(back or 0))


def _by_commit(history: History, name: str) -> Run | None:
    if not _HEX.fullmatch(name.lower()):
        return None
    return _newest(r for r in history.runs if r.commit is not None and r.commit.startswith(name.lower()))


def _by_branch(history: History, name: str) -> Run | None:
    return _newest(r for r in history.runs if r.branch == name)


def _by_revision(history: History, name: str) -> Run | None:
    commit = resolve(name)
    return None if commit is None else _newest(r for r in history.runs if r.commit == commit)


def _by_baseline(history: History, name: str) -> Run | None:
    path = baselines.path_of(history.folder, name)
    if path is None:
        return None
    # A copy stands for the run that counts, whose file has the gate's mark.
    named, real = read(path), os.path.realpath(path)
    copied = (run for run in history.runs if any(os.path.realpath(file) == real for file in history.files_of(run)))
    counts = next(copied, None)
    return named if counts is None or named.regressed else counts


_SELECTORS = {
    "number": _by_number,
    "latest": _by_age,
    "baseline": _by_baseline,
    "commit": _by_commit,
    "branch": _by_branch,
    "tag": _by_revision,
}
