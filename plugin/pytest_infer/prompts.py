"""Prompt, the suite file (TOML or JSONL) it comes from, and its content hash."""

from __future__ import annotations

import codecs
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import SuiteError, alternatives

SUITE_FILE = "prompts.toml"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a dialogue, rendered by the model's own chat template."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One workload of a suite: plain text, or messages for the chat template; limits of None come from the options."""

    name: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    group: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def content_sha256(self) -> str:
        """Return the hash of what is fed to the model: the text or the messages, not the limits."""
        content: Any = self.text if self.text is not None else [[m.role, m.content] for m in self.messages]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


class _PromptTable(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt as it is written in a suite."""

    name: str
    text: str | None = None
    file: str | None = None
    messages: tuple[Message, ...] | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    group: str | None = None
    tags: tuple[str, ...] = ()


_KEYS = _PromptTable.__struct_fields__
_DEFAULT_KEYS = ("max_new_tokens", "stop", "group", "tags")


def load(path: Path) -> tuple[Prompt, ...]:
    """Return the prompts of a suite file in their order; raise SuiteError with one line that names file and place."""
    try:
        text = decoded(path)
    except FileNotFoundError:
        raise SuiteError(
            f"{path}: no such prompt suite; write one (docs/writing-a-suite.md) or name it with --infer-prompts FILE"
        ) from None
    except (OSError, ValueError) as error:
        raise SuiteError(f"{path}: cannot be read as UTF-8 text: {untrusted.reason(error)}") from error
    if path.suffix == ".jsonl":
        defaults, entries = _read_jsonl(path, text)
    elif path.suffix == ".toml":
        defaults, entries = _read_toml(path, text)
    else:
        raise SuiteError(f"{path}: a prompt suite is a .toml or a .jsonl file")
    return _prompts(entries, defaults, where=str(path), folder=path.parent)


def from_marker(given: Sequence[object], where: str, folder: Path) -> tuple[Prompt, ...]:
    """Return the prompts given to a marker: texts, tables with the keys of a suite file, or Prompt objects.

    `folder` is that of the test, from which a table's `file` is named.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise SuiteError(f"{where}: infer_prompts takes a list of texts, tables, or Prompt objects")
    ready: list[Prompt] = []
    for number, item in enumerate(given, 1):
        place = f"{where}: prompt {number}"
        if isinstance(item, Prompt):
            check(item, place)
            ready.append(item)
        elif isinstance(item, str):
            ready.append(_prompt({"name": f"prompt-{number}", "text": item}, {}, place, folder))
        elif isinstance(item, Mapping):
            ready.append(_prompt(dict(item), {}, place, folder))
        else:
            raise SuiteError(f"{place} is a {type(item).__name__}; give a text, a table, or a Prompt")
    return _unique(ready, where)


def check(prompt: Prompt, where: str) -> None:
    """Raise SuiteError unless a Prompt made in Python would also be valid in a suite file."""
    given = {key: getattr(prompt, key) for key in _KEYS if hasattr(prompt, key)}
    try:
        raw = msgspec.to_builtins({key: value for key, value in given.items() if value is not None and value != ()})
    except TypeError as error:
        raise SuiteError(f"{where}: {error}") from None
    _prompt(raw, {}, where, Path())


def _read_toml(path: Path, text: str) -> tuple[dict[str, Any], list[Any]]:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"{path}: not valid TOML: {untrusted.reason(error)}") from None
    for key in data:
        if key not in ("defaults", "prompt"):
            raise SuiteError(
                f"{path}: {alternatives('table', key, ('defaults', 'prompt'))}; a prompt starts with [[prompt]]"
            )
    entries = data.get("prompt", [])
    defaults = data.get("defaults", {})
    if not isinstance(entries, list) or not isinstance(defaults, dict):
        raise SuiteError(f"{path}: write [[prompt]] for each prompt and [defaults] once")
    return defaults, entries


def _read_jsonl(path: Path, text: str) -> tuple[dict[str, Any], list[Any]]:
    defaults: dict[str, Any] = {}
    entries: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        # Files that were joined keep the byte order mark of each.
        line = line.removeprefix("\ufeff")  # noqa: PLW2901
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SuiteError(f"{path}:{number}: not valid JSON: {untrusted.reason(error)}") from None
        if isinstance(entry, dict) and set(entry) == {"defaults"} and isinstance(entry["defaults"], dict):
            defaults = entry["defaults"]
        else:
            entries.append(entry)
    return defaults, entries


