"""How a server is asked for tokens and what is heard of them: any that is OpenAI-compatible, and tells no ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from pytest_infer.engines.base import Clock, Sampling
from pytest_infer.engines.server.client import Client, said
from pytest_infer.errors import EngineError, ModelError
from pytest_infer.prompts import Message, Prompt
from pytest_infer.records import Limits, StopReason

BUST, OFF = "bust", "off"
_COUNTING = frozenset({"vllm", "sglang"})
"""Who counts the tokens so far in every piece, where that is asked for."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked for in one round: `ahead` stands ahead of the prompt, whose ids (with it) are known or empty."""

    prompt: Prompt
    ahead: str
    ids: Sequence[int]
    limits: Limits
    cache: str
    salt: str
    sampling: Sampling | None

    def texts(self) -> Prompt:
        """Return the prompt with what stands ahead of it."""
        return with_ahead(self.prompt, self.ahead)


@dataclass(kw_only=True)
class Heard:
    """What has been heard of a generation so far."""

    clock: Clock
    limits: Limits
    tokens: int = 0
    stopped_by: StopReason | None = None
    whole: bool = False
    pending: bool = False
    """Whether an empty piece ended it, which is a token if the server counts one more."""
    held: list[tuple[str, list[int], int]] = field(default_factory=list)
    """Texts of several tokens of which only the last ids were told, those ids as they were ticked, and their number."""

    def ids(self, ids: Sequence[int]) -> None:
        """Tick ids that have come."""
        if ids:
            self.clock.tick(ids)
            self.tokens += len(ids)

    def text(self, text: str, tokens: int = 1) -> None:
        """Tick a text that has come, of so many tokens."""
        self.clock.tick_text(text, tokens)
        self.tokens += tokens


@dataclass(kw_only=True)
class Told:
    """What a server tells of itself and its model."""

    engine: str
    name: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    context: int | None = None
    parameters: int | None = None
    parameter_bytes: int | None = None
    vocabulary: int | None = None


