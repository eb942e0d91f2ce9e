"""A loaded transformers model while it is measured: its `generate()`, with a streamer that only ticks."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from pytest_infer import untrusted
from pytest_infer.engines.base import Clock, EngineOptions, local
from pytest_infer.engines.transformers import classes, compiling, decoding, devices, quantization, work
from pytest_infer.engines.transformers.request import Requests
from pytest_infer.engines.transformers.scores import Look, looking_first
from pytest_infer.errors import ModelError
from pytest_infer.records import Limits, ModelInfo, Scores, StopReason

_NO_PROBABILITIES = "probability tensor contains"
"""What torch.multinomial says of logits that are not finite."""
_REMOTE = "transformers_modules."
_ROWS = 128
"""So many positions of a text are normalised at once."""


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
        classes.check_generate(model, type(model).__name__)
        self.config = decoding.configuration(model.generation_config, options)
        self.model = model.eval()
        self.cache: Any = None
        self._awaited, self._offloaded = devices.awaited(self.model), model.device.type == "meta"
        self._requests = Requests(self.config, tokenizer, self.model)
        self._look: Look | None = None
        self._keep: tuple[Path | None] | None = None
        self._options = options
        self._own = model.generation_config
        model.generation_config = copy.deepcopy(self.config)
        self._held = ExitStack()
        if options.compile:
            self._held.enter_context(compiling.many_graphs())

    def release(self) -> None:
        """Restore the model's own generation config."""
        self.model.generation_config = self._own
        self.cache = None
        self._held.close()

    def reset(self) -> None:
        """Drop the last cache, with its length, and start from the seed."""
        self.cache = None
        compiling.forget_length(self.model)
        torch.manual_seed(self._options.sampling.seed if self._options.sampling else 0)

    def synchronize(self) -> None:
        """Wait for every accelerator on which the model computes."""
        for device in self._awaited:
            torch.accelerator.synchronize(device)

    def prepare(self, prompt_ids: Sequence[int], limits: Limits) -> None:
        """Make what generate() is given, unless the last call made it, and what scores are kept in."""
        request = self._requests.of(prompt_ids, limits)
        if request.follow is not None:
            request.follow.restart()
        self._look, self._unlooked = None, None
        if self._keep is not None:
            positions = request.config.max_new_tokens
            try:
                self._look = Look(self.model, limits.sequences, positions, full=self._keep[0])
            except Exception as error:  # noqa: BLE001 - of whatever a model's config lacks, and of memory
                self._unlooked = untrusted.failure(error)

    def follow(self, token_ids: Sequence[int] | None) -> None:
        """Generate these tokens instead of chosen ones, from the next `prepare` on."""
        self._requests.follow(token_ids)

    def keep_scores(self, *, keep: bool, full: Path | None) -> None:
        """Keep the scores of what is generated from the next `prepare` on, or none any more."""
        self._keep = (full,) if keep else None
        self._look = None

    def scores(self) -> Scores | None:
        """Return the scores that were kept of the last generation."""
        look = self._look
        return None if look is None or look.problem is not None else look.recorder.scores()

    @property
    def scores_problem(self) -> str | None:
        """Return why scores could not be kept of the last generation, if that failed."""
        return self._unlooked if self._look is None else self._look.problem

    @property
    def takes_processors(self) -> bool:
        """Return whether the model's generate() takes a processor of its scores."""
        parameters = inspect.signature(self.model.generate).parameters.values()
        named = any(p.name == "logits_processor" or p.kind is p.VAR_KEYWORD for p in parameters)
        return named and hasattr(self.model, "_get_logits_processor")

    @torch.inference_mode()
    def log_probabilities(self, token_ids: Sequence[int], first: int) -> list[float]:
        """Return the log-probability of each token from `first` on, given those before it, by one forward pass."""
        ids = torch.tensor([list(token_ids)], device=devices.home(self.model))
        kept = len(token_ids) - first + 1
        takes = inspect.signature(self.model.forward).parameters
        fewer = {"logits_to_keep": kept} if "logits_to_keep" in takes else {}
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **fewer).logits
        scores, wanted = logits[0, -kept:-1], ids[0, first:, None].to(logits.device)
        parts = [slice(begin, begin + _ROWS) for begin in range(0, len(wanted), _ROWS)]
        known = [torch.log_softmax(scores[part].float(), dim=-1).gather(1, wanted[part]) for part in parts]
        return [float(value) for one in known for value in one[:, 0].tolist()]

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        """Run the model's own generate() on one sequence, or on a batch of the same prompt."""
        request, look = self._requests.prepared(prompt_ids, limits), self._look
        given: dict[str, Any] = {"stopping_criteria": request.criteria} if request.criteria else {}
        if request.follow is not None:
            request.follow.restart()
            given["logits_processor"] = LogitsProcessorList([request.follow])
        # generate() fills what is None from the model's own configuration, so that one must not define an end either.
        self.model.generation_config.eos_token_id = request.config.eos_token_id
        try:
            with nullcontext() if look is None else looking_first(self.model, look), self._quiet():
                output = self.model.generate(
                    request.ids,
                    attention_mask=request.mask,
                    generation_config=request.config,
                    streamer=BatchStreamer(clock) if limits.sequences > 1 else TickStreamer(clock),
                    **given,
                )
        except RuntimeError as error:
            if self._options.sampling is None or _NO_PROBABILITIES not in str(error):
                raise
            raise ModelError(
                "logits are NaN or infinite, so nothing can be sampled: look for broken weights, or take another dtype"
            ) from error
        # A generate() of the model's own may return the ids alone.
        self.cache = getattr(output, "past_key_values", None)
        sequences = getattr(output, "sequences", output)
        if look is not None:
            look.close(sequences)
        return request.stopped_by(sequences)

    def _quiet(self) -> AbstractContextManager[object]:
        """Keep transformers (up to 5.17) from telling that ids are elsewhere than weights that are offloaded."""
        return warnings.catch_warnings(action="ignore", category=UserWarning) if self._offloaded else nullcontext()

    def cache_bytes(self) -> int | None:
        """Return the bytes of the keys, values and states that the last generate() left."""
        layers = getattr(self.cache, "layers", None)
        if layers is None:
            return None
        storages = [local(t).untyped_storage() for part in (self.cache, *layers) for t in _tensors(vars(part))]
        return sum({storage.data_ptr(): int(storage.nbytes()) for storage in storages}.values())

    def describe(self, name: str, source: str | None, revision: str | None) -> ModelInfo:
        """Return what results say about the model."""
        model, config = self.model, self.model.config
        text = config.get_text_config()
        counted, uncounted = _counted(model)
        return ModelInfo(
            name=name,
            engine="transformers",
            architecture=type(model).__name__,
            source=source,
            revision=revision,
            dtype=str(model.dtype).removeprefix("torch."),
            device=_devices(model),
            vocabulary=getattr(text, "vocab_size", None),
            attention=getattr(config, "_attn_implementation", None),
            experts_implementation=_experts_implementation(model),
            threads=torch.get_num_threads(),
            quantization=quantization.named(model, self._options.quantization),
            remote_code=_remote_code(model),
            uncounted=uncounted,
            **counted,
            versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
            generation=decoding.described(self._own, self._options),
        )


