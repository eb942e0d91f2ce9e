"""An event of the history in words: what changed, what carried it, how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_infer.metrics import Direction
from pytest_infer.report.breakdown import lasting
from pytest_infer.report.compare.headline import way, what
from pytest_infer.report.compare.words import p_value

if TYPE_CHECKING:
    from pytest_infer.analysis.history.events import Event, Moved
    from pytest_infer.analysis.history.trends import Told


def changes(event: Event) -> list[str]:
    """Return what changed, the first first: `decode 33 to 35 % slower in all 9 prompts`."""
    return [_change(one) for one in event.moved]


def _change(one: Moved) -> str:
    least, most = (f"{abs(100 * change):.{0 if abs(change) >= 0.0995 else 1}f}" for change in one.changes)
    mid = one.changes[1]
    worse = (mid > 0) == (one.metric.direction is Direction.LOWER)
    extent = f"{most} %" if least == most else f"{least} to {most} %"
    return f"{what(one.metric)} {extent} {way(one.metric, mid, worse=worse)}{_where(one)}"


def _where(one: Moved) -> str:
    if one.of == 1:
        return ""
    if len(one.shifts) == one.of:
        return f" in all {one.of} prompts"
    names = [shift.name for shift in one.shifts]
    return f" in {names[0]}" if len(names) == 1 else f" in {len(names)} of {one.of} prompts"


def reasons(event: Event) -> list[str]:
    """Return what carried it, of each phase that tells it: `experts +1.16 ms of +1.20 a step`."""
    several = len(event.carried) > 1
    said = []
    for one in event.carried:
        of = f" (mean of {one.tests} prompts)" if one.tests > 1 else ""
        said.append(f"{f'{one.change.phase}: ' if several else ''}{lasting.in_words(one.change)}{of}")
    return said


def unchanged(told: Told) -> str:
    """Return what there is to say where there is no change point."""
    if not told.judged:
        return "no change points: nothing can be judged yet"
    which = "of the figures that can be judged, each" if told.why_not else "every metric"
    return f"no change points: {which} has stayed at its level"


def unjudged(why_not: Iterable[str]) -> list[str]:
    """Return why figures could not be judged, the most frequent reason first."""
    counts = Counter(why_not).most_common()
    return [f"not judged: {count} figure{'' if count == 1 else 's'}, {why}" for why, count in counts]


def certainty(event: Event) -> str:
    """Return how sure it is: p, over how many runs, and why it may be the machine's after all."""
    runs = f"{event.before} run{'' if event.before == 1 else 's'} before it, {event.since} since"
    doubt = f"; but {event.doubt}" if event.doubt is not None else ""
    return f"{p_value(event.p)} for each figure, over {runs}{doubt}"
