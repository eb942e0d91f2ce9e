"""Runs beside the first of them, in every format: their judgements, and how far their experts moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.compare.verdicts import Judgement
from pytest_infer.metrics import Metric
from pytest_infer.report.compare import exports, terminal
from pytest_infer.report.experts import drift
from pytest_infer.storage.runs import Run

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.drift import LayerDrift


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRuns:
    """Runs; of each but the first its `judgements` beside that one, and by prompt how far its experts moved.

    A text shows the metrics `only`; without them the primary ones, and whatever else changed.
    """

    runs: Sequence[Run]
    judgements: Sequence[Sequence[Judgement]]
    drifts: Sequence[Mapping[str, Sequence[LayerDrift]]]
    confidence: float
    only: Sequence[Metric] | None = None
    by_metric: bool = False

    @property
    def names(self) -> list[str]:
        """Return the runs' paths."""
        return [str(run.path) for run in self.runs]

    @property
    def shown(self) -> list[list[Judgement]]:
        """Return what of each run's judgements a text shows."""
        return [terminal.worth_showing(judgements, self.only) for judgements in self.judgements]

    def rows(self) -> list[dict[str, Any]]:
        """Return every judgement as a row of a table that says of which run it is."""
        return [
            {"run": name, **exports.flat(judgement)}
            for name, judgements in zip(self.names[1:], self.judgements, strict=True)
            for judgement in judgements
        ]

    def heading(self, *others: Run) -> list[str]:
        """Return the lines above a comparison of the first run with these."""
        return [
            f"{self.runs[0].label} → {', '.join(run.label for run in others)}",
            f"{100 * self.confidence:g} % intervals",
        ]


def render(of: ComparedRuns, *, width: int, color: bool) -> str:
    """Return the comparison as text of at most `width` columns."""
    others = of.runs[1:]
    if len(others) == 1:
        text = terminal.render_judgements(
            of.shown[0], heading=of.heading(*others), width=width, color=color, by_metric=of.by_metric
        )
    else:
        text = terminal.render_many(of.runs, of.shown, width=width, color=color)
    labels = [run.label for run in others]
    return text + drift.render(list(zip(labels, of.drifts, strict=True)), width=width, color=color)


def as_markdown(of: ComparedRuns) -> str:
    """Return a comparison a run, for a pull request."""
    parts = zip(of.shown, of.runs[1:], strict=True)
    return "\n".join(exports.as_markdown(judgements, of.heading(run)) for judgements, run in parts)


def as_json(of: ComparedRuns) -> str:
    """Return every judgement and every drift as JSON."""
    moved = dict(zip(of.names[1:], map(drift.flat, of.drifts), strict=True))
    return exports.as_json_rows(of.rows(), runs=of.names, confidence=of.confidence, expert_drift=moved)


def as_csv(of: ComparedRuns) -> str:
    """Return every judgement as CSV, its run first."""
    return exports.as_csv(of.rows(), ("run",))