def _tensors(held: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among values and in dicts and lists of them: states of linear attention are kept by number."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, Mapping | list | tuple):
        for value in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors(value)


def _counted(model: Any) -> tuple[dict[str, Any], str | None]:
    """Return the sizes of a model and the work of a forward pass, or why one is missing: it can be measured anyway."""
    counts: dict[str, Callable[[], Any]] = {
        "parameters": lambda: work.parameters(model),
        "parameter_bytes": lambda: work.parameter_bytes(model),
        "buffer_bytes": lambda: sum(map(work.stored_bytes, model.buffers())),
        "work": lambda: work.of(model),
    }
    found: dict[str, Any] = {}
    why: str | None = None
    for name, count in counts.items():
        try:
            found[name] = count()
        except Exception as error:  # noqa: BLE001 - of tensors and modules that nobody has seen yet
            why = why or f"{name.replace('_', ' ')} not counted: {untrusted.failure(error)}"
    return found, why


def _devices(model: Any) -> str:
    """Return the devices that hold weights, accelerators first; "meta" are those that accelerate has offloaded."""
    found = {str(parameter.device) for parameter in model.parameters()} or {str(model.device)}
    return ", ".join(sorted(found, key=lambda name: (name.startswith(("cpu", "meta")), name)))


def _experts_implementation(model: Any) -> str | None:
    """Return which implementation of its experts the model runs; None for a dense one, whose config names one too.

    Off the CPU generate() takes another one than the config's for decoding (its `_optimize_model_for_decode`).
    """
    has_experts = getattr(type(model), "_can_set_experts_implementation", lambda: False)()
    named = getattr(model.config, "_experts_implementation", None) if has_experts else None
    switched = named == "grouped_mm" and model.device.type != "cpu" and hasattr(model, "_optimize_model_for_decode")
    return "grouped_mm, batched_mm in decode" if switched else named


def _remote_code(model: Any) -> str | None:
    """Return the module of a class that transformers took from beside the weights; its name holds their commit."""
    module = type(model).__module__
    return module.removeprefix(_REMOTE) if module.startswith(_REMOTE) else None


def set_threads(count: int) -> int:
    """Set torch's threads and return how many there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return before
