"""The Engine protocol: what the harness asks of anything that generates tokens, for which request, by which options."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_infer.errors import EngineError, OptionError
from pytest_infer.prompts import Prompt
from pytest_infer.records import Limits, ModelInfo, Observed, Scores, StopReason

if TYPE_CHECKING:
    from pytest_infer.engines.checkpoint.source import Checkpoint

TOWER = re.compile(
    r"(^|[._])(vision|visual|image|video|sam|audio|talker|code2wav|(multi_modal|mm)_projector|connector|aligner|merger|"
    r"resampler(_model)?)([._]|$)|(^|\.)projector(\.|$)"
)
"""The names of a model's parts that see no text: towers for images and sound, what leads from them
into the text, and the voice of qwen3_omni_moe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a round asks for: the prompt of the suite, and its ids as `Engine.encode` and the options have them.

    `nonce` is another in every round of a session, and always of the same length: digits with spaces between them, so
    that it is as many tokens each time. `round` counts the rounds of the session from 0.
    """

    prompt: Prompt
    ids: Sequence[int]
    nonce: str
    round: int


class Clock(Protocol):
    """What an engine sees of the token clock."""

    def tick(self, token_ids: Sequence[int]) -> None:
        """Stamp the moment at which these ids became available."""

    def tick_text(self, text: str, tokens: int = 1) -> None:
        """Stamp the moment at which a piece of text became available, of so many tokens whose ids nobody tells.

        Empty text is a token as well. A generation uses either this or `tick`.
        """

    def now(self) -> int:
        """Read the clock when something came of which tokens are made later, for `arrived`."""
        ...

    def arrived(self, at_ns: int) -> None:
        """Stamp the ticks that follow, until it is called again, with a moment that `now` told: their bytes came then.

        For tokens that come from elsewhere. An engine that never calls it has its ticks stamped as they are called.
        """

    def reported(
        self,
        *,
        prompt: int | None = None,
        generated: int | None = None,
        cached: int | None = None,
        allowed: int | None = None,
    ) -> None:
        """Take what a server counted: tokens of the prompt, generated ones, and those of the prompt it had cached.

        What differs from the ticks and from the ids that were fed is marked, and more than `allowed` that were cached.
        May be called several times: what is None leaves what was said before.
        """

    def prefilled(self) -> None:
        """Stamp the end of the prompt's forward pass, if an engine knows it apart from the first token's arrival."""

    def span(self, role: str, layer: int | None = None) -> AbstractContextManager[object]:
        """Return a context for work of this role, in this layer: a breakdown gives it the time that passes within.

        Time of a span or of a module within it is not its own. In a timed round it does nothing.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling instead of greedy decoding; every round starts from the same seed."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def check_seed(self, most: int, whose: str) -> None:
        """Raise OptionError where the seed is larger than whoever samples takes."""
        if self.seed > most:
            raise OptionError(f"--infer-sample: seed must be from 0 to {most} for {whose}, not {self.seed}")


LLAMA_SEED = 2**32 - 2
"""The largest seed of llama.cpp: it has 32 bits, and makes a random one of the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """A server: a running one at `url`, or one that `command` starts, with places for {model} or {gguf}, and {port}.

    `cache` says what its cache of prompts may do: "bust": nothing, as each prompt has a nonce ahead of it; "off": it is
    asked not to use it; "warm": what it likes. `kind` is None where it is to be found out. `pids` are the processes of
    a running one, where they are not those that listen to its port. `timeout_s` is how long nothing may come: until it
    has started, and until the next token. `flags` stand in the command for {flags}.
    """

    url: str | None = None
    command: str | None = None
    cache: str = "bust"
    kind: str | None = None
    pids: tuple[int, ...] = ()
    timeout_s: float = 600.0
    flags: str = ""

    @property
    def source(self) -> str | None:
        """Return how results name it: its address, or its command with its flags."""
        return self.url or (None if self.command is None else self.command.replace("{flags}", self.flags).strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where requests can be sent: the server's address (without /v1), the model's name there, and the key it wants."""

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)


