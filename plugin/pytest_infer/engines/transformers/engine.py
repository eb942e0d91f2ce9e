"""The transformers engine: finds, loads or adopts a model; torch is imported once the model's name is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infer import untrusted
from pytest_infer.engines import models
from pytest_infer.engines.base import ADOPTED, OF_A_LOADED_MODEL, OF_THE_LOAD, Clock, Engine, EngineOptions
from pytest_infer.engines.checkpoint import context, fetching, hashes, hub, presence
from pytest_infer.engines.checkpoint import source as checkpoint
from pytest_infer.engines.checkpoint.source import Checkpoint
from pytest_infer.errors import ModelError, UnknownValueError, alternatives
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, ModelInfo, Scores, StopReason

if TYPE_CHECKING:
    from pytest_infer.engines.transformers.running import Running
    from pytest_infer.engines.transformers.work import Tables

DTYPES = ("auto", "bfloat16", "float16", "float32")


class TransformersEngine(Engine):
    """Runs what users run: `model.generate()`, greedy or sampled, one sequence or a batch of one prompt."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._source: str | None = None
        self._folder: Path | None = None
        self._config: Any = None
        self._tokenizer: Any = None
        self._only_cached = False
        self._tables: Tables | None = None
        self._running: Running | None = None
        self._threads_before: int | None = None
        self._named: tuple[str, str | None, str | None] = ("", None, None)

    # finding and loading

    def check(self) -> None:
        """Resolve the model, read its config and tokenizer, and check that it can run as the options say."""
        if self.options.dtype not in DTYPES:
            raise UnknownValueError(alternatives("dtype", self.options.dtype, DTYPES))
        models.check_name(self.options.model, self.options.revision)
        # Imported late: a mistyped name is refused at once, not after the seconds that torch takes.
        from pytest_infer.engines.transformers import implementations, loading  # noqa: PLC0415

        implementations.check_device(self.options.device)
        if self._source is None:
            source = models.resolve(self.options.model, self.options.progress)
            folder = Path(source)
            if untrusted.is_dir(folder):
                presence.check_pointers(folder)
            else:
                self._only_cached = hub.only_cached(source, self.options.revision)
            config, tokenizer = loading.config_and_tokenizer(source, self.options, only_cached=self._only_cached)
            self._tables = implementations.check(source, config, self.options)
            if untrusted.is_dir(folder):
                presence.check_weights(folder)
            self._source, self._config, self._tokenizer = source, config, tokenizer

    def fetch(self) -> None:
        """Fetch the weights of a hub model that are not in its cache."""
        self.check()
        source, folder = str(self._source), self._here()
        if folder is None or folder == Path(source):
            return
        from pytest_infer.engines.transformers.loading import explained  # noqa: PLC0415

        with explained(source):  # which also keeps the hub's progress bars out of pytest's lines
            fetching.fetch(source, folder, self.options.progress, reachable=not self._only_cached)

    def load(self) -> ModelInfo:
        """Load the model on its device."""
        self.fetch()
        from pytest_infer.engines.transformers import loading  # noqa: PLC0415

        self._set_threads()
        # Not the config's `_commit_hash`: transformers stopped setting it within its version 5.
        self._folder = self._here()
        revision = models.commit(self._folder) or self.options.revision
        source, options = str(self._source), self.options
        if self._folder != Path(source):
            # What a commit holds does not change: the hub is not asked again while a load is timed.
            options = replace(options, revision=revision)
        model = loading.weights(source, self._config, options, only_cached=self._only_cached)
        name = models.display_name(self.options.model)
        return self._run(model, name, models.origin(self.options.model), revision)

    def _here(self) -> Path | None:
        return models.local_folder(str(self._source), self.options.revision)

    def adopt(self, model: Any, tokenizer: Any, name: str | None = None) -> ModelInfo:
        """Take a transformers model that is already loaded (patched, quantised, built by a test) and its tokenizer.

        Override the `model` fixture with it: `return engine.adopt(my_model, my_tokenizer, name="mine")`. Without a
        name, results use that of the model's folder or hub id, else that of its class.
        """
        if getattr(model, "generation_config", None) is None:
            raise ModelError(f"{type(model).__name__} has no generation config, so it cannot generate")
        from pytest_infer.engines.transformers.loading import check_decodes  # noqa: PLC0415
        from pytest_infer.engines.transformers.work import tables  # noqa: PLC0415

        check_decodes(type(model).__name__, model.config)
        self._set_threads()
        self._tokenizer = tokenizer
        self._config = model.config
        self._tables = tables(model)
        self._source = self._folder = None
        own_name = models.display_name(str(getattr(model.config, "name_or_path", "") or ""))
        # Neither the name nor the revision of the options: they are those of another model.
        revision = getattr(model.config, "_commit_hash", None)
        return self._run(model, name or own_name or type(model).__name__, ADOPTED, revision)

    def _run(self, model: Any, name: str, source: str | None, revision: str | None) -> ModelInfo:
        from pytest_infer.engines.transformers.loading import explained  # noqa: PLC0415
        from pytest_infer.engines.transformers.running import Running  # noqa: PLC0415

        if self._running is not None:
            self._running.release()
            self._running = None
        # What of the options decides a load has not been done to a model that was loaded elsewhere.
        options = self.options if source != ADOPTED else replace(self.options, quantization=None)
        with explained(name):
            self._running = Running(model, self._tokenizer, options)
        self._named = (name, source, revision)
        return replace(self._running.describe(*self._named), context_length=self.context_length())

    def adapt(self, options: EngineOptions) -> ModelInfo:
        """Change the threads and the use of the cache of the loaded model."""
        model = self.running.model
        self.options = options
        self._set_threads()
        return self._run(model, *self._named)

    def weights_sha256(self) -> str | None:
        """Return the hash of the files that the model was loaded from; None for an adopted one."""
        return None if self._folder is None else hashes.sha256(self._folder, self.options.progress)

    def _set_threads(self) -> None:
        wanted = self._threads_before if self.options.threads is None else self.options.threads
        if wanted is None:
            return
        from pytest_infer.engines.transformers.running import set_threads  # noqa: PLC0415

        before = set_threads(wanted)
        if self._threads_before is None:
            self._threads_before = before

    def checkpoint(self) -> Checkpoint | None:
        """Return what the files say, without the network; None if they are not here or not for the CPU."""
        if (self.options.device or "cpu") != "cpu":
            return None
        folder = self._here()
        try:
            return None if folder is None else checkpoint.of_folder(folder)
        except ModelError:
            # Loading reports better what is wrong with the files.
            return None

    def files(self) -> Sequence[Path]:
        """Return the weight files of the model's folder, where the hub's cache keeps them; none before `check`."""
        if self._source is None:
            return ()
        folder = self._here()
        held = () if folder is None else hashes.files(folder)
        return tuple(path.resolve() for path in held if path.is_file())

    # text and ids

    def context_length(self) -> int | None:
        """Return the limit that the config names, stretched as its RoPE scaling stretches it."""
        text = self._config.get_text_config()
        # By attribute: a config of another family has its own names for some of them.
        return context.longest({key: getattr(text, key, None) for key in context.KEYS})

    def most_positions(self) -> int | None:
        """Return the rows of a table of positions, as GPT-2 has one."""
        return None if self._tables is None else self._tables.positions

    def encode(self, prompt: Prompt) -> list[int]:
        """Return ids as the tokenizer makes them: its special tokens for text, its chat template for messages."""
        from pytest_infer.engines.transformers import encoding  # noqa: PLC0415

        return encoding.encode(
            self._tokenizer,
            prompt,
            self._named[0] or self.options.model,
            known=None if self._tables is None else self._tables.ids,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    # generating

    @property
    def running(self) -> Running:
        """Return the loaded model; raise ModelError before there is one."""
        if self._running is None:
            raise ModelError("the model is not loaded: call load() or adopt() first")
        return self._running

    def reset(self) -> None:
        """Drop the last cache and start from the seed."""
        self.running.reset()

    def prepare(self, prompt_ids: Sequence[int], limits: Limits) -> None:
        """Bring the ids to the device, and build the criterion of the stop strings, which walks the vocabulary."""
        self.running.prepare(prompt_ids, limits)

    def synchronize(self) -> None:
        """Wait for the accelerator, where the model is on one."""
        self.running.synchronize()

    def generate(self, prompt_ids: Sequence[int], limits: Limits, clock: Clock) -> StopReason | None:
        """Run the model's own generate() on one sequence, or on a batch of the same prompt."""
        return self.running.generate(prompt_ids, limits, clock)

    def follows(self) -> bool:
        """Return whether the model's generate() lets a processor choose."""
        return self.running.takes_processors

    def follow(self, token_ids: Sequence[int] | None) -> None:
        """Leave generate() one token to choose at each step."""
        self.running.follow(token_ids)

    def continues(self) -> bool:
        """Return whether it can follow, and no length of a prompt has to be compiled first."""
        return self.follows() and not self.options.compile

    def keep_scores(self, *, keep: bool, full: Path | None = None) -> None:
        """Let a processor that changes nothing see the logits before all others."""
        self.running.keep_scores(keep=keep and self.running.takes_processors, full=full)

    def scores(self) -> Scores | None:
        """Return the scores of the last generation."""
        return self.running.scores()

    def scores_absent(self) -> str:
        """Say what failed, or which generate() shows none."""
        own = type(self.running.model).__name__
        return self.running.scores_problem or f"generate() of {own} shows its logits to no processor"

    def log_probabilities(self, token_ids: Sequence[int], first: int) -> Sequence[float]:
        """Run the model's forward over the ids, without a cache."""
        return self.running.log_probabilities(token_ids, first)

    def honours(self) -> frozenset[str]:
        """Return all options; of a model that was adopted those alone that do not decide what is loaded."""
        return OF_A_LOADED_MODEL if self._named[1] == ADOPTED else OF_A_LOADED_MODEL | OF_THE_LOAD

    def batches(self) -> bool:
        """Return that batches are run."""
        return True

    def cache_bytes(self) -> int | None:
        """Return the bytes of the keys, values and states that the last generate() left."""
        return self.running.cache_bytes()

    def experts_module(self) -> object | None:
        """Return the model, unless it runs compiled: hooks added after compilation see nothing."""
        return None if self.options.compile else self.running.model

    def experts_absent(self) -> str:
        """Say why hooks cannot be used."""
        return "not with --infer-compile: a compiled model runs past the hooks"

    def spans(self, clock: Clock) -> AbstractContextManager[object]:
        """Report the cache, the logits processors, the choice of the token and the stop criteria."""
        from pytest_infer.engines.transformers.spans import reported  # noqa: PLC0415

        return reported(clock)

    def close(self) -> None:
        """Drop the model, restored to its original state, and restore the thread count."""
        if self._running is not None:
            self._running.release()
            self._running = None
        if self._threads_before is not None:
            from pytest_infer.engines.transformers.running import set_threads  # noqa: PLC0415

            set_threads(self._threads_before)
            self._threads_before = None
