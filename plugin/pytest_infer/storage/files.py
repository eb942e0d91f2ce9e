"""Writing so that a crash, a full disk or a second run loses nothing: temporary name, fsync, then the real name."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import StorageError
from pytest_infer.storage import leftovers
from pytest_infer.storage.runfile import Mark
from pytest_infer.storage.schema import KEY, SCHEMA

if TYPE_CHECKING:
    from pytest_benchmark.session import BenchmarkSession
    from pytest_benchmark.storage.file import FileStorage

NEEDED_BYTES = 16 * 2**20
_LEVELS = 5
"""So many levels are in pytest-benchmark's layout: the file, its rows, one of them, its `extra_info`, our block."""
_NUMBER = re.compile(r"([0-9]{1,18})_")  # a longer one is no number that somebody counted to
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def check_writable(folder: Path) -> None:
    """Raise StorageError unless a file can be written to the folder now, with some room to spare."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
        leftovers.clear(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(
            f"results cannot be saved in {folder}: {error.strerror}; choose another place with --benchmark-storage"
        ) from error
    if free < NEEDED_BYTES:
        raise StorageError(f"results cannot be saved in {folder}: only {free // 2**20} MiB are free there")


@contextmanager
def _temporary(folder: Path, prefix: str) -> Iterator[Path]:
    """Make an empty file whose name is gone at the end, whatever ends the block: Ctrl-C too, and at last a kill."""
    leftovers.clear(folder)
    with leftovers.held(lambda: tempfile.mkstemp(dir=folder, prefix=prefix, suffix=leftovers.SUFFIX)) as path:
        yield path


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; at the end it is fsynced and takes that name, or nothing changes."""
    # Not all of the name, which may be as long as names can be.
    with _temporary(path.parent, f".{path.name[:32]}.") as temporary:
        with _synced(temporary) as file:
            yield file
        temporary.replace(path)
    _sync_folder(path.parent)


@contextmanager
def publishing(path: Path) -> Iterator[IO[bytes]]:
    """Open what a person named as an output, like `replacing`; a file keeps its mode, a new one has the umask's.

    Folders that it is to lie in are made. A link stays one, and its target is replaced. What is no regular file (a
    pipe, a device, this process's own output) is written into.
    """
    if is_stream(path):
        with path.open("ab") as file:
            yield file
        return
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o666 & ~_umask()
    with replacing(place) as file:
        yield file
        Path(file.name).chmod(mode)  # a temporary file is private


def check_publishing(path: Path) -> None:
    """Raise StorageError, which begins with the path, where `publishing` could not write there now."""
    try:
        if is_stream(path):
            return
        place = Path(os.path.realpath(path))
        if place.exists():
            place.open("ab").close()  # may be written, even if it is about to be replaced
        check_writable(place.parent)
    except IsADirectoryError:
        raise StorageError(f"{path} is a folder: name a file in it") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; choose another file") from error
    except StorageError as error:
        raise StorageError(f"{path}: nothing can be written there; choose another file") from error


def is_stream(path: Path) -> bool:
    """Return whether `publishing` writes into what is there: a pipe, a device, this process's own output."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    own = []
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            own.append(os.fstat(descriptor))
    return not stat.S_ISREG(found.st_mode) or any(os.path.samestat(found, stream) for stream in own)


def _umask() -> int:
    mask = os.umask(0o077)  # there is no other way to ask for it
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def numbers(folder: Path) -> set[int]:
    """Return the run numbers that are taken in a folder."""
    return {int(m.group(1)) for p in folder.glob("*.json") if (m := _NUMBER.match(p.name))}


def next_number(folder: Path) -> int:
    """Return one more than the highest run number in the folder; it goes on past 9999."""
    return max(numbers(folder), default=0) + 1


def _claim(temporary: Path, folder: Path, tail: str) -> Path:
    """Give the finished file the next number that no other run has, whatever that is called, and return its path."""
    number = next_number(folder)
    while True:
        try:
            with leftovers.held(partial(_reservation, folder, number)):
                # Who reserved it before us may have used it meanwhile.
                if number not in numbers(folder):
                    return _published(temporary, folder / f"{number:04}_{tail}")
        except FileExistsError:
            # Another run is saving under this number.
            pass
        number += 1


def _reservation(folder: Path, number: int) -> tuple[int, str]:
    path = folder / f".{number:04}{leftovers.SUFFIX}"
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), str(path)


def _published(temporary: Path, path: Path) -> Path:
    """Give the finished file its name; raise FileExistsError where that is taken."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here: reserve the name, then replace it.
        path.open("xb").close()
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)  # else an empty run file would be left
            raise
    return path


