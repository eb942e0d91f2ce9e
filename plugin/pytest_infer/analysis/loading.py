"""Cold and warm loading of a model side by side: each figure's median and range, and rounds that were not as asked."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_infer.metrics import loading, timing
from pytest_infer.records import CacheState, LoadingRound, Reading
from pytest_infer.units import Unit, percent

ASKED = (CacheState.COLD, CacheState.WARM)


@dataclass(frozen=True, slots=True)
class LoadingMetric:
    """One figure of a round of loading."""

    key: str
    label: str
    unit: Unit
    read: Callable[[LoadingRound], Reading | float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over rounds: median, least and most; all None for the `reason`, where a round lacks it."""

    median: float | None = None
    least: float | None = None
    most: float | None = None
    reason: str | None = None


def _first_s(of: LoadingRound) -> float | None:
    return timing.total_s(of.first.trace)


def _again_s(of: LoadingRound) -> float | None:
    return timing.total_s(of.again.trace)


def _ready_s(of: LoadingRound) -> float | None:
    first = _first_s(of)
    return None if first is None else of.load_s + first


def _extra_s(of: LoadingRound) -> float | None:
    first, again = _first_s(of), _again_s(of)
    return None if first is None or again is None else first - again


FIGURES = (
    LoadingMetric("cached_percent", "cached before", Unit.PERCENT, lambda of: loading.cached_percent(of.load)),
    LoadingMetric("load_s", "loading", Unit.SECONDS, lambda of: of.load_s),
    LoadingMetric("first_token_s", "first token", Unit.SECONDS, _first_s),
    LoadingMetric("ready_s", "loading + first token", Unit.SECONDS, _ready_s),
    LoadingMetric("first_run_extra_s", "first-run extra", Unit.SECONDS, _extra_s),
    LoadingMetric("load_read_bytes", "read by loading", Unit.BYTES, lambda of: of.load.read_bytes),
    LoadingMetric("read_bytes", "read in all", Unit.BYTES, lambda of: of.whole.read_bytes),
    LoadingMetric("rss_anon_bytes", "anonymous", Unit.BYTES, lambda of: of.whole.rss_anon_bytes),
    LoadingMetric("rss_file_bytes", "file-backed", Unit.BYTES, lambda of: of.whole.rss_file_bytes),
    LoadingMetric("peak_rss_bytes", "peak memory", Unit.BYTES, lambda of: of.whole.peak_rss_bytes),
)
"""`ready_s` and those below `load_read_bytes` span the load and the first token: what is mapped is read by that one."""


def asked_for(state: CacheState, rounds: Sequence[LoadingRound]) -> list[LoadingRound]:
    """Return the rounds that were to be cold, or warm."""
    return [of for of in rounds if of.asked is state]


def value(figure: LoadingMetric, of: LoadingRound) -> float | None:
    """Return a figure of a round, None where it is absent."""
    read = figure.read(of)
    return read.value if isinstance(read, Reading) else read


def spread(figure: LoadingMetric, rounds: Sequence[LoadingRound]) -> Spread:
    """Return a figure over rounds."""
    values = []
    for of in rounds:
        read = figure.read(of)
        found = read.value if isinstance(read, Reading) else read
        if found is None:
            return Spread(reason=(read.reason if isinstance(read, Reading) else None) or "no token was generated")
        values.append(found)
    if not values:
        return Spread(reason="no such round")
    return Spread(median=statistics.median(values), least=min(values), most=max(values))


def doubts(rounds: Sequence[LoadingRound]) -> list[str]:
    """Return a line for each state of the page cache that could not be brought about, or not be seen."""
    lines = []
    for asked in ASKED:
        of_kind = asked_for(asked, rounds)
        wrong = [of for of in of_kind if loading.state(of.load.cached) is not asked]
        if wrong:
            lines.append(
                f"{len(wrong)} of {len(of_kind)} {asked.value} rounds were not {asked.value}: {_why(wrong[0])}"
            )
    return lines


def _why(of: LoadingRound) -> str:
    cached = of.load.cached
    if of.problem is not None:
        return of.problem
    if cached.value is None:
        return f"it is not known what was cached, {cached.reason}"
    share = percent(100 * cached.value)
    if of.asked is CacheState.COLD:
        return f"{share} of the files stayed in the page cache, as another process maps them or they lie in memory"
    return f"{share} of the files were in the page cache once they were read, so memory has no room for them"
