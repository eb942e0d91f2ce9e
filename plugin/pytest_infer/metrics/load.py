"""Figures of a load test, one a repetition, from the stamps of its requests within the steady part of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pytest_infer.metrics.read import MetricValue, Read
from pytest_infer.metrics.timing import percentile
from pytest_infer.records import (
    Level,
    LevelKind,
    LoadRequest,
    Objectives,
    PromptRecord,
    Repetition,
    RequestStatus,
    UnderLoad,
    absent,
)

CUT = 0.1
"""This share of the requests is warm-up, and as many again are cool-down (own choice); at least one a stream."""
PREFIX = "level_"
"""What the keys of all these metrics begin with."""
COUNTED = (
    *("cpu_s", "peak_rss_bytes", "server_prompt_tokens", "server_cached_tokens"),
    *("server_running", "server_waiting", "server_kv_usage"),
)
"""The counters that a repetition has as a round does: of the server's processes, and what it tells of itself."""
NO_LEVEL = "no load test"
_NONE_DONE = "no request was answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The steady part of a repetition, from `begin_s` to `end_s`.

    `offered` are the requests that were due in it (of streams: sent in it), whenever they ended. `known` are all
    requests with a beginning, which fill the server before and after as well.
    """

    begin_s: float
    end_s: float
    offered: tuple[LoadRequest, ...]
    known: tuple[LoadRequest, ...]
    of: UnderLoad

    @property
    def length_s(self) -> float:
        """Return how long it lasts."""
        return self.end_s - self.begin_s

    @property
    def done(self) -> list[LoadRequest]:
        """Return the offered requests that were answered."""
        return [r for r in self.offered if r.status is RequestStatus.DONE]

    def began(self, request: LoadRequest) -> float:
        """Return when a request began: when it was due, as a user waits from then; a stream's when it was sent."""
        return began(request, self.of)


def began(request: LoadRequest, of: UnderLoad) -> float:
    """Return from when a request's latency counts; infinity where it never began."""
    at = request.due_s if of.level.scheduled else request.sent_s
    return math.inf if at is None else at


def cut(number: int, level: Level) -> int:
    """Return how many of so many requests are warm-up, and as many again cool-down."""
    return max(math.ceil(CUT * number), int(level.value or 1) if level.kind is LevelKind.CONCURRENCY else 1)


def steady(repetition: Repetition, of: UnderLoad) -> Steady | None:
    """Return the steady part; None where too few requests began.

    It begins with the first request after the warm-up and ends where that of the cool-down begins: the last requests
    meet a server that empties. Of all at once nothing is steady: then it is everything.
    """
    known = sorted((r for r in repetition.requests if began(r, of) < math.inf), key=lambda r: began(r, of))
    if of.level.kind is LevelKind.THROUGHPUT:
        ends = [r.end_s for r in known if r.end_s is not None]
        if not ends:
            return None
        return Steady(begin_s=began(known[0], of), end_s=max(ends), offered=tuple(known), known=tuple(known), of=of)
    left_out = cut(len(known), of.level)
    if len(known) < 2 * left_out + 1:
        return None
    begin, end = began(known[left_out], of), began(known[-left_out], of)
    offered = tuple(r for r in known if begin <= began(r, of) < end)
    return Steady(begin_s=begin, end_s=end, offered=offered, known=tuple(known), of=of) if end > begin else None


def tpot_s(request: LoadRequest) -> float | None:
    """Return the time per output token of one request: first to last token / tokens after the first, seconds."""
    tokens = request.output_tokens or 0
    if request.first_s is None or request.last_s is None or tokens < 2:
        return None
    return (request.last_s - request.first_s) / (tokens - 1)


def good(request: LoadRequest, part: Steady, objectives: Objectives) -> bool:
    """Return whether a request was answered and kept all objectives; one without the figure did not."""
    if request.status is not RequestStatus.DONE:
        return False
    begin = part.began(request)
    measured = (
        (objectives.ttft_s, None if request.first_s is None else request.first_s - begin),
        # A single token has no time per output token: it cannot be late.
        (objectives.tpot_s, 0.0 if request.output_tokens == 1 else tpot_s(request)),
        (objectives.latency_s, None if request.end_s is None else request.end_s - begin),
    )
    return all(most is None or (value is not None and value <= most) for most, value in measured)


# figures of the steady part


def output_tokens(part: Steady) -> int:
    """Return the tokens of the answers that ended in the steady part."""
    return sum(
        r.output_tokens or 0
        for r in part.known
        if r.status is RequestStatus.DONE and r.end_s is not None and part.begin_s < r.end_s <= part.end_s
    )


