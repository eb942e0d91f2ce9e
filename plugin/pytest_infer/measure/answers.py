"""What an engine answers, held against what it was asked for: a slip in one is a line that says where."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines.base import Engine
from pytest_infer.errors import EngineError
from pytest_infer.records import ModelInfo


def model(found: object, whose: str) -> ModelInfo:
    """Return the description of a model; raise EngineError unless each field of it is of its type."""
    if not isinstance(found, ModelInfo):
        raise EngineError(f"{whose} gives a {type(found).__name__}, not a ModelInfo")
    try:
        msgspec.convert({field.name: getattr(found, field.name) for field in fields(found)}, ModelInfo)
    except msgspec.ValidationError as error:
        raise EngineError(f"{whose} gives a ModelInfo that cannot be stored: {error}") from error
    return found


def words(found: object, whose: str) -> str | None:
    """Return a text, or None where there is none; raise EngineError for what is neither."""
    if found is not None and not isinstance(found, str):
        raise EngineError(f"{whose} gives a {type(found).__name__}, neither a text nor None")
    return None if found is None else untrusted.writable(found)


def varied(engine: Engine) -> str | None:
    """Return why the rounds of a prompt differ, None where they do not; raise EngineError for what is no text."""
    return words(engine.varied(), "Engine.varied")


def text(engine: Engine, token_ids: Sequence[int]) -> str:
    """Return the text of ids, halves of characters replaced, which nothing can write; raise TypeError for no text."""
    return untrusted.writable(engine.decode(token_ids))


def ids(found: Any) -> list[int]:
    """Return the ids of a prompt; raise EngineError unless they are whole numbers, one after the other."""
    try:
        return list(map(operator.index, found))
    except TypeError as error:
        raise EngineError(f"Engine.encode gives no list of token ids: {error}") from error
