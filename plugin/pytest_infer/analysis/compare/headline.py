"""What a comparison comes to in one line: what moved, in which prompts and parts of a step, or how little did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from pytest_infer.analysis.breakdown import carried
from pytest_infer.analysis.breakdown.outcome import PhaseChange
from pytest_infer.analysis.compare import accepted, suite
from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.exact import OUTPUT
from pytest_infer.analysis.compare.suite import Figure, Member
from pytest_infer.analysis.compare.verdicts import (
    CONFIDENCE,
    Judgement,
    SuiteChange,
    Verdict,
    reach,
    significant,
    worse_sign,
)
from pytest_infer.metrics import METRICS, Direction, Fact, Kind, Metric

_ORDER = [metric.key for metric in METRICS]
_SMALLEST = 0.001
"""A change within the threshold is told from a tenth of a percent on (own choice): nobody acts on less."""
_GONE = (None, accepted.LOST, accepted.UNMEASURED)
"""Why a test has no figures that did not fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How many prompts are in something: `prompts` of `of`, and how many are not, by reason."""

    prompts: int
    of: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A figure that moved, by how much: in all prompts that are `counted`, or in the tests `named` alone.

    Then `rest` says what all others did, by verdict. `allowed` is the threshold that it stays within, if it does, and
    `carried` says which parts of a step it lies in, where steps were taken apart.
    """

    metric: Metric
    worse: bool
    change: Judgement
    counted: Counted
    named: tuple[str, ...] = ()
    rest: Mapping[str, int] = field(default_factory=dict)
    allowed: float | None = None
    carried: PhaseChange | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsure:
    """A figure of which nothing can be told below `below` (a share); `suspect` is the prompt that reaches furthest.

    `below` is None where nothing can be told at all, for the suspect's `reason`.
    """

    metric: Metric
    suspect: Judgement
    below: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Differs:
    """What must be the same, or within a bound, and is not in so many tests of those that were asked.

    Of output, `told` says how far it is from the other side's, where that is most.
    """

    judgement: Judgement
    tests: int
    of: int
    told: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The answer to "did it get slower?".

    `told` moved; `differs`, `lost` and `failed` (tests that are gone, and that have no figures) are no matter of noise;
    `others` are figures that got worse beside those that a headline is about. `unsure` is what cannot be told. Where
    nothing moved, all intervals lie within `bound` (a share) in the prompts `counted`. `judged`: there is a verdict;
    `reason` is the most frequent one why something has none. `tokeniser` changed beside the steps, which is in no
    other figure.
    """

    told: tuple[Told, ...] = ()
    differs: tuple[Differs, ...] = ()
    lost: int = 0
    failed: int = 0
    others: tuple[Metric, ...] = ()
    unsure: tuple[Unsure, ...] = ()
    bound: float | None = None
    counted: Counted | None = None
    judged: bool = False
    reason: str | None = None
    tokeniser: PhaseChange | None = None


def of(
    pairs: Sequence[RowPair],
    judgements: Sequence[Judgement],
    changes: Sequence[SuiteChange],
    confidence: float = CONFIDENCE,
    found: Sequence[Figure] | None = None,
) -> Headline | None:
    """Return the headline of judgements and of the suite's changes that go with them; None where there is nothing.

    `found` are the suite's figures where they are known already.
    """
    if not judgements:
        return None
    figures = suite.figures(pairs, judgements) if found is None else found
    groups = _groups(figures)
    teller = _Teller({change.judgement.metric_key or "": change for change in changes}, confidence)
    told: list[Told] = []
    quiet: list[Figure] = []
    for fact, group in groups.items():
        parts = fact.parts if isinstance(fact, Fact) else ()
        moves = next((moved for figure in group if (moved := teller.told(figure))), [])
        # A total moves because a part of it does.
        told += [one for one in moves if not any(t.worse is one.worse for t in told if t.metric.fact in parts)]
        if not moves and not (parts and all(part in groups for part in parts)):
            quiet.append(next((figure for figure in group if _unsure(figure) is not None), group[0]))
    timed = [figure for figure in quiet if figure.metric.kind is Kind.TIMED] or quiet
    judged = any(j.verdict in suite.JUDGED for j in judgements)
    why = (Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE) if judged else tuple(Verdict)
    unfit = {j.test: j.reason for j in judgements if j.verdict is Verdict.MISSING and j.metric is None}
    failed = [test for test, reason in unfit.items() if reason not in _GONE]
    reasons = Counter(j.reason for j in judgements if j.verdict in why and j.reason)
    return Headline(
        told=tuple(_with_parts(one, pairs, groups) for one in told),
        differs=tuple(_differs(pairs, judgements)),
        lost=len(unfit) - len(failed),
        failed=len(failed),
        others=_others(figures, groups, teller, told),
        unsure=tuple(unsure for figure in quiet if (unsure := _unsure(figure)) is not None),
        bound=_bound(timed),
        counted=min(map(_counted, timed), key=lambda one: one.prompts, default=None),
        judged=judged,
        reason=reasons.most_common(1)[0][0] if reasons else None,
        tokeniser=carried.tokeniser(pairs),
    )


def _with_parts(one: Told, pairs: Sequence[RowPair], groups: Mapping[Fact | str, Sequence[Figure]]) -> Told:
    """Return what is told with the parts of a step that it lies in."""
    members = {m.judgement.test for f in groups[one.metric.fact or one.metric.key] for m in f.members}
    tests = set(one.named) or members
    among = [pair for pair in pairs if pair.after.test in tests]
    return replace(one, carried=carried.of(one.metric, among, one.change, slower=one.worse))


def _groups(figures: Sequence[Figure]) -> dict[Fact | str, list[Figure]]:
    """Return the figures that the headline is about by their fact, the one that speaks for each first.

    Of a gate these are all that its rules name; else the facts, or what was asked for where none is among it.
    """
    about = [f for f in figures if f.rule is not None] or [f for f in figures if f.metric.fact is not None] or figures
    groups: dict[Fact | str, list[Figure]] = {}
    for figure in sorted(about, key=lambda f: (_place(f.metric.fact), _ORDER.index(f.metric.key))):
        groups.setdefault(figure.metric.fact or figure.metric.key, []).append(figure)
    for fact, group in groups.items():
        group.sort(key=lambda f: not isinstance(fact, Fact) or f.metric.key != fact.lead)
    return groups


def _place(fact: Fact | None) -> int:
    return len(Fact) if fact is None else list(Fact).index(fact)


def _counted(figure: Figure) -> Counted:
    return Counted(prompts=len(figure.members), of=figure.of, left_out=figure.left_out)


class _Teller:
    """Tells what moved: by the prompts' verdicts and the suite's interval, never by an estimate alone."""

    def __init__(self, changes: Mapping[str, SuiteChange], confidence: float) -> None:
        self._changes = changes
        self._confidence = confidence

    def told(self, figure: Figure) -> list[Told]:
        """Return how a figure moved, worse first; nothing where it did not."""
        judged = [member.judgement for member in figure.members]
        sides = {True: _tests(judged, Verdict.REGRESSED), False: _tests(judged, Verdict.IMPROVED)}
        whole = self._changes.get(figure.metric.key)
        whole = None if whole is None or whole.judgement.mid is None else whole
        if not sides[True] and not sides[False]:
            way = self._way(whole)
            return [] if way is None or whole is None else [_all(figure, whole.judgement, worse=way)]
        found = []
        for worse, tests in sides.items():
            if tests and not sides[not worse] and whole is not None and self._shared(figure, tests, worse=worse):
                return [_all(figure, whole.judgement, worse=worse)]
            if tests:
                found.append(self._part(figure, tests, worse=worse))
        moved = {*sides[True], *sides[False]}
        rest = Counter(str(j.verdict) for j in judged if j.test not in moved)
        return [*found[:-1], replace(found[-1], rest={**rest, **figure.left_out})]

    def _way(self, change: SuiteChange | None) -> bool | None:
        """Return whether the suite got worse (True) or better (False); None where it cannot be said to have moved.

        Within the threshold that takes an interval that holds how far launches of the same code lie apart; rounds of
        stored runs show nothing there (their evidence is held against the threshold).
        """
        if change is None:
            return None
        j, metric = change.judgement, change.judgement.metric
        if j.verdict in (Verdict.REGRESSED, Verdict.IMPROVED):
            return j.verdict is Verdict.REGRESSED
        real = change.spread and metric is not None and metric.kind is Kind.TIMED
        if not real or j.mid is None or not self._significant(j) or abs(j.mid) < _SMALLEST:
            return None
        return j.mid * worse_sign(metric) > 0

    def _shared(self, figure: Figure, tests: Sequence[str], *, worse: bool) -> bool:
        """Return whether what moved in some prompts moved in all: in each, or as much in the others taken together, of
        which a single one is told by its own judgement."""
        others = figure.only({m.judgement.test for m in figure.members} - set(tests))
        if not others.members:
            return True
        part = self._change(figure.only(tests))
        rest = suite.of_figures([others], self._confidence) or [self._alone(others.members[0])]
        return any(self._way(change) is worse and _overlap(change.judgement, part) for change in rest)

    def _alone(self, member: Member) -> SuiteChange:
        """Return the change of a single prompt like that of several, which are a family of their own."""
        j, alone = member.judgement, structs.replace(member.judgement, p_adjusted=member.judgement.p)
        if self._significant(alone) and abs(j.mid or 0.0) > (j.threshold or 0.0):
            worse = (j.mid or 0.0) * worse_sign(j.metric) > 0
            alone = structs.replace(alone, verdict=Verdict.REGRESSED if worse else Verdict.IMPROVED)
        in_launches = member.pair.by_launch(j.metric_key or "") is not None
        return SuiteChange(judgement=alone, prompts=1, of=1, spread=in_launches)

    def _significant(self, j: Judgement) -> bool:
        return j.p_adjusted is not None and significant(j.p_adjusted, self._confidence)

    def _change(self, part: Figure) -> Judgement:
        """Return the change of some prompts, of a single one its own."""
        return next((c.judgement for c in suite.of_figures([part], self._confidence)), part.members[0].judgement)

    def _part(self, figure: Figure, tests: Sequence[str], *, worse: bool) -> Told:
        everybody = len(tests) == len(figure.members) == 1 and not figure.left_out
        return Told(
            metric=figure.metric,
            worse=worse,
            change=self._change(figure.only(tests)),
            counted=_counted(figure),
            named=() if everybody else tuple(tests),
        )


def _overlap(one: Judgement, other: Judgement) -> bool:
    pairs = ((one.low, other.high), (other.low, one.high))
    return all(low is None or high is None or low <= high for low, high in pairs)


def _tests(judged: Iterable[Judgement], verdict: Verdict) -> tuple[str, ...]:
    return tuple(j.test for j in judged if j.verdict is verdict)


def _all(figure: Figure, change: Judgement, *, worse: bool) -> Told:
    within = change.verdict is Verdict.UNCHANGED
    return Told(
        metric=figure.metric,
        worse=worse,
        change=change,
        counted=_counted(figure),
        allowed=figure.threshold if within else None,
    )


def _unsure(figure: Figure) -> Unsure | None:
    """Return what cannot be told of a figure that is not known to have moved; None where every prompt can be told."""
    open_ = [m.judgement for m in figure.members if m.judgement.verdict is Verdict.INCONCLUSIVE]
    disturbed = figure.left_out.get(suite.DISTURBED, 0)
    if disturbed and not figure.members:
        reason = (
            f"most rounds were disturbed{'' if disturbed == figure.of else f' in {disturbed} of {figure.of} prompts'}"
        )
        nobody = Judgement(test="", name="suite", metric_key=figure.metric.key, reason=reason)
        return Unsure(metric=figure.metric, suspect=nobody, below=None)
    if not open_:
        return None
    ends = {j.test: reach(j) for j in open_}
    suspect = max(open_, key=lambda j: float("inf") if (end := ends[j.test]) is None else end)
    return Unsure(metric=figure.metric, suspect=suspect, below=ends[suspect.test])


def _bound(figures: Sequence[Figure]) -> float | None:
    ends = [end for figure in figures for m in figure.members for end in (m.judgement.low, m.judgement.high)]
    known = [abs(end) for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _differs(pairs: Sequence[RowPair], judgements: Sequence[Judgement]) -> Iterable[Differs]:
    """Yield what is not as a rule asks without any noise, and output that differs where no rule is about it."""
    groups: dict[str, list[Judgement]] = {}
    for j in judgements:
        exact = j.metric is not None and j.metric.direction is Direction.EXACT
        if j.rule is not None or (exact and j.metric_key == OUTPUT):
            groups.setdefault(j.rule or j.metric_key or "", []).append(j)
    apart = {pair.after.test: pair for pair in pairs if pair.after.fidelity is not None}
    said: set[str] = set()
    for group in groups.values():
        bad = [j for j in group if j.mid is None and (j.verdict is Verdict.REGRESSED or _other_output(j))]
        if bad:
            told = {j.test: apart[j.test] for j in bad if j.metric_key == OUTPUT and j.test in apart}
            said |= told.keys()
            worst = _furthest(told.values())
            first = next((j for j in bad if worst is not None and j.test == worst.after.test), bad[0])
            yield Differs(
                judgement=first, tests=len(bad), of=len(group), told=worst.told if worst is not None else None
            )
    # The furthest was told already where a rule is about output, or nothing can be compared because of it.
    rest = [] if said else [pair for pair in apart.values() if not pair.alike]
    worst = _furthest(rest)
    if worst is not None:
        row = worst.after
        found = Judgement(test=row.test, name=row.title, metric_key=OUTPUT)
        yield Differs(judgement=found, tests=len(rest), of=len(pairs), told=worst.told)


def _furthest(pairs: Iterable[RowPair]) -> RowPair | None:
    return max(pairs, key=lambda pair: pair.after.fidelity.kl_mean if pair.after.fidelity else 0.0, default=None)


def _other_output(j: Judgement) -> bool:
    return j.metric_key == OUTPUT and j.verdict is Verdict.INCOMPARABLE and j.rule is None


def _others(
    figures: Sequence[Figure],
    groups: Mapping[Fact | str, Sequence[Figure]],
    teller: _Teller,
    told: Sequence[Told],
) -> tuple[Metric, ...]:
    """Return the times that got worse, are none of the headline's, and did not just follow what it tells."""
    about = {figure.metric.key for group in groups.values() for figure in group}
    return tuple(
        figure.metric
        for figure in figures
        if figure.metric.key not in about
        and figure.metric.kind is Kind.TIMED
        and any(one.worse and not _follows(one, told) for one in teller.told(figure))
    )


def _follows(one: Told, told: Sequence[Told]) -> bool:
    """Return whether a change is as large as one that is told: longest steps grow as all do."""
    mid = one.change.mid or 0.0
    return any(
        t.worse and t.change.low is not None and t.change.high is not None and t.change.low <= mid <= t.change.high
        for t in told
    )
