"""A loaded transformers model while it is measured: its `generate()`, with a streamer that only ticks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from pytest_infer.engines.base import Clock, EngineOptions
from pytest_infer.engines.transformers import decoding, work
from pytest_infer.records import Limits, ModelInfo, StopReason

_REMOTE = "transformers_modules."


class TickStreamer(BaseStreamer):  # type: ignore[misc]  # transformers ships no types
    """Ticks the clock with each new token; the first `put` of generate() is the prompt."""

    def __init__(self, clock: Clock) -> None:
        self._tick = clock.tick
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Tick, unless it is the prompt."""
        if self._prompt:
            self._prompt = False
        else:
            self._tick(value.tolist())

    def end(self) -> None:
        """Nothing is buffered."""


class BatchStreamer(TickStreamer):
    """Ticks the clock with the new token of the first sequence: each step generates one for all of them."""

    def put(self, value: torch.Tensor) -> None:
        """Tick, unless it is the prompt."""
        super().put(value[:1])


class Running:
    """Generations, one after the other, through a model, whose own generation config is replaced until `release`.

    Raises:
        ValueError: the model's own generation config holds what transformers refuses.
    """

    def __init__(self, model: Any, tokenizer: Any, options: EngineOptions) -> None:
        self.config = decoding.configuration(model.generation_config, options)
        self.model = model.eval()
        self.cache: Any = None
        self._tokenizer = tokenizer
        self._options = options
        self._own = model.generation_config
        model.generation_config = copy.deepcopy(self.config)

    def release(self) -> None:
        """Restore the model's own generation config."""
        self.model.generation_config = self._own
        self.cache = None

    def reset(self) -> None:
        """Drop the last cache and start from the seed."""
        self.cache = None
        torch.manual_seed(self._options.sampling.seed if self._options.sampling else 0)

    def synchronize(self) -> None:
        """Wait for the accelerator, where the model is on one."""
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize(self.model.device)

    def limited(self, limits: Limits) -> Any:
        """Return the configuration of one generation."""
        config = decoding.limited(self.config, limits)
        # generate() fills what is None from the model's own configuration, so that one must not define an end either.
        self.model.generation_config.eos_token_id = config.eos_token_id
        return config

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        """Run the model's own generate() on one sequence, or on a batch of the same prompt."""
        together = limits.sequences > 1
        # In a batch the first sequence alone decides when all of them end, and not each when it ends itself.
        config = self.limited(Limits(max_new_tokens=limits.max_new_tokens, ignore_eos=True) if together else limits)
        ids = torch.tensor([list(prompt_ids)] * limits.sequences, device=self.model.device)
        given: dict[str, Any] = {"stopping_criteria": [self._first_ended(limits)]} if together else {}
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=BatchStreamer(clock) if together else TickStreamer(clock),
            **given,
            **({"tokenizer": self._tokenizer} if limits.stop and not together else {}),
        )
        self.cache = output.past_key_values
        return self._stopped_by(output.sequences, len(prompt_ids), limits)

    def _first_ended(self, limits: Limits) -> Any:
        """Return a criterion by which all sequences end when the first one does."""
        ends = decoding.ends(self.config, limits)
        stops = StopStringCriteria(stop_strings=list(limits.stop), tokenizer=self._tokenizer) if limits.stop else None

        def ended(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            first = int(ids[0, -1]) in ends or (stops is not None and bool(stops(ids[:1], scores).all()))
            return torch.full((ids.shape[0],), first, dtype=torch.bool, device=ids.device)

        return ended

    def _stopped_by(self, sequences: torch.Tensor, prompt_tokens: int, limits: Limits) -> StopReason | None:
        new = sequences.shape[1] - prompt_tokens
        if new and int(sequences[0, -1]) in decoding.ends(self.config, limits):
            return StopReason.EOS
        # Asked of the criterion itself, which sees the prompt too: it may have held with the last token allowed.
        if limits.stop and bool(
            StopStringCriteria(stop_strings=list(limits.stop), tokenizer=self._tokenizer)(sequences[:1], None).all()
        ):
            return StopReason.STOP_STRING
        return StopReason.LENGTH if new >= limits.max_new_tokens else None

    def cache_bytes(self) -> int | None:
        """Return the bytes of the key and value tensors that the last generate() left."""
        layers = getattr(self.cache, "layers", None)
        if layers is None:
            return None
        tensors = {id(t): t for layer in layers for t in vars(layer).values() if isinstance(t, torch.Tensor)}
        return sum(t.untyped_storage().nbytes() for t in tensors.values())

    def describe(self, name: str, source: str | None, revision: str | None) -> ModelInfo:
        """Return what results say about the model."""
        model, config = self.model, self.model.config
        text = config.get_text_config()
        return ModelInfo(
            name=name,
            engine="transformers",
            architecture=type(model).__name__,
            source=source,
            revision=revision,
            dtype=str(model.dtype).removeprefix("torch."),
            device=_devices(model),
            parameters=work.parameters(model),
            parameter_bytes=work.parameter_bytes(model),
            buffer_bytes=sum(map(work.stored_bytes, model.buffers())),
            context_length=getattr(text, "max_position_embeddings", None),
            vocabulary=getattr(text, "vocab_size", None),
            attention=getattr(config, "_attn_implementation", None),
            experts_implementation=_experts_implementation(model),
            threads=torch.get_num_threads(),
            quantization=None if self._options.quantization == "none" else self._options.quantization,
            remote_code=_remote_code(model),
            work=work.of(model),
            versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
            generation=decoding.described(self._own, self._options),
        )


def _devices(model: Any) -> str:
    """Return the devices that hold weights, accelerators first; "meta" are those that accelerate has offloaded."""
    found = {str(parameter.device) for parameter in model.parameters()} or {str(model.device)}
    return ", ".join(sorted(found, key=lambda name: (name.startswith(("cpu", "meta")), name)))


def _experts_implementation(model: Any) -> str | None:
    """Return which implementation of its experts the model runs; None for a dense one, whose config names one too."""
    has_experts = getattr(type(model), "_can_set_experts_implementation", lambda: False)()
    return getattr(model.config, "_experts_implementation", None) if has_experts else None


def _remote_code(model: Any) -> str | None:
    """Return the module of a class that transformers took from beside the weights; its name holds their commit."""
    module = type(model).__module__
    return module.removeprefix(_REMOTE) if module.startswith(_REMOTE) else None


def set_threads(count: int) -> int:
    """Set torch's threads and return how many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return before