def local(tensor: Any) -> Any:
    """Return what this process holds of a tensor: all of it, or its own part of one that ranks share (DTensor)."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def _silent(_line: str) -> None:
    """Report nothing."""


ADOPTED = "adopted"
"""The source of a model that a test gave, which its engine did not load."""
OF_THE_LOAD = frozenset(
    {"model", "revision", "dtype", "device", "experts_implementation", "attention", "trust_remote_code", "quantization"}
)
OF_A_LOADED_MODEL = frozenset({"threads", "use_cache", "sampling", "compile"})
"""The fields of EngineOptions that decide what is loaded, and how a model runs once it is."""


QUANTIZATIONS = ("none", "int8-dynamic", "int8", "int4")
"""What `EngineOptions.quantization` may ask for; results name other methods where weights are stored quantised."""

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "single": "float32",
    "full": "float32",
}


def dtype_named(given: str) -> str:
    """Return the one name under which a dtype is stored and compared: bfloat16 for BF16, float16 for torch.half."""
    plain = given.strip().lower().removeprefix("torch.")
    return _DTYPES.get(plain, plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the options say about the model and how it runs; None leaves the engine's own default.

    `dtype` is always its one name, whichever was given.
    `engine_args` are what the engine's own tool takes, as it is typed there.
    `progress` is called with one line about what takes long (a model that is built first).
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    threads: int | None = None
    experts_implementation: str | None = None
    attention: str | None = None
    use_cache: bool = True
    sampling: Sampling | None = None
    compile: bool = False
    trust_remote_code: bool = False
    quantization: str | None = None
    server: ServerOptions | None = None
    engine_args: str | None = None
    progress: Callable[[str], None] = _silent

    def __post_init__(self) -> None:
        """Give the dtype its one name."""
        object.__setattr__(self, "dtype", dtype_named(self.dtype))


class Engine(Protocol):
    """Generates tokens and ticks the clock; it never measures itself.

    Subclass it, so that the methods with a body below are inherited, and write the three without one, and `generate`
    or `respond`. A constructor that is found through the entry-point group `pytest_infer.engines` takes one argument,
    the `EngineOptions`.
    """

    def check(self) -> None:
        """Find the model and read what is small (config, tokenizer); raise ModelError before anything heavy is done."""

    def fetch(self) -> None:
        """Bring here what `load` reads and is still elsewhere (a download), before the harness times the load."""

    def load(self) -> ModelInfo:
        """Load the model and describe it; the harness fills in how long it took."""
        ...

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids to feed, special tokens and chat template included; ModelError for a prompt it cannot take."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of generated ids."""
        ...

    def generate(
        self,
        prompt_ids: Sequence[int],  # noqa: ARG002 - for those that override it
        limits: Limits,  # noqa: ARG002
        clock: Clock,  # noqa: ARG002
    ) -> StopReason | None:
        """Generate up to `limits.max_new_tokens` tokens, calling `clock.tick(token_ids)` as each is available.

        With `limits.sequences` above 1, which only an engine with `batches()` receives: run so many copies of
        the prompt at once, tick with the tokens of the first sequence, and continue with all until that one ends.
        """
        raise EngineError("this engine generates nothing: it has neither generate nor respond")

    def respond(self, request: Request, limits: Limits, clock: Clock) -> StopReason | None:
        """Generate as `generate` does, for an engine that needs more of a request than its ids (a server).

        The harness calls this.
        """
        return self.generate(request.ids, limits, clock)

    def settle(self) -> None:
        """Do what is left of the last generation and is no part of it, such as asking for ids that were not told.

        Called after each round, outside of the clock and the counters; `clock.reported` may still be called, and ids
        that were ticked as a list be completed in it.
        """
        return  # else mypy takes it for abstract

    def honours(self) -> frozenset[str] | None:
        """Return the fields of EngineOptions that the engine follows now; None where it does not say.

        An option that was given and is not among them has no effect: it is refused, or named in the summary.
        """
        return None

    def batches(self) -> bool:
        """Return whether `generate` supports `limits.sequences`."""
        return False

    def takes_turns(self) -> bool:
        """Return whether nothing is computed until `clock.tick` returns, so that two engines can compute in turns.

        An engine whose tokens come from elsewhere (a server), or all at the end, says no: whole rounds take turns then.
        """
        return True

    def adapts(self) -> bool:
        """Return whether `adapt` is supported: by default, whether the engine overrides it."""
        return type(self).adapt is not Engine.adapt

    def adapt(self, options: EngineOptions) -> ModelInfo:  # noqa: ARG002 - for those that override it
        """Apply these options, which differ only in `threads` and `use_cache`, to the loaded model.

        A sweep over these calls it, so that the model is not reloaded. Raise EngineError if that is impossible.
        """
        raise EngineError("this engine cannot change threads or the cache once its model is loaded: sweep other axes")

    def context_length(self) -> int | None:
        """Return how many tokens, prompt and generated, the model takes; known after `check`; None when unbounded."""
        return None

    def most_positions(self) -> int | None:
        """Return how many positions the model has at all, which `--infer-context` cannot exceed; None without end.

        Known after `check`: the rows of a table of positions, or where what runs the model ends.
        """
        return None

    def checkpoint(self) -> Checkpoint | None:
        """Return what the files say about the model before it is loaded, known after `check`, or None.

        The memory that it requires is computed from this, for a model on the CPU.
        """
        return None

    def files(self) -> Sequence[Path]:
        """Return the files from which `load` takes the weights, as far as they are here; known after `check`.

        How much of them the page cache holds decides whether a load is cold or warm.
        """
        return ()

    def reset(self) -> None:
        """Bring the engine to the same state before every round: seed, caches. Never timed."""

    def prepare(self, prompt_ids: Sequence[int], limits: Limits) -> None:
        """Make what belongs to the request and not to the model: tensors on the device, stop criteria, a message.

        Called before every round with what `generate` gets next, outside the clock and the counters: keep what is made
        as long as both stay the same.
        """

    def ready(self, request: Request, limits: Limits) -> None:
        """Make what belongs to the request, as `prepare` does, with more of it than its ids. The harness calls this."""
        self.prepare(request.ids, limits)

    def encodes(self) -> bool:
        """Return whether `encode` works before `load`; else prompts are not checked before that."""
        return True

    def needs_ids(self) -> bool:
        """Return whether a prompt must have ids: by default, unless the engine overrides `respond`."""
        return type(self).respond is Engine.respond

    def varied(self) -> str | None:
        """Return why the rounds of a prompt are not of the same prompt, so that their outputs differ; None: they are.

        A nonce ahead of it, for example, against a server's cache of prompts. Known after `load`.
        """
        return None

    def observed(self) -> Observed | None:
        """Return whose memory, CPU time and I/O are the model's, known after `load`; None: this process's."""
        return None

    def metrics_text(self) -> str | None:
        """Return what a server tells of itself, Prometheus' text format, or None where it tells nothing.

        Called right before and right after each round, outside of the clock, where `observed` is not None. Whatever it
        raises is the reason why these figures are absent.
        """
        return None

    def weights_sha256(self) -> str | None:
        """Return a hash of the loaded weights, or None where they have no files. Called once after `load`."""
        return None

    def synchronize(self) -> None:
        """Wait until the device is idle. Called right before the clock starts, and before another process goes on."""

    def cache_bytes(self) -> int | None:
        """Return the bytes of the KV cache's tensors after the last generation, or None where it is unknown."""
        return None

    def experts_module(self) -> object | None:
        """Return the torch module in which expert selections can be recorded, or None."""
        return None

    def logits_module(self) -> object | None:
        """Return the torch module whose output is the logits, or has them as `logits`: that of the experts.

        Logits that are NaN or infinite are counted there in the profile round.
        """
        return self.experts_module()

    def experts_absent(self) -> str:
        """Return why `experts_module` is None, and with it `logits_module`."""
        return "the engine gives no access to its modules"

    def follows(self) -> bool:
        """Return whether `follow` is supported: by default, whether the engine overrides it."""
        return type(self).follow is not Engine.follow

    def follow(self, token_ids: Sequence[int] | None) -> None:  # noqa: ARG002 - for those that override it
        """From the next `prepare` on generate exactly these tokens, or with None what the model chooses.

        All the work of a step is done as ever, and then the next of these ids is taken in place of the chosen one, in
        every sequence of a batch, ticked and fed. Their number is the length: neither the limits nor what ends a
        sequence otherwise matter. Two sides of a comparison then do the same work on the same text.
        """
        raise EngineError("this engine cannot follow given tokens")

    def cannot_follow(self, token_ids: Sequence[int]) -> str | None:  # noqa: ARG002 - for those that override it
        """Return why these tokens cannot be followed, where others can; known after `load`."""
        return None

    def continues(self) -> bool:
        """Return whether `generate` can go on with a generation: told its first tokens as part of the ids, and to
        `follow` the next ones.

        Turns of a token then measure parts of a long generation in more launches than fit whole. By default, whether
        it follows.
        """
        return self.follows()

    def keep_scores(self, *, keep: bool, full: Path | None = None) -> None:
        """From the next `prepare` on keep the scores of what is generated, or none. Called for profile rounds only.

        What they are kept in is made by `prepare`, outside of what is counted. `full`, if any, is a file for the
        log-probabilities of the whole vocabulary, as `engines.transformers.scores.ScoreRecorder` writes it.
        """

    def scores(self) -> Scores | None:
        """Return the scores of the last generation, None where none were kept: by default never."""
        return None

    def scores_absent(self) -> str:
        """Return why `scores` returns None."""
        return "the engine offers no scores"

    def log_probabilities(self, token_ids: Sequence[int], first: int) -> Sequence[float] | None:  # noqa: ARG002
        """Return the natural logarithm of the probability of each of `token_ids[first:]`, given all ids before it.

        `first` is 1 or more. None where the engine cannot tell. The perplexity of a text is computed from these.
        """
        return None

    def spans(self, clock: Clock) -> AbstractContextManager[object]:  # noqa: ARG002 - for those that override it
        """Return a context in which `generate` reports by `clock.span` what it calls outside of the model's modules.

        For an engine whose `generate` does not always do so: it is entered for observed steps of a breakdown only, and
        left within `clock.tick`.
        """
        return nullcontext()

    def served(self) -> Served | None:
        """Return where others can send requests to the model, known after `load`; None for one that is not served.

        Load tests send theirs there.
        """
        return None

    def ended(self) -> str | None:
        """Return why what answers at `served` has ended, with its last words; None while it runs, or nobody knows.

        Called before each level of load, and after a repetition with requests that failed.
        """
        return None

    def close(self) -> None:
        """Free the model."""


def known_context(engine: Engine) -> int | None:
    """Return an engine's context length, where that is a length at all."""
    context = engine.context_length()
    return context if context is not None and context > 0 else None
