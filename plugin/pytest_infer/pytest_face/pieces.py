"""The texts of single tokens: those that were generated, and the most probable ones beside them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from pytest_infer import untrusted
from pytest_infer.records import Profile, Reference, Scores

SHOWN = 5
"""So many of the most probable tokens of a position have their text."""


def of(decode: Callable[[Sequence[int]], str], profile: Profile | None, reference: Reference | None) -> dict[int, str]:
    """Return the text of each id that a comparison may show, of the first sequence.

    A token is decoded behind another: some tokenizers drop the space that a text begins with.
    """
    scores = [one for one in (profile and profile.scores, reference and reference.scores) if one]
    ids = dict.fromkeys(number for one in scores for number in _ids(one))
    ids |= dict.fromkeys(reference.free if reference is not None else ())
    if not scores or not ids:
        return {}
    first = next(iter(ids))
    before = decode([first])
    return {number: _behind(decode, first, before, number) for number in ids}


def _behind(decode: Callable[[Sequence[int]], str], first: int, before: str, number: int) -> str:
    both = decode([first, number])
    return untrusted.writable(both[len(before) :] if both.startswith(before) else decode([number]))


def _ids(scores: Scores) -> Iterator[int]:
    yield from _numbers(scores.tokens, scores.positions)
    top = _numbers(scores.top_ids, scores.positions * scores.width)
    for first in range(0, len(top), scores.width):
        yield from top[first : first + min(SHOWN, scores.width)]


def _numbers(data: bytes, count: int) -> Sequence[int]:
    """Return the first of little-endian 32-bit integers."""
    return struct.unpack(f"<{count}i", data[: 4 * count])
