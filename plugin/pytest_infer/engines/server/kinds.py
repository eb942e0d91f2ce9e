"""The servers that are understood, vLLM and llama-server by what they tell beyond others; which one it is, is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_infer.engines.base import LLAMA_SEED
from pytest_infer.engines.server.client import Client
from pytest_infer.engines.server.kind import OFF, Ask, Heard, Kind, Told, ids_of, messages, number
from pytest_infer.prompts import Prompt
from pytest_infer.records import StopReason


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
            asked = {"messages": messages(prompt.messages), "add_generation_prompt": True}
        return ids_of(self.client.post("/tokenize", {"model": self.model, **asked}))

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
    most_seed = LLAMA_SEED

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
            name=self.shown,
            versions={"llama.cpp": str(build)} if build else {},
            context=number(settings.get("n_ctx")),
            parameters=number(meta.get("n_params")),
            parameter_bytes=number(meta.get("size")),
            vocabulary=number(meta.get("n_vocab")),
        )

    def ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt, by the server's own tokeniser and template."""
        text = prompt.text
        if text is None:
            found = self.client.post("/apply-template", {"messages": messages(prompt.messages)})
            text = str(found.get("prompt", ""))
        return ids_of(self.client.post("/tokenize", {"content": text, "add_special": True, "parse_special": True}))

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
        ids, count = list(event.get("tokens") or ()), number(event.get("tokens_predicted"))
        lacking = 0 if count is None else count - heard.tokens - len(ids)
        heard.ids(ids)
        if ids and lacking > 0:
            heard.held.append((str(event.get("content", "")), ids, lacking + len(ids)))
            heard.tokens += lacking
        if not event.get("stop"):
            return
        timings = event.get("timings") or {}
        heard.clock.reported(
            prompt=number(event.get("tokens_evaluated")),
            generated=number(event.get("tokens_predicted")),
            cached=number(timings.get("cache_n")),
        )
        why = {"eos": StopReason.EOS, "limit": StopReason.LENGTH, "word": StopReason.STOP_STRING}
        heard.stopped_by = why.get(str(event.get("stop_type")))
        heard.whole = True

    def finish(self, heard: Heard) -> None:
        """Give the ticks of characters of several tokens all of their ids, where the tokeniser tells them for sure."""
        for text, ids, count in heard.held:
            if text not in self._pieces:
                self._pieces[text] = ids_of(self.client.post("/tokenize", {"content": text, "add_special": False}))
            found = self._pieces[text]
            if len(found) == count and found[-len(ids) :] == ids:
                ids[:] = found


KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Llama, Vllm, Kind)}


def of(client: Client, model: str | None, given: str | None, started: str | None = None) -> Kind:
    """Return a server as what it is: as `given`, or found by asking it."""
    if given is not None:
        return KINDS[given](client, model, started)
    props = client.get("/props")
    if isinstance(props, dict) and isinstance(props.get("default_generation_settings"), dict):
        return Llama(client, model, started)
    version, plain = client.get("/version"), Kind(client, model, started)
    if isinstance(version, dict) and any("max_model_len" in one for one in plain.models):
        return Vllm(client, model, started)
    return plain
