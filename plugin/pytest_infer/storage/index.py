"""The heads of run files in the user's cache folder, so that each file is parsed once, not at every command."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError
from pytest_infer.storage.files import replacing
from pytest_infer.storage.heads import Mark, Run

FOLDER = "history"
_FIELDS = tuple(field.name for field in fields(Run) if field.name != "path")


class _KnownRun(msgspec.Struct, array_like=True):
    """A head, and the size and time of change of the file that it was read from."""

    size: int
    mtime_ns: int
    head: dict[str, Any]


class _Kept(msgspec.Struct):
    """One storage folder's heads by path; `fields` are those of a head when it was written."""

    fields: tuple[str, ...] = _FIELDS
    heads: dict[str, _KnownRun] = {}


class Index:
    """Heads of one storage folder: `get` what is known of a file, `put` what was read, `save` at the end.

    It only saves time: whatever is wrong with it, files are read instead.
    """

    def __init__(self, folder: Path) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        try:
            self._path: Path | None = cache.root() / FOLDER / f"{name}.msgpack"
        except ModelError:
            self._path = None
        self._kept = self._read()
        self._seen: dict[str, _KnownRun] = {}
        self._new = False

    def _read(self) -> _Kept:
        try:
            kept = msgspec.msgpack.decode(self._path.read_bytes(), type=_Kept) if self._path else _Kept()
        except (OSError, msgspec.MsgspecError):
            return _Kept()
        return kept if kept.fields == _FIELDS else _Kept()

    def get(self, path: Path, size: int, mtime_ns: int) -> Run | None:
        """Return the head of a file that has not changed since it was read."""
        known = self._kept.heads.get(str(path))
        if known is None or (known.size, known.mtime_ns) != (size, mtime_ns):
            return None
        self._seen[str(path)] = known
        head: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in known.head.items()}
        head["gate"] = None if head["gate"] is None else msgspec.convert(head["gate"], Mark)
        return Run(path=path, **head)

    def put(self, run: Run, size: int, mtime_ns: int) -> None:
        """Keep a head that was read."""
        head = {name: getattr(run, name) for name in _FIELDS}
        self._seen[str(run.path)] = _KnownRun(size, mtime_ns, head)
        self._new = True

    def save(self) -> None:
        """Write what is known, if there is anything new; a cache that cannot be written is left as it is."""
        if self._path is None or not (self._new or len(self._seen) < len(self._kept.heads)):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as file:
                file.write(msgspec.msgpack.encode(_Kept(heads=self._seen)))
        except OSError:
            return
