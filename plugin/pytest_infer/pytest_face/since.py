"""What changed since the last comparable run, told at the end of a run that nothing else is compared in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_infer import untrusted
from pytest_infer.errors import InferError
from pytest_infer.pytest_face.session import InferSession
from pytest_infer.storage import history
from pytest_infer.storage.runs import row_of

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.two_runs import Since


def of(run: InferSession) -> Since | None:
    """Return what changed in the tests that passed; None where there is no earlier run of them, or a gate tells it."""
    measured = run.keeper.passed
    if not measured or run.bridge.disabled or run.gate.result is not None or run.noise or run.against is not None:
        return None
    storage = run.keeper.storage
    if storage is None or not untrusted.is_dir(storage):
        return None
    # Imported late: loading the plugin must not load numpy and scipy.
    from pytest_infer.analysis.compare import two_runs  # noqa: PLC0415

    try:
        found = history.load(storage, run.note)
        own = run.keeper.stored()
        earlier = replace(found, runs=tuple(other for other in found.runs if other.path != own))
        return two_runs.since(
            earlier,
            [row_of(nodeid, nodeid, f.block) for nodeid, f in measured.items()],
            allowed=run.settings.allow_different,
            fresh={nodeid: f.record for nodeid, f in measured.items()},
        )
    except InferError as error:
        run.note(f"not compared with the last run: {error}")
        return None
