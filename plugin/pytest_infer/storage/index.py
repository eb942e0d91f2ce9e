"""Runs as they are listed, in the user's cache folder, so that each file is parsed once, not at every command."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError
from pytest_infer.storage.files import replacing
from pytest_infer.storage.runfile import Mark
from pytest_infer.storage.runs import Run

FOLDER = "history"
_FIELDS = tuple(field.name for field in fields(Run) if field.init and field.name not in ("path", "tell"))


class _KnownRun(msgspec.Struct, array_like=True):
    """A run, and the size and time of change of the file that it was read from."""

    size: int
    mtime_ns: int
    run: dict[str, Any]


class _Kept(msgspec.Struct):
    """One storage folder's runs by path; `fields` are those of a run when it was written."""

    fields: tuple[str, ...] = _FIELDS
    runs: dict[str, _KnownRun] = {}


_KEPT: msgspec.msgpack.Decoder[_Kept] = msgspec.msgpack.Decoder(_Kept)


class Index:
    """Runs of one storage folder: `get` what is known of a file, `put` what was read, `save` at the end.

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
            content = b"" if self._path is None else untrusted.read(self._path, untrusted.RUN_BYTES)
            kept = untrusted.decode_binary(_KEPT, content)
        except (OSError, untrusted.Damaged):
            return _Kept()
        return kept if kept.fields == _FIELDS else _Kept()

    def get(self, path: Path, size: int, mtime_ns: int) -> Run | None:
        """Return the run of a file that has not changed since it was read."""
        known = self._kept.runs.get(str(path))
        if known is None or (known.size, known.mtime_ns) != (size, mtime_ns):
            return None
        self._seen[str(path)] = known
        run: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in known.run.items()}
        run["gate"] = None if run["gate"] is None else msgspec.convert(run["gate"], Mark)
        return Run(path=path, **run)

    def put(self, run: Run, size: int, mtime_ns: int) -> None:
        """Keep a run that was read."""
        known = {name: getattr(run, name) for name in _FIELDS}
        self._seen[str(run.path)] = _KnownRun(size, mtime_ns, known)
        self._new = True

    def save(self) -> None:
        """Write what is known, if there is anything new; a cache that cannot be written is left as it is."""
        if self._path is None or not (self._new or len(self._seen) < len(self._kept.runs)):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as file:
                file.write(msgspec.msgpack.encode(_Kept(runs=self._seen)))
        except OSError:
            return
