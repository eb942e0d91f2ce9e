"""Which rounds follow the tokens of a reference, so that two sides do the same work on the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from pytest_infer.engines.base import Engine
from pytest_infer.errors import EngineError
from pytest_infer.records import Reference, Scores, TokenTrace

CANNOT = "the engine cannot follow given tokens"
MOST_TRACED = 2048
"""Prompts with more positions, new ones included, are compared without each token's choice of experts."""


def steer(engine: Engine, follow: Sequence[int] | None) -> None:
    """Let the next rounds of an engine follow these tokens, or none any more."""
    if follow is not None or engine.follows():
        engine.follow(follow)


def obeyed(trace: TokenTrace, follow: Sequence[int] | None) -> None:
    """Raise EngineError where a round was given tokens to follow and told others: it did other work."""
    if follow is None or not trace.token_ids or trace.token_ids == tuple(follow):
        return
    both = enumerate(zip_longest(trace.token_ids, follow))
    place = next(number for number, (told, given) in both if told != given)
    raise EngineError(
        f"the engine was given {len(follow)} tokens by Engine.follow and left them at number {place + 1}: "
        "where it cannot follow, let Engine.follows return False"
    )


def unknown(tokens: Sequence[int], vocabulary: int | None) -> str | None:
    """Return why a model cannot be given these tokens; None where it knows all of them, or does not say."""
    if min(tokens, default=0) < 0:
        return "an engine did not tell all of them"
    largest = max(tokens, default=0)
    return (
        None if vocabulary is None or largest < vocabulary else f"token {largest} is none of the model's {vocabulary}"
    )


def decide(reference: Reference, engine: Engine, free: Sequence[int]) -> Reference:
    """Return a reference with what this side generates freely, and whether its timed rounds have to follow.

    Where the tokens are the same anyway nothing has to.
    """
    free = tuple(free)
    differs = free != reference.tokens
    problem = reference.problem or (CANNOT if differs and not engine.follows() else None)
    return replace(reference, free=free, timed=differs and problem is None, problem=problem)


def timed(reference: Reference | None) -> tuple[int, ...] | None:
    """Return the tokens that timed rounds follow."""
    return reference.tokens if reference is not None and reference.timed else None


def profiled(reference: Reference | None, engine: Engine) -> tuple[int, ...] | None:
    """Return the tokens that the profile round follows; one that cannot generates the same, or is not compared."""
    return reference.tokens if reference is not None and reference.problem is None and engine.follows() else None


def cut(reference: Reference, tokens: int) -> Reference:
    """Return a reference that is no longer than a limit."""
    if len(reference.tokens) <= tokens:
        return reference
    scores = None if reference.scores is None else _cut(reference.scores, tokens)
    # Of its trace only the tokens that both sides saw are compared.
    return replace(reference, tokens=reference.tokens[:tokens], scores=scores)


def _cut(scores: Scores, positions: int) -> Scores:
    def first(data: bytes, width: int) -> bytes:
        row, kept = 4 * scores.positions * width, 4 * positions * width
        return b"".join(data[start : start + kept] for start in range(0, len(data), row))

    return replace(
        scores,
        positions=positions,
        tokens=first(scores.tokens, 1),
        chosen=first(scores.chosen, 1),
        rest=first(scores.rest, 1),
        top_ids=first(scores.top_ids, scores.width),
        top=first(scores.top, scores.width),
    )
