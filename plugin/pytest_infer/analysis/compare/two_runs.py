"""A run beside an earlier one: every figure that is asked for, those of the suite, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_infer.analysis.breakdown import carried
from pytest_infer.analysis.compare import comparison, gate, headline, suite
from pytest_infer.analysis.compare.headline import Headline
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Judgement, SuiteChange, Verdict
from pytest_infer.metrics import Direction, Metric, by_key
from pytest_infer.metrics.scope import Scope
from pytest_infer.storage.history import History
from pytest_infer.storage.runs import Row, Run

if TYPE_CHECKING:
    from pytest_infer.records import PromptRecord

_BRIEF = ("ttft_s", "tpot_s", "peak_rss_bytes", "level_ttft_p50_s", "level_s_per_token")
"""What is told of the last run without being asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Every figure of a run beside that of an earlier one, those of the suite, and what it comes to."""

    judgements: tuple[Judgement, ...]
    suite: tuple[SuiteChange, ...]
    headline: Headline | None

    @property
    def compared(self) -> bool:
        """Return whether any figure was: both sides', or how far they are apart."""
        return any(map(_compared, self.judgements))


def _compared(j: Judgement) -> bool:
    if j.metric is None or j.after is None:
        return False
    if j.metric.scope is Scope.DISTANCE:
        return True
    # What must be the same is compared whatever else differs.
    exact = j.metric.direction is Direction.EXACT
    return j.before is not None and (exact or j.verdict is not Verdict.INCOMPARABLE)


def judged(
    history: History,
    before: Run,
    rows: Sequence[Row],
    *,
    only: Sequence[Metric] | None = None,
    allowed: Collection[str] = (),
    confidence: float = CONFIDENCE,
    fresh: Mapping[str, PromptRecord] | None = None,
    covers: Callable[[str], bool] = lambda _test: True,
) -> Judged:
    """Return the figures of a run's rows beside those of an earlier run, and the tests that only one of them has.

    `fresh` are the records of the rows, by test, where that run is not stored yet. Of the earlier run's tests that are
    gone only those that the later one `covers` are told.
    """
    pairs, gone, new = gate.stored_pairs(before, rows, history, fresh)
    wanted = comparison.all_metrics(only)
    found = comparison.judge(pairs, lambda _row: wanted, allowed=allowed, confidence=confidence)
    found = [j for j in found if j.before is not None or j.after is not None]
    found += [Judgement(test=row.test, name=row.title, verdict=Verdict.NEW) for row in new]
    found += [Judgement(test=row.test, name=row.title, verdict=Verdict.MISSING) for row in gone if covers(row.test)]
    found = carried.told(pairs, found)
    figures = suite.figures(pairs, found)
    changes = suite.changes(pairs, found, confidence, figures)
    said = headline.of(pairs, found, changes, confidence, figures)
    return Judged(judgements=tuple(found), suite=changes, headline=said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """What changed since an earlier run: of each prompt the times of its two phases and its peak memory.

    Of a level of load its median TTFT and the system's time per token.
    """

    before: Run
    judgements: tuple[Judgement, ...]
    headline: Headline | None


def since(
    history: History,
    rows: Sequence[Row],
    *,
    allowed: Collection[str] = (),
    fresh: Mapping[str, PromptRecord] | None = None,
) -> Since | None:
    """Return what changed since the run that may be the baseline; None where no run has these tests.

    Where none is comparable it is the newest that has one of the tests: each judgement says why it is none.
    """
    before = gate.baseline_for(rows, history.runs, allowed) or _newest(history, {row.test: row for row in rows})
    if before is None:
        return None
    only = [by_key(key) for key in _BRIEF]
    # Which tests were to be run nobody says here: none is missing.
    found = judged(history, before, rows, only=only, allowed=allowed, fresh=fresh, covers=lambda _: False)
    return Since(before=before, judgements=found.judgements, headline=found.headline)


def _newest(history: History, tests: Mapping[str, Row]) -> Run | None:
    """Return the newest run that has one of the tests, and not one from which these were taken."""
    for run in reversed(history.runs):
        if run.plain or not run.readable:
            continue
        both = [(row, tests[row.test]) for row in run.rows if row.test in tests]
        if both and not any(old.again(new) for old, new in both):
            return run
    return None
