"""Runs beside the first of them, in every format: their judgements, and how far their experts moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.compare.verdicts import Judgement, SuiteChange
from pytest_infer.metrics import Metric
from pytest_infer.report.compare import exports, headline, many, terminal, words
from pytest_infer.report.compare.many import ManyRun
from pytest_infer.report.experts import drift
from pytest_infer.storage.runs import Run

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.headline import Headline
    from pytest_infer.analysis.experts.drift import LayerDrift


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRuns:
    """Runs; of each but the first its `judgements` beside that one, the suite's, and by prompt how its experts moved.

    A text shows the metrics `only`; without them the primary ones, and whatever else changed.
    """

    runs: Sequence[Run]
    judgements: Sequence[Sequence[Judgement]]
    suites: Sequence[Sequence[SuiteChange]]
    headlines: Sequence[Headline | None]
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
        return [words.worth_showing(judgements, self.only) for judgements in self.judgements]

    @property
    def shown_suites(self) -> list[list[SuiteChange]]:
        """Return what of each run's suite a text shows."""
        return [[one for one in suite if words.worth_showing([one.judgement], self.only)] for suite in self.suites]

    @property
    def said(self) -> list[str]:
        """Return each run's headline in words."""
        return [headline.in_words(one, js) for one, js in zip(self.headlines, self.judgements, strict=True)]

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
            of.shown[0],
            heading=of.heading(*others),
            width=width,
            color=color,
            by_metric=of.by_metric,
            fold=of.only is None,
            headline=of.said[0],
            suite=of.shown_suites[0],
        )
    else:
        runs = [
            ManyRun(label=run.label, judgements=shown, suite=suite, headline=said)
            for run, shown, suite, said in zip(others, of.shown, of.shown_suites, of.said, strict=True)
        ]
        text = many.render_many(runs, of.runs[0].label, width=width, color=color, fold=of.only is None)
    labels = [run.label for run in others]
    return text + drift.render(list(zip(labels, of.drifts, strict=True)), width=width, color=color)


def as_markdown(of: ComparedRuns) -> str:
    """Return a comparison a run, for a pull request."""
    parts = zip(of.shown, of.runs[1:], of.said, of.shown_suites, strict=True)
    return "\n".join(
        exports.as_markdown(judgements, of.heading(run), headline=said, suite=suite, fold=of.only is None)
        for judgements, run, said, suite in parts
    )


def as_json(of: ComparedRuns) -> str:
    """Return every judgement and every drift as JSON."""
    moved = dict(zip(of.names[1:], map(drift.flat, of.drifts), strict=True))
    others = of.names[1:]
    return exports.as_json_rows(
        of.rows(),
        headline=dict(zip(others, of.said, strict=True)),
        runs=of.names,
        confidence=of.confidence,
        expert_drift=moved,
        suite={name: [exports.flat_suite(one) for one in suite] for name, suite in zip(others, of.suites, strict=True)},
    )


def as_csv(of: ComparedRuns) -> str:
    """Return every judgement as CSV, its run first."""
    return exports.as_csv(of.rows(), ("run",))
