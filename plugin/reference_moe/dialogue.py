"""Conversations for the chat format, all derived from the corpus by rule."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal, TypeAlias, TypedDict

from corpus import Unit

MAX_TURNS = 6
MAX_TURN_CHARS = 500
MAX_FUNCTION_CHARS = 900
STORY_CHARS = 900
SYSTEM_EVERY = 4
SYSTEM_PROMPT = "You are a helpful assistant."

SPEECH = re.compile(r'"([^"]+)"')


class Message(TypedDict):
    """One turn, in the shape that chat templates take."""

    role: Literal["system", "user", "assistant"]
    content: str


Conversation: TypeAlias = list[Message]


def conversations(units: Iterable[Unit], *, seed: int) -> list[Conversation]:
    """All conversations of some units, shuffled; every fourth opens with a system message."""
    makers = {"prose": _from_prose, "country": _from_country, "code": _from_code, "docs": _from_docs}
    made = [turns for unit in units for turns in makers[unit.kind](unit.text)]
    random.Random(seed).shuffle(made)  # noqa: S311 - an order, not a secret
    return [_with_system(turns) if index % SYSTEM_EVERY == 0 else turns for index, turns in enumerate(made)]


def _with_system(turns: Conversation) -> Conversation:
    return [Message(role="system", content=SYSTEM_PROMPT), *turns]


def _exchange(*contents: str) -> Conversation:
    """Alternate contents as user and assistant turns."""
    roles: tuple[Literal["user"], Literal["assistant"]] = ("user", "assistant")
    return [Message(role=roles[index % 2], content=content) for index, content in enumerate(contents)]


def _from_prose(text: str) -> Iterator[Conversation]:
    """Neighbouring paragraphs that open with speech become turns; a narrated paragraph becomes a story."""
    parts = text.split("\n\n")
    for spoken, run in groupby(parts, key=lambda part: part.startswith('"')):
        if spoken:
            turns = [" ".join(SPEECH.findall(part)) for part in run][:MAX_TURNS]
            turns = turns[: len(turns) // 2 * 2]
            if turns and all(0 < len(turn) <= MAX_TURN_CHARS for turn in turns):
                yield _exchange(*turns)
    story = _story(parts)
    if story:
        yield _exchange("Tell me a story.", story)


def _story(parts: list[str]) -> str:
    """The passage that follows "Once" at the start of a paragraph; empty when there is none."""
    start = next((index for index, part in enumerate(parts) if part.startswith(("Once ", "There was once"))), None)
    if start is None:
        return ""
    chosen = [parts[start]]
    for part in parts[start + 1 :]:
        if sum(map(len, chosen)) + len(part) > STORY_CHARS:
            break
        chosen.append(part)
    return "\n\n".join(chosen)


def _from_country(text: str) -> Iterator[Conversation]:
    country, facts, *rest = text.split("\n\n")
    capital = re.search(r"The capital of .+? is .+?\.(?= |$)", facts)
    place = re.search(r"\S.* is located in .+", facts.removeprefix(capital.group() if capital else ""))
    if capital:
        yield _exchange(f"What is the capital of {country}?", capital.group())
    if capital and place:
        question = f"Where is {country}?"
        yield _exchange(question, place.group(), "And what is its capital?", capital.group())
    if rest:
        yield _exchange(f"Tell me about {country}.", _sentences(rest[0]))
    if len(rest) > 1:
        yield _exchange(f"Explain the economy of {country} in simple terms.", _sentences(rest[1]))


def _from_code(text: str) -> Iterator[Conversation]:
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        summary = _summary(ast.get_docstring(node))
        source = ast.get_source_segment(text, node)
        if summary and source and len(source) <= MAX_FUNCTION_CHARS:
            request = f"Write a Python function that does this: {summary}"
            yield _exchange(request, f"```python\n{source}\n```")
            yield _exchange(f"What does the function {node.name} do?", summary)


def _from_docs(text: str) -> Iterator[Conversation]:
    """Paragraphs of the form "X is a ..." answer the question what X is."""
    for part in text.split("\n\n"):
        sentence = " ".join(part.split())
        match = re.match(r"(An?|The) ([a-z][a-z -]{2,40}?) (is|are) (an?|the|used) ", sentence)
        if match:
            subject = f"{match.group(1).lower()} {match.group(2)}"
            answer = _sentences(sentence)
            yield _exchange(f"What is {subject}?", answer)
            yield _exchange(f"Explain what {subject} is in simple terms.", answer)


def _summary(docstring: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((docstring or "").split("\n\n", 1)[0].split())


def _sentences(text: str) -> str:
    """As many whole sentences from the start as fit in a turn, but at least one."""
    sentences = re.split(r"(?<=[.!?]) ", text)
    chosen = sentences[:1]
    for sentence in sentences[1:]:
        if len(" ".join(chosen)) + len(sentence) > MAX_TURN_CHARS:
            break
        chosen.append(sentence)
    return " ".join(chosen)
