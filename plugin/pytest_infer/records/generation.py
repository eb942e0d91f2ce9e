"""One generation: its limits, the stamps of its tokens, and its output."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class StopReason(StrEnum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP_STRING = "stop string"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a generation may do: its length, its stop strings, and whether an end-of-sequence id ends it.

    `batch` sequences, all of them the same prompt, are generated at once, until the first of them ends; None: one.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    batch: int | None = None

    @property
    def sequences(self) -> int:
        """Return how many sequences are generated at once."""
        return self.batch or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """The raw stamps of one generation, `time.perf_counter_ns` throughout.

    `stamps_ns[i]` is the moment when `tick_sizes[i]` tokens became available; `token_ids` are all of them in order.
    """

    prompt_tokens: int
    requested_tokens: int
    start_ns: int
    stamps_ns: tuple[int, ...]
    tick_sizes: tuple[int, ...]
    token_ids: tuple[int, ...]
    prefill_end_ns: int | None = None
    stopped_by: StopReason | None = None
    spanned: bool = False
    """Whether the engine reported spans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInfo:
    """The workload: which prompt, with which limits."""

    name: str
    content_sha256: str
    limits: Limits
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What was generated, and whether every round generated it.

    `first_difference` is (round, position): the first token that differs from round 0, counted from 0.
    """

    text: str
    sha256: str
    equal: bool
    first_difference: tuple[int, int] | None = None
