"""What disturbed rounds keep a comparison from telling."""

from __future__ import annotations

import math

from pytest_infer.analysis.compare import earlier
from pytest_infer.analysis.compare.verdicts import limit, worse_sign
from pytest_infer.metrics import Kind, Metric
from pytest_infer.records import Quality
from pytest_infer.storage.runs import Row

MOST = 0.5
"""A side of which more than this share of the rounds was disturbed tells of the machine as much as of the code."""

APART = 0.5
"""Sides whose rounds alternate share what disturbs them; this far apart in their shares, they did not."""

CLIENT = 0.1
"""A client that waited for a core for more than this share of a round saw a server's tokens late, and many at once."""

INDIRECT = 1.5
"""A disturbance costs so many times the wait that is counted: caches are cold after it."""

_EXPLAINS, _HIDES = "explains the change", "may hide a change"


def mostly(row: Row) -> bool:
    """Return whether most rounds of a test were disturbed."""
    return _share(row) > MOST


def doubt(metric: Metric, before: Row, after: Row, *, side_by_side: bool, threshold: float) -> str | None:
    """Return why a change of a metric cannot be told from what disturbed the rounds, or None where it can.

    `side_by_side`: the rounds of both sides alternated in one run. What is within `threshold` counts as no change.
    """
    late = max(map(_client_waited, (before, after)))
    if late > CLIENT and metric.kind is Kind.TIMED:
        told = f"the client waited {100 * late:.0f} % of the time for a core, and saw the server's tokens late"
        return f"{told}: end what else runs, and measure again"
    sides = [(row, which) for row, which in ((before, "the earlier run"), (after, "this run")) if mostly(row)]
    if not (sides or side_by_side) or not _moved(metric, before, after):
        return None
    if side_by_side:
        what = None if abs(_share(before) - _share(after)) < APART else _does(metric, before, after, threshold)
        if what is None:
            return None
        told = f"{_count(before)} rounds of the other side and {_count(after)} of this one were disturbed"
        return f"{told}, which {what}: end what else runs, and measure again"
    counts = " and ".join(
        f"{_count(row)} {'' if number else 'rounds '}of {which}" for number, (row, which) in enumerate(sides)
    )
    return f"{counts} were disturbed: measure again when nothing else runs, or {earlier.remedy(after)}"


def _client_waited(row: Row) -> float:
    """Return the share of a typical round for which the client of a server waited for a core; 0 where it is none."""
    wait = _median(row, "client_wait_s")
    total = _median(row, "total_s") if wait else None
    return wait / total if wait and total else 0.0


def _does(metric: Metric, before: Row, after: Row, threshold: float) -> str | None:
    """Return what the sides' waiting for cores may do to a change, None for nothing: slower code is disturbed longer.

    Where the side that is better waited longer, it hides some of the change; what is seen of it was not caused by it.
    """
    values = [row.metrics[metric.key].value for row in (before, after)]
    a, b = (0.0 if isinstance(value, str) else float(value) for value in values)
    waited = [_waited(row) for row in (before, after)]
    if min(a, b) <= 0 or math.inf in waited:
        return _EXPLAINS
    worse, longer = worse_sign(metric) * math.log(b / a), waited[1] - waited[0]
    if abs(worse) > (limit(metric, threshold) if worse * longer < 0 else INDIRECT * abs(longer)):
        return None
    return _EXPLAINS if worse * longer > 0 else _HIDES


def _waited(row: Row) -> float:
    """Return what waiting for cores and the host did to a test's times, as a log-ratio; infinite if nothing tells."""
    keys = ("run_queue_wait_s", "cpu_s", "steal_s", "total_s", "other_cpu_s")
    wait, cpu, steal, total, others = (_median(row, key) for key in keys)
    if (wait is None or cpu is None) and steal is None:
        return math.inf if row.disturbed else 0.0
    lost = 0.0 if wait is None or not cpu else wait / (wait + cpu)
    # As in `measure.disturbance`: the steal is that of all cores that work.
    working = sum(filter(None, (cpu, others, steal)))
    stolen = 0.0 if steal is None or not total else steal / max(total * (row.machine.usable_cores or 1.0), working)
    return -math.log1p(-min(lost, 0.99)) - math.log1p(-min(stolen, 0.99))


def _median(row: Row, key: str) -> float | None:
    found = row.metrics.get(key)
    return None if found is None or isinstance(found.value, str) else float(found.value)


def _moved(metric: Metric, before: Row, after: Row) -> bool:
    """Return whether a disturbance moves a metric that both have; one that is counted here may be sampled elsewhere."""
    values = [row.metrics.get(metric.key) for row in (before, after)]
    if None in values:
        return False
    return metric.moved_by_load or any(found is not None and found.quality == Quality.SAMPLED for found in values)


def _share(row: Row) -> float:
    return len(row.disturbed) / row.timed if row.timed else 0.0


def _count(row: Row) -> str:
    return f"{len(row.disturbed)} of {row.timed}"