def s_per_token(part: Steady) -> float | None:
    """Return the system's time per output token, all requests together, seconds."""
    tokens = output_tokens(part)
    return part.length_s / tokens if tokens else None


def throughput(part: Steady) -> float:
    """Return output tokens per second of all requests together."""
    return output_tokens(part) / part.length_s


def offered_rate(part: Steady) -> float:
    """Return the requests per second that came."""
    return len(part.offered) / part.length_s


def good_rate(part: Steady) -> float:
    """Return goodput: the requests per second that came and were answered as the objectives ask."""
    return sum(good(r, part, part.of.objectives) for r in part.offered) / part.length_s


def misses(part: Steady) -> float:
    """Return 1 - goodput / offered, percent."""
    return 100 * (1 - sum(good(r, part, part.of.objectives) for r in part.offered) / len(part.offered))


def in_flight(part: Steady) -> float:
    """Return the mean number of requests that had begun and not ended."""
    return sum(_within(part, part.began(r), r.end_s) for r in part.known) / part.length_s


def at_work(part: Steady) -> float:
    """Return the mean number of requests that were sent and not ended."""
    return sum(_within(part, r.sent_s, r.end_s) for r in part.known if r.sent_s is not None) / part.length_s


def _within(part: Steady, begin: float | None, end: float | None) -> float:
    if begin is None:
        return 0.0
    return max(0.0, min(part.end_s if end is None else end, part.end_s) - max(begin, part.begin_s))


def by_littles_law(part: Steady) -> float | None:
    """Return the number in flight by Little's law (1961): rate of arrivals × mean time from beginning to end."""
    times = [r.end_s - part.began(r) for r in part.offered if r.end_s is not None]
    return offered_rate(part) * statistics.fmean(times) if times else None


def dispatch_s(part: Steady) -> list[float]:
    """Return how late each request was sent, seconds: what its sender itself adds to the latency."""
    found = [(r.due_s, r.sent_s) for r in part.offered]
    return [max(0.0, sent - due) for due, sent in found if sent is not None and due is not None]


def latencies_s(part: Steady) -> list[float]:
    """Return the time from the beginning to the end of each answered request, seconds."""
    return [r.end_s - part.began(r) for r in part.done if r.end_s is not None]


def ttfts_s(part: Steady) -> list[float]:
    """Return the time from the beginning to the first token of each answered request, seconds."""
    return [r.first_s - part.began(r) for r in part.done if r.first_s is not None]


def tpots_s(part: Steady) -> list[float]:
    """Return the time per output token of each answered request, seconds."""
    return [tpot for r in part.done if (tpot := tpot_s(r)) is not None]


def cached_percent(part: Steady) -> float | None:
    """Return the share of the prompts' tokens that the server had cached, percent; None where it does not say."""
    told = [r for r in part.done if r.cached is not None and r.prompt_tokens]
    prompts = sum(r.prompt_tokens or 0 for r in told)
    return 100 * sum(r.cached or 0 for r in told) / prompts if prompts else None


# how the table reads them


def each(read: Callable[[Steady], float | None], why: str = _NONE_DONE) -> Read:
    """Read a value from the steady part of each repetition."""

    def values(record: PromptRecord) -> list[MetricValue]:
        of = record.under_load
        if of is None:
            return [absent(NO_LEVEL)]
        found: list[MetricValue] = []
        for repetition in of.repetitions:
            part = steady(repetition, of)
            value = None if part is None else read(part)
            found.append(absent("too few requests began" if part is None else why) if value is None else value)
        return found

    return values


def each_percentile(percent: int, read: Callable[[Steady], Sequence[float]], why: str = _NONE_DONE) -> Read:
    """Read a percentile over the requests of each repetition."""
    return each(lambda part: percentile(read(part), percent), why)


def durations(of: UnderLoad) -> list[float]:
    """Return the system's time per output token of each repetition, seconds; nothing where one has none."""
    parts = [steady(repetition, of) for repetition in of.repetitions]
    found = [None if part is None else s_per_token(part) for part in parts]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else []


def errors(requests: Iterable[LoadRequest]) -> dict[str, int]:
    """Return how many requests failed or were cancelled, by what was said of it, the most frequent first."""
    counts: dict[str, int] = {}
    for request in requests:
        if request.status is not RequestStatus.DONE:
            said = request.error or request.status.value
            counts[said] = counts.get(said, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
