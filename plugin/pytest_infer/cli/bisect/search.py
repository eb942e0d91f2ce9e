"""The search: first that there is something to find, then commit by commit, until one or a few are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import structs

from pytest_infer.analysis.compare.ending import INTERRUPTED, STOP
from pytest_infer.analysis.compare.verdicts import Exit, Judgement, Verdict
from pytest_infer.cli.bisect.halving import Mark
from pytest_infer.cli.bisect.runs import Measured, Plan
from pytest_infer.errors import AgainstError

_MARKS: Mapping[Verdict | None, Mark] = {
    Verdict.REGRESSED: Mark.BAD,
    Verdict.UNCHANGED: Mark.GOOD,
    Verdict.IMPROVED: Mark.GOOD,
}


class Measuring(Protocol):
    """What measures a commit against the good one."""

    def measure(self, commit: str, plan: Plan, *, more: bool = False) -> Measured:
        """Return what a run at a commit says; `more` lets it measure longer."""


class Halved(Protocol):
    """What chooses commits: git."""

    def suspects(self) -> list[str]:
        """Return the commits of which one is the first bad one, newest first."""

    def found(self) -> bool:
        """Return whether there is no commit left that could be measured."""

    def next(self) -> str:
        """Return the commit to be measured."""

    def steps(self) -> int:
        """Return about how many steps are left."""

    def tell(self, commit: str, mark: Mark) -> None:
        """Take what a commit is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What became of a commit: what git is told, the figure that was followed, and why where it was skipped."""

    commit: str
    mark: Mark
    judgement: Judgement | None = None
    why: str | None = None
    again: bool = False


@dataclass(slots=True, kw_only=True)
class Search:
    """A search on its way: what was measured so far, by commit, and the figure that is followed.

    `judgements` are all that the first run said of BAD. `told` is called with each step and the steps left.
    """

    bad: str
    plan: Plan
    runs: Measuring
    starting: Callable[[str], None]
    told: Callable[[Step, int | None], None]
    steps: dict[str, Step] = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    followed: Judgement | None = None

    def confirm(self) -> Step:
        """Measure BAD against GOOD, and return what it is; where it regressed, that figure is followed from now on.

        Raises AgainstError where pytest refuses the arguments.
        """
        self.starting(self.bad)
        measured, again = self._measured(self.bad)
        if measured.code == STOP:
            raise AgainstError(measured.why or "pytest refuses these arguments")
        self.judgements = measured.judgements
        asked = {rule.text for rule in self.plan.rules}
        judgement = decisive([j for j in measured.judgements if j.rule in asked])
        bad = judgement is not None and judgement.verdict is Verdict.REGRESSED
        mark = Mark.BAD if bad else Mark.GOOD if measured.code == Exit.PASSED.value else Mark.SKIP
        step = Step(commit=self.bad, mark=mark, judgement=judgement, why=_why(mark, measured), again=again)
        self.steps[self.bad] = step
        if judgement is not None and bad:
            self.plan = self.plan.only(judgement)
            # Known by the rule that is asked from now on, as the steps' are.
            (rule,) = self.plan.rules
            self.followed = structs.replace(judgement, rule=rule.text)
        self.told(step, None)
        return step

    def halve(self, halving: Halved) -> list[str]:
        """Measure what git chooses until that is all, and return the commits of which one is the first bad one."""
        while not halving.found():
            commit = halving.next()
            self.starting(commit)
            step = self.steps[commit] = self._step(commit)
            halving.tell(commit, step.mark)
            self.told(step, halving.steps())
        return halving.suspects()

    def _step(self, commit: str) -> Step:
        """Measure a commit by the figure that is followed, whatever else its own settings judge."""
        measured, again = self._measured(commit)
        judgement = self._of_followed(measured)
        mark = _MARKS.get(judgement.verdict, Mark.SKIP) if judgement is not None else Mark.SKIP
        return Step(commit=commit, mark=mark, judgement=judgement, why=_why(mark, measured, judgement), again=again)

    def _of_followed(self, measured: Measured) -> Judgement | None:
        asked = self.followed and (self.followed.test, self.followed.rule)
        return next((j for j in measured.judgements if (j.test, j.rule) == asked), None)

    def _measured(self, commit: str) -> tuple[Measured, bool]:
        """Measure a commit, once more if it stays undecided; return whether it was."""
        measured = self._run(commit, more=False)
        # Not by its exit code: a bound that GOOD breaks as well, or a rule of the commit's own, ends it as bad.
        asked = {rule.text for rule in self.plan.rules}
        verdicts = {judgement.verdict for judgement in measured.judgements if judgement.rule in asked}
        again = Verdict.INCONCLUSIVE in verdicts and Verdict.REGRESSED not in verdicts
        return (self._run(commit, more=True) if again else measured), again

    def _run(self, commit: str, *, more: bool) -> Measured:
        measured = self.runs.measure(commit, self.plan, more=more)
        if measured.code == INTERRUPTED:
            raise KeyboardInterrupt
        return measured


def _why(mark: Mark, measured: Measured, judgement: Judgement | None = None) -> str | None:
    """Return why a run that is skipped cannot be judged: by one of its judgements, by any, else what pytest said."""
    if mark is not Mark.SKIP:
        return None
    given = [judgement] if judgement is not None else measured.judgements
    return measured.why or next((j.reason for j in given if j.reason), None) or "tests failed"


def decisive(judgements: Sequence[Judgement]) -> Judgement | None:
    """Return the judgement that decided a run.

    Of several that regressed it is the clearest: the largest change, measured in widths of its interval.
    """
    for verdict in (Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.INCOMPARABLE, Verdict.UNCHANGED):
        found = [judgement for judgement in judgements if judgement.verdict is verdict]
        if found:
            return max(found, key=_clearness)
    return None


def _clearness(judgement: Judgement) -> float:
    low, mid, high = judgement.low, judgement.mid, judgement.high
    if low is None or mid is None or high is None:
        return 0.0
    return abs(mid) / max(high - low, 1e-9)


def others(judgements: Sequence[Judgement], followed: Judgement) -> list[Judgement]:
    """Return the other figures that regressed in the first run: they are not followed."""
    same = (followed.test, followed.metric_key)
    return [j for j in judgements if j.verdict is Verdict.REGRESSED and (j.test, j.metric_key) != same]


def of_parents(parents: Sequence[str], good: str, steps: Mapping[str, Step]) -> list[tuple[str, Judgement | None]]:
    """Return the figure of each parent, as far as it was measured; that of GOOD is what all are compared with."""
    return [(parent, steps[parent].judgement) for parent in parents if parent in steps and parent != good]
