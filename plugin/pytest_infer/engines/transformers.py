"""The transformers engine: a model's own `generate()`, with a streamer that only ticks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompileConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from pytest_infer.engines import models
from pytest_infer.engines.base import Clock, Engine, EngineOptions
from pytest_infer.errors import ModelError, alternatives
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, ModelInfo, StopReason

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _TickStreamer(BaseStreamer):  # type: ignore[misc]  # transformers ships no types
    """Ticks the clock with each new token; the first `put` of generate() is the prompt."""

    def __init__(self, clock: Clock) -> None:
        self._tick = clock.tick
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
        else:
            self._tick(value.tolist())

    def end(self) -> None:
        """Nothing is buffered."""


class TransformersEngine(Engine):
    """Runs what users run: `model.generate()`, greedy unless told to sample, one sequence at a time."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._source: str | None = None
        self._config: Any = None
        self._tokenizer: Any = None
        self._model: Any = None
        self._cache: Any = None
        self._generation: GenerationConfig | None = None
        self._own_generation: GenerationConfig | None = None
        self._threads_before: int | None = None
        self._name = options.model

    # finding and loading

    def check(self) -> None:
        """Resolve the model, then read its config and tokenizer."""
        if self.options.dtype != "auto" and self.options.dtype not in DTYPES:
            raise ModelError(alternatives("dtype", self.options.dtype, ("auto", *DTYPES)))
        self._check_device()
        if self._source is None:
            self._source = models.resolve(self.options.model, self.options.progress)
        if self._config is None:
            with _loading(self._source):
                hub = {"revision": self.options.revision, "trust_remote_code": self.options.trust_remote_code}
                self._config = AutoConfig.from_pretrained(self._source, **hub)
                self._tokenizer = AutoTokenizer.from_pretrained(self._source, **hub)

    def _check_device(self) -> None:
        if self.options.device is None:
            return
        try:
            kind = torch.device(self.options.device).type
        except RuntimeError as error:
            raise ModelError(f"unknown device {self.options.device!r}: {str(error).splitlines()[0]}") from None
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        usable = ["cpu", "meta", *([accelerator.type] if accelerator else [])]
        if kind not in usable or kind == "meta":
            raise ModelError(alternatives("device", self.options.device, (u for u in usable if u != "meta")))

    def load(self) -> ModelInfo:
        """Load the model on its device."""
        self.check()
        self._set_threads()
        given: dict[str, Any] = {
            "dtype": DTYPES.get(self.options.dtype, "auto"),
            "revision": self.options.revision,
            "trust_remote_code": self.options.trust_remote_code,
        }
        if self.options.experts_implementation is not None:
            given["experts_implementation"] = self.options.experts_implementation
        if self.options.attention is not None:
            given["attn_implementation"] = self.options.attention
        with _loading(self._source or self.options.model):
            model = AutoModelForCausalLM.from_pretrained(self._source, **given)
            if self.options.device is not None:
                model = model.to(self.options.device)
        return self._adopted(model)

    def adopt(self, model: torch.nn.Module, tokenizer: Any) -> ModelInfo:
        """Take a transformers model that is already loaded (patched, quantised, built by a test) and its tokenizer.

        Override the `model` fixture with it: `return engine.adopt(my_model, my_tokenizer)`.
        """
        self._set_threads()
        self._tokenizer = tokenizer
        self._config = model.config
        self._source = None
        # Results must not bear the name that the options give to another model.
        self._name = str(getattr(self._config, "name_or_path", "") or type(model).__name__)
        return self._adopted(model)

    def _adopted(self, model: Any) -> ModelInfo:
        self._model = model.eval()
        self._own_generation = model.generation_config
        self._generation = self._generation_config(model)
        model.generation_config = copy.deepcopy(self._generation)
        return self._describe(model)

    def _set_threads(self) -> None:
        if self.options.threads is not None:
            if self._threads_before is None:
                self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self.options.threads)

    def _generation_config(self, model: Any) -> GenerationConfig:
        """Return the model's own configuration with decoding set to what the options ask."""
        config = copy.deepcopy(model.generation_config)
        sampling = self.options.sampling
        config.do_sample = sampling is not None
        config.temperature = sampling.temperature if sampling else None
        config.top_p = sampling.top_p if sampling else None
        config.top_k = 0 if sampling else None
        config.use_cache = self.options.use_cache
        config.return_dict_in_generate = True  # hands the cache back, so that its bytes can be counted
        if config.pad_token_id is None:
            config.pad_token_id = _first(config.eos_token_id)
        if self.options.compile:
            config.cache_implementation = "static"
            config.compile_config = CompileConfig(fullgraph=False, mode="default")
            # A private switch of transformers: without it, generate() compiles on accelerators only.
            config.compile_config._compile_all_devices = True
        return config

    def _describe(self, model: Any) -> ModelInfo:
        config = model.config
        text = config.get_text_config()
        sampling = self.options.sampling
        return ModelInfo(
            name=self._name,
            engine="transformers",
            architecture=type(model).__name__,
            source=None if self._name in models.BUNDLED else self._source,
            revision=getattr(config, "_commit_hash", None) or self.options.revision,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            parameters=sum(p.numel() for p in model.parameters()),
            parameter_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
            buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
            context_length=self.context_length(),
            vocabulary=getattr(text, "vocab_size", None),
            attention=getattr(config, "_attn_implementation", None),
            experts_implementation=_experts_implementation(model),
            threads=torch.get_num_threads(),
            versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
            generation={
                "do_sample": sampling is not None,
                "temperature": sampling.temperature if sampling else None,
                "top_p": sampling.top_p if sampling else None,
                "seed": sampling.seed if sampling else 0,
                "use_cache": self.options.use_cache,
                "compile": self.options.compile,
            },
        )

    # text and ids

    def context_length(self) -> int | None:
        """Return the config's `max_position_embeddings`."""
        return getattr(self._config.get_text_config(), "max_position_embeddings", None)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return ids as the tokenizer makes them: its special tokens for text, its chat template for messages."""
        if prompt.text is not None:
            return list(self._tokenizer(prompt.text)["input_ids"])
        if not self._tokenizer.chat_template:
            raise ModelError(f"prompt {prompt.name!r} is a dialogue, and {self.options.model} has no chat template")
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        encoded = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # generating

    def reset(self) -> None:
        """Drop the last cache and start from the seed."""
        self._cache = None
        torch.manual_seed(self.options.sampling.seed if self.options.sampling else 0)

    def synchronize(self) -> None:
        """Wait for the accelerator, where the model is on one."""
        if self._model.device.type != "cpu":
            torch.accelerator.synchronize(self._model.device)

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        """Run the model's own generate() on one sequence."""
        config = self._limited(limits)
        ids = torch.tensor([list(prompt_ids)], device=self._model.device)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=_TickStreamer(clock),
            **({"tokenizer": self._tokenizer} if limits.stop else {}),
        )
        self._cache = output.past_key_values
        return self._stopped_by(output.sequences[0, len(prompt_ids) :].tolist(), limits)

    def _limited(self, limits: Limits) -> GenerationConfig:
        config = copy.copy(self._generation)
        if config is None:
            raise ModelError("the model is not loaded: call load() or adopt() before generate()")
        config.max_new_tokens = limits.max_new_tokens
        config.max_length = None
        if limits.ignore_eos:
            config.eos_token_id = None
        # generate() fills what is None from the model's own configuration, so that one must not know an end either.
        self._model.generation_config.eos_token_id = config.eos_token_id
        if limits.stop:
            config.stop_strings = list(limits.stop)
        return config

    def _stopped_by(self, new_ids: list[int], limits: Limits) -> StopReason:
        eos = self._generation.eos_token_id if self._generation is not None else None
        ends = set() if limits.ignore_eos or eos is None else {eos} if isinstance(eos, int) else set(eos)
        if new_ids and new_ids[-1] in ends:
            return StopReason.EOS
        if len(new_ids) >= limits.max_new_tokens:
            # A stop string that completes with the very last token allowed ended it as well; the text says which.
            return StopReason.LENGTH
        return StopReason.STOP_STRING

    def cache_bytes(self) -> int | None:
        """Return the bytes of the key and value tensors that the last generate() left."""
        layers = getattr(self._cache, "layers", None)
        if layers is None:
            return None
        tensors = {id(t): t for layer in layers for t in vars(layer).values() if isinstance(t, torch.Tensor)}
        return sum(t.untyped_storage().nbytes() for t in tensors.values())

    def experts_module(self) -> object | None:
        """Return the model, unless it runs compiled: hooks added after compilation see nothing."""
        return None if self.options.compile else self._model

    def experts_absent(self) -> str:
        """Say why hooks cannot be used."""
        return "not with --infer-compile: a compiled model runs past the hooks"

    def close(self) -> None:
        """Drop the model, as it came, and give back the thread count."""
        if self._model is not None:
            self._model.generation_config = self._own_generation
        self._model = self._cache = None
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None


def _first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


def _experts_implementation(model: Any) -> str | None:
    """Return which implementation of its experts the model runs; None for a dense one, whose config names one too."""
    has_experts = getattr(type(model), "_can_set_experts_implementation", lambda: False)()
    return getattr(model.config, "_experts_implementation", None) if has_experts else None


@contextmanager
def _loading(source: str) -> Iterator[None]:
    """Turn what transformers raises for a model it cannot load into one line, and keep its progress bars quiet."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        first = " ".join(str(error).split())
        raise ModelError(f"{source}: cannot be loaded: {first[:400]}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
