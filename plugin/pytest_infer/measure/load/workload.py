"""What a level of load asks for: the suite's prompts in turns, each request with a number of its own ahead of it."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_infer.errors import OptionError, SuiteError, alternatives
from pytest_infer.measure.load.trace import Trace
from pytest_infer.prompts import Prompt
from pytest_infer.records import Level, LevelKind

STREAM_REQUESTS = 4
"""A stream sends at least so many requests: the first and the last of them are cut."""
NONCE_DIGITS = 8
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SYNTHETIC = (
    *("prompt_tokens", "prompt_tokens_stdev", "prompt_tokens_min", "prompt_tokens_max"),
    *("output_tokens", "output_tokens_stdev", "output_tokens_min", "output_tokens_max"),
    *("prefix_tokens", "prefix_count"),
)
"""What synthetic prompts are described by, in the generator's own words."""


FILES = ("tokenizer", "trace")
MOST_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """Prompts that the generator makes up: their `counts` of tokens, as they were given, by the tokenizer of a folder.

    Without a `tokenizer` it is that of the model. A `trace` is a file of when each request comes, and its counts.
    """

    counts: Mapping[str, int]
    tokenizer: str | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the requests of a level ask for.

    `synthetic` are the counts of prompts that the generator makes up with the tokenizer in the folder `tokenizer`; the
    suite's `prompts`, with their limits, are then not used. `tokenizer_sha256` is the hash of that tokenizer where it
    was named: it is then part of the work. `bust` puts a number ahead of each prompt, other in every request.
    """

    prompts: tuple[tuple[Prompt, int], ...] = ()
    synthetic: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str | None = None
    tokenizer_sha256: str | None = None
    trace: Trace | None = None
    bust: bool = True

    @property
    def path(self) -> str:
        """Return the path that requests go to; raise SuiteError for a suite of texts and of dialogues."""
        dialogues = [bool(prompt.messages) for prompt, _ in self.prompts]
        if any(dialogues) and not all(dialogues):
            raise SuiteError(
                "a load test asks for texts or for dialogues (messages), and this suite has both: name a suite of one "
                "kind with --infer-prompts FILE, or describe prompts with --infer-load-data"
            )
        return CHAT if any(dialogues) else COMPLETIONS

    @property
    def sha256(self) -> str:
        """Return the hash of what is asked for: prompts in their order with their limits, or the description."""
        asked: Any = [[prompt.content_sha256, limit] for prompt, limit in self.prompts] or dict(self.synthetic)
        asked = asked if self.trace is None else self.trace.sha256
        asked = asked if self.tokenizer_sha256 is None else [asked, self.tokenizer_sha256]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def told(self) -> str | None:
        """Return the description of synthetic prompts as it was given; None for a suite's."""
        told: dict[str, Any] = {**self.synthetic} if self.trace is None else {"trace": self.trace.path.name}
        if self.tokenizer is not None and self.tokenizer_sha256 is not None:
            told["tokenizer"] = Path(self.tokenizer).name
        return ",".join(f"{key}={value}" for key, value in told.items()) or None

    @property
    def made_up(self) -> bool:
        """Return whether the generator makes up the prompts."""
        return bool(self.synthetic) or self.trace is not None

    @property
    def shares(self) -> bool:
        """Return whether prompts are to begin as others do, so that a server may have some of their tokens cached."""
        mooncake = self.trace is not None and self.trace.mooncake
        return not self.bust or "prefix_tokens" in self.synthetic or mooncake


def number_of_requests(level: Level, wanted: int) -> int:
    """Return how many requests a repetition sends."""
    return max(wanted, STREAM_REQUESTS * int(level.value or 1)) if level.kind is LevelKind.CONCURRENCY else wanted


def rows(work: Workload, number: int, seed: int, salt: str) -> Iterator[dict[str, Any]]:
    """Yield the requests of a repetition as the generator's data: equally many of each prompt, in random order.

    Order follows from the `seed`, so that both sides of a comparison have the same; the numbers ahead of the prompts
    follow from the `salt` of a run as well, as a server may remember those of the last one.
    """
    digest = hashlib.sha256(f"{salt}/{seed}".encode()).digest()
    begin = int.from_bytes(digest[:8], "big")
    order = [work.prompts[index % len(work.prompts)] for index in range(number)]
    random.Random(seed).shuffle(order)  # noqa: S311
    for index, (prompt, limit) in enumerate(order):
        nonce = f"{_nonce(begin + index)} " if work.bust else ""
        row: dict[str, Any] = {"output_tokens_count": limit}
        if prompt.messages:
            messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
            messages[0]["content"] = nonce + messages[0]["content"]
            row["messages"] = messages
        else:
            row["prompt"] = nonce + (prompt.text or "")
        yield row


def _nonce(number: int) -> str:
    """Return a number's digits, the last one first: prompts whose numbers follow each other begin with another."""
    return f"{number % 10**NONCE_DIGITS:0{NONCE_DIGITS}d}"[::-1]


def synthetic(text: str, where: str) -> Synthetic:
    """Return the description of synthetic prompts; raise OptionError naming the option `where` for a wrong one."""
    found: dict[str, int] = {}
    files: dict[str, str] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key in found or key in files:
            raise OptionError(f"{where}: {key} stands there twice")
        if key in FILES:
            files[key] = value
            continue
        if key not in SYNTHETIC:
            raise OptionError(f"{where}: {alternatives('key', key, (*SYNTHETIC, *FILES))}")
        if not value.isdecimal() or len(value) > MOST_DIGITS or not int(value):
            raise OptionError(f"{where}: {key} takes a whole number above 0, not {value!r}")
        found[key] = int(value)
    for key in ("prompt_tokens", "output_tokens"):
        if f"{key}_min" in found and found[f"{key}_min"] > found.get(f"{key}_max", math.inf):
            raise OptionError(f"{where}: {key}_min is above {key}_max")
    missing = [key for key in ("prompt_tokens", "output_tokens") if key not in found]
    if found and "trace" in files:
        raise OptionError(f"{where}: a trace has its own counts: leave out {', '.join(found)}")
    if missing and "trace" not in files:
        raise OptionError(f"{where} lacks {' and '.join(missing)}, or trace=FILE")
    return Synthetic(counts=found, **files)


def seeds(repetitions: int) -> Sequence[int]:
    """Return the seed of each repetition: other arrivals and another order each time, the same ones in every run."""
    return range(1, repetitions + 1)
