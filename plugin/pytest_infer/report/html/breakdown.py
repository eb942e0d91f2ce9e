"""Where the time goes: a typical step of each phase by role and layer, beside another side's, with what to trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.analysis import alike
from pytest_infer.analysis.breakdown import steps
from pytest_infer.analysis.breakdown.steps import Step
from pytest_infer.analysis.sweep.axes import label
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.records import Role
from pytest_infer.report.breakdown import terminal as words
from pytest_infer.report.breakdown.words import NOBODY, carriers, signed
from pytest_infer.report.html import operators, step_table, stored
from pytest_infer.report.html import steps as drawings
from pytest_infer.report.html.parts import Item, Note, Section
from pytest_infer.report.html.step_table import TITLES
from pytest_infer.report.html.stored import StoredRun, Test
from pytest_infer.storage.results import result_of, traced

if TYPE_CHECKING:
    from pytest_infer.metrics.result import Result
    from pytest_infer.report.html.compare import Compared

_KEY, _TITLE = "breakdown", "Where the time goes"
_UNSEEN = (
    "Experts ran past the hooks, as fused kernels do: what they took is in “router and experts”, together with the "
    "router."
)
_MOST = 2
"""Of so many configurations the tables stand in the open."""
_ALONE = "Differences of two runs without an interval: how far runs of the same code lie apart is not known here."


def section(found: StoredRun, compared: Compared | None = None, gated: Compared | None = None) -> Section:
    """Return a run's steps taken apart, beside the other side's where there is one, or why there are none.

    `gated` is what the run's own gate found, of sides that took turns.
    """
    known = _Known(found, compared, gated)
    items = [item for phase in (DECODE, PREFILL) for item in known.items(phase)]
    items += known.operators()
    absent = {name: why for name, why in known.absent.items() if name not in known.shown}
    if not items:
        return Section(key=_KEY, title=_TITLE, absent=next(iter(absent.values()), found.nothing))
    if absent:
        why = tuple(f"{name}: {reason}." for name, reason in absent.items())
        items.append(Item(title="Not taken apart", text=why))
    return Section(key=_KEY, title=_TITLE, items=tuple(items))


class _Known:
    """What a run and its other side tell of steps."""

    def __init__(self, run: StoredRun, compared: Compared | None, gated: Compared | None) -> None:
        self._run = run
        told = {test.row.test: test.block.against for test in run.tests if test.block.against is not None}
        self._turns = {one: of.turns for one, of in told.items() if of.turns is not None and of.turns.parts}
        # The two sides are those of one comparison everywhere: turns tell more.
        earlier = None if compared is None or self._turns else compared.earlier
        self._before = None if earlier is None else stored.read(earlier)
        self._results, self.absent = _results(run)
        self._earlier = {} if self._before is None else _results(self._before)[0]
        self._doubts = {} if compared is None else steps.doubts(compared.judgements, compared.suite)
        self._moved = {} if gated is None else steps.moved(gated.judgements, gated.suite)
        self._sides: tuple[str, str] | None = None
        if compared is not None and earlier is not None and self._earlier:
            self._sides = earlier.number or earlier.label, run.run.number or compared.after
        for one in self._turns:
            self._sides = told[one].rev or "the other side", "this checkout"
        self.shown: set[str] = set()

    def items(self, phase: str) -> Iterator[Item]:
        """Yield the parts of a phase; nothing where no test took it apart."""
        each = [(test, step) for test in self._run.tests if (step := self._step(test.title, phase, [test])) is not None]
        if not each:
            return
        self.shown |= {test.title for test, _ in each}
        single = [step for _, step in each]
        groups = [*_alike([test for test, _ in each])]
        means = [
            step for name, tests in groups if len(tests) > 1 and (step := self._step(name, phase, tests)) is not None
        ]
        alone = [tests[0] for _, tests in groups if len(tests) == 1]
        told = [*means, *(step for test, step in each if test in alone)]
        first = told if len(told) <= _MOST else []
        colours = drawings.tints(steps.worth(single, drawings.MOST_NAMED))
        sides = self._sides if any(step.before is not None for step in single) else None
        yield Item(
            title=TITLES[phase],
            text=tuple(line for step in first for line in _remarks(step, named=len(told) > 1)),
            notes=tuple(_doubts(single)),
            charts=(drawings.bars(phase, single, colours, sides),),
            tables=tuple(step_table.table(phase, step, sides) for step in first),
        )
        shown = [*means, *single] if len(told) == 1 else single
        if sum(len(of_role) for step in shown for of_role in step.layers.values()) > drawings.MOST_LAYERS:
            shown = told[:1]
        charts = (
            drawings.icicle(phase, shown, colours),
            drawings.reach(phase, shown, colours, sides),
            drawings.layers(phase, shown, sides),
        )
        yield Item(title=f"{TITLES[phase]}, more closely", charts=tuple(one for one in charts if one is not None))
        if folded := [step for step in (*means, *single) if step not in first]:
            text = tuple(line for step in folded for line in _remarks(step, named=True))
            tables = tuple(step_table.table(phase, step, sides) for step in folded)
            yield Item(title=f"{TITLES[phase]} of each prompt", text=text, tables=tables, folded=True)

    def operators(self) -> Iterator[Item]:
        """Yield what a profiler recorded."""
        taken = (
            (test.title, self._results[test.row.test]) for test in self._run.tests if test.row.test in self._results
        )
        yield from operators.items(taken)

    def _step(self, name: str, phase: str, tests: Sequence[Test]) -> Step | None:
        """Return the mean step of some tests, beside that of the same tests on the other side."""
        names = [test.row.test for test in tests]
        turns = [self._turns[one] for one in names if one in self._turns]
        told = (names[0] if len(names) == 1 else "", phase)
        apart = steps.of_turns(name, phase, turns, self._moved.get(told)) if len(turns) == len(names) else None
        if apart is not None:
            return apart
        own = [self._results[one] for one in names if phase in self._breakdown(self._results, one)]
        there = [self._earlier[one] for one in names if phase in self._breakdown(self._earlier, one)]
        before = None
        if self._before is not None and len(there) == len(own) == len(names):
            before = steps.Side(results=there, arrays=self._before.sidecar[0])
        after = steps.Side(results=own, arrays=self._run.sidecar[0])
        return steps.of_runs(name, phase, after, before, self._doubts.get(told))

    @staticmethod
    def _breakdown(results: Mapping[str, Result], test: str) -> Mapping[str, Any]:
        return results[test].breakdown if test in results else {}


def _results(run: StoredRun) -> tuple[dict[str, Result], dict[str, str]]:
    """Return the results of the tests that were taken apart, and why others were not, by title."""
    found, absent = {}, {}
    for test in run.tests:
        told = test.block.breakdown
        if told is None or not told.phases:
            why = None if told is None else told.absent
            absent[test.title] = why or "this run's version of pytest-infer did not take steps apart"
            continue
        try:
            found[test.row.test] = traced(result_of(test.row.test, test.block), test.block, run.run.path)
        except msgspec.ValidationError:
            absent[test.title] = "what it stored of its steps cannot be read"
    return found, absent


def _alike(tests: Sequence[Test]) -> Iterator[tuple[str, Sequence[Test]]]:
    """Yield the tests of each model and configuration, and what tells these apart."""
    tables = alike.tables(tests)
    swept = len({label(of[0].config) for of, _ in tables}) > 1
    for of, model in tables:
        yield " ".join((*model, *([label(of[0].config)] if swept else []))) or step_table.ALL, of


def _remarks(step: Step, *, named: bool) -> Iterator[str]:
    """Yield what stands above the pictures: the change, what is outside the model, and whether the parts add up."""
    of = f"{step.name}: " if named else ""
    what = "step" if step.after.phase == DECODE else "prefill"
    change = step.change
    if change is not None and (change.moved or change.named or change.everywhere):
        yield f"{of}{signed(change.change_s)} a {what}: {carriers(change) or NOBODY}."
    elif change is not None:
        yield f"{of}the {what} is neither longer nor shorter beyond doubt."
    # What hooks took and what is left over is not kept of turns.
    checked = step.after.missed is not None or step.after.cost > 0
    yield f"{of}{words.around(step.after) if checked else words.outside(step.after)}."
    if step.before is not None and change is None:
        yield _ALONE


def _doubts(single: Sequence[Step]) -> Iterator[Note]:
    """Yield what asks for a second look: parts that do not add up, experts that hooks did not see."""
    off = [step.name for step in single if step.after.adds_up is False]
    if off:
        text = (
            "The parts do not add up to the step: hooks changed what they measured, or something disturbed the round."
        )
        yield Note(mark="look twice", look="warning", text=text, do="measure again", about=", ".join(off))
    if far := [step.name for step in single if step.after.far is not None]:
        text = "Steps took more than twice as long where they were taken apart as in timed rounds, or less than half."
        yield Note(mark="look twice", look="warning", text=text, do="measure again", about=", ".join(far))
    if any(one.role == Role.UNSEEN_EXPERTS for step in single for one in step.after.model):
        yield Note(mark="unseen", look="info", text=_UNSEEN)
