"""What the end of a run shows: its results, what was judged of them, and what they recommend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infer.metrics.result import Result
from pytest_infer.records import SuiteAverages

if TYPE_CHECKING:
    from pytest_infer.analysis.advice.advice import Advice
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.compare.noise import NamedFloor
    from pytest_infer.analysis.compare.two_runs import Since
    from pytest_infer.analysis.load.curve import LoadCurve
    from pytest_infer.analysis.sweep.curve import Curve
    from pytest_infer.analysis.sweep.recommend import Recommendation
    from pytest_infer.analysis.sweep.sides import SweptSides


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What the end of a run shows; `failed` names tests whose assertion failed after the measurement.

    `saved`: the run is in the storage, where commands find it. `apart`: it was asked for where the time goes.
    """

    results: tuple[Result, ...]
    averages: tuple[SuiteAverages, ...] = ()
    failed: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    disabled: bool = False
    gated: Gated | None = None
    noise: tuple[NamedFloor, ...] = ()
    advice: tuple[Advice, ...] = ()
    all_advice: bool = False
    recommended: Recommendation | None = None
    curves: tuple[Curve, ...] = ()
    sides: SweptSides | None = None
    load: tuple[LoadCurve, ...] = ()
    since: Since | None = None
    saved: bool = False
    apart: bool = False

    @property
    def prompts(self) -> tuple[Result, ...]:
        """Return the results of prompts, without those of levels of load."""
        return tuple(result for result in self.results if result.under_load is None)
