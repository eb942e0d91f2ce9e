"""A server on loopback that answers OpenAI-compatible requests as a script says, for tests.

In this process, in a thread of its own:

    with scripted_server.running(Script(answers=(Answer(tokens=4, first_s=0.02),))) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": "a b", "max_tokens": 4})
        server.served[0].stamps_ns  # when its chunks were written, time.perf_counter_ns

As a process, which a test can kill, and which can die by itself (`dies_at`):

    python tests/scripted_server.py --port 8080 --script script.json   # Script(...).to_json()

Kinds: "openai" tells no token ids; "llama" is llama-server's (/props, /tokenize, /apply-template, /completion with
ids); "vllm" has /version, /tokenize and `return_token_ids`. A word with the spaces ahead of it is a token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

_PIECE = re.compile(r"\s*\S+|\s+")
_PATIENCE_S = 120
"""How long its thread may take to begin and to end: milliseconds, unless the machine is busy."""


@dataclass(frozen=True)
class Answer:
    """What a request for tokens gets."""

    tokens: int | None = None
    """How many there are; None: as many as are asked for."""
    texts: tuple[str, ...] = (" one", " two", " three", " four", " five")
    """Their texts, again and again; an empty one is a token whose text is not known yet."""
    first_s: float = 0.0
    """The time until the first token, and further `prompt_token_s` for each of the prompt that is not cached."""
    gap_s: float = 0.0
    prompt_token_s: float = 0.0
    service_s: float | None = None
    """The time of a whole request, from its turn to its last token, its tokens evenly within; replaces those above."""
    exponential: bool = False
    """Whether `service_s` is the mean of an exponential distribution."""
    per_chunk: int = 1
    split: bool = False
    """Whether each event is written in two pieces, which part a character or a line."""
    usage: dict[str, int] = field(default_factory=dict)
    """What is told instead of the true counts: prompt_tokens, completion_tokens, cached_tokens."""
    tells_usage: bool = True
    streams: bool = True
    """Whether it streams where it is asked to."""
    tells_done: bool = True
    """Whether [DONE] ends a stream."""
    status: int = 200
    words: str = ""
    """What an error says: with a status other than 200 at once, else in the stream after `cut_at` tokens."""
    stall_at: int | None = None
    """After so many tokens nothing comes any more, until the other end goes."""
    cut_at: int | None = None
    """After so many tokens the connection is cut."""
    dies_at: int | None = None
    """After so many tokens the server ends, with `words` as its last."""
    finish: str | None = None


@dataclass(frozen=True)
class Script:
    """A server: its answers in the order of the requests, the last of them for all others."""

    answers: tuple[Answer, ...] = (Answer(),)
    kind: str = "openai"
    model: str = "scripted"
    slots: int | None = None
    """How many requests are served at once, first come first served; None: all."""
    caches: bool = False
    """Whether the prefix that a prompt shares with any before is cached."""
    context: int = 4096
    loads_s: float = 0.0
    """How long it answers 503 to everything at first."""
    key: str | None = None
    """The key without which it answers 401."""
    metrics: str = ""
    """What /metrics says; {requests} and {tokens} are those so far."""
    seed: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Script:
        known = json.loads(text)
        answers = tuple(Answer(**{**one, "texts": tuple(one["texts"])}) for one in known.pop("answers"))
        return cls(answers=answers, **known)


@dataclass
class Served:
    """A request for tokens, and when what of it happened, perf_counter_ns."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    arrived_ns: int
    began_ns: int = 0
    stamps_ns: list[int] = field(default_factory=list)
    """When each chunk with tokens was written."""
    ended_ns: int = 0
    whole: bool = False


