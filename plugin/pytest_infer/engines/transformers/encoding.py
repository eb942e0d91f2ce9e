"""A prompt's ids by a model's own tokenizer and chat template, and one line for what these cannot do."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.exceptions import SecurityError

from pytest_infer import untrusted
from pytest_infer.errors import ModelError
from pytest_infer.prompts import Prompt

_SHOWN = 300


def encode(tokenizer: Any, prompt: Prompt, model: str, *, known: int | None = None) -> list[int]:
    """Return ids as the tokenizer makes them: its special tokens for text, its chat template for messages.

    Raises:
        ModelError: the template refuses the dialogue or is faulty, there is none, the tokenizer fails, or an id is
            none of the `known` ids, from 0 on, that the model's embedding has rows for.
    """
    if prompt.text is None and not tokenizer.chat_template:
        raise ModelError(f"prompt {prompt.name!r} is a dialogue, and {model} has no chat template")
    try:
        ids = _ids(tokenizer, prompt)
    # Both are code that came with the model and may raise anything; tokenizers itself raises a bare Exception.
    except Exception as error:
        raise ModelError(f"prompt {prompt.name!r}: {_why(prompt, error, model)}") from error
    if any(not isinstance(number, int) for number in ids):
        raise ModelError(f"prompt {prompt.name!r}: the tokenizer of {model} has no id for a part of it")
    strange = next((number for number in ids if number < 0 or (known is not None and number >= known)), None)
    if strange is not None:
        token = tokenizer.convert_ids_to_tokens(strange) if strange >= 0 else None
        raise ModelError(
            f"prompt {prompt.name!r}: id {strange} ({token!r}) is beyond the embedding of {model}, which has {known}: "
            "take the tokenizer that belongs to the model, or resize the embedding to hold tokens that were added"
        )
    return ids


def _ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    if prompt.text is not None:
        return list(tokenizer(prompt.text)["input_ids"])
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


def _why(prompt: Prompt, error: Exception, model: str) -> str:
    said = untrusted.reason(error)[:_SHOWN]
    if prompt.text is not None:
        return f"the tokenizer of {model} cannot take it: {said}"
    if isinstance(error, TemplateSyntaxError):
        return f"the chat template of {model} has a syntax error in line {error.lineno}: {said}"
    if isinstance(error, SecurityError):
        return f"the chat template of {model} does what templates may not: {said}"
    return f"the chat template of {model} refuses it: {said}; change the prompt's messages, or the template"
