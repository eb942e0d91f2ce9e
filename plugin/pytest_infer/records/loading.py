"""Loading a model: what the page cache held before it, what was read, and the memory it took."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pytest_infer.records.counters import Counters
from pytest_infer.records.reading import NOT_READ, Reading
from pytest_infer.records.rounds import Round


class CacheState(StrEnum):
    """Where a load read its files from: the device, the page cache, or some of both."""

    COLD = "cold"
    WARM = "warm"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """One load of a model into this process.

    `cached` is the share of the weight files' pages that the page cache held right before it, 0 to 1. `read_bytes`
    came from the device meanwhile. Resident sizes are those of the whole process, libraries included, right after it;
    `peak_rss_bytes` is the high-water mark within it, and `anon_growth_bytes` the anonymous memory that it added.
    """

    cached: Reading
    read_bytes: Reading
    rss_anon_bytes: Reading
    rss_file_bytes: Reading
    peak_rss_bytes: Reading
    anon_growth_bytes: Reading = NOT_READ


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingRound:
    """One load in a fresh process, with the page cache in the state `asked`, and two generations of one token after it.

    `first` may read weights that are mapped and were not touched by the load; `again` is the same work repeated.
    `whole` spans the load and `first`. `problem` says why the cache could not be brought into that state.
    """

    asked: CacheState
    model: str
    load_s: float
    load: Loading
    first: Round
    again: Round
    whole: Counters
    file_bytes: int | None = None
    problem: str | None = None
