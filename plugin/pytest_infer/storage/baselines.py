"""Names for runs: `baselines.ini` in the storage folder."""

from __future__ import annotations

import configparser
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.errors import StorageError
from pytest_infer.storage.files import replacing

FILE = "baselines.ini"
_SECTION = "baselines"
_PATIENCE_S = 10


def names(folder: Path) -> dict[str, str]:
    """Return each name and the run file it stands for, relative to the folder."""
    parser = _parser()
    try:
        # Not `parser.read`: it takes a file that may not be read for none, and the next name would be the only one.
        content = untrusted.read(folder / FILE, untrusted.TEXT_BYTES)
    except FileNotFoundError:
        return {}
    except (OSError, untrusted.Damaged) as error:
        raise StorageError(f"{folder / FILE} cannot be read: {untrusted.reason(error)}") from error
    try:
        parser.read_string(untrusted.text(content), source=FILE)
    except (configparser.Error, untrusted.Damaged) as error:
        raise StorageError(f"{folder / FILE}: {str(error).splitlines()[0]}; mend it or remove it") from None
    found = dict(parser[_SECTION]) if _SECTION in parser else {}
    wrong = next((name for name, path in found.items() if "\0" in path), None)
    if wrong is not None:
        raise StorageError(f"{folder / FILE}: {wrong} names no file; mend it or remove it")
    return found


def path_of(folder: Path, name: str) -> Path | None:
    """Return the run file that a name stands for; StorageError when that file is gone."""
    relative = names(folder).get(name)
    if relative is None:
        return None
    path = folder / relative
    if not untrusted.is_file(path):
        raise StorageError(f"baseline {name!r} names {path}, which is gone; `pytest-infer baseline set {name} RUN`")
    return path


def name(folder: Path, name: str, run_file: Path) -> None:
    """Let a name stand for a run file; raise StorageError for a name that cannot be written."""
    if not name or not name.isprintable() or any(c in name for c in "=:[]#; "):
        raise StorageError(f"a baseline's name is one word without = : [ ] # ;, not {name!r}")
    # The file itself where it is a link: a gate's mark takes its place, and what it leads to has none.
    place = run_file.parent.resolve() / run_file.name
    with _alone(folder):
        _write(folder, {**names(folder), name: os.path.relpath(place, folder.resolve())})


def forget(folder: Path, name: str) -> None:
    """Remove a name; raise StorageError when there is none."""
    with _alone(folder):
        known = names(folder)
        if name not in known:
            raise StorageError(f"no baseline {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        del known[name]
        _write(folder, known)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others from changing the names meanwhile; without locks, or after ten seconds of waiting, go on anyway."""
    # Imported late: most commands only read names.
    from filelock import FileLock  # noqa: PLC0415

    from pytest_infer.storage import journal  # noqa: PLC0415

    # Beside the journals, which nobody commits.
    lock = FileLock(folder / journal.FOLDER / "baselines.lock")
    with suppress(OSError, NotImplementedError):
        Path(lock.lock_file).parent.mkdir(exist_ok=True)
        lock.acquire(timeout=_PATIENCE_S)
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, known: dict[str, str]) -> None:
    parser = _parser()
    parser[_SECTION] = dict(sorted(known.items()))
    text = io.StringIO()
    parser.write(text)
    try:
        with replacing(Path(os.path.realpath(folder / FILE))) as file:
            file.write(text.getvalue().encode())
        (folder / FILE).chmod(0o644)
    except UnicodeEncodeError:
        raise StorageError(f"{folder / FILE} cannot name a file whose own name is not UTF-8; rename it") from None
    except OSError as error:
        raise StorageError(f"{folder / FILE} cannot be written: {error.strerror}") from error


def _parser() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    return parser
