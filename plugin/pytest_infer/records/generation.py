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
class Reported:
    """What a server counted of a generation: tokens of the prompt, those generated, and those of the prompt it cached.

    None where it did not say. `allowed` is the most that may be cached, None: any number.
    """

    prompt: int | None = None
    generated: int | None = None
    cached: int | None = None
    allowed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """The raw stamps of one generation, `time.perf_counter_ns` throughout.

    `stamps_ns[i]` is the moment when `tick_sizes[i]` tokens became available; `token_ids` are all of them in order, or
    none where only their `texts` are known, one a tick. `reported` is what a server counted.
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
    texts: tuple[str, ...] | None = None
    reported: Reported | None = None

    @property
    def said(self) -> tuple[int, ...] | str:
        """Return what was generated, to be compared: ids, or the text where there are none."""
        return self.token_ids if self.texts is None else "".join(self.texts)


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

    `first_difference` is (round, position): the first token that differs from round 0, counted from 0. `by` is "text"
    where rounds were compared by it, as nobody told the ids: then positions are characters. Rounds that are not of the
    same prompt, for the reason in `varied`, are not compared: no difference is found between them.
    """

    text: str
    sha256: str
    equal: bool
    first_difference: tuple[int, int] | None = None
    by: str | None = None
    varied: str | None = None
