"""What of a level must be read with care: a sender that is the bottleneck, a queue that grows, requests that failed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from pytest_infer.metrics import load
from pytest_infer.metrics.load import Steady
from pytest_infer.metrics.timing import percentile
from pytest_infer.records import LevelKind, MeasurementWarning, UnderLoad, WarningKind
from pytest_infer.units import percent, seconds, significant

CLIENT = 0.1
"""A sender marks a level from this share on: of the median TTFT that its delay is, of their time that streams idle."""
LITTLE = 0.1
"""How far the number in flight may be from that by Little's law, as a share of it (own choice)."""
CACHED = 5.0
"""From so many percent of the prompts' tokens in the server's cache on, which was to be kept out of it."""


def find(of: UnderLoad, *, bust: bool) -> tuple[MeasurementWarning, ...]:
    """Return the warnings of a level, each with its numbers and what to do; `bust` says that no prompt was repeated."""
    parts = [part for repetition in of.repetitions if (part := load.steady(repetition, of)) is not None]
    found = [_failed(of), _client(parts, of), _unsteady(parts, of), _cached(parts) if bust else None]
    return tuple(warning for warning in found if warning is not None)


def _failed(of: UnderLoad) -> MeasurementWarning | None:
    requests = [request for repetition in of.repetitions for request in repetition.requests]
    errors = load.errors(requests)
    lost = sum(max(0, (repetition.asked or 0) - len(repetition.requests)) for repetition in of.repetitions)
    parts = []
    if errors:
        said, number = next(iter(errors.items()))
        more = f", and {sum(errors.values()) - number} more" if len(errors) > 1 else ""
        parts.append(
            f"{sum(errors.values())} of {len(requests)} requests have no answer ({number}: {said}{more}): misses"
        )
    if lost:
        parts.append(f"{lost} are in no figure: they were not due before the end, or {of.generator} lost them")
    return MeasurementWarning(kind=WarningKind.REQUESTS_FAILED, text="; ".join(parts)) if parts else None


def _client(parts: list[Steady], of: UnderLoad) -> MeasurementWarning | None:
    if of.level.scheduled:
        found = [late for part in parts if (late := _lateness(part)) is not None]
        late = max(found, key=lambda one: one[0] / one[1] if one[1] else 0.0, default=None)
        if late is None or late[0] < CLIENT * late[1]:
            return None
        what = (
            f"1 % of the requests were sent {seconds(late[0])} late or more, beside a median TTFT of {seconds(late[1])}"
        )
    elif of.level.kind is LevelKind.CONCURRENCY:
        streams = of.level.value or 1
        idle = max((1 - load.at_work(part) / streams for part in parts), default=0.0)
        if idle < CLIENT:
            return None
        what = f"streams had nothing in flight for {percent(100 * idle)} of the time"
    else:
        return None
    text = f"{what}: the sender is the bottleneck; give it cores of its own, or another machine"
    return MeasurementWarning(kind=WarningKind.CLIENT_BOUND, text=text)


def _lateness(part: Steady) -> tuple[float, float] | None:
    delay, ttft = percentile(load.dispatch_s(part), 99), percentile(load.ttfts_s(part), 50)
    return None if delay is None or ttft is None else (delay, ttft)


def _unsteady(parts: list[Steady], of: UnderLoad) -> MeasurementWarning | None:
    if of.level.kind is LevelKind.THROUGHPUT:
        return None
    found = list(_littles(parts))
    if not found:
        return None
    # Over all repetitions: one alone is short, and what is in flight at its ends differs by chance.
    flight, law = (statistics.fmean(values) for values in zip(*found, strict=True))
    if abs(flight - law) <= LITTLE * law:
        return None
    replay = of.level.kind is LevelKind.REPLAY
    text = (
        f"{significant(flight)} requests in flight, and {significant(law)} by Little's law: arrivals and answers do "
        f"not balance; {'a longer trace' if replay else 'more requests (--infer-load-requests)'}, or a lower level"
    )
    return MeasurementWarning(kind=WarningKind.UNSTEADY, text=text)


def _littles(parts: list[Steady]) -> Iterator[tuple[float, float]]:
    for part in parts:
        law = load.by_littles_law(part)
        if law:
            yield load.in_flight(part), law


def _cached(parts: list[Steady]) -> MeasurementWarning | None:
    shares: list[float] = _known(parts, load.cached_percent)
    if not shares or max(shares) < CACHED:
        return None
    text = f"the server had {percent(max(shares))} of the prompts' tokens cached, though each request differs"
    return MeasurementWarning(kind=WarningKind.CACHED, text=text)


def _known(parts: list[Steady], read: Callable[[Steady], float | None]) -> list[float]:
    return [value for part in parts if (value := read(part)) is not None]
