"""The engine `server`: a model behind an HTTP server, found running or started for the run."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_infer.engines.base import Clock, Engine, EngineOptions, Request, Served, ServerOptions
from pytest_infer.engines.server import address, client, kinds, listening
from pytest_infer.engines.server.client import Client
from pytest_infer.engines.server.given import Given
from pytest_infer.engines.server.kind import BUST, OFF, Ask, Heard, Kind, failed, with_ahead
from pytest_infer.engines.server.started import Started
from pytest_infer.errors import EngineError, OptionError
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, ModelInfo, Observed, StopReason

_NONCE, _OTHER = "0 0 0 0 0 0 0 0", "1 1 1 1 1 1 1 1"
_METRICS_S = 5.0
"""How long a server may take to tell its metrics: a round waits for it, outside of the clock."""
_DYING_S = 1.0
"""How long a server that broke off is watched: its end is seen some time after that of its connections."""
_UNKNOWN_HEAD, _UNKNOWN_DIALOGUE = 16, 64
"""Tokens ahead of a nonce, where no ids tell them: BOS and a block of a cache; the head of a template."""


@dataclass(frozen=True)
class _Encoded:
    """A prompt's ids with a nonce ahead of it, and where that stands in them."""

    ids: tuple[int, ...]
    begin: int = 0
    end: int = 0


