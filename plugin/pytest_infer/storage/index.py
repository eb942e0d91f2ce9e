"""Runs as they are listed, in the user's cache folder, so that each file is parsed once, not at every command."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec

from pytest_infer import untrusted
from pytest_infer.storage import cache_file
from pytest_infer.storage.runs import Run

FOLDER = "history"
DIGESTS = "digests"
MOST_DIGESTS = 100
_FIELDS = tuple(field.name for field in fields(Run) if field.init and field.name not in ("path", "tell"))
_HINTS = get_type_hints(Run)
_Told: Any = msgspec.defstruct("_Told", [(name, _HINTS[name]) for name in _FIELDS])
"""What a run says of itself, but for its path: decoded, it is of the types that a run has."""

State = tuple[int, int, int, int]
"""By which a file is known again: its size, the times of its last change and of its inode's, and the inode.

Whoever puts a file's time back, or another file in its place, changes the last two.
"""


def state_of(found: os.stat_result) -> State:
    """Return the state of a file."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


class _KnownRun(msgspec.Struct, array_like=True):
    """A run, and the state of the file that it was read from."""

    state: State
    run: _Told


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
        self._path = _place(FOLDER, folder)
        self._kept = self._read()
        self._seen: dict[str, _KnownRun] = {}
        self._new = False

    def _read(self) -> _Kept:
        kept = _decoded(_KEPT, self._path) or _Kept()
        return kept if kept.fields == _FIELDS else _Kept()

    def get(self, path: Path, state: State, tell: Callable[[str], None] | None) -> Run | None:
        """Return the run of a file that has not changed since it was read, which tells what is wrong with it."""
        known = self._kept.runs.get(_key(path))
        if known is None or known.state != state:
            return None
        self._seen[_key(path)] = known
        return Run(path=path, tell=tell, **msgspec.structs.asdict(known.run))

    def put(self, run: Run, state: State) -> None:
        """Keep a run that was read."""
        told = _Told(**{name: getattr(run, name) for name in _FIELDS})
        self._seen[_key(run.path)] = _KnownRun(state, told)
        self._new = True

    def save(self) -> None:
        """Write what is known, if there is anything new."""
        if self._new or len(self._seen) < len(self._kept.runs):
            cache_file.put(self._path, msgspec.msgpack.encode(_Kept(runs=self._seen)))


class _KnownDigest(msgspec.Struct, array_like=True):
    state: State
    digest: msgspec.Raw


class _KeptDigests(msgspec.Struct):
    """What was worked out of runs, by path; `maker` is what worked it out."""

    maker: str = ""
    digests: dict[str, _KnownDigest] = {}


_DIGESTS: msgspec.msgpack.Decoder[_KeptDigests] = msgspec.msgpack.Decoder(_KeptDigests)
Digest = TypeVar("Digest")


class Digests(Generic[Digest]):
    """What is worked out of the tests of one storage folder's runs again and again: `get` and `put`, `save` at the end.

    Like the index it only saves time. `maker` names the code that works it out, with its version.
    """

    def __init__(self, folder: Path, kind: type[Digest], maker: str) -> None:
        self._path = _place(DIGESTS, folder)
        self._maker = maker
        self._decoder: msgspec.msgpack.Decoder[Digest] = msgspec.msgpack.Decoder(kind)
        kept = _decoded(_DIGESTS, self._path)
        self._kept = kept.digests if kept is not None and kept.maker == maker else {}
        self._states: dict[Path, State] = {}
        self._new: dict[str, _KnownDigest] = {}

    def get(self, path: Path) -> Digest | None:
        """Return the digest of a file that has not changed since it was worked out."""
        try:
            self._states[path] = state = state_of(path.stat())
            known = self._kept.get(_key(path))
            if known is None or known.state != state:
                return None
            return untrusted.decode_binary(self._decoder, bytes(known.digest))
        except (OSError, untrusted.Damaged):
            return None

    def put(self, path: Path, digest: Digest) -> None:
        """Keep the digest of a file as it was when `get` did not know it."""
        # A number that is too large for msgpack is not kept.
        with suppress(KeyError, OverflowError, TypeError, ValueError):
            content = msgspec.Raw(msgspec.msgpack.encode(digest))
            self._new[_key(path)] = _KnownDigest(self._states[path], content)

    def save(self) -> None:
        """Write what is known, if there is anything new."""
        if self._new:
            others = {path: known for path, known in self._kept.items() if path not in self._new}
            newest = dict(list({**others, **self._new}.items())[-MOST_DIGESTS:])
            kept = _KeptDigests(maker=self._maker, digests=newest)
            cache_file.put(self._path, msgspec.msgpack.encode(kept))


_Kind = TypeVar("_Kind")


def _place(name: str, folder: Path) -> Path | None:
    """Return where what is known of a storage folder is kept; None where there is no cache."""
    return cache_file.path(f"{name}/{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]}.msgpack")


def _key(path: Path) -> str:
    """Return a path as text that msgpack can hold: names of files need not be UTF-8."""
    return os.fsencode(path).decode("latin-1")


def _decoded(decoder: msgspec.msgpack.Decoder[_Kind], path: Path | None) -> _Kind | None:
    try:
        return None if path is None else untrusted.decode_binary(decoder, untrusted.read(path, untrusted.RUN_BYTES))
    except (OSError, untrusted.Damaged):
        return None
