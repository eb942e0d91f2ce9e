"""What the rounds of a prompt ask an engine for, each with a nonce of its own."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_infer.engines.base import Request
from pytest_infer.prompts import Prompt

_DIGITS = 8
_rounds = itertools.count()
_begin = secrets.randbelow(10**_DIGITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A prompt of the suite and its ids, which every round of it asks for."""

    prompt: Prompt
    ids: Sequence[int]

    def next(self, behind: Sequence[int] = ()) -> Request:
        """Return the request of the next round; its ids go on with those of `behind`."""
        number, ids = next(_rounds), [*self.ids, *behind] if behind else self.ids
        return Request(prompt=self.prompt, ids=ids, nonce=nonce(_begin + number), round=number)


def nonce(number: int) -> str:
    """Return a number as digits with spaces between them, the last one first: it is another in the next nonce already.

    Most tokenizers take a digit after a space as a token or two, whichever digit it is.
    """
    return " ".join(reversed(f"{number % 10**_DIGITS:0{_DIGITS}d}"))
