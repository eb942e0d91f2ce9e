"""The weights of a hub model, brought into the hub's cache before a load is timed, with a line that says how far."""

from __future__ import annotations

import glob
import threading
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from pytest_infer import untrusted
from pytest_infer.engines.checkpoint import hashes, hub, presence
from pytest_infer.errors import ModelError
from pytest_infer.units import size

_EVERY_S = 1.0
_SHOWN = 400


def fetch(name: str, snapshot: Path, progress: Callable[[str], None], *, reachable: bool) -> None:
    """Fetch what a load reads of a hub model, unless its weights are there already.

    `snapshot` is the folder of its commit in the hub's cache; not `reachable` is a hub that does not answer.

    Raises:
        ModelError: the hub cannot be asked or refuses, or what it sends cannot be kept.
    """
    # Imported late: only a model from the hub needs it.
    from huggingface_hub import HfApi, constants, snapshot_download  # noqa: PLC0415

    asked = reachable and not constants.HF_HUB_OFFLINE
    if _complete(snapshot, known=asked):
        return
    if not asked:
        why = "the hub cannot be reached" if not reachable else "HF_HUB_OFFLINE is set"
        raise ModelError(f"{name}: the hub's cache does not hold its weights, and {why}: give a folder")

    def download(wanted: Collection[str]) -> None:
        snapshot_download(name, revision=snapshot.name, allow_patterns=[glob.escape(file) for file in wanted])

    # RuntimeError: of its downloader, which is not written in Python.
    failures: tuple[type[Exception], ...] = (*hub.failures(), RuntimeError, ValueError)
    try:
        told = HfApi().model_info(name, revision=snapshot.name, files_metadata=True).siblings or ()
        bytes_of = {file.rfilename: file.size or 0 for file in told}
        download([file for file in bytes_of if "/" not in file and PurePosixPath(file).suffix in presence.SMALL])
        missing = [file for file in _weights(snapshot, bytes_of) if not untrusted.is_file(snapshot / file)]
        total = sum(bytes_of.get(file, 0) for file in missing)
        if missing:
            _told(lambda: download(missing), name, snapshot, total, progress)
    except failures as error:
        raise ModelError(f"{name}: its weights cannot be fetched: {untrusted.reason(error)[:_SHOWN]}") from error


def _complete(snapshot: Path, *, known: bool) -> bool:
    """Return whether the weights are here; `known`: under a name that transformers would take before all others."""
    files = hashes.files(snapshot)
    names = (snapshot / name for name in (*hashes.ADAPTER, *hashes.NAMES))
    return bool(files) and all(map(untrusted.is_file, files)) and (not known or any(map(untrusted.is_file, names)))


def _weights(snapshot: Path, held: Collection[str]) -> list[str]:
    """Return the files of the weights among those that the hub holds; an index of theirs is here already."""
    adapter = [name for name in hashes.ADAPTER if name in held][:1]
    name = next((name for name in hashes.NAMES if name in held), None)
    if name is None or not name.endswith(".json"):
        return adapter + ([] if name is None else [name])
    return adapter + [path.relative_to(snapshot).as_posix() for path in hashes.indexed(snapshot / name)]


def _told(download: Callable[[], None], name: str, snapshot: Path, total: int, progress: Callable[[str], None]) -> None:
    """Download in a thread, and say every second how far it is."""
    problems: list[BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            download()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
            problems.append(error)
        finally:
            ended.set()

    before = _held(snapshot)
    progress(f"fetching {name} · {size(total)} …")
    # A daemon: an interrupted run does not wait for the rest.
    threading.Thread(target=run, name="fetching", daemon=True).start()
    while not ended.wait(_EVERY_S):
        progress(f"fetching {name} · {size(min(total, max(0, _held(snapshot) - before)))} of {size(total)} …")
    if problems:
        raise problems[0]
    progress(f"loading {name} …")


def _held(snapshot: Path) -> int:
    """Return the bytes that the cache has of a model by now, unfinished files with what is written of them."""
    total = 0
    for path in (snapshot.parent.parent / "blobs").glob("*"):
        try:
            status = path.stat()
            # An unfinished file may have its full size from the beginning; Windows does not tell its blocks.
            total += status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
        except OSError:  # it was renamed meanwhile
            continue
    return total