def _write(folder: Path, tail: str, data: bytes) -> Path:
    with _temporary(folder, ".run-") as temporary:
        with _synced(temporary) as file:
            file.write(data)
        temporary.chmod(0o644)  # a temporary file is private; a result is to be shared
        path = _claim(temporary, folder, tail)
    _sync_folder(folder)
    return path


def dumps(value: Any, depth: int = 0) -> str:
    """Return JSON in pytest-benchmark's layout down to what it writes itself, a row's figures.

    Below, which is what our block holds, each value is on one line, and a list of plain values everywhere: most of its
    own layout would be indentation, which every later command reads. Raises ValueError for what holds itself.
    """
    # Imported late: commands that write no run start sooner.
    from pytest_benchmark.utils import safe_dumps  # noqa: PLC0415

    inner, end = "\n" + "    " * (depth + 1), "\n" + "    " * depth
    if depth < _LEVELS and isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        parts = (f"{safe_dumps(key)}: {dumps(held, depth + 1)}" for key, held in value.items())
        return f"{{{inner}{f',{inner}'.join(parts)}{end}}}"
    if depth < _LEVELS and isinstance(value, list | tuple) and any(isinstance(v, dict | list | tuple) for v in value):
        return f"[{inner}{f',{inner}'.join(dumps(held, depth + 1) for held in value)}{end}]"
    return str(safe_dumps(value, ensure_ascii=True, separators=(",", ":")))


def safe_save(
    storage: FileStorage, saved: Callable[[Path], None], lost: Callable[[str], None]
) -> Callable[[Any, str], None]:
    """Return a replacement for `storage.save`: whole or not at all, and never over another run.

    `saved` is given the new file; `lost` a line when nothing could be written.
    """

    def save(output_json: Any, tail: str) -> None:
        folder = Path(storage.get("run")).parent
        try:
            path = _write(folder, f"{tail}.json", dumps(output_json).encode())
        except OSError as error:
            lost(f"the run could not be saved in {folder}: {error.strerror}")
            return
        storage.logger.info(f"Saved benchmark data in: {path}")
        saved(path)

    return save


def safe_save_json(
    session: BenchmarkSession, saved: Callable[[Path], None], lost: Callable[[str], None]
) -> Callable[[Any], None]:
    """Return a replacement for `session.save_json`, which writes the file of --benchmark-json: whole or not at all."""

    def save(output_json: Any) -> None:
        path = Path(session.json)
        try:
            with publishing(path) as file:
                file.write(dumps(output_json).encode())
        except OSError as error:
            lost(f"the run could not be written to {path}: {error.strerror}")
            return
        session.logger.info(f"Wrote benchmark data in: {path}", purple=True)
        saved(path)

    return save


def mark(run_file: Path, mark: Mark) -> None:
    """Put a gate's mark into a run file, so that a run that failed is never taken as a baseline.

    The file is replaced as a whole or not at all. Raises StorageError if it cannot be.
    """
    try:
        run = json.loads(untrusted.text(untrusted.read(run_file, untrusted.RUN_BYTES)))
        run.setdefault(KEY, {"schema": SCHEMA})["gate"] = json.loads(msgspec.json.encode(mark))
        mode = run_file.stat().st_mode
        with replacing(run_file) as file:
            file.write(dumps(run).encode())
        run_file.chmod(mode)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        why = error if isinstance(error, OSError) else untrusted.reason(error)
        raise StorageError(f"{run_file} could not be marked with the gate's result: {why}") from error
