"""The HTML report of a run, written as soon as the run is stored."""

from __future__ import annotations

from pytest_infer.errors import InferError, OptionError, StorageError
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.storage import files, history
from pytest_infer.storage.runs import read


def check(session: InferSession) -> None:
    """Before anything is measured: raise OptionError where the report that is asked for could not be written."""
    path = session.settings.report
    if path is None or session.bridge.disabled:
        return
    if not session.bridge.saving:
        raise OptionError("--infer-report shows a stored run: add --benchmark-autosave")
    if path.is_dir():
        raise OptionError(f"--infer-report {path} is a folder: name a file in it")
    try:
        files.check_writable(path.resolve().parent)  # a link's target is replaced
    except StorageError as error:
        raise OptionError(f"--infer-report {path}: nothing can be written there; choose another file") from error


def write(session: InferSession) -> None:
    """Write the report, if one is asked for and the run was stored; a line of the summary says where it is."""
    path = session.settings.report
    if path is None or session.bridge.disabled:
        return
    run_file = session.keeper.stored()
    if run_file is None:
        session.note("! no report: the run was not stored")
        return
    try:
        # Imported late: loading the plugin must load neither templates nor numpy.
        from pytest_infer.report.html import page  # noqa: PLC0415

        storage = session.keeper.storage
        runs = history.load(storage).runs if storage is not None and storage.is_dir() else ()
        page.write(path, read(run_file), runs)
    except InferError as error:
        session.note(f"! no report: {error}")
        return
    except Exception as error:  # noqa: BLE001 - the summary and what is published come after this
        session.note(f"! no report: {type(error).__name__}: {error}")
        return
    session.note(f"report: {path}")