def _prompts(entries: Iterable[Any], defaults: Mapping[str, Any], *, where: str, folder: Path) -> tuple[Prompt, ...]:
    for key in defaults:
        if key not in _DEFAULT_KEYS:
            raise SuiteError(f"{where}: defaults: {alternatives('key', key, _DEFAULT_KEYS)}")
    prompts = [_prompt(entry, defaults, f"{where}: prompt {n}", folder) for n, entry in enumerate(entries, 1)]
    if not prompts:
        raise SuiteError(f"{where}: holds no prompt; a prompt starts with [[prompt]] (or is a line of JSONL)")
    return _unique(prompts, where)


def _prompt(raw: Any, defaults: Mapping[str, Any], where: str, folder: Path) -> Prompt:
    if not isinstance(raw, dict):
        raise SuiteError(f"{where}: is a {type(raw).__name__}; write a table of {', '.join(_KEYS)}")
    if isinstance(raw.get("name"), str):
        where = f"{where} ({raw['name']!r})"
    for key in raw:
        if key not in _KEYS:
            raise SuiteError(f"{where}: {alternatives('key', key, _KEYS)}")
    try:
        entry = msgspec.convert({**defaults, **raw}, _PromptTable)
    except msgspec.ValidationError as error:
        raise SuiteError(f"{where}: {error}") from None
    return _checked(entry, where, folder)


def _checked(entry: _PromptTable, where: str, folder: Path) -> Prompt:
    _check_text(entry, where)
    if not entry.name.strip() or not entry.name.isprintable():
        raise SuiteError(f"{where}: the name must be printable text on one line")
    if sum(given is not None for given in (entry.text, entry.file, entry.messages)) != 1:
        raise SuiteError(f"{where}: give exactly one of text, file, messages")
    if entry.max_new_tokens is not None and entry.max_new_tokens < 1:
        raise SuiteError(f"{where}: max_new_tokens must be 1 or more, not {entry.max_new_tokens}")
    if "" in entry.stop:
        raise SuiteError(f"{where}: a stop string is empty")
    text = entry.text if entry.file is None else _text_of(folder / entry.file, where)
    empty = not text.strip() if text is not None else not any(m.content.strip() for m in entry.messages or ())
    if empty:
        raise SuiteError(f"{where}: the prompt is empty")
    return Prompt(
        name=entry.name,
        text=text,
        messages=entry.messages or (),
        max_new_tokens=entry.max_new_tokens,
        stop=entry.stop,
        group=entry.group,
        tags=entry.tags,
    )


def _check_text(entry: _PromptTable, where: str) -> None:
    """Refuse half a surrogate pair: JSON and Python can write it, but neither the model nor a file can take it."""
    turns = [part for m in entry.messages or () for part in (m.role, m.content)]
    given = (entry.name, entry.text, entry.file, entry.group, *turns, *entry.stop, *entry.tags)
    for part in (part for part in given if part is not None):
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise SuiteError(f"{where}: {part[error.start]!r} is half a character; write the whole one") from None


def _text_of(path: Path, where: str) -> str:
    try:
        return decoded(path)
    except (OSError, ValueError) as error:
        # A ValueError: not UTF-8, or a NUL in the name. What cannot be printed must not break the line.
        shown = str(path) if str(path).isprintable() else repr(str(path))
        raise SuiteError(f"{where}: cannot read {shown}: {untrusted.reason(error)}") from error


def decoded(path: Path) -> str:
    """Return a file's text: UTF-8, lines that end with a line feed, whatever system wrote it.

    A byte order mark says how a file is written and is no part of its text.
    """
    content = untrusted.read(path, untrusted.TEXT_BYTES)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is written as UTF-16: save it as UTF-8")
    text = untrusted.text(content)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unique(prompts: Sequence[Prompt], where: str) -> tuple[Prompt, ...]:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.name in seen:
            raise SuiteError(f"{where}: two prompts are named {prompt.name!r}; a name is the test's id")
        seen.add(prompt.name)
    return tuple(prompts)
