"""Earlier runs that a comparison may learn from: which they are, and how far runs of the same code lie apart."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer.analysis.compare import fingerprint, possible, stats
from pytest_infer.analysis.compare.verdicts import Evidence
from pytest_infer.metrics import METRICS, Metric, table
from pytest_infer.storage.history import History
from pytest_infer.storage.runs import Row, Run
from pytest_infer.storage.schema import Values

HISTORY = 10
"""So many comparable runs, the newest, tell the run-to-run spread."""

SEARCHED = 40
"""Among so many, the newest, they are looked for: to read all of a long history takes seconds."""

ENOUGH_HISTORY = 5
"""Below so many the spread is assumed, which can show a change but never that there is none."""

ASSUMED_SPREAD = 0.05
"""Standard deviation from run to run where history does not tell it, if the run's own tests do not lie further apart:
the largest in docs/statistics.md's table."""

ENOUGH_TESTS = 5
"""So many tests of two runs tell how far their changes lie apart."""


class _Test(msgspec.Struct, array_like=True, frozen=True):
    """As much of a test as later comparisons need.

    `facts` is the number of its facts among those of its run, None of a plain row, which is comparable with any other.
    `numbers` are its figures in the order of METRICS, whose table has no figure of another name. `resumed`: an
    interrupted run measured them.
    """

    name: str
    possible: bool
    resumed: bool
    facts: int | None
    numbers: list[float | None]


class _Digest(msgspec.Struct, array_like=True, frozen=True):
    """The tests of a run by name, and all different facts by `fingerprint`: those of most tests are the same."""

    facts: list[list[Any]] = []
    tests: dict[str, _Test] = {}


_PLACE = {metric.key: place for place, metric in enumerate(METRICS)}


class _Numbers(Mapping[str, Values]):
    """Metrics of which only the numbers are known."""

    def __init__(self, numbers: Sequence[float | None]) -> None:
        self._numbers = numbers

    def __getitem__(self, key: str) -> Values:
        number = self._numbers[_PLACE[key]]
        if number is None:
            raise KeyError(key)
        return Values(value=number)

    def __iter__(self) -> Iterator[str]:
        return (key for key, place in _PLACE.items() if self._numbers[place] is not None)

    def __len__(self) -> int:
        return len(self._numbers) - self._numbers.count(None)


class Known:
    """What is known of earlier runs: of a `history`'s as long as their files do not change, so that few are read."""

    def __init__(self, history: History | None = None) -> None:
        maker = _maker()
        self._kept = None if history is None or maker is None else history.digests(_Digest, maker)
        self._known: dict[Path, _Digest] = {}

    def of(self, run: Run) -> _Digest:
        """Return what is known of a run; nothing, and it is told, where it cannot be read."""
        found = self._known.get(run.path)
        if found is None and self._kept is not None:
            found = self._kept.get(run.path)
        if found is None:
            found = _digest(run.rows) if run.readable else _Digest()
            if self._kept is not None and run.readable:
                self._kept.put(run.path, found)
        self._known[run.path] = found
        return found

    def save(self) -> None:
        """Keep what was found out."""
        if self._kept is not None:
            self._kept.save()


def _maker() -> str | None:
    """Return the state of the modules that decide what is in a digest; None where they are no files."""
    names = {__name__, fingerprint.__name__, possible.__name__, table.__name__, Row.__module__, Values.__module__}
    try:
        found = [Path(str(sys.modules[name].__file__)).stat() for name in sorted(names)]
    except OSError:
        return None
    return " ".join(f"{file.st_size}.{file.st_mtime_ns}" for file in found)


def _digest(rows: Sequence[Row]) -> _Digest:
    facts: list[list[object]] = []
    tests = {}
    for row in rows:
        own = None if row.plain else fingerprint.facts(row)
        if own is not None and own not in facts:
            facts.append(own)
        values = (row.metrics.get(key) for key in _PLACE)
        tests[row.test] = _Test(
            name=row.name,
            possible=possible.impossible(row) is None,
            resumed=row.resumed,
            facts=None if own is None else facts.index(own),
            numbers=[None if one is None or isinstance(one.value, str) else float(one.value) for one in values],
        )
    return _Digest(facts=facts, tests=tests)


def comparable_history(
    row: Row, runs: Sequence[Run], known: Known | None = None, after: Row | None = None
) -> tuple[Row, ...]:
    """Return the newest rows of the same test that do not differ from `row` in what matters, oldest first.

    Runs that failed their gate or that test are left out, and so is what cannot be read or cannot have been measured,
    and what a later run took from an interrupted one, as `after` may have been. Of the rows that are returned only the
    numbers of their figures are known.
    """
    known = Known() if known is None else known
    facts = None if row.plain else fingerprint.facts(row)
    found: list[Row] = []
    for run in reversed(runs[-SEARCHED:]):
        if len(found) == HISTORY:
            break
        digest = _Digest() if run.regressed else known.of(run)
        other = digest.tests.get(row.test)
        if other is None or not other.possible:
            continue
        if facts is None or other.facts is None or fingerprint.alike(digest.facts[other.facts], facts):
            numbers = _Numbers(other.numbers)
            one = Row(test=row.test, name=other.name, metrics=numbers, run=run.path, resumed=other.resumed)
            if not any(map(one.again, found if after is None else [after, *found])):
                found.append(one)
    return tuple(reversed(found))


def number(row: Row, metric: Metric) -> float | None:
    """Return a row's figure where it has a logarithm."""
    found = row.metrics.get(metric.key)
    value = None if found is None else found.value
    return float(value) if isinstance(value, int | float) and value > 0 else None


def remedy(row: Row) -> str:
    """Return what tells more than runs after each other."""
    if row.under_load is not None:
        return "measure more runs"
    return "measure both in one run (--infer-against-server)" if row.served else "use --infer-against"


def apart(changes: Sequence[float]) -> float:
    """Return how far the changes of one figure lie apart over the tests of two runs (sd of log-ratios, robust).

    A change of the code moves a few of them, or all alike; what moves each otherwise is the machine. 0 for few tests.
    """
    if len(changes) < ENOUGH_TESTS:
        return 0.0
    middle = statistics.median(changes)
    return stats.ROBUST * statistics.median(abs(change - middle) for change in changes)


def spread(
    values: Sequence[float],
    old: float,
    new: float,
    evidence: list[Evidence],
    remedy: str,
    scatter: float = 0.0,
) -> tuple[list[Evidence], str | None]:
    """Return the `evidence` of rounds with what earlier runs tell of the spread from run to run, and what is in doubt.

    `values` are the figure in those runs, `old` and `new` in the two that are compared. `remedy` would tell more.

    Where they are too few the worst is assumed, or the `scatter` of the figure's changes over all tests of the two runs
    where that is larger; it can show a change but never that there is none.
    """
    if len(values) >= ENOUGH_HISTORY:
        estimate = stats.predicted(values, new)
        if estimate is not None:
            doubt = f"runs differ by {100 * estimate.se:.2g} % (sd of {len(values)}) with nothing changed"
            return [*evidence, Evidence(estimate=estimate)], f"{doubt}: {remedy}"
    many = f"{len(values)} comparable run{'' if len(values) == 1 else 's'}"
    doubt = f"{many}, and {ENOUGH_HISTORY} tell the spread from run to run: {remedy}"
    if not evidence:
        return [], doubt
    assumed = stats.Student(math.log(new / old), max(ASSUMED_SPREAD * math.sqrt(2), scatter), 1e9)
    return [*evidence, Evidence(estimate=assumed, conclusive=False)], doubt