class ServerEngine(Engine):
    """Sends each round's prompt to a server and ticks as its tokens come."""

    def __init__(self, options: EngineOptions) -> None:
        if options.server is None:
            raise OptionError("the engine 'server' needs --infer-server URL, or --infer-serve COMMAND")
        self._options, self._server = options, options.server
        self._given = Given(options)
        self._started: Started | None = None
        self._client: Client | None = None
        self._aside: Client | None = None
        self._kind: Kind | None = None
        self._here: bool | None = None
        self._encoded: dict[Prompt, _Encoded] = {}
        self._heard: Heard | None = None
        self._allowed: int | None = None

    # finding and starting

    def check(self) -> None:
        """Ask a running server what it is; see that one of ours can be started."""
        if self._server.kind is not None:
            self._check_takes(kinds.KINDS[self._server.kind])
        if self._server.url is not None:
            listening.check(self._server.pids)
            if self._kind is None:
                self._connect(self._server.url)
        elif self._started is None:
            self._started = self._command(self._server)

    def _command(self, server: ServerOptions) -> Started:
        environ = {name: value for name, value in os.environ.items() if name != address.KEY}
        return Started(
            server.command or "", model=lambda: self._given.model, gguf=lambda: self._given.gguf, flags=server.flags,
            environ=environ, limit_s=server.timeout_s,
        )  # fmt: skip

    def _connect(self, url: str) -> None:
        self._client = Client(url, timeout_s=self._server.timeout_s, check=self._check_alive)
        ours = self._server.command is not None
        name, path = (None, self._given.path) if ours else (self._options.model or None, None)
        found = kinds.of(self._client, name, self._server.kind, path)
        self._check_takes(type(found))
        found.check()
        self._kind = found

    def _check_takes(self, kind: type[Kind]) -> None:
        """Raise OptionError for what a server of this kind cannot be asked for."""
        if self._server.cache == OFF and not kind.leaves_cache:
            raise OptionError(
                f"--infer-cache=off: this server ({kind.label}) cannot be asked to leave its cache of prompts alone: "
                "leave it out, or start the server without one and take warm"
            )
        if self._options.sampling is not None and kind.most_seed is not None:
            self._options.sampling.check_seed(kind.most_seed, kind.label)

    def _check_alive(self) -> None:
        """Raise EngineError with its last lines where a server of ours has ended, or is about to."""
        if self._started is None or self._kind is None:
            return
        until = time.monotonic() + _DYING_S
        while time.monotonic() < until:
            self._started.check()
            time.sleep(0.02)

    def load(self) -> ModelInfo:
        """Start the server, if it is ours, and describe the model as far as it tells."""
        self.check()
        load_s = None
        if self._started is not None and self._kind is None:
            self._started.start()
            load_s = self._started.load_s
            self._connect(self._started.url)
        return self._described(load_s)

    def _described(self, load_s: float | None) -> ModelInfo:
        told, sampling = self._asked.told(), self._options.sampling
        how: dict[str, str | int | float | bool | None] = {"do_sample": sampling is not None}
        if sampling is not None:
            how |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        how["prompt_cache"] = self._server.cache
        return ModelInfo(
            name=told.name or self._asked.model,
            engine=told.engine,
            source=self._server.source,
            parameters=told.parameters,
            parameter_bytes=told.parameter_bytes,
            context_length=told.context,
            vocabulary=told.vocabulary,
            load_s=load_s,
            uncounted="the server tells neither its cache's size nor that of its other tensors",
            versions=told.versions,
            generation=how,
        )

    @property
    def _asked(self) -> Kind:
        if self._kind is None:
            raise EngineError("the server has not started")
        return self._kind

    @property
    def _where(self) -> str | None:
        return self._server.url if self._started is None else self._started.url

    @property
    def _line(self) -> Client:
        if self._client is None:
            raise EngineError("the server has not started")
        return self._client

    def files(self) -> Sequence[Path]:
        """Return the file of a model that a server of ours takes from here."""
        return self._given.files()

    def context_length(self) -> int | None:
        """Return how many tokens the server takes, as far as it tells."""
        return None if self._kind is None else self._kind.told().context

    def honours(self) -> frozenset[str]:
        """Return what a server can be asked for."""
        return frozenset({"model", "sampling", "server"})

    def takes_turns(self) -> bool:
        """Return that a server goes on, whoever waits."""
        return False

    def varied(self) -> str | None:
        """Return that each round has a nonce, where that is so."""
        return "each round's prompt begins with a nonce (--infer-cache=bust)" if self._server.cache == BUST else None

    def observed(self) -> Observed | None:
        """Return the server's processes, where they run on this machine."""
        if self._started is not None:
            return Observed(pids=(self._started.pid,), source="started with --infer-serve", started=True)
        url = self._server.url or ""
        if self._here is None:  # kept: each test asks several times, and a look-up takes its time, or fails
            self._here = bool(self._server.pids) or address.is_here(url)
        if not self._here:
            why = "the server's name cannot be looked up" if self._here is None else "the server is on another machine"
            return Observed(absent=why, source=url)
        return listening.observed(address.port(url), self._server.pids)

    def served(self) -> Served | None:
        """Return where load tests send their requests."""
        authorisation = address.authorisation()
        if self._where is None:
            return None
        key = None if authorisation is None else authorisation.removeprefix("Bearer ")
        return Served(url=self._where, model=self._asked.model, key=key)

    def ended(self) -> str | None:
        """Return what a server of ours said last, or that nobody listens any more where one was found."""
        gone = listening.refused(self._where or "")
        try:
            if gone is not None:
                self._check_alive()
        except EngineError as error:
            return str(error)
        return gone

    def metrics_text(self) -> str | None:
        """Return what the server says at /metrics, over another connection: that of the round is open, and stays so."""
        url = self._where
        if self._aside is None and url is not None:
            self._aside = Client(url, timeout_s=min(_METRICS_S, self._server.timeout_s), check=self._check_alive)
        return None if self._aside is None else self._aside.text("/metrics")

    def experts_absent(self) -> str:
        """Return why there are no modules."""
        return "the model is in another process"

    # prompts

    def encodes(self) -> bool:
        """Return whether the server runs by now, whose tokeniser it is."""
        return self._kind is not None

    def needs_ids(self) -> bool:
        """Return whether this server tells ids."""
        return self._kind is not None and self._kind.gives_ids

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt with a nonce ahead of it, if there is one; none where the server tells none."""
        if not self._asked.gives_ids:
            return []
        if self._server.cache != BUST:
            return self._asked.ids(prompt)
        ids, other = (self._asked.ids(with_ahead(prompt, _ahead(nonce))) for nonce in (_NONCE, _OTHER))
        differ = [n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b]
        if len(ids) != len(other) or not differ:
            raise _no_nonce()
        self._encoded[prompt] = _Encoded(tuple(ids), differ[0], differ[-1] + 1)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, by the server's own tokeniser."""
        return self._asked.decode(token_ids)

    def ready(self, request: Request, limits: Limits) -> None:
        """Make the round's request, and see that the connection is there."""
        if self._started is not None:
            self._started.check()
        ids, ahead = request.ids, ""
        if self._server.cache == BUST:
            ahead = _ahead(request.nonce)
            ids = self._with_nonce(request, ahead)
        ask = Ask(
            prompt=request.prompt, ahead=ahead, ids=ids, limits=limits, cache=self._server.cache,
            salt=f"pytest-infer {request.nonce}", sampling=self._options.sampling,
        )  # fmt: skip
        self._line.prepare(*self._asked.body(ask))

    def _with_nonce(self, request: Request, ahead: str) -> Sequence[int]:
        """Return a round's ids with its own nonce; and know how many may be cached: those ahead of it."""
        if not request.ids:
            self._allowed = _UNKNOWN_DIALOGUE if request.prompt.messages else _UNKNOWN_HEAD
            return ()
        known = self._encoded[request.prompt]
        self._allowed = known.begin
        own = self._asked.ids(with_ahead(request.prompt, ahead))
        if len(own) != len(known.ids):
            raise _no_nonce()
        if tuple(request.ids) == known.ids:
            return own
        return [*own[: known.end], *request.ids[known.end :]][: len(request.ids)]  # of another length

    # rounds

    def respond(self, request: Request, limits: Limits, clock: Clock) -> StopReason | None:  # noqa: ARG002 - see `ready`
        """Send the request, and tick what comes."""
        kind, heard = self._asked, Heard(clock=clock, limits=limits)
        self._heard = None
        for event in self._line.stream(clock, lambda: heard.tokens):
            if event is None:
                heard.whole = True
            elif (why := failed(event)) is not None:
                raise EngineError(f"the server failed {client.after(heard.tokens)}: {why}")
            else:
                try:
                    kind.hear(event, heard)
                except (AttributeError, TypeError) as error:
                    raise EngineError(
                        f"this server ({kind.label}) sent an event of no known form: {client.shown(event)}"
                    ) from error
        self._check_end(heard, limits)
        self._heard = heard
        return heard.stopped_by

    def settle(self) -> None:
        """Ask for the ids that were not told, and say what may have been cached."""
        heard, self._heard = self._heard, None
        if heard is not None:
            self._asked.finish(heard)
            heard.clock.reported(allowed={BUST: self._allowed, OFF: 0}.get(self._server.cache))

    def _check_end(self, heard: Heard, limits: Limits) -> None:
        if not heard.whole:
            self._check_alive()
            raise EngineError(f"the server's stream broke off {client.after(heard.tokens)}, without its end")
        if not heard.tokens:
            raise EngineError("the server generated no token")
        if limits.ignore_eos and heard.stopped_by is StopReason.EOS and heard.tokens < limits.max_new_tokens:
            raise EngineError(
                f"the server ended after {heard.tokens} of {limits.max_new_tokens} tokens, though asked to go on: "
                "leave out --infer-ignore-eos"
            )

    def close(self) -> None:
        """End the connection, and a server of ours."""
        for line in (self._client, self._aside):
            if line is not None:
                line.close()
        if self._started is not None:
            self._started.stop()
        self._client = self._aside = self._kind = self._started = self._heard = None


def _ahead(nonce: str) -> str:
    return f"{nonce}\n"


def _no_nonce() -> EngineError:
    return EngineError(
        "this model's tokeniser does not make equally many tokens of each nonce: take --infer-cache=off or warm"
    )
