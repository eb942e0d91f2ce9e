"""What generate() is given for one prompt and its limits, made once and outside the clock: ids, configuration, ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StoppingCriteriaList, StopStringCriteria
from transformers.generation import stopping_criteria

from pytest_infer.engines.transformers import decoding, devices
from pytest_infer.engines.transformers.scores import Follow
from pytest_infer.errors import SuiteError
from pytest_infer.records import Limits, StopReason

Criterion = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with its limits: `ids` and `mask` are on the model's device, of shape (sequences, prompt tokens).

    `given` is the very list that was asked for and `tokens` what it held, `criteria` what ends the generation beside
    the configuration, `stops` the criterion of the stop strings, `ends` the ids that end a sequence. `follow` gives the
    tokens that are to be generated, which then nothing else ends.
    """

    given: Sequence[int]
    tokens: tuple[int, ...]
    limits: Limits
    ids: torch.Tensor
    mask: torch.Tensor
    config: Any
    criteria: StoppingCriteriaList
    stops: Criterion | None
    ends: frozenset[int]
    follow: Follow | None = None

    def stopped_by(self, sequences: torch.Tensor) -> StopReason | None:
        """Return why the first of the sequences that generate() returned, prompt included, has ended."""
        new = sequences.shape[1] - self.ids.shape[1]
        if new and int(sequences[0, -1]) in self.ends:
            return StopReason.EOS
        # Asked of the criterion itself, which sees the prompt too: it may have held with the last token allowed.
        if self.stops is not None and bool(self.stops(sequences[:1], None).all()):
            return StopReason.STOP_STRING
        # Tokens that are followed end where those of the reference did, whatever its limit was.
        return StopReason.LENGTH if self.follow is not None or new >= self.limits.max_new_tokens else None


class Requests:
    """Makes requests and keeps the last one, and the criterion of each set of stop strings, for a model's lifetime."""

    def __init__(self, config: Any, tokenizer: Any, model: Any) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._model = model
        self._follow: tuple[int, ...] | None = None
        self._last: Request | None = None
        self._stops: dict[tuple[str, ...], StopStringCriteria] = {}

    def follow(self, tokens: Sequence[int] | None) -> None:
        """Let requests generate these tokens, or with None what is chosen."""
        wanted = None if tokens is None else tuple(tokens)
        if wanted != self._follow:
            self._follow, self._last = wanted, None

    def of(self, prompt_ids: Sequence[int], limits: Limits) -> Request:
        """Return the request that these make, the last one if it is the same.

        Raises:
            SuiteError: no token of the model can be part of a stop string.
        """
        last, tokens = self._last, tuple(prompt_ids)
        if last is None or last.given is not prompt_ids or last.tokens != tokens or last.limits != limits:
            self._last = last = self._made(prompt_ids, tokens, limits)
        return last

    def prepared(self, prompt_ids: Sequence[int], limits: Limits) -> Request:
        """Return the last request if it was made of this very list, without looking into it, or make it now."""
        last = self._last
        return last if last and last.given is prompt_ids and last.limits == limits else self.of(prompt_ids, limits)

    def _made(self, prompt_ids: Sequence[int], tokens: tuple[int, ...], limits: Limits) -> Request:
        ids = torch.tensor([tokens] * limits.sequences, device=devices.home(self._model))
        stops = self._criterion(limits.stop) if limits.stop else None
        ends = frozenset(decoding.ends(self._config, limits))
        together = limits.sequences > 1
        # In a batch the first sequence alone decides when all of them end, and not each when it ends itself.
        config = decoding.limited(self._config, limits, ignore_eos=limits.ignore_eos or together)
        criteria = [_first_ended(ends, stops, ids.device)] if together else [stops] if stops is not None else []
        follow = None
        if self._follow is not None:
            follow = Follow(self._follow, limits.sequences, self._model)
            given = replace(limits, max_new_tokens=len(self._follow))
            config, criteria = decoding.limited(self._config, given, ignore_eos=True), []
        return Request(
            given=prompt_ids,
            tokens=tokens,
            limits=limits,
            ids=ids,
            mask=torch.ones_like(ids),
            config=config,
            criteria=StoppingCriteriaList(criteria),
            stops=stops,
            ends=ends,
            follow=follow,
        )

    def _criterion(self, stop: tuple[str, ...]) -> StopStringCriteria:
        """Return the criterion that generate() would build in each call, which walks the whole vocabulary."""
        if stop not in self._stops:
            try:
                self._stops[stop] = StopStringCriteria(stop_strings=list(stop), tokenizer=self._tokenizer)
            except ValueError as error:
                raise SuiteError(f"stop strings {list(stop)}: no token of the model is part of them") from error
            # Its key is the vocabulary in an order that differs each time: it would only hold the memory.
            getattr(stopping_criteria, "STOP_STRING_EMBEDDING_CACHE", {}).clear()
        return self._stops[stop]


def _first_ended(ends: frozenset[int], stops: Criterion | None, device: torch.device) -> Criterion:
    """Return a criterion by which all sequences end when the first one does; it waits for no accelerator."""
    known = torch.tensor(sorted(ends), dtype=torch.int64, device=device)

    def ended(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        first = (known == ids[0, -1]).any()
        if stops is not None:
            first = first | stops(ids[:1], scores).all()
        return first.expand(ids.shape[0])

    return ended
