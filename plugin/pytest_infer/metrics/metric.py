"""What a row of the table of metrics is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pytest_infer.metrics.read import Read
from pytest_infer.metrics.scope import COUNTS_MOVED_BY_LOAD, OTHERS, Scope
from pytest_infer.units import Unit


class Direction(StrEnum):
    """Which way is better; EXACT metrics have no noise and any difference counts."""

    LOWER = "lower"
    HIGHER = "higher"
    NEUTRAL = "neutral"
    EXACT = "exact"


class Kind(StrEnum):
    """How a value is obtained: from stamps of the clock, from a count, or from samples of a changing quantity."""

    TIMED = "timed"
    COUNTED = "counted"
    SAMPLED = "sampled"


class Fact(StrEnum):
    """What several figures tell alike, each in its own unit: a time, its rate, the median of its parts.

    The value is how a headline names it.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    TOTAL = "total"
    MEMORY = "peak RSS"

    @property
    def lead(self) -> str:
        """Return the key of the metric that speaks for the others."""
        return _LEADS[self]

    @property
    def parts(self) -> tuple[Fact, ...]:
        """Return the facts that this one is made of: where it says the same as one of them, it says nothing new."""
        return (Fact.DECODE, Fact.PREFILL) if self is Fact.TOTAL else ()


_LEADS = {
    Fact.PREFILL: "ttft_s",
    Fact.DECODE: "tpot_s",
    Fact.TOTAL: "total_s",
    Fact.MEMORY: "peak_rss_bytes",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A metric's column in the summary of a run: its heading.

    `scattered`: a value stands with how much the rounds scatter. One that is not `brief` is left out on a terminal,
    where a prompt's card has it. Where a terminal is narrow, a value that is `bare` stands without its heading.
    """

    heading: str
    bare: bool = False
    scattered: bool = False
    brief: bool = True


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `absent` says why there may be no value where the reading itself does not.

    `repeatable` metrics are the same whenever the same work is done: any difference is a change, without statistics.
    `column` is there for what the summary of a run shows, on the terminal and in HTML, in the order of the table.
    `fact` is what it tells together with other metrics.
    """

    key: str
    label: str
    unit: Unit
    direction: Direction
    kind: Kind
    read: Read
    definition: str
    source: str
    absent: str = "not measured"
    repeatable: bool = False
    column: Column | None = None
    fact: Fact | None = None

    @property
    def scope(self) -> Scope:
        """Return whose figure it is."""
        return OTHERS[self.key][0] if self.key in OTHERS else Scope.PROCESS

    @property
    def judged(self) -> bool:
        """Return whether a change of it can be one for the better or the worse."""
        return self.direction is not Direction.NEUTRAL and self.scope is Scope.PROCESS

    @property
    def moved_by_load(self) -> bool:
        """Return whether other work on the machine changes it."""
        return self.kind is not Kind.COUNTED or self.key in COUNTS_MOVED_BY_LOAD
