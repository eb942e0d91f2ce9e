"""The llamacpp engine: a GGUF file, or a bundled model as one, run by llama.cpp in this process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import psutil

from pytest_infer.engines import models
from pytest_infer.engines.base import LLAMA_SEED, Clock, Engine, EngineOptions, dtype_named
from pytest_infer.engines.checkpoint import gguf_header, hashes
from pytest_infer.engines.checkpoint import source as checkpoint
from pytest_infer.engines.checkpoint.source import Checkpoint
from pytest_infer.engines.llamacpp import arguments, description, native, vocabulary
from pytest_infer.engines.llamacpp.completion import UNKNOWN, Completion
from pytest_infer.engines.llamacpp.description import Header
from pytest_infer.engines.llamacpp.native import Native
from pytest_infer.errors import EngineError, ModelError, UnknownValueError, alternatives
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, ModelInfo, Scores, StopReason

LEAST_CONTEXT = 4096
"""Positions for which the KV cache has room, unless -c says so: llama.cpp makes it with the model, and clears it."""
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_CONTROL = 3  # token_type of a special token, by the GGUF specification


class LlamaCppEngine(Engine):
    """Runs llama-server's own loop in this process: one sequence, greedy or sampled."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._given = arguments.parse(options.engine_args)
        self._path: Path | None = None
        self._checkpoint: Checkpoint | None = None
        self._header = Header(metadata={}, tensors=())
        self._special: frozenset[int] = frozenset()
        self._encoder: Native | None = None
        self._native: Native | None = None
        self._room = 0
        self._completion: Completion | None = None
        self._scored = False
        self._follow: tuple[int, ...] | None = None
        self._positions = 0

    # finding and loading

    def check(self) -> None:
        """Find the file, read its header, and make its tokeniser."""
        native.check_installed()
        if self.options.sampling is not None:
            self.options.sampling.check_seed(LLAMA_SEED, "llama.cpp")
        if self._path is not None:
            return
        found = checkpoint.of_gguf(self._found())
        path = found.files[0]
        metadata, _ = gguf_header.of_file(path)
        if "general.architecture" not in metadata or "tokenizer.ggml.tokens" not in metadata:
            raise ModelError(f"{path}: holds no language model: no architecture, or no tokeniser")
        self._header = Header(metadata=metadata, tensors=found.tensors)
        native.parameters(path, self._given, threads=None)  # refuses what this machine does not have
        kinds = metadata.get("tokenizer.ggml.token_type", ())
        self._special = frozenset(number for number, kind in enumerate(kinds) if kind == _CONTROL)
        self._encoder = self._vocabulary(path)
        self._path, self._checkpoint = path, found

    def _found(self) -> Path:
        """Return the GGUF file that --infer-model names."""
        name, dtype = self.options.model, self.options.dtype
        if models.is_gguf(name):
            if dtype != "auto":
                raise UnknownValueError(f"--infer-dtype {dtype}: a GGUF file has its own types: leave it out")
        elif dtype not in _DTYPES:
            raise UnknownValueError(alternatives("dtype", dtype, _DTYPES))
        return models.gguf(name, dtype, self.options.progress)

    @staticmethod
    def _vocabulary(path: Path) -> Native:
        """Return a model of next to nothing with the same tokeniser."""
        with tempfile.TemporaryDirectory() as folder:
            small = Path(folder) / path.name
            vocabulary.write(path, small)
            params = native.parameters(small, arguments.parse(None), threads=1)
            params.n_ctx, params.warmup = 64, False
            return Native(params)

    def load(self) -> ModelInfo:
        """Load the model, with room for the prompts that were encoded so far."""
        self.check()
        self._encoder = None
        self._load(self._wanted(max(LEAST_CONTEXT, 2 * self._positions)))
        return self._described()

    def _load(self, room: int) -> None:
        """Load the file with room for so many positions, in place of a model that is loaded."""
        self._completion = self._native = None  # before the next one: both might not fit
        params = native.parameters(str(self._path), self._given, threads=self._threads())
        self._room = params.n_ctx = room
        self._native = Native(params)

    def _wanted(self, positions: int) -> int:
        """Return the positions to make room for: as -c says, else so many, but no more than the model has."""
        if self._given.n_ctx:
            return int(self._given.n_ctx)
        return min(positions, self.context_length() or positions)

    def _threads(self) -> int:
        """Return the threads that are asked for: by the option, OMP_NUM_THREADS, or one a core, as torch has it."""
        if self.options.threads is not None:
            return self.options.threads
        told = os.environ.get("OMP_NUM_THREADS", "")
        if told.isdigit() and int(told):
            return int(told)
        usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
        return min(usable or 1, psutil.cpu_count(logical=False) or usable or 1)

    def _described(self) -> ModelInfo:
        header, bundled = self._header, self.options.model in models.BUNDLED
        devices = arguments.devices(native.binding()) if self._given.n_gpu_layers != 0 else []
        tensors = header.tensors
        return ModelInfo(
            name=models.display_name(self.options.model),
            engine="llamacpp",
            architecture=header.architecture,
            source=None if bundled else "local file",
            dtype=dtype_named(description.dtype(header)),
            device=", ".join([*devices, "cpu"]),
            parameters=sum(prod(tensor.shape) for tensor in tensors),
            parameter_bytes=sum(tensor.bytes for tensor in tensors),
            context_length=self.context_length(),
            vocabulary=len(header.metadata["tokenizer.ggml.tokens"]),
            threads=self._threads(),
            work=description.work(header),
            quantization=description.quantization(header),
            engine_args=self.options.engine_args,
            versions={"xllamacpp": version("xllamacpp")},
            generation=self._generation(),
        )

    def _generation(self) -> dict[str, str | int | float | bool | None]:
        sampling = self.options.sampling
        return {
            "do_sample": sampling is not None,
            "temperature": sampling.temperature if sampling else None,
            "top_p": sampling.top_p if sampling else None,
            "seed": sampling.seed if sampling else 0,
            "use_cache": True,
            "compile": False,
        }

    def adapt(self, options: EngineOptions) -> ModelInfo:
        """Load again with other threads, which the binding cannot change; its pages are in memory."""
        if not options.use_cache:
            raise EngineError("llama.cpp always has a KV cache: leave out --infer-no-cache, and cache of the sweep")
        self.options = options
        self._load(self._room)
        return self._described()

    def weights_sha256(self) -> str | None:
        """Return the hash of the files under their own names; of a bundled model that of its folder, whose they are."""
        if self.options.model in models.BUNDLED:
            return hashes.sha256(Path(models.resolve(self.options.model, self.options.progress)), self.options.progress)
        # A hub's cache keeps them under other names, which are their hashes.
        return None if self._checkpoint is None else hashes.of_files(self._checkpoint.files, self.options.progress)

    def checkpoint(self) -> Checkpoint | None:
        """Return what the header says, for a model on the CPU."""
        return self._checkpoint

    def files(self) -> Sequence[Path]:
        """Return the GGUF file, or all parts of it."""
        return () if self._checkpoint is None else tuple(path.resolve() for path in self._checkpoint.files)

    def context_length(self) -> int | None:
        """Return -c, or the context that the file names where that is less: llama-server stops there whatever -c is."""
        return min(filter(None, (self._given.n_ctx, self._header.number("context_length"))), default=None)

    def most_positions(self) -> int | None:
        """Return the same: there are no more."""
        return self.context_length()

    # text and ids

    @property
    def native(self) -> Native:
        """Return the loaded model, or the one that only encodes; raise ModelError before `check`."""
        found = self._native or self._encoder
        if found is None:
            raise ModelError("the model is not loaded: call load() first")
        return found

    def encode(self, prompt: Prompt) -> list[int]:
        """Return ids as llama-server makes them: its special tokens for text, the file's chat template for messages."""
        text = prompt.text
        if text is None:
            if "tokenizer.chat_template" not in self._header.metadata:
                raise ModelError(f"prompt {prompt.name!r} is a dialogue, and the GGUF file has no chat template")
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            text = self._asked(prompt, "/apply-template", {"messages": turns})["prompt"]
        asked = {"content": text, "add_special": True, "parse_special": True}
        ids: list[int] = self._asked(prompt, "/tokenize", asked)["tokens"]
        self._positions = max(self._positions, len(ids))
        return ids

    def _asked(self, prompt: Prompt, path: str, body: dict[str, Any]) -> Any:
        try:
            return self.native.ask(path, body)
        except EngineError as error:
            raise ModelError(f"prompt {prompt.name!r}: {error}") from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text without special tokens, and without those that nobody told."""
        shown = [number for number in token_ids if number not in self._special and number != UNKNOWN]
        return str(self.native.ask("/detokenize", {"tokens": shown})["content"])

    # generating

    def prepare(self, prompt_ids: Sequence[int], limits: Limits) -> None:
        """Write the request and open its connection; make room for a prompt that is longer than any before."""
        needed, most = len(prompt_ids) + limits.max_new_tokens, self.most_positions()
        if most is not None and needed > most:
            raise EngineError(f"llama.cpp has {most} positions for this file and these arguments, not {needed}")
        if needed > self._room:
            self._load(self._wanted(2 * needed))
        self._request(prompt_ids, limits).connect()

    def _request(self, prompt_ids: Sequence[int], limits: Limits) -> Completion:
        """Return the last request if it is the same, or a new one."""
        made = self._completion
        if made is None or not made.of(prompt_ids, limits, self._scored, self._follow):
            made = Completion(
                self.native, prompt_ids, limits, self.options.sampling, scored=self._scored, follow=self._follow
            )
            self._completion = made
        return made

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        """Send the request and tick as tokens arrive."""
        return self._request(prompt_ids, limits).run(clock)

    def settle(self) -> None:
        """Fill in the ids that were not sent, as far as another generation tells them."""
        if self._completion is not None:
            self._completion.settle()

    def follow(self, token_ids: Sequence[int] | None) -> None:
        """Let a grammar leave these tokens alone to be chosen."""
        self._follow = None if token_ids is None else tuple(token_ids)

    def cannot_follow(self, token_ids: Sequence[int]) -> str | None:
        """Say which token ends a text before the last one does."""
        end = next((number for number in token_ids[:-1] if number in self.native.ends), None)
        return None if end is None else f"token {end} within it ends a text, and llama.cpp ends there"

    def keep_scores(self, *, keep: bool, full: Path | None = None) -> None:  # noqa: ARG002 - only the highest come
        """Ask for the log-probabilities of the most probable tokens too."""
        self._scored = keep

    def scores(self) -> Scores | None:
        """Return the scores of the last generation."""
        if self._completion is None:
            return None
        return self._completion.scores(len(self._header.metadata["tokenizer.ggml.tokens"]))

    def scores_absent(self) -> str:
        """Say what of a generation has none."""
        return "llama-server sends no probabilities for tokens that end within a character"

    def cache_bytes(self) -> int | None:
        """Return the bytes of the positions that the last generation filled; the cache has room for more."""
        held = description.position_bytes(self._header, self._given)
        filled = None if self._completion is None else self._completion.filled
        return None if held is None or filled is None else held * filled

    def experts_absent(self) -> str:
        """Say why no expert can be recorded."""
        return "the binding of llama.cpp offers no callback (ggml's cb_eval) that would show the chosen experts"

    def takes_turns(self) -> bool:
        """Return that tokens are computed while others are fetched."""
        return False

    def honours(self) -> frozenset[str]:
        """Return what decides the file and how it runs; of a GGUF file the dtype is its own."""
        return frozenset({"model", "dtype", "threads", "sampling", "engine_args"})

    def close(self) -> None:
        """Free the model."""
        if self._completion is not None:
            self._completion.close()
        self._completion = self._native = self._encoder = None
