"""How well a model predicts a fixed text: its perplexity, in windows that overlap."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.engines.base import Engine, known_context
from pytest_infer.errors import OptionError
from pytest_infer.measure.counters import memory
from pytest_infer.prompts import Prompt, decoded
from pytest_infer.records import TextScore

WINDOW = 512
"""Tokens of a forward pass, or as many as the model takes; half of them are the context of the other half."""
BUNDLED = Path(__file__).with_name("held-out.txt")
"""Public-domain prose that reference-moe was not trained on."""


class TextScorer:
    """Scores one text with each model that is measured, once."""

    def __init__(self, path: Path, show: Callable[[str], None] = lambda _line: None) -> None:
        """Read the text; raise OptionError where it cannot be."""
        self._show = show
        try:
            self._text = decoded(path)
        except (OSError, ValueError) as error:
            raise OptionError(f"--infer-text {path}: {untrusted.reason(error)}") from error
        if not self._text.strip():
            raise OptionError(f"--infer-text {path}: there is no text in it")
        self.name = path.name
        self.sha256 = hashlib.sha256(self._text.encode()).hexdigest()
        self._known: list[tuple[Engine, object, tuple[TextScore | None, str | None]]] = []

    def score(self, engine: Engine, model: object) -> tuple[TextScore | None, str | None]:
        """Return the score, or None and why there is none; `model` is compared with those scored before."""
        for known, of, found in self._known:
            if known is engine and of == model:
                return found
        try:
            found = self._scored(engine)
        # An instrument that fails marks the record, whatever an engine raises.
        except Exception as error:  # noqa: BLE001
            found = None, untrusted.failure(error)
        memory.trim_heap()
        self._known.append((engine, model, found))
        return found

    def forget(self) -> None:
        """Let go of the engines, as one is about to be closed."""
        self._known.clear()

    def _scored(self, engine: Engine) -> tuple[TextScore | None, str | None]:
        ids = engine.encode(Prompt(name="--infer-text", text=self._text))
        if len(ids) < 2:
            return None, "the text has no two tokens for this model"
        window = max(2, min(WINDOW, known_context(engine) or WINDOW))
        stride = window // 2
        total, count = 0.0, 0
        for begin, end, first in windows(len(ids), window, stride):
            self._show(f"text · {first} of {len(ids)} tokens")
            found = engine.log_probabilities(ids[begin:end], first - begin)
            if found is None:
                return None, "the engine tells no probabilities of a given text"
            total -= math.fsum(found)
            count += len(found)
        if not math.isfinite(total):
            return None, "a token of the text has no finite log-probability"
        score = TextScore(
            name=self.name, sha256=self.sha256, tokens=count, nll=total / count, window=window, stride=stride
        )
        return score, None


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield where each window begins and ends, and the first token that counts in it; the last ends with the text.

    As the sliding window of transformers' own guide to perplexity: every token but the first counts once.
    """
    counted = 1
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        yield begin, end, counted
        counted = end
        if end == tokens:
            return
