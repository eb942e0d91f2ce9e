"""The journal: one fsynced line per finished prompt, so that a killed run can go on with `--infer-resume`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import psutil

from pytest_infer.records import PromptRecord

FOLDER = ".journal"


class Entry(msgspec.Struct, frozen=True):
    """One finished prompt; `key` says what the figures depend on: prompt, limits, options, code."""

    nodeid: str
    key: str
    record: PromptRecord


class Journal:
    """Appends finished prompts to a file of its own under `<storage>/.journal/`."""

    def __init__(self, storage: Path) -> None:
        name = f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{os.getpid()}.jsonl"
        self.path = storage / FOLDER / name
        self.entries = 0

    def append(self, entry: Entry) -> None:
        """Write one line and wait until it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries += 1

    def discard(self) -> None:
        """Remove the file: its prompts are in a run file now."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """What an earlier run left behind."""

    path: Path
    entries: tuple[Entry, ...]


def read(path: Path) -> tuple[Entry, ...]:
    """Return the whole lines of a journal; a line cut short by the kill is left out."""
    decoder = msgspec.json.Decoder(Entry)
    entries = []
    for line in path.read_bytes().splitlines():
        try:
            entries.append(decoder.decode(line))
        except msgspec.DecodeError:
            # The last line of a killed run, or one of an older schema: its prompt is measured again.
            continue
    return tuple(entries)


def interrupted(storage: Path) -> Interrupted | None:
    """Return the newest journal that a killed run left, if there is one; one still being written does not count."""
    paths = sorted((storage / FOLDER).glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
    for path in reversed(paths):
        entries = () if _is_running(path) else read(path)
        if entries:
            return Interrupted(path=path, entries=entries)
    return None


def _is_running(path: Path) -> bool:
    pid = path.stem.rpartition("-")[2]
    return pid.isdecimal() and psutil.pid_exists(int(pid))


def matching(entries: Iterable[Entry], nodeid: str, key: str) -> PromptRecord | None:
    """Return the record of that test if what its figures depend on is still the same."""
    for entry in entries:
        if entry.nodeid == nodeid and entry.key == key:
            return entry.record
    return None
