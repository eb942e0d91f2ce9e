"""Whose counters are a model's, where it does not run in this process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The processes that run a model: by their ids, their children included, and where these are from.

    `absent` says why nobody's counters can be read, as for a server on another machine.
    """

    pids: tuple[int, ...] = ()
    absent: str | None = None
    source: str
