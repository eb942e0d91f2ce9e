"""The servers that are understood: how each is asked for tokens, and what it tells of them."""

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
            self._models = [one for one in listed or () if isinstance(one, dict)]
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

    def check(self) -> None:
        """Raise ModelError where the server has no such model, as far as it tells."""
        names = [str(one.get("id")) for one in self.models]
        if names and self.model not in (*names, self._started):
            raise ModelError(f"the server has no model {self.model!r}; it has {', '.join(names[:5])}")

    def told(self) -> Told:
        """Return what the server tells."""
        one = next((one for one in self.models if one.get("id") == self.model), {})
        return Told(engine=self.label, name=PurePath(self.model).name, context=_number(one.get("max_model_len")))

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
        messages = [{"role": one.role, "content": one.content} for one in prompt.messages]
        return "/v1/chat/completions", {**how, "messages": messages}

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
        count = _number(usage.get("completion_tokens")) if isinstance(usage, dict) else None
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
            heard.stopped_by = _reason(str(why), choice.get("stop_reason"), heard.limits)

    def _usage(self, usage: Mapping[str, Any], heard: Heard) -> None:
        generated = _number(usage.get("completion_tokens"))
        if heard.pending and generated == heard.tokens + 1:
            heard.text("")
        heard.pending = False
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        heard.clock.reported(prompt=_number(usage.get("prompt_tokens")), generated=generated, cached=_number(cached))


class Vllm(Kind):
    """vLLM: ids in, ids out, a cache that a salt keeps apart."""

    name = "vllm"
    label = "vLLM"
    gives_ids = leaves_cache = True

    def told(self) -> Told:
        """Return what the server tells."""
        version = (self.client.get("/version") or {}).get("version")
        found = super().told()
        found.versions = {"vllm": str(version)} if version else {}
        return found

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, by the server's own tokeniser and template."""
        if prompt.text is not None:
            asked: dict[str, Any] = {"prompt": prompt.text, "add_special_tokens": True}
        else:
            asked = {"messages": _messages(prompt.messages), "add_generation_prompt": True}
        return _ids(self.client.post("/tokenize", {"model": self.model, **asked}))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(self.client.post("/detokenize", {"model": self.model, "tokens": list(ids)}).get("prompt", ""))

    def body(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        """Return the path, and what is sent there."""
        how = {
            "model": self.model,
            "prompt": list(ask.ids),
            "max_tokens": ask.limits.max_new_tokens,
            "stream": True,
            "return_token_ids": True,
            # Counted in each piece too: some versions tell no ids.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **self._common(ask),
        }
        if ask.cache == OFF:
            how["cache_salt"] = ask.salt
        return "/v1/completions", how


class Llama(Kind):
    """llama-server: its own `/completion`, with ids in and out."""

    name = "llama"
    label = "llama-server"
    gives_ids = leaves_cache = True

    def __init__(self, client: Client, model: str | None, started: str | None = None) -> None:
        super().__init__(client, model, started)
        self._props: Mapping[str, Any] = client.get("/props") or {}
        self._pieces: dict[str, list[int]] = {}

    def told(self) -> Told:
        """Return what the server tells."""
        meta = next((one.get("meta") for one in self.models if isinstance(one.get("meta"), dict)), None) or {}
        build, settings = self._props.get("build_info"), self._props.get("default_generation_settings") or {}
        return Told(
            engine=self.label,
            name=PurePath(self.model).name,
            versions={"llama.cpp": str(build)} if build else {},
            context=_number(settings.get("n_ctx")),
            parameters=_number(meta.get("n_params")),
            parameter_bytes=_number(meta.get("size")),
            vocabulary=_number(meta.get("n_vocab")),
        )

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, by the server's own tokeniser and template."""
        text = prompt.text
        if text is None:
            found = self.client.post("/apply-template", {"messages": _messages(prompt.messages)})
            text = str(found.get("prompt", ""))
        return _ids(self.client.post("/tokenize", {"content": text, "add_special": True, "parse_special": True}))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(self.client.post("/detokenize", {"tokens": list(ids)}).get("content", ""))

    def body(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        """Return the path, and what is sent there."""
        samplers = ["temperature"] if ask.sampling is None else ["top_p", "temperature"]
        how = {
            "prompt": list(ask.ids),
            "n_predict": ask.limits.max_new_tokens,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": ask.cache != OFF,
            "samplers": samplers,
            **self._common(ask),
        }
        return "/completion", how

    def hear(self, event: Mapping[str, Any], heard: Heard) -> None:
        """Take one event of the stream.

        A character of several tokens comes with the last of them, which alone is named. The others are made up for in
        `finish`: the clock keeps the list.
        """
        ids, count = list(event.get("tokens") or ()), _number(event.get("tokens_predicted"))
        lacking = 0 if count is None else count - heard.tokens - len(ids)
        heard.ids(ids)
        if ids and lacking > 0:
            heard.held.append((str(event.get("content", "")), ids, lacking + len(ids)))
            heard.tokens += lacking
        if not event.get("stop"):
            return
        timings = event.get("timings") or {}
        heard.clock.reported(
            prompt=_number(event.get("tokens_evaluated")),
            generated=_number(event.get("tokens_predicted")),
            cached=_number(timings.get("cache_n")),
        )
        why = {"eos": StopReason.EOS, "limit": StopReason.LENGTH, "word": StopReason.STOP_STRING}
        heard.stopped_by = why.get(str(event.get("stop_type")))
        heard.whole = True

    def finish(self, heard: Heard) -> None:
        """Give the ticks of characters of several tokens all of their ids, where the tokeniser tells them for sure."""
        for text, ids, count in heard.held:
            if text not in self._pieces:
                self._pieces[text] = _ids(self.client.post("/tokenize", {"content": text, "add_special": False}))
            found = self._pieces[text]
            if len(found) == count and found[-len(ids) :] == ids:
                ids[:] = found


KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Llama, Vllm, Kind)}


def of(client: Client, model: str | None, given: str | None, started: str | None = None) -> Kind:
    """Return a server as what it is: as `given`, or found by asking it."""
    if given is not None:
        return KINDS[given](client, model, started)
    props = client.get("/props")
    if isinstance(props, dict) and "default_generation_settings" in props:
        return Llama(client, model, started)
    version, plain = client.get("/version"), Kind(client, model, started)
    if isinstance(version, dict) and any("max_model_len" in one for one in plain.models):
        return Vllm(client, model, started)
    return plain


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
    return said(event) or "without a word" if "error" in event else None


def _text(place: Mapping[str, Any]) -> str | None:
    """Return a piece of text, of the answer or of what a model thinks before it."""
    found = [
        place[key] for key in ("content", "text", "reasoning_content", "reasoning") if isinstance(place.get(key), str)
    ]
    return "".join(found) if found else None


def _reason(why: str, at: Any, limits: Limits) -> StopReason:
    if why == "length":
        return StopReason.LENGTH
    return StopReason.STOP_STRING if isinstance(at, str) and at in limits.stop else StopReason.EOS


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": one.role, "content": one.content} for one in messages]


def _ids(found: Any) -> list[int]:
    ids = found.get("tokens") if isinstance(found, dict) else None
    if not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
        raise EngineError("the server's /tokenize answers with no ids: --infer-server-kind=openai does without them")
    return ids


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
