"""The journal: one fsynced line per finished prompt, so that a killed run can go on with `--infer-resume`."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
from filelock import FileLock, Timeout

from pytest_infer import untrusted
from pytest_infer.records import PromptRecord
from pytest_infer.units import size

FOLDER = ".journal"
_BEGUN = "%Y%m%d-%H%M%S"
"""When a run began, in UTC, as its journal is named."""
_YOUNG_S = 600.0
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
        name = f"{datetime.now(UTC):{_BEGUN}}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self.path = storage / FOLDER / name
        self.entries = 0
        self._whole = 0
        self._lock = FileLock(_lock_of(self.path))

    def append(self, entry: Entry) -> None:
        """Write one line and wait until it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._lock.is_locked:
            # Where a file system has no locks the journal is kept all the same; it then looks like a dead run's.
            with suppress(OSError, NotImplementedError):
                self._lock.acquire(timeout=0)
        with self.path.open("ab") as file:
            # A line that a full disk cut short would take this one with it.
            file.truncate(min(self._whole, file.tell()))
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
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
    entries: tuple[Entry, ...] = ()
    damage: str | None = None
    """Why not all of it can be read, if something else than the kill cut it short."""

    def used_up(self, finished: Collection[Work]) -> bool:
        """Return whether all of its work has been finished by now; that of other options or code is other work."""
        return self.damage is None and all(entry.work in finished for entry in self.entries)


_ENTRY: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)
_MOST_BYTES = 4 * 2**30
"""Of a whole journal, which is read line by line."""


def read(path: Path) -> Left:
    """Return the whole lines of a journal; the one that the kill cut short is left out, and others are told of."""
    entries: list[Entry] = []
    unread: list[str] = []
    try:
        with untrusted.opened(path) as file:
            for number, line in enumerate(_lines(file), 1):
                try:
                    entries.append(_sound(untrusted.decode(_ENTRY, line)))
                except untrusted.Damaged as error:
                    if line.endswith(b"\n"):
                        unread.append(f"line {number}: {error}")
    except FileNotFoundError:
        # The run beside us that wrote it has finished meanwhile.
        return Left(path=path)
    except (OSError, untrusted.Damaged) as error:
        unread.append(untrusted.reason(error))
    more = f" (and {len(unread) - 1} more lines)" if len(unread) > 1 else ""
    return Left(path=path, entries=tuple(entries), damage=unread[0] + more if unread else None)


def _sound(entry: Entry) -> Entry:
    """Return an entry; raise untrusted.Damaged unless its rounds can be worked with."""
    of = entry.record.under_load
    if not (entry.record.rounds if of is None else of.repetitions):
        raise untrusted.Damaged("a record without rounds")
    profile = entry.record.profile
    traces = [*(one.trace for one in entry.record.rounds), *([] if profile is None else [profile.trace])]
    for trace in traces:
        stamps, sizes = (trace.start_ns, *trace.stamps_ns), trace.tick_sizes
        known = len(trace.token_ids) if trace.texts is None else sum(sizes)
        pieces = trace.texts is None or (len(trace.texts) == len(sizes) and not trace.token_ids)
        whole = len(sizes) == len(trace.stamps_ns) and sum(sizes) == known > 0 and min(sizes) > 0 and pieces
        if not whole or list(stamps) != sorted(stamps):
            raise untrusted.Damaged("stamps and tokens of a round that do not belong together")
    try:
        msgspec.msgpack.encode(entry)
    except OverflowError:
        # JSON holds any number; no counter and no clock does, and sums of such ones fit nothing.
        raise untrusted.Damaged("a whole number beyond 64 bits") from None
    return entry


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    length = os.fstat(file.fileno()).st_size
    if length > _MOST_BYTES:
        raise untrusted.Damaged(f"too large: {size(length)}")
    while file.tell() < length:
        line = file.readline(untrusted.RUN_BYTES)
        if len(line) == untrusted.RUN_BYTES:
            raise untrusted.Damaged(f"a line of {size(len(line))} or more")
        yield line


def interrupted(storage: Path) -> tuple[Left, ...]:
    """Return every journal that a run which has ended left, in the order in which they were last written.

    One still being written does not count, nor does one in which no prompt was finished.
    """
    paths = sorted((storage / FOLDER).glob("*.jsonl"), key=lambda path: (_written_at(path), path.name))
    found = [read(path) for path in paths if not _is_running(path)]
    _clean(storage / FOLDER, [left.path for left in found if not left.entries and left.damage is None])
    return tuple(left for left in found if left.entries or left.damage is not None)


def left_since(storage: Path, moment: datetime) -> bool:
    """Return whether a run that began after a moment left a journal: it ended before it was saved, and runs no more."""
    # Not by the files' times, which a copy of the folder has anew.
    since = f"{moment:{_BEGUN}}"
    newer = (path for path in (storage / FOLDER).glob("*.jsonl") if path.name[: len(since)] > since)
    return any(not _is_running(path, others=True) for path in newer)


def _clean(folder: Path, empty: Iterable[Path]) -> None:
    """Remove what runs left that were killed before they had finished a prompt: empty journals, locks of none."""
    locks = (path for path in folder.glob("*.lock") if not path.with_suffix(".jsonl").exists())
    for path in (*empty, *locks):
        # One that has just begun looks the same, for a moment or where there are no locks.
        if _written_at(path) < time.time() - _YOUNG_S and not _is_running(path.with_suffix(".jsonl")):
            with suppress(OSError):
                remove(path.with_suffix(".jsonl"))


def newest(journals: Iterable[Left]) -> dict[Work, PromptRecord]:
    """Return the record of each work that journals hold; where several do, the one written last."""
    return {entry.work: entry.record for left in journals for entry in left.entries}


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def remove(path: Path) -> None:
    """Remove a journal that nobody writes any more, with its lock."""
    path.unlink(missing_ok=True)
    _lock_of(path).unlink(missing_ok=True)


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")


def _is_running(path: Path, *, others: bool = False) -> bool:
    """Return whether a run writes a journal; `others` is what is said of those of other users."""
    lock = _lock_of(path)
    if not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=_PATIENCE_S, poll_interval=_PATIENCE_S / 10):
            return False
    except Timeout:
        return True
    except PermissionError:
        # Another user's, who alone can tell.
        return others
    except (OSError, NotImplementedError):
        # No locks here, so nobody holds this one.
        return False
