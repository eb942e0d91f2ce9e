"""How near to the limit of its memory a stored run decoded: by that a limit becomes a rate that an engine may reach."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.errors import StorageError
from pytest_infer.storage.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The least and the most of its memory's limit (MBU) that the decode of a stored run's prompts reached."""

    run: str
    model: str | None
    low: float
    high: float


def of_run(run: Run) -> Reached:
    """Return how near to its limit a run came.

    Raises:
        StorageError: none of its prompts knows its MBU.
    """
    shares = [row.metrics["mbu"].value for row in run.rows if "mbu" in row.metrics]
    known = [share for share in shares if not isinstance(share, str) and 0 < share <= 1]
    if not known:
        raise StorageError(
            f"--like {run.label}: no prompt of it knows its MBU: a small model that fits the caches, or no probe"
        )
    return Reached(run=run.label, model=run.model, low=min(known), high=max(known))
