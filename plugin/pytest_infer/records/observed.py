"""Whose counters count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The processes that do an engine's work, where that is not this one: `pids`, each with all its children.

    `absent` says why they cannot be observed (a server on another machine); `pids` is empty then. `source` says how
    they were found. `started`: they were started for this load, so that whatever they did since is part of it.
    """

    pids: tuple[int, ...] = ()
    absent: str | None = None
    source: str = ""
    started: bool = False
