"""The tokens of a prompt as the settings have them: the ids that go in, and the limits of what comes out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pytest_infer.engines.base import Engine, known_context
from pytest_infer.errors import EngineError, SuiteError
from pytest_infer.measure import answers
from pytest_infer.metrics import timing
from pytest_infer.prompts import Prompt
from pytest_infer.pytest_face.settings import Settings
from pytest_infer.records import Limits

DEFAULT_MAX_NEW_TOKENS = 64


def limits_of(prompt: Prompt, settings: Settings) -> Limits:
    """Return the prompt's limits; an option replaces its own."""
    own = prompt.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    return Limits(
        max_new_tokens=settings.max_new_tokens or own,
        stop=prompt.stop,
        ignore_eos=settings.ignore_eos,
        batch=settings.batch if settings.batch != 1 else None,
    )


def encode(engine: Engine, prompt: Prompt, settings: Settings) -> tuple[list[int], float]:
    """Return the prompt's ids, of the length that is asked for, and how long the tokenizer took, seconds.

    Raises:
        SuiteError: the prompt has no tokens, or does not fit the model or --infer-context.
        EngineError: the engine gives no ids, or runs no batches, and one is asked for.
    """
    started = time.perf_counter_ns()
    encoded = engine.encode(prompt)
    tokenize_s = (time.perf_counter_ns() - started) / timing.NS
    ids = answers.ids(encoded)
    if not ids and engine.needs_ids():
        raise SuiteError(f"prompt {prompt.name!r} has no tokens for this model")
    if settings.prompt_tokens is not None:
        if not ids:
            raise EngineError(
                "nobody tells this engine the ids of a prompt: leave out --infer-prompt-tokens and --infer-curve"
            )
        ids = resized(ids, settings.prompt_tokens)
    limits = limits_of(prompt, settings)
    _check_fits(engine, prompt, len(ids), limits.max_new_tokens, settings)
    if limits.sequences > 1 and not engine.batches():
        raise EngineError("this engine runs one sequence at a time: leave out --infer-batch, and batch of the sweep")
    return ids, tokenize_s


def context_of(engine: Engine, settings: Settings) -> int | None:
    """Return how many tokens may be in a sequence: as the option says, else as the engine does; None without end."""
    return known_context(engine) if settings.context is None else settings.context


def _check_fits(engine: Engine, prompt: Prompt, tokens: int, new: int, settings: Settings) -> None:
    """Raise SuiteError where prompt and new tokens are too many for the model."""
    context, most = context_of(engine, settings), engine.most_positions()
    asked = f"prompt {prompt.name!r}: {tokens} tokens and {new} new ones do not fit"
    if most is not None and tokens + new > most:
        raise SuiteError(f"{asked} the {most} positions that the engine has, whatever --infer-context says")
    if context is not None and tokens + new > context:
        whose = "the model's" if settings.context is None else "--infer-context's"
        raise SuiteError(
            f"{asked} {whose} context of {context}; shorten it, lower max_new_tokens, take another model, "
            "or, where it does take more, give --infer-context N"
        )


def resized(ids: Sequence[int], tokens: int) -> list[int]:
    """Return so many ids of a prompt: its beginning, or itself over and over, but its first id (often BOS) once."""
    first, rest = ids[:1], list(ids[1:] or ids)
    repeats = -(-tokens // len(rest))
    return [*first, *(rest * repeats)][:tokens]
