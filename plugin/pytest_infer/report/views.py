"""What the views of stored runs are of, where that is more than one thing: each command makes its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_infer.analysis.advice.advice import Advice
    from pytest_infer.analysis.compare.gate import Gated
    from pytest_infer.analysis.experts.source import UsageSource
    from pytest_infer.analysis.experts.suite import View
    from pytest_infer.analysis.placement.planning import PlacementPlan
    from pytest_infer.analysis.run_summary import RunSummary
    from pytest_infer.report.html.compare import Compared
    from pytest_infer.storage.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedRun:
    """A gate's judgements under its heading."""

    gated: Gated
    heading: Sequence[str]

    @property
    def said(self) -> str:
        """Return the headline in words."""
        from pytest_infer.report.compare import headline  # noqa: PLC0415

        return headline.in_words(self.gated.headline, self.gated.judgements)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedExperts:
    """The experts that a run or a census used, `top` of them at either end of a list."""

    view: View
    source: UsageSource
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A plan of experts, what it was made from, and the file that its counts were written to, if any."""

    plan: PlacementPlan
    source: UsageSource
    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisedRun:
    """The advice on a run."""

    advice: Sequence[Advice]
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """A stored run as the end of it showed it; `verbose` as -v did."""

    run: Run
    summary: RunSummary
    verbose: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRuns:
    """Runs, oldest first, and the baselines that each file is."""

    runs: Sequence[Run]
    names: Mapping[Path, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRun:
    """A run, those of its storage, those that it is compared with, and the web address of its repository."""

    run: Run
    runs: Sequence[Run]
    compared: Sequence[Compared]
    repository: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatTable:
    """Stored runs as one table."""

    columns: Sequence[str]
    rows: Iterable[Mapping[str, Any]]
