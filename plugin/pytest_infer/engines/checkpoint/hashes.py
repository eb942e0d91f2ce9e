"""One hash for the weights on disk, each file read once in its life."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError

CACHE_FILE = "weights-sha256.json"

# In the order in which transformers looks for them; an index names the files of a model in several.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"\d+ -?\d+ [0-9a-f]{64}")  # size, mtime_ns, hash
_CHUNK = 1 << 20


class _Index(msgspec.Struct, frozen=True):
    """Which file holds each tensor."""

    weight_map: dict[str, str]


_INDEX: msgspec.json.Decoder[_Index] = msgspec.json.Decoder(_Index)
_HELD: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])


def sha256(folder: Path, progress: Callable[[str], None]) -> str | None:
    """Return the SHA-256 over (file name, SHA-256 of the file) of a model folder's weight files, sorted by name.

    None when the folder has none or one cannot be read.
    """
    try:
        paths = files(folder)
    except (OSError, untrusted.Damaged):
        return None
    return of_files(paths, progress)


def of_files(paths: Sequence[Path], progress: Callable[[str], None]) -> str | None:
    """Return such a hash over these files."""
    if not paths:
        return None
    try:
        known = _KnownHash()
        hashes = {path.name: known.sha256(path, progress) for path in paths}
    except (OSError, untrusted.Damaged):
        return None
    known.save()
    total = hashlib.sha256()
    for name in sorted(hashes):
        total.update(f"{name}\0{hashes[name]}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def files(folder: Path) -> list[Path]:
    """Return the files from which transformers loads a model folder; an adapter's come on top of the model's."""
    adapter = [folder / name for name in ADAPTER if (folder / name).is_file()][:1]
    for name in NAMES:
        if (folder / name).is_file():
            return adapter + (indexed(folder / name) if name.endswith(".json") else [folder / name])
    for suffix in _SUFFIXES:
        # Under a name that only the config knows: all files of the first kind found.
        if found := sorted(path for path in folder.glob(f"*{suffix}") if path not in adapter and path.is_file()):
            return adapter + found
    return adapter


def indexed(index: Path) -> list[Path]:
    """Return the files that an index names, whether they are there or not; none of an index that is damaged."""
    try:
        named = untrusted.decode(_INDEX, untrusted.read(index, untrusted.TEXT_BYTES)).weight_map.values()
    except untrusted.Damaged:
        return []
    return sorted({index.parent / name for name in named})


def _of_blob(path: Path) -> str | None:
    """Return the hash by which a hub cache names the file that a link leads to; small files have a shorter one."""
    if not path.is_symlink():
        return None
    blob = path.resolve(strict=True)
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


class _KnownHash:
    """The hashes that this machine has already computed, by path, size and time of the last change."""

    def __init__(self) -> None:
        self._path = _cache_path()
        self._entries = _read(self._path)
        self._new = False

    def sha256(self, path: Path, progress: Callable[[str], None]) -> str:
        """Return a file's hash from its blob's name, the cache, or its bytes."""
        if (named := _of_blob(path)) is not None:
            return named
        real = path.resolve(strict=True)
        status = real.stat()
        state = f"{status.st_size} {status.st_mtime_ns} "
        # Bytes of a path that are no UTF-8 would make the file one that cannot be read.
        key = str(real).encode(errors="backslashreplace").decode()
        if not self._entries.get(key, "").startswith(state):
            progress(f"hashing {path.name}, once …")
            self._entries[key] = state + _hash(real)
            self._new = True
        return self._entries[key].removeprefix(state)

    def save(self) -> None:
        """Write what is new; a cache that cannot be written only costs a second reading."""
        if not self._new or self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another run may have added hashes of other files meanwhile.
            _write(self._path, _read(self._path) | self._entries)
        except OSError:
            return


def _cache_path() -> Path | None:
    try:
        return cache.root() / CACHE_FILE
    except ModelError:
        return None


def _read(path: Path | None) -> dict[str, str]:
    try:
        held = untrusted.decode(_HELD, b"{}" if path is None else untrusted.read(path, untrusted.TEXT_BYTES))
    except (OSError, untrusted.Damaged):
        return {}
    return held if all(map(_ENTRY.fullmatch, held.values())) else {}


def _write(path: Path, entries: Mapping[str, str]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(entries, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with untrusted.opened(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