class Kind:
    """An OpenAI-compatible server that tells no ids: completions for texts, chat completions for dialogues.

    `model` is the name by which it is asked, where that is given; `started` what it was started with, if we did so.
    """

    name = "openai"
    label = "OpenAI-compatible server"
    gives_ids = False
    leaves_cache = False
    """Whether it can be asked not to use its cache of prompts."""
    most_seed: int | None = None
    """The largest seed that it takes, where that is known."""

    def __init__(self, client: Client, model: str | None, started: str | None = None) -> None:
        self.client, self._started = client, started
        self._models: list[Mapping[str, Any]] | None = None
        self._model = model

    @property
    def models(self) -> list[Mapping[str, Any]]:
        """Return the models that the server says it has."""
        if self._models is None:
            found = self.client.get("/v1/models")
            listed = found.get("data") if isinstance(found, dict) else None
            self._models = [one for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict)]
        return self._models

    @property
    def model(self) -> str:
        """Return the name by which the server is asked: as given, or started, else of its only or first model."""
        if self._model is None:
            names = [name for one in self.models if isinstance(name := one.get("id"), str)]
            # Some tell all that they could load (transformers serve), some the name of what they loaded.
            only = self._started is None or (len(names) == 1 and self._started not in names)
            found = names[0] if only and names else self._started
            if found is None:
                raise ModelError("the server does not say which model it has: name it with --infer-model")
            self._model = found
        return self._model

    @property
    def shown(self) -> str:
        """Return what the model is called in results: a folder or file its own name, a hub's model its owner's too."""
        path = PurePath(self.model)
        return path.name if path.is_absolute() or path.suffix == ".gguf" else self.model

    def check(self) -> None:
        """Raise ModelError where the server has no such model, as far as it tells."""
        names = [str(one.get("id")) for one in self.models]
        if names and self.model not in (*names, self._started):
            raise ModelError(f"the server has no model {self.model!r}; it has {', '.join(names[:5])}")

    def told(self) -> Told:
        """Return what the server tells."""
        one = next((one for one in self.models if one.get("id") == self.model), {})
        return Told(
            engine=self.label,
            name=self.shown,
            context=number(one.get("max_model_len")),
        )

    def ids(self, prompt: Prompt) -> list[int]:  # noqa: ARG002 - of a server that tells them
        """Return the ids of a prompt, none where the server does not tell."""
        return []

    def decode(self, ids: Sequence[int]) -> str:  # noqa: ARG002
        """Return the text of ids."""
        raise EngineError("this server has no texts of ids")

    def body(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        """Return the path, and what is sent there."""
        prompt = ask.texts()
        how = {"model": self.model, "max_tokens": ask.limits.max_new_tokens, "stream": True, **self._common(ask)}
        how["stream_options"] = {"include_usage": True}
        if any(one.get("owned_by") in _COUNTING for one in self.models):  # others may refuse what they do not know
            how["stream_options"]["continuous_usage_stats"] = True
        if prompt.text is not None:
            return "/v1/completions", {**how, "prompt": prompt.text}
        return "/v1/chat/completions", {**how, "messages": messages(prompt.messages)}

    def _common(self, ask: Ask) -> dict[str, Any]:
        sampling, limits = ask.sampling, ask.limits
        how: dict[str, Any] = {"temperature": 0}
        if sampling is not None:
            how = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if limits.stop:
            how["stop"] = list(limits.stop)
        if limits.ignore_eos:
            how["ignore_eos"] = True
        return how

    def hear(self, event: Mapping[str, Any], heard: Heard) -> None:
        """Take one event of the stream."""
        usage = event.get("usage")
        count = number(usage.get("completion_tokens")) if isinstance(usage, dict) else None
        for choice in event.get("choices") or ():
            self._choice(choice, heard, count)
        if isinstance(usage, dict):
            self._usage(usage, heard)

    def finish(self, heard: Heard) -> None:
        """Complete what was ticked, once all of it has come."""

    def _choice(self, choice: Mapping[str, Any], heard: Heard, count: int | None) -> None:
        delta = choice.get("delta") or {}
        text, why = _text(delta if "delta" in choice else choice), choice.get("finish_reason")
        ids = choice.get("token_ids")
        if ids:
            heard.ids(ids)
        elif why is not None and not text and count is None:
            heard.pending = True
        elif (text or why is not None or (text is not None and "role" not in delta)) and (
            count is None or count > heard.tokens
        ):
            # What neither ends nor says anything is no token: a role, which begins a dialogue; a call of a tool.
            heard.text(text or "", 1 if count is None else count - heard.tokens)
        if why is not None:  # an end, whether or not [DONE] follows: transformers serve leaves it out
            heard.whole = True
            heard.stopped_by = _reason(choice, heard.limits)

    def _usage(self, usage: Mapping[str, Any], heard: Heard) -> None:
        generated = number(usage.get("completion_tokens"))
        if heard.pending and generated == heard.tokens + 1:
            heard.text("")
        heard.pending = False
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        heard.clock.reported(prompt=number(usage.get("prompt_tokens")), generated=generated, cached=number(cached))


def with_ahead(prompt: Prompt, ahead: str) -> Prompt:
    """Return a prompt with something ahead of its text, or of its first message."""
    if not ahead:
        return prompt
    if prompt.text is not None:
        return Prompt(name=prompt.name, text=ahead + prompt.text)
    first, *rest = prompt.messages
    return Prompt(name=prompt.name, messages=(Message(role=first.role, content=ahead + first.content), *rest))


def failed(event: Mapping[str, Any]) -> str | None:
    """Return the words of an event that says that the server failed."""
    return None if event.get("error") is None else said(event) or "without a word"


def _text(place: Mapping[str, Any]) -> str | None:
    """Return a piece of text, of the answer or of what a model thinks before it."""
    spoken, thought = (
        [place[key] for key in keys if isinstance(place.get(key), str)]
        for keys in (("content", "text"), ("reasoning_content", "reasoning"))
    )
    # Some versions of vLLM send what was thought under both names.
    return "".join((*spoken, *dict.fromkeys(thought))) if spoken or thought else None


def _reason(choice: Mapping[str, Any], limits: Limits) -> StopReason | None:
    why, at = choice["finish_reason"], choice.get("stop_reason")
    if why == "length":
        return StopReason.LENGTH
    if why == "stop" and limits.stop and "stop_reason" not in choice:
        # At one of these, or at the model's own end: the server does not say.
        return None
    return StopReason.STOP_STRING if isinstance(at, str) and at in limits.stop else StopReason.EOS


def messages(of: Sequence[Message]) -> list[dict[str, str]]:
    """Return the turns of a dialogue as they are sent."""
    return [{"role": one.role, "content": one.content} for one in of]


def ids_of(found: Any) -> list[int]:
    """Return the ids that /tokenize answers with; raise EngineError where there are none."""
    ids = found.get("tokens") if isinstance(found, dict) else None
    if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
        raise EngineError("the server's /tokenize answers with no ids: --infer-server-kind=openai does without them")
    return ids


def number(value: Any) -> int | None:
    """Return a count that a server tells, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
