"""What a sweep and a curve come to at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_infer.storage.rows import row_of

if TYPE_CHECKING:
    from pytest_infer.analysis.curve import Curve
    from pytest_infer.analysis.recommend import Recommendation


def found(blocks: Mapping[str, Mapping[str, Any]]) -> tuple[Recommendation | None, tuple[Curve, ...]]:
    """Return what the tests that passed, their blocks by node id, recommend, and the curves that they are points of."""
    rows = [row_of(nodeid, nodeid, block) for nodeid, block in blocks.items() if block.get("config")]
    if not rows:
        return None, ()
    # Imported late: loading the plugin must not load numpy and scipy.
    from pytest_infer.analysis import curve, recommend  # noqa: PLC0415

    return recommend.recommend(rows), curve.curves(rows)
