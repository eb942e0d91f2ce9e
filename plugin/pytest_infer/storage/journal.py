"""The journal: one fsynced line per finished prompt, so that a killed run can go on with `--infer-resume`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from pytest_infer.records import PromptRecord

FOLDER = ".journal"


class Entry(msgspec.Struct, frozen=True):
    """One finished prompt; `key` says what the figures depend on: prompt, limits, options, code."""

    nodeid: str
    key: str
    record: PromptRecord


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
class Interrupted:
    """What an earlier run left behind."""

    path: Path
    entries: tuple[Entry, ...]


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


def interrupted(storage: Path) -> Interrupted | None:
    """Return the newest journal that a killed run left, if there is one; one still being written does not count."""
    for path in sorted((storage / FOLDER).glob("*.jsonl"), key=_written_at, reverse=True):
        entries = () if _is_running(path) else read(path)
        if entries:
            return Interrupted(path=path, entries=entries)
    return None


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
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        # No locks here, so nobody holds this one.
        return False


def matching(entries: Iterable[Entry], nodeid: str, key: str) -> PromptRecord | None:
    """Return the newest record of that test, if what its figures depend on is still the same."""
    found = [entry.record for entry in entries if entry.nodeid == nodeid and entry.key == key]
    return found[-1] if found else None
