"""What a sweep and a curve come to at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.sweep import axes
from pytest_infer.storage.runs import row_of

if TYPE_CHECKING:
    from pytest_infer.analysis.sweep.curve import Curve
    from pytest_infer.analysis.sweep.recommend import Recommendation


def found(
    blocks: Mapping[str, Mapping[str, Any]], given: Mapping[str, str]
) -> tuple[Recommendation | None, tuple[Curve, ...]]:
    """Return what the tests that passed, their blocks by node id, recommend, and the curves that they are points of.

    `given` are the models by how results name them: what is stored holds no paths, and what is to be typed needs them.
    """
    rows = [row_of(nodeid, nodeid, block) for nodeid, block in blocks.items() if block.get("config")]
    if not rows:
        return None, ()
    # Imported late: loading the plugin must not load numpy and scipy.
    from pytest_infer.analysis.sweep import curve, recommend  # noqa: PLC0415

    return _typed(recommend.recommend(rows), given), curve.curves(rows)


def _typed(found: Recommendation | None, given: Mapping[str, str]) -> Recommendation | None:
    """Return a recommendation whose options name the model as it was given."""
    if found is None or not found.goals:
        return found
    best = found.configurations[found.goals[0].best].config
    model = given.get(best.get("model", ""))
    return found if model is None else replace(found, options=axes.options({**best, "model": model}))
