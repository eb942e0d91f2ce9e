"""Where built models live, and how a build becomes a complete folder or none at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_cache_path

from pytest_infer.errors import ModelError

ENV = "PYTEST_INFER_CACHE"
MANIFEST = "pytest-infer.json"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What identifies one built model folder.

    `format` changes whenever the same source would now be built into different files. `bytes_needed` is the free
    space a build takes at its peak. `notes` goes into the manifest for a reader and is never compared.
    """

    name: str
    format: str
    source_sha256: str
    bytes_needed: int
    notes: Mapping[str, str] = field(default_factory=dict)


def root() -> Path:
    """The cache folder, which need not exist yet: $PYTEST_INFER_CACHE, else the user's cache folder of the platform.

    On Linux the latter is $XDG_CACHE_HOME/pytest-infer or ~/.cache/pytest-infer.

    Raises:
        ModelError: there is no home folder.
    """
    try:
        if chosen := os.environ.get(ENV):
            return Path(chosen).expanduser().absolute()
        return user_cache_path("pytest-infer", appauthor=False)
    except RuntimeError as error:
        raise ModelError(f"no cache folder: {error} Set {ENV} to a writable folder.") from error


def ensure(cache_root: Path, recipe: Recipe, build: Callable[[Path], None], progress: Progress) -> Path:
    """The complete folder of `recipe` below `cache_root`, built by `build(empty_folder)` when absent or outdated.

    A build happens in a hidden sibling folder, is flushed to disk and renamed into place, so that a folder is
    complete or absent whatever interrupts the build. A file lock lets one process build while the others wait.

    Raises:
        ModelError: the cache is not writable or the disk is full; whatever `build` raises passes through.
    """
    folder = cache_root / recipe.name
    if is_complete(folder, recipe):
        return folder
    with explained(cache_root, f"build {recipe.name}"):
        cache_root.mkdir(parents=True, exist_ok=True)
        with _locked(cache_root / f".{recipe.name}.lock", recipe.name, progress):
            # Whoever held the lock before us may have built it meanwhile.
            if not is_complete(folder, recipe):
                _build(folder, recipe, build)
    return folder


def is_complete(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` was built by exactly this recipe and every file still has the size it was built with."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        wanted = {**_identity(recipe), "files": sizes}
        return all(manifest[key] == value for key, value in wanted.items())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


@contextmanager
def explained(cache_root: Path, task: str) -> Iterator[None]:
    """Turn an OSError below `cache_root` into one line that says what to do.

    Raises:
        ModelError: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = f"the disk of {cache_root} is full. Free some space, or set {ENV} to a folder on another disk."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"{cache_root} is not writable. Make it so, or set {ENV} to a folder that is."
        else:
            reason = str(error).strip().partition("\n")[0]
            # Which path, the reason says; the folder may hold what is not ours.
            what = f"{reason}. Try again, or set {ENV} to another folder."
        raise ModelError(f"cannot {task}: {what}") from error


def _identity(recipe: Recipe) -> dict[str, str]:
    return {"name": recipe.name, "format": recipe.format, "source_sha256": recipe.source_sha256}


@contextmanager
def _locked(path: Path, name: str, progress: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout  # noqa: PLC0415 - who asks only where the cache is builds nothing

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"{name}: waiting for another process that is building it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, recipe: Recipe, build: Callable[[Path], None]) -> None:
    """Build into a new sibling of `folder` and put it in place. The lock must be held."""
    half = folder.with_name(f".{recipe.name}.building")
    _remove(half)  # of a process that was killed: nobody else builds while we hold the lock
    free = shutil.disk_usage(folder.parent).free
    if free < recipe.bytes_needed:
        raise ModelError(
            f"cannot build {recipe.name}: it takes {recipe.bytes_needed / 1e9:.1f} GB and {folder.parent} has "
            f"{free / 1e9:.1f} GB free. Free some space, or set {ENV} to a folder on another disk."
        )
    half.mkdir()
    try:
        build(half)
        _write_manifest(half, recipe)
        for path in half.iterdir():
            path.chmod((half / MANIFEST).stat().st_mode)  # safetensors writes files that only their owner can read
            _flush(path)
        _flush(half)
        _swap_in(half, folder)
    finally:
        _remove(half)


def _write_manifest(folder: Path, recipe: Recipe) -> None:
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = {**_identity(recipe), "files": files, "notes": dict(recipe.notes)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _swap_in(half: Path, folder: Path) -> None:
    """Rename `half` to `folder`, whose outdated content goes out of the way first."""
    outdated = folder.with_name(f".{folder.name}.outdated")
    _remove(outdated)
    if folder.exists():
        folder.rename(outdated)
    half.rename(folder)
    _flush(folder.parent)
    _remove(outdated)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and its file system journals renames
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
