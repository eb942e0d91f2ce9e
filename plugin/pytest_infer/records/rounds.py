"""Timed rounds, and the profile round with its timeline."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_infer.records.counters import Counters
from pytest_infer.records.experts import ExpertUsage
from pytest_infer.records.generation import TokenTrace
from pytest_infer.records.reading import NOT_READ, Reading
from pytest_infer.records.scores import Scores, TextScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One timed generation: its trace, the counters around it, and why it counts as disturbed, if it does."""

    trace: TokenTrace
    counters: Counters
    disturbed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a helper process saw of the profile round, a sample every `interval_s`.

    `at_ns` are `time.perf_counter_ns`. `core_busy_s[i]` are the seconds for which each core had been busy by sample i,
    whatever ran there, and `read_bytes` and `write_bytes` what this process moved, all since the first sample.
    None where it could not be read, for the reason in `absent` under `rss`, `io` or `cores`. `helper_cpu_s` is the CPU
    time that the sampling itself took in the helper.
    """

    interval_s: float
    at_ns: tuple[int, ...]
    rss_bytes: tuple[int, ...] | None
    core_busy_s: tuple[tuple[float, ...], ...] | None
    read_bytes: tuple[int, ...] | None
    write_bytes: tuple[int, ...] | None
    helper_cpu_s: float
    absent: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The profile round: the same prompt and seed with instruments on; its times are never used.

    `memory_growth_bytes` is its peak minus the resident size before it, after the heap was trimmed.
    `mapped_weights_bytes` are the resident pages of the model's own files that the process has mapped.
    `nonfinite_logits` counts the forward passes, of which there were `passes`, whose logits held NaN or +∞, or nothing
    finite. `text` is how well the model predicts the text of --infer-text, if there is one.
    """

    trace: TokenTrace
    counters: Counters
    memory_growth_bytes: Reading
    pss_bytes: Reading
    uss_bytes: Reading
    kv_cache_bytes: Reading
    tokens_equal: bool
    experts: ExpertUsage | None = None
    experts_absent: str | None = None
    timeline: Timeline | None = None
    timeline_absent: str | None = None
    nonfinite_logits: Reading = NOT_READ
    mapped_weights_bytes: Reading = NOT_READ
    passes: int = 0
    scores: Scores | None = None
    scores_absent: str | None = None
    text: TextScore | None = None
    text_absent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One side's half of a generation in turns of a token with another process; stamps are in this side's own time.

    `waited_ns` is how long its threads waited for cores in each turn, together, that of the first token first; fewer
    where the kernel does not tell, or the other side was through. `begins`: it had the first turn.
    """

    start_ns: int
    stamps_ns: tuple[int, ...]
    tick_sizes: tuple[int, ...]
    token_ids: tuple[int, ...]
    waited_ns: tuple[int, ...] = ()
    begins: bool = False
