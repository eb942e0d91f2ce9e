"""`pytest-infer compare`: stored runs against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from pytest_infer.analysis.compare import fingerprint, rules
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Exit
from pytest_infer.cli.shared import (
    AllowDifferent,
    Confidence,
    Storage,
    chosen_runs,
    offered,
    open_history,
    out,
    refuse,
    say,
    screen,
)
from pytest_infer.errors import InferError
from pytest_infer.metrics import METRICS, Metric
from pytest_infer.report.compare.runs import ComparedRuns
from pytest_infer.report.formats import COMPARE, Format

_MOST_RUNS = 26


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN…",
            help="Numbers, commits, branches, tags, paths, baseline:NAME, latest~1; default: the two newest.",
        ),
    ] = None,
    *,
    keyword: Annotated[str | None, typer.Option("-k", metavar="TEXT", help="Only tests whose name holds this.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", metavar="NAME", help="Only this metric (repeat it); all for all.")
    ] = None,
    by_metric: Annotated[bool, typer.Option("--by-metric", help="Group by metric instead of by prompt.")] = False,
    form: Annotated[Format, offered(COMPARE)] = Format.TERMINAL,
    allow_different: AllowDifferent = None,
    confidence: Confidence = CONFIDENCE,
    storage: Storage = None,
) -> None:
    """Compare two runs, or several with the first: every metric with its interval and verdict."""
    # Imported late: other commands and --help need neither numpy nor scipy.
    from pytest_infer.analysis.compare import two_runs  # noqa: PLC0415
    from pytest_infer.analysis.experts import drift  # noqa: PLC0415

    def covers(test: str) -> bool:
        return keyword is None or keyword in test

    try:
        fingerprint.check_allowed(allow_different or ())
        history = open_history(storage)
        if not runs and len(history.runs) < 2:
            say(f"fewer than two runs in {history.folder}: nothing to compare")
            raise typer.Exit(Exit.NOTHING.value)
        names = runs or ["latest~1", "latest"]
        if len(names) < 2 or len(names) > _MOST_RUNS:
            refuse(f"compare takes 2 to {_MOST_RUNS} runs, not {len(names)}")
        chosen, only = chosen_runs(history, names), _metrics(metric)
        compared = [
            two_runs.judged(
                history,
                chosen[0],
                [row for row in other.rows if covers(row.test)],
                only=only,
                allowed=tuple(allow_different or ()),
                confidence=confidence,
                covers=covers,
            )
            for other in chosen[1:]
        ]
        drifts = [drift.of_runs(chosen[0], other, keyword, allow_different or ()) for other in chosen[1:]]
    except InferError as error:
        refuse(error)
    found = ComparedRuns(
        runs=chosen,
        judgements=[one.judgements for one in compared],
        suites=[one.suite for one in compared],
        headlines=[one.headline for one in compared],
        drifts=drifts,
        confidence=confidence,
        only=only,
        by_metric=by_metric,
    )
    out(COMPARE[form](found, screen()))
    if not any(one.compared for one in compared):
        raise typer.Exit(Exit.NOTHING.value)


def _metrics(names: Sequence[str] | None) -> list[Metric] | None:
    if names is None:
        return None
    return list(METRICS) if "all" in names else [rules.metric_named(name) for name in names]
