"""The journal: one fsynced line per finished prompt, so that a killed run can go on with `--infer-resume`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from pytest_infer.records import PromptRecord

FOLDER = ".journal"
_PATIENCE_S = 0.1
"""Another run that looks at the same moment holds a dead run's lock for an instant."""

Work = tuple[str, str]
"""A test and the key of what its figures depend on."""


class Entry(msgspec.Struct, frozen=True):
    """One finished prompt; `key` says what the figures depend on: prompt, limits, options, code."""

    nodeid: str
    key: str
    record: PromptRecord

    @property
    def work(self) -> Work:
        """Return what was done: records of the same are interchangeable."""
        return self.nodeid, self.key


class Journal:
    """Appends finished prompts to a file of its own under `<storage>/.journal/`.

    A lock beside the file is held until `close`: the kernel gives it up with the process, however that ends, while a
    process id is given to another process, and to one in every container.
    """

    def __init__(self, storage: Path) -> None:
        # The last part keeps apart two containers in which both runs are process 1.
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self.path = storage / FOLDER / name
        self.entries = 0
        self._lock = FileLock(_lock_of(self.path))

    def append(self, entry: Entry) -> None:
        """Write one line and wait until it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._lock.is_locked:
            # Where a file system has no locks the journal is kept all the same; it then looks like a dead run's.
            with suppress(OSError, NotImplementedError):
                self._lock.acquire(timeout=0)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries += 1

    def close(self) -> None:
        """Leave the file to whoever goes on with it."""
        self._lock.release()

    def discard(self) -> None:
        """Remove the file: its prompts are in a run file now."""
        self.close()
        remove(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The journal that one interrupted run left behind, with its prompts."""

    path: Path
    entries: tuple[Entry, ...]

    def used_up(self, finished: Collection[Work]) -> bool:
        """Return whether all of its work has been finished by now; that of other options or code is other work."""
        return all(entry.work in finished for entry in self.entries)


def read(path: Path) -> tuple[Entry, ...]:
    """Return the whole lines of a journal; a line cut short by the kill is left out."""
    decoder = msgspec.json.Decoder(Entry)
    entries = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        # The run beside us that wrote it has finished meanwhile.
        return ()
    for line in lines:
        try:
            entries.append(decoder.decode(line))
        except msgspec.DecodeError:
            # The last line of a killed run, or one of an older schema: its prompt is measured again.
            continue
    return tuple(entries)


def interrupted(storage: Path) -> tuple[Left, ...]:
    """Return every journal that a run which has ended left, in the order in which they were last written.

    One still being written does not count.
    """
    paths = sorted((storage / FOLDER).glob("*.jsonl"), key=lambda path: (_written_at(path), path.name))
    found = (Left(path=path, entries=read(path)) for path in paths if not _is_running(path))
    return tuple(left for left in found if left.entries)


def newest(journals: Iterable[Left]) -> dict[Work, PromptRecord]:
    """Return the record of each work that journals hold; where several do, the one written last."""
    return {entry.work: entry.record for left in journals for entry in left.entries}


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove(path: Path) -> None:
    """Remove a journal that nobody writes any more, with its lock."""
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _is_running(path: Path) -> bool:
    lock = _lock_of(path)
    if not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=_PATIENCE_S, poll_interval=_PATIENCE_S / 10):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        # No locks here, so nobody holds this one.
        return False
