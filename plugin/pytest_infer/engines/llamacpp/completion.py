"""One prompt with its limits as llama-server's native completion takes it, and what comes back, token by token."""

from __future__ import annotations

import http.client
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_infer.engines.base import Clock, Sampling
from pytest_infer.engines.llamacpp.native import Native
from pytest_infer.errors import EngineError
from pytest_infer.records import TOP, Limits, Scores, StopReason

_STOPS = {"eos": StopReason.EOS, "word": StopReason.STOP_STRING, "limit": StopReason.LENGTH}
UNKNOWN = -1
"""Stands for an id that nobody told."""
_ROUNDING = 2.0**-23


class Completion:
    """A request that is made once and sent as often as there are rounds.

    llama-server sends nothing for tokens that end within a character, and of a finished character only the last id:
    the others are asked for once, without streaming, and are part of the tick that brings the character. A round that
    generated something else asks again, and where that is no answer either they stay UNKNOWN.

    With `follow` a grammar of token ids leaves nothing else to choose: the highest is chosen first, and replaced where
    it is another.
    """

    def __init__(
        self,
        native: Native,
        prompt_ids: Sequence[int],
        limits: Limits,
        sampling: Sampling | None,
        *,
        scored: bool = False,
        follow: Sequence[int] | None = None,
    ) -> None:
        self.given, self.limits, self.scored, self.followed = prompt_ids, limits, scored, follow
        self._native = native
        self._body: dict[str, Any] = {
            "prompt": list(prompt_ids),
            "n_predict": limits.max_new_tokens,
            "ignore_eos": limits.ignore_eos,
            "stop": list(limits.stop),
            "return_tokens": True,
            "cache_prompt": False,
            **_decoding(sampling),
            **({"n_probs": TOP} if scored else {}),
            **({} if follow is None else _following(follow)),
        }
        self._streamed = json.dumps(self._body | {"stream": True}).encode()
        self._connection: http.client.HTTPConnection | None = None
        self._whole: list[int] = []
        self._rows: list[Mapping[str, Any]] = []
        self._ticks: list[list[int]] = []
        self._seen = 0

    @property
    def filled(self) -> int:
        """Return the positions of the KV cache that the last generation filled: its last token is not fed back."""
        return len(self.given) + max(0, self._seen - 1)

    def of(self, prompt_ids: Sequence[int], limits: Limits, scored: bool, follow: Sequence[int] | None) -> bool:
        """Return whether it is the request for these."""
        asked = (self.limits, self.scored, self.followed)
        return self.given is prompt_ids and asked == (limits, scored, follow)

    def connect(self) -> None:
        """Open the connection of the next generation."""
        self.close()
        self._connection = self._native.connection()

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def run(self, clock: Clock) -> StopReason | None:
        """Generate, and tick with each token that arrives."""
        connection = self._connection or self._native.connection()
        self._rows, self._ticks = [], []
        end: dict[str, Any] = {}
        self._seen = 0
        for event in self._native.stream(connection, self._streamed):
            ids, known = event["tokens"], event["tokens_predicted"]
            if known > self._seen:
                # The clock keeps this very list, so that `settle` can fill in ids which are not sent.
                ids = [UNKNOWN] * (known - self._seen - len(ids)) + ids
                self._seen = known
                clock.tick(ids)
                self._ticks.append(ids)
            if event["stop"]:
                end = event
                break
            self._rows += event.get("completion_probabilities", ())
        self.close()
        if self.followed is not None and self._seen < len(self.followed):
            raise EngineError("llama.cpp ends with a token that ends a text: it cannot follow what comes after one")
        cached = end.get("timings", {}).get("cache_n")
        clock.reported(prompt=end.get("tokens_evaluated"), generated=self._seen, cached=cached, allowed=0)
        return _STOPS.get(str(end.get("stop_type")))

    def settle(self) -> None:
        """Fill in the ids that were not sent, from a generation with the same ids wherever they were."""
        if not any(UNKNOWN in ids for ids in self._ticks):
            return
        if not self._agrees():
            self._whole = self._native.ask("/completion", self._body | {"stream": False})["tokens"]
        if not self._agrees():
            return
        first = 0
        for ids in self._ticks:
            ids[:] = self._whole[first : first + len(ids)]
            first += len(ids)

    def _agrees(self) -> bool:
        """Return whether the one that is known whole is as long as the last one, and has the ids that it sent."""
        sent = [one for ids in self._ticks for one in ids]
        same = (own in (one, UNKNOWN) for own, one in zip(sent, self._whole, strict=False))
        return len(sent) == len(self._whole) and all(same)

    def scores(self, vocabulary: int) -> Scores | None:
        """Return the scores of the last generation; None where not every token came with its own."""
        tokens = self._seen
        if not self.scored or len(self._rows) != tokens or not tokens:
            return None
        width = min(TOP, vocabulary)
        tops = [[(one["id"], one["logprob"]) for one in row["top_logprobs"]][:width] for row in self._rows]
        if any(len(top) < width for top in tops):
            return None
        rest = [_rest([found for _, found in top], vocabulary - width) for top in tops]
        return Scores(
            sequences=1,
            positions=tokens,
            width=width,
            vocabulary=vocabulary,
            tokens=struct.pack(f"<{tokens}i", *(row["id"] for row in self._rows)),
            chosen=struct.pack(f"<{tokens}f", *(row["logprob"] for row in self._rows)),
            top_ids=struct.pack(f"<{tokens * width}i", *(number for top in tops for number, _ in top)),
            top=struct.pack(f"<{tokens * width}f", *(found for top in tops for _, found in top)),
            rest=struct.pack(f"<{tokens}f", *(math.log(one) if one else -math.inf for one in rest)),
        )


def _rest(top: Sequence[float], others: int) -> float:
    """Return what so many other tokens have together, each no more than the least of these.

    What is left of 1 is known to float32's rounding alone: less than that counts as that much, but for none as none.
    """
    return min(max(_ROUNDING, 1.0 - math.fsum(map(math.exp, top))), others * math.exp(min(top)))


def _following(tokens: Sequence[int]) -> dict[str, Any]:
    """Return what leaves these tokens alone to be generated: a grammar as llguidance reads it."""
    ids = " ".join(f"<[{number}]>" for number in tokens)
    return {
        "n_predict": len(tokens),
        "stop": [],
        "ignore_eos": False,
        "grammar": f"%llguidance {{}}\nstart: {ids}\n",
    }


def _decoding(sampling: Sampling | None) -> dict[str, Any]:
    """Return what chooses a token: the highest logit, or temperature and top_p alone, from the same seed."""
    if sampling is None:
        return {"samplers": ["temperature"], "temperature": 0.0}
    return {
        "samplers": ["top_p", "temperature"],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
    }