class Server:
    """The server; `url`, and what it `served`."""

    def __init__(self, script: Script, *, dies: Any = None) -> None:
        self.script, self.served, self.connections, self.most_connections = script, [], 0, 0
        self.url, self.tokens = "", 0
        self._ids: dict[str, int] = {}
        self._seen: list[list[int]] = []
        self._random = random.Random(script.seed)
        self._dies = dies or self._close
        self.writers: set[asyncio.StreamWriter] = set()
        """Of its connections that are not closed here."""

    async def start(self, port: int = 0) -> None:
        self._slots = asyncio.Semaphore(self.script.slots or 1_000_000)
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=1 << 24)
        self._ready = asyncio.get_running_loop().time() + self.script.loads_s
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _close(self, _words: str = "") -> None:
        self._server.close()
        for writer in list(self.writers):
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        self.connections += 1
        self.most_connections = max(self.most_connections, len(self.writers))
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._request(reader, writer):
                pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.writers.discard(writer)

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        arrived = perf_counter_ns()
        _method, path, _version = head[0].split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        stays = headers.get("connection", "").lower() != "close"
        if asyncio.get_running_loop().time() < self._ready:
            return self._reply(writer, 503, {"error": {"message": "Loading model"}})
        if self.script.key and headers.get("authorization") != f"Bearer {self.script.key}":
            return self._reply(writer, 401, {"error": {"message": f"no key: {headers.get('authorization')}"}})
        if path in ("/v1/completions", "/v1/chat/completions") or (path == "/completion" and self._is("llama")):
            served = Served(path, body, headers, arrived)
            self.served.append(served)
            answer = self.script.answers[min(len(self.served), len(self.script.answers)) - 1]
            async with self._slots:
                served.began_ns = perf_counter_ns()
                stays = await self._answer(served, answer, writer) and stays
                served.ended_ns = perf_counter_ns()
            return stays
        known = self._known(path, body)
        return self._reply(writer, 200 if known is not None else 404, known or {"error": {"message": "no such path"}})

    def _is(self, kind: str) -> bool:
        return self.script.kind == kind

    def _known(self, path: str, body: dict[str, Any]) -> Any:
        """Return what paths other than those for tokens answer."""
        model = {"id": self.script.model, "object": "model"}
        if self._is("llama"):
            model["meta"] = {"n_ctx_train": self.script.context, "n_params": 1000, "size": 2000}
        if self._is("vllm"):
            model["max_model_len"] = self.script.context
        found = {"/v1/models": {"object": "list", "data": [model]}, "/health": {"status": "ok"}}
        if self.script.metrics:
            found["/metrics"] = self.script.metrics.format(requests=len(self.served), tokens=self.tokens)
        if self._is("llama"):
            settings = {"n_ctx": self.script.context}
            found["/props"] = {
                "default_generation_settings": settings, "total_slots": self.script.slots or 1,
                "model_path": f"/models/{self.script.model}.gguf", "build_info": "b1234-scripted",
            }  # fmt: skip
            found["/tokenize"] = {"tokens": self.ids(body.get("content", ""))}
            found["/detokenize"] = {"content": self.text(body.get("tokens", []))}
            found["/apply-template"] = {"prompt": _dialogue(body.get("messages", []))}
        if self._is("vllm"):
            text = _dialogue(body["messages"]) if "messages" in body else body.get("prompt", "")
            ids = self.ids(text)
            found["/version"] = {"version": "0.99-scripted"}
            found["/tokenize"] = {"tokens": ids, "count": len(ids), "max_model_len": self.script.context}
            found["/detokenize"] = {"prompt": self.text(body.get("tokens", []))}
        return found.get(path)

    def ids(self, text: str) -> list[int]:
        """Return a text's ids."""
        return [self._ids.setdefault(piece, 100 + len(self._ids)) for piece in _PIECE.findall(text)]

    def text(self, ids: list[int]) -> str:
        """Return the text of ids."""
        pieces = {number: piece for piece, number in self._ids.items()}
        return "".join(pieces[number] for number in ids)

    def _reply(self, writer: asyncio.StreamWriter, status: int, value: Any) -> bool:
        plain = isinstance(value, str)
        data = value.encode() if plain else json.dumps(value).encode()
        kind = "text/plain; version=0.0.4" if plain else "application/json"
        writer.write(
            f"HTTP/1.1 {status} As scripted\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        return True

    def _prompt(self, body: dict[str, Any]) -> tuple[list[int], int]:
        """Return the prompt's ids, and how many of them are cached."""
        prompt = _dialogue(body["messages"]) if "messages" in body else body.get("prompt", "")
        ids = list(prompt) if isinstance(prompt, list) else self.ids(prompt)
        cached = 0
        if self.script.caches and body.get("cache_prompt", True):
            shared = (
                sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(ids, old, strict=False)))
                for old in self._seen
            )
            cached = min(max(shared, default=0), max(len(ids) - 1, 0))
            self._seen = [*self._seen[-63:], ids]
        return ids, cached

    async def _answer(self, served: Served, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        body = served.body
        if answer.status != 200:
            return self._reply(writer, answer.status, {"error": {"message": answer.words, "code": answer.status}})
        ids, cached = self._prompt(body)
        asked = body.get("max_tokens", body.get("max_completion_tokens", body.get("n_predict", 16)))
        tokens = asked if answer.tokens is None else min(answer.tokens, asked)
        finish = answer.finish or ("length" if tokens == asked else "stop")
        usage = {"prompt_tokens": len(ids), "completion_tokens": tokens, "cached_tokens": cached, **answer.usage}
        say = _Words(self, body, served.path, answer, finish, usage, ids)
        streamed = body.get("stream", False) and answer.streams
        if streamed:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            await self._write(writer, say.opening(), answer)
        for begin, due in self._due(tokens, len(ids) - cached, answer):
            end = min(begin + answer.per_chunk, tokens)
            for at in range(begin, end):
                if not await self._go_on(at, answer, writer, say, streamed):
                    return False
            await _until(served.began_ns, due)
            if streamed:
                served.stamps_ns.append(perf_counter_ns())
                await self._write(writer, say.chunk(begin, end, last=end == tokens), answer)
            self.tokens += end - begin
        if not await self._go_on(tokens, answer, writer, say, streamed):
            return False
        served.whole = True
        if not streamed:
            return self._reply(writer, 200, say.all(tokens))
        await self._write(writer, say.closing(), answer)
        writer.write(b"0\r\n\r\n")
        return True

    def _due(self, tokens: int, uncached: int, answer: Answer) -> Iterator[tuple[int, float]]:
        """Return each chunk's first token, and when it is due, seconds after its turn."""
        whole = answer.service_s
        if whole is not None and answer.exponential:
            whole = self._random.expovariate(1 / whole)
        for begin in range(0, tokens, answer.per_chunk):
            last = min(begin + answer.per_chunk, tokens)
            spaced = answer.first_s + uncached * answer.prompt_token_s + answer.gap_s * (begin // answer.per_chunk)
            yield begin, spaced if whole is None else whole * last / tokens

    async def _go_on(self, at: int, answer: Answer, writer: asyncio.StreamWriter, say: _Words, streamed: bool) -> bool:
        """Do what is scripted ahead of this token; return whether it comes."""
        if at == answer.stall_at:
            await asyncio.sleep(3600)
        if at == answer.dies_at:
            await writer.drain()
            self._dies(answer.words)
            return False
        if at == answer.cut_at:
            if answer.words and streamed:
                await self._write(writer, _event({"error": {"message": answer.words, "code": 500}}), answer)
            else:
                await writer.drain()
            return False
        return True

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, answer: Answer) -> None:
        if not data:
            return
        parted = next((n for n, byte in enumerate(data) if byte > 127), len(data) // 2) + 1
        for piece in (data[:parted], data[parted:]) if answer.split else (data,):
            if piece:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            if answer.split:
                await asyncio.sleep(0.001)


class _Words:
    """The events of one answer, in the form that its path and kind have."""

    def __init__(self, server, body, path, answer, finish, usage, prompt) -> None:
        self._server, self._body, self._answer, self._finish, self._usage = server, body, answer, finish, usage
        self._native, self._chat = path == "/completion", path.endswith("/chat/completions")
        self._ids, self._prompt = server._is("vllm") and body.get("return_token_ids"), prompt

    def _texts(self, begin: int, end: int) -> list[str]:
        texts = self._answer.texts
        return [texts[n % len(texts)] for n in range(begin, end)]

    def _told(self) -> dict[str, Any]:
        usage = dict(self._usage)
        return {**usage, "prompt_tokens_details": {"cached_tokens": usage.pop("cached_tokens")}}

    def opening(self) -> bytes:
        return _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}) if self._chat else b""

    def chunk(self, begin: int, end: int, *, last: bool) -> bytes:
        texts = self._texts(begin, end)
        if self._native:
            return _event({"content": "".join(texts), "tokens": self._token_ids(texts), "stop": False})
        text = "".join(texts)
        choice = {"index": 0, **({"delta": {"content": text}} if self._chat else {"text": text})}
        choice["finish_reason"] = self._finish if last else None
        if self._ids:
            choice["token_ids"] = self._token_ids(texts)
        value = {"model": self._server.script.model, "choices": [choice]}
        if self._server._is("vllm") and (self._body.get("stream_options") or {}).get("continuous_usage_stats"):
            value["usage"] = {"prompt_tokens": len(self._prompt), "completion_tokens": end}
        return _event(value)

    def _token_ids(self, texts: list[str]) -> list[int]:
        return [self._server._ids.setdefault(text, 100 + len(self._server._ids)) for text in texts]

    def closing(self) -> bytes:
        if self._native:
            told, kind = self._usage, {"length": "limit", "stop": "eos"}.get(self._finish, self._finish)
            return _event(
                {
                    "content": "", "tokens": [], "stop": True, "stop_type": kind,
                    "tokens_predicted": told["completion_tokens"], "tokens_evaluated": told["prompt_tokens"],
                    "timings": {"cache_n": told["cached_tokens"], "predicted_n": told["completion_tokens"]},
                }
            )  # fmt: skip
        asked = self._answer.tells_usage and (self._body.get("stream_options") or {}).get("include_usage")
        done = b"data: [DONE]\n\n" if self._answer.tells_done else b""
        return (_event({"choices": [], "usage": self._told()}) if asked else b"") + done

    def all(self, tokens: int) -> dict[str, Any]:
        text = "".join(self._texts(0, tokens))
        if self._native:
            return {"content": text, "tokens": self._token_ids(self._texts(0, tokens)), "stop": True}
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {"choices": [{"index": 0, **said, "finish_reason": self._finish}], "usage": self._told()}


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _dialogue(messages: list[dict[str, Any]]) -> str:
    return "".join(f"<{one['role']}> {one['content']} </s> " for one in messages) + "<assistant>"


async def _until(began_ns: int, due_s: float) -> None:
    left = due_s - (perf_counter_ns() - began_ns) / 1e9
    if left > 0:
        await asyncio.sleep(left)


@contextmanager
def running(script: Script | None = None) -> Iterator[Server]:
    """Run a server in a thread of its own until the block ends."""
    server, loop = Server(script or Script()), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="scripted server", daemon=True)
    thread.start()

    async def end() -> None:
        server._close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(_PATIENCE_S)
        yield server
        asyncio.run_coroutine_threadsafe(end(), loop).result(_PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_S)
        loop.close()


def _die(words: str) -> None:
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()
    os._exit(3)


async def _serve(port: int, script: Script) -> None:
    server = Server(script, dies=_die)
    await server.start(port)
    sys.stdout.write(f"listening on {server.url}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default=None, help="its name, instead of the script's")
    parser.add_argument("--script", default=None, help="a file with Script(...).to_json()")
    given = parser.parse_args()
    script = Script.from_json(Path(given.script).read_text(encoding="utf-8")) if given.script else Script()
    if given.model:
        script = replace(script, model=Path(given.model).name)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(given.port, script))


if __name__ == "__main__":
    main()
