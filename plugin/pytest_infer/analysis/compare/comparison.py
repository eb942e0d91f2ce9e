"""Two measurements of a suite, row by row and metric by metric: what changed, and whether it can be said."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pytest_infer.analysis.compare import disturbance, earlier, exact, fingerprint, stats
from pytest_infer.analysis.compare.verdicts import CONFIDENCE, Evidence, Judgement, Question, Verdict, decide, limit
from pytest_infer.analysis.fidelity import closeness, stored
from pytest_infer.metrics import METRICS, Direction, Kind, Metric
from pytest_infer.metrics.breakdown import PhaseParts
from pytest_infer.metrics.scope import Scope
from pytest_infer.records import Turns
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Values
from pytest_infer.units import Unit

if TYPE_CHECKING:
    # Imported late, here and below: runs without launches are compared without numpy and scipy.
    from pytest_infer.analysis.compare.launches import ByLaunch, Spread
    from pytest_infer.analysis.compare.stats import Array


def _not_taken_apart() -> tuple[Mapping[str, PhaseParts], Mapping[str, PhaseParts]]:
    return {}, {}


THRESHOLDS = {Kind.TIMED: 0.02, Kind.COUNTED: 0.01, Kind.SAMPLED: 0.02}
"""What counts as a change where no rule says so."""

SINGLE = "a single figure a side: there is no interval"
"""Why figures of one run cannot be judged: earlier runs say nothing of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPair:
    """One test on both sides. `paired` rounds were measured next to each other, round i with round i.

    `history` holds earlier rows of the test that `before` is comparable with, itself included; `block_spread` is the
    largest log-ratio between two blocks of the same side, where a side was measured in blocks. `turns` is what turns of
    a token said: that decides where it says anything. How far `after` is from `before` is its own `fidelity`, or not
    known for the reason in `unscored`. `taken_apart` reads the steps of both sides by role and phase, where they are
    stored.
    """

    before: Row
    after: Row
    paired: bool = False
    history: tuple[Row, ...] = ()
    block_spread: Mapping[str, float] | None = None
    turns: Turns | None = None
    unscored: str | None = None
    taken_apart: Callable[[], tuple[Mapping[str, PhaseParts], Mapping[str, PhaseParts]]] = _not_taken_apart

    def launches(self, key: str) -> Array | None:
        """Return a metric's change in each launch, log-ratios: as turns of a token told it, else as whole rounds do.

        None where neither does: there were no launches, or the metric is not one of rounds.
        """
        found = self.by_launch(key)
        return None if found is None else found.values

    def by_launch(self, key: str) -> ByLaunch | None:
        """Return the same with the launches' numbers in the run."""
        if self.turns is None:
            return None
        from pytest_infer.analysis.compare import launches  # noqa: PLC0415

        first, total = (self.before.metrics.get(name) for name in ("ttft_s", "total_s"))
        known = first is not None and total is not None and total.value
        share = float(first.value) / float(total.value) if known and first is not None and total is not None else None
        told = launches.told(key, self.turns, share)
        if told is not None:
            return told
        before, after = self.before.metrics.get(key), self.after.metrics.get(key)
        if before is None or after is None:
            return None
        whole = launches.of_whole(before.numbers, after.numbers, self.turns.rounds)
        return None if whole is None else launches.ByLaunch.first(whole, self.turns)

    @property
    def close(self) -> bool | None:
        """Return whether rounding explains how far `after` is from `before`; None where nothing tells that."""
        found = self.after.fidelity
        return None if found is None else closeness.close(found, closeness.bound(self.before.model, self.after.model))

    @property
    def told(self) -> str | None:
        """Return how far `after` is from `before`, to be read after "output"; None where that is not known."""
        if self.after.fidelity is None:
            return None
        most = closeness.bound(self.before.model, self.after.model)
        lengths = stored.lengths(self.before, self.after)
        return closeness.told(self.after.fidelity, most, same=self._same, lengths=lengths)

    @property
    def _same(self) -> bool:
        hashes = [row.metrics.get(exact.OUTPUT) for row in (self.before, self.after)]
        return None not in hashes and hashes[0] == hashes[1]

    @property
    def alike(self) -> bool:
        """Return whether both sides generated the same tokens, and nothing but rounding is between them."""
        return self._same and (self.after.fidelity is None or self.close is True)

    def disturbed(self, metric: Metric, threshold: float | None = None) -> str | None:
        """Return why disturbed rounds keep a change from being judged; turns of a token judge by themselves.

        Without a threshold it is that of the metric's kind.
        """
        if self.launches(metric.key) is not None:
            return None
        side_by_side = self.paired or self.turns is not None
        least = THRESHOLDS[metric.kind] if threshold is None else threshold
        return disturbance.doubt(metric, self.before, self.after, side_by_side=side_by_side, threshold=least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One figure that somebody wants judged, against which threshold, by which rule.

    `exact`: no difference at all; `close`: none of output but what rounding explains.
    """

    metric: Metric
    threshold: float
    rule: str | None = None
    exact: bool = False
    close: bool = False


def match(before: Iterable[Row], after: Iterable[Row]) -> tuple[list[tuple[Row, Row]], list[Row], list[Row]]:
    """Return the tests that both have, those only `before` has, and those only `after` has."""
    olds, news = {row.test: row for row in before}, {row.test: row for row in after}
    both = [(olds[test], row) for test, row in news.items() if test in olds]
    return both, [r for t, r in olds.items() if t not in news], [r for t, r in news.items() if t not in olds]


def all_metrics(only: Collection[Metric] | None = None) -> tuple[Wanted, ...]:
    """Return every metric of the table, or those given, with the threshold of its kind."""
    return tuple(Wanted(metric=m, threshold=THRESHOLDS[m.kind]) for m in METRICS if only is None or m in only)


def judge(
    pairs: Sequence[RowPair],
    wanted: Callable[[Row], Iterable[Wanted]],
    *,
    allowed: Collection[str] = (),
    confidence: float = CONFIDENCE,
) -> list[Judgement]:
    """Return a judgement for each pair and each figure wanted of it, in that order."""
    judgements: list[Judgement | None] = []
    questions: list[Question] = []
    spreads = _Spreads(pairs)
    for pair in pairs:
        # What an A/B run compares are the two sides as they are: only other work makes them incomparable.
        in_one_run = pair.paired or pair.block_spread is not None
        look = fingerprint.sides_differ if in_one_run else fingerprint.differences
        found = look(pair.before, pair.after, allowed)
        for want in wanted(pair.after):
            settled = _without_noise(pair, want, found, allowed, spreads)
            judgements.append(settled if isinstance(settled, Judgement) else None)
            if isinstance(settled, Question):
                questions.append(settled)
    decided = iter(decide(questions, confidence))
    return [next(decided) if j is None else j for j in judgements]


class _Spreads:
    """How far launches lie apart, by metric and test: its own, what others tell, and earlier runs here.

    And how far the changes of a metric lie apart over the tests of two runs.
    """

    def __init__(self, pairs: Sequence[RowPair]) -> None:
        self._pairs = pairs
        self._known: dict[str, dict[str, Spread | None]] = {}
        self._apart: dict[str, float] = {}

    def of(self, key: str, pair: RowPair) -> Spread | None:
        from pytest_infer.analysis.compare import launches, moderation  # noqa: PLC0415

        if key not in self._known:
            told = {one.after.test: found for one in self._pairs if (found := one.by_launch(key)) is not None}
            self._known[key] = dict(zip(told, moderation.moderated(list(told.values())), strict=True))
        before = None if pair.turns is None else launches.earlier(key, pair.turns)
        return launches.with_earlier(self._known[key].get(pair.after.test), before)

    def over_tests(self, metric: Metric) -> float:
        if metric.key not in self._apart:
            ends = [(earlier.number(p.before, metric), earlier.number(p.after, metric)) for p in self._pairs]
            changes = [math.log(new / old) for old, new in ends if old is not None and new is not None]
            self._apart[metric.key] = earlier.apart(changes)
        return self._apart[metric.key]


def _without_noise(
    pair: RowPair,
    want: Wanted,
    found: Sequence[fingerprint.Mismatch],
    allowed: Collection[str],
    spreads: _Spreads,
) -> Judgement | Question:
    """Return what can be said without statistics, or the question for them."""
    metric = want.metric
    before, after = pair.before.metrics.get(metric.key), pair.after.metrics.get(metric.key)
    draft = Judgement(
        test=pair.after.test,
        name=pair.after.title,
        metric_key=metric.key,
        unit=metric.unit.value,
        rule=want.rule,
        before=before.value if before else None,
        after=after.value if after else None,
        threshold=want.threshold,
        rounds=(len(before.numbers), len(after.numbers)) if before and after else None,
        verdict=Verdict.INCOMPARABLE,
    )
    if metric.scope is Scope.DISTANCE:
        return replace(draft, before=None, verdict=None, reason=None if after else pair.unscored or "not measured")
    if before is None or after is None:
        return _unmeasured(draft, metric, before, after)
    if want.exact or want.close or metric.direction is Direction.EXACT or metric.unit is Unit.TEXT:
        return exact.judged(draft, pair, want, allowed)
    differ = [*_that_matter(metric, found), *_caches(metric, pair), *_texts(metric, pair)]
    if differ:
        return replace(draft, reason="differ: " + ", ".join(differ))
    return _question(draft, want, pair, before, after, spreads)


def _unmeasured(draft: Judgement, metric: Metric, before: Values | None, after: Values | None) -> Judgement:
    if before is None and after is None:
        # A prompt of one token has no second tick, whatever the commit: nothing that a gate could wait for.
        return replace(draft, verdict=None, reason="not measured on either side")
    if metric.scope is not Scope.PROCESS:
        return replace(draft, verdict=None, reason="measured on one side only")
    if before is None:
        return replace(draft, verdict=Verdict.NEW, reason="the earlier run does not have it")
    return replace(draft, verdict=Verdict.MISSING, reason="not measured any more")


_BY_CACHE = {"load_s", "load_read_bytes", "first_run_extra_s", "first_run_read_bytes"}
"""What depends on whether the page cache held the model's files."""


def _caches(metric: Metric, pair: RowPair) -> list[str]:
    """Return how a cold and a warm load differ, for a figure that follows from it."""
    if metric.key not in _BY_CACHE:
        return []
    states = [row.metrics["load_cache"].value for row in (pair.before, pair.after) if "load_cache" in row.metrics]
    return [f"load_cache {states[0]} → {states[1]}"] if len(set(states)) > 1 else []


_PERPLEXITY = "perplexity"


def _that_matter(metric: Metric, found: Iterable[fingerprint.Mismatch]) -> Iterable[str]:
    """Return the differences that matter to a metric: a fixed text is read whatever was asked for and generated."""
    other = ("workload", fingerprint.OUTPUT) if metric.key == _PERPLEXITY else ()
    return [str(one) for one in found if one.kind not in other]


def _texts(metric: Metric, pair: RowPair) -> list[str]:
    """Return how the texts of two perplexities differ, or the tokens and windows that they were read in."""
    before, after = (row.scores.text for row in (pair.before, pair.after))
    if metric.key != _PERPLEXITY or before is None or after is None:
        return []
    facts = (("text", before.sha256, after.sha256), ("text tokens", before.tokens, after.tokens))
    windows = ("windows", f"{before.window}/{before.stride}", f"{after.window}/{after.stride}")
    return [f"{name} {str(a)[:8]} → {str(b)[:8]}" for name, a, b in (*facts, windows) if a != b]


def _question(
    draft: Judgement, want: Wanted, pair: RowPair, before: Values, after: Values, spreads: _Spreads
) -> Judgement | Question:
    metric = want.metric
    a, b = before.numbers, after.numbers
    disturbed = pair.disturbed(metric, want.threshold)
    if len({*a, *b}) == 1:
        equal = Verdict.UNCHANGED if disturbed is None else Verdict.INCONCLUSIVE
        told = equal if metric.scope is Scope.PROCESS else None
        return replace(draft, verdict=told, low=0.0, mid=0.0, high=0.0, reason=disturbed)
    if min((*a, *b)) <= 0:
        told = Verdict.INCONCLUSIVE if metric.judged else None
        return replace(draft, verdict=told, reason="a round reads 0: there is no ratio to it")
    if not metric.judged:
        mid = float(draft.after or 0) / float(draft.before or 1) - 1
        return replace(draft, verdict=None, mid=mid)
    evidence, doubt = _of_launches(pair, metric, spreads) or _evidence(pair, want, a, b, spreads)
    if not evidence:
        return replace(draft, verdict=Verdict.INCONCLUSIVE, reason=disturbed or doubt)
    return Question(draft=draft, evidence=tuple(evidence), threshold=want.threshold, doubt=doubt, undecidable=disturbed)


def _of_launches(pair: RowPair, metric: Metric, spreads: _Spreads) -> tuple[list[Evidence], str] | None:
    """Return what launches tell, or None where they tell nothing of a metric."""
    found = None if metric.repeatable else pair.launches(metric.key)
    if found is None:
        return None
    from pytest_infer.analysis.compare import launches  # noqa: PLC0415

    estimate = launches.estimate(found, spreads.of(metric.key, pair))
    if estimate is None:
        return [], "one launch does not tell how far launches lie apart: more are needed (--infer-launches)"
    apart = 100 * math.expm1(estimate.se * math.sqrt(len(found)))
    doubt = f"launches of equal code lie {apart:.2g} % apart (sd): more of them tell more (--infer-launches)"
    return [Evidence(estimate=estimate)], doubt


def _evidence(
    pair: RowPair, want: Wanted, a: tuple[float, ...], b: tuple[float, ...], spreads: _Spreads
) -> tuple[list[Evidence], str | None]:
    metric = want.metric
    if metric.repeatable:
        return [Evidence(estimate=stats.certain(math.log(b[-1] / a[-1])))], None
    if pair.paired and len(a) == len(b) > 1:
        return [Evidence(estimate=stats.paired(a, b))], "more pairs of rounds are needed (--infer-max-rounds)"
    within = stats.welch(a, b)
    if within is None and pair.paired:
        return [], SINGLE
    evidence = [] if within is None else [Evidence(estimate=within, beyond=limit(metric, want.threshold))]
    if pair.block_spread is not None:
        spread = pair.block_spread.get(metric.key, math.inf)
        if within is None or not math.isfinite(spread):
            return [], SINGLE
        # Two blocks a side tell no more than this: their own difference is one that nothing caused.
        blocks = Evidence(estimate=stats.within(within.mid, spread, CONFIDENCE))
        return [*evidence, blocks], "the blocks of one side differ too much: leave out --infer-against-sequential"
    return _with_history(pair, metric, evidence, spreads)


def _with_history(
    pair: RowPair, metric: Metric, evidence: list[Evidence], spreads: _Spreads
) -> tuple[list[Evidence], str | None]:
    """Add what earlier runs say of the spread from run to run, or assume the worst where they are too few."""
    values = [value for row in pair.history if (value := earlier.number(row, metric)) is not None]
    old, new = earlier.number(pair.before, metric), earlier.number(pair.after, metric)
    if old is None or new is None:
        return evidence, None
    return earlier.spread(values, old, new, evidence, earlier.remedy(pair.after), spreads.over_tests(metric))


def block_spread(before: Row, after: Row) -> dict[str, float]:
    """Return, per metric, the larger log-ratio between the two halves of a side's rounds: nothing but time between.

    Infinite where a side has fewer than four rounds: there are no two halves to compare.
    """
    found = {}
    for key in before.metrics.keys() & after.metrics.keys():
        shifts = [_half_shift(row.metrics[key].rounds) for row in (before, after)]
        found[key] = max(shifts)
    return found


def _half_shift(rounds: Sequence[float]) -> float:
    half = len(rounds) - len(rounds) // 2
    if len(rounds) < 4 or min(rounds) <= 0:
        return math.inf
    return abs(math.log(statistics.median(rounds[half:]) / statistics.median(rounds[:half])))
