"""What was measured: frozen records, no I/O, no maths, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Quality(str, Enum):
    """How a figure came to be."""

    EXACT = "exact"
    SAMPLED = "sampled"
    ESTIMATED = "estimated"


class StopReason(str, Enum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP_STRING = "stop string"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One figure and where it came from, or the reason why there is none: absent is never 0."""

    value: int | float | None
    source: str
    quality: Quality = Quality.EXACT
    reason: str | None = None


def absent(reason: str, source: str = "none") -> Reading:
    """Return a reading without a value, for the reason given."""
    return Reading(value=None, source=source, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a generation may do: its length, its stop strings, and whether an end-of-sequence id ends it.

    `batch` sequences, all of them the same prompt, are generated at once, until the first of them ends; None: one.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    batch: int | None = None

    @property
    def sequences(self) -> int:
        """Return how many sequences are generated at once."""
        return self.batch or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """The raw stamps of one generation, `time.perf_counter_ns` throughout.

    `stamps_ns[i]` is the moment when `tick_sizes[i]` tokens became available; `token_ids` are all of them in order.
    """

    prompt_tokens: int
    requested_tokens: int
    start_ns: int
    stamps_ns: tuple[int, ...]
    tick_sizes: tuple[int, ...]
    token_ids: tuple[int, ...]
    prefill_end_ns: int | None = None
    stopped_by: StopReason | None = None


_NOT_READ = absent("this version of pytest-infer did not read it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the kernel counted between a snapshot just before a window and one just after it.

    Counts, times and bytes are differences over the window. Resident sizes are those at its end, except
    `rss_before_bytes`; `peak_rss_bytes` is the high-water mark within the window. Scope: this process with all its
    threads, without children, except where a field says otherwise.
    """

    wall_s: float
    # CPU
    cpu_s: Reading
    cpu_user_s: Reading
    cpu_system_s: Reading
    cpu_children_s: Reading
    frequency_hz: Reading
    # memory
    rss_before_bytes: Reading
    rss_bytes: Reading
    rss_anon_bytes: Reading
    rss_file_bytes: Reading
    swap_bytes: Reading
    peak_rss_bytes: Reading
    memory_limit_bytes: Reading
    system_memory_percent: Reading
    # disk
    read_bytes: Reading
    write_bytes: Reading
    read_ops: Reading
    write_ops: Reading
    read_chars: Reading
    write_chars: Reading
    read_calls: Reading
    write_calls: Reading
    minor_faults: Reading
    major_faults: Reading
    # disturbance
    run_queue_wait_s: Reading
    voluntary_switches: Reading
    involuntary_switches: Reading
    steal_s: Reading
    other_cpu_s: Reading
    pressure_cpu_s: Reading
    pressure_memory_s: Reading
    pressure_io_s: Reading
    thermal_throttles: Reading = _NOT_READ
    # energy of the whole package, not of this process alone
    energy_j: Reading = _NOT_READ
    # accelerators: peak is torch's own allocations, the others are of the whole device
    device_peak_bytes: Reading = _NOT_READ
    device_energy_j: Reading = _NOT_READ
    device_power_w: Reading = _NOT_READ
    device_utilization: Reading = _NOT_READ


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One timed generation: its trace, the counters around it, and why it should be doubted, if it should."""

    trace: TokenTrace
    counters: Counters
    disturbed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSite:
    """One place of the model where tokens are routed to experts.

    `slots` counts everything the router can choose; the first `experts` of them have weights (zero-computation slots
    have none). `kind` is "mlp", "attention", or "mlp-all" where every expert is computed whatever is selected.
    `expert_bytes` is the size of one expert's weights. `shared` experts beside them run for every token and are never
    counted as routed; `shared_bytes` is the size of all of them.
    """

    name: str
    layer: int
    kind: str
    experts: int
    slots: int
    k: int
    expert_bytes: int | None = None
    shared: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUsage:
    """Selections per site and slot, prefill and decode apart.

    `prefill[i][e]` is how often slot e of `sites[i]` was selected for a prompt token, `decode[i][e]` for a generated
    one; the weights are the sums of the gate weights of those selections, shaped alike. `prefill_dropped[i]` is how
    many selections a site refused for want of capacity, which no slot counts. `check` is "passed" when every site's
    sum equals tokens x k; otherwise the sums that did not. `note` says why the counts should be read with care.

    `trace[i]` holds the selections of `sites[i]` token by token in order of position, those of the prompt first: an
    array of shape (prefill_tokens + decode_tokens, k) in C order, one byte a selection, or two, little-endian, where
    the site has more than 256 slots. The number `slots` stands for a selection that reached no expert of the site.
    """

    sites: tuple[ExpertSite, ...]
    prefill_tokens: int
    decode_tokens: int
    prefill: tuple[tuple[int, ...], ...]
    decode: tuple[tuple[int, ...], ...]
    check: str
    prefill_weights: tuple[tuple[float, ...], ...] | None = None
    decode_weights: tuple[tuple[float, ...], ...] | None = None
    prefill_dropped: tuple[int, ...] | None = None
    decode_dropped: tuple[int, ...] | None = None
    trace: tuple[bytes, ...] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a helper process saw of the profile round, a sample every `interval_s`.

    `at_ns` are `time.perf_counter_ns`. `core_busy_s[i]` are the seconds for which each core had been busy by sample i,
    whatever ran there, and `read_bytes` and `write_bytes` what this process had moved, all since the first sample.
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
    """The profile round: the same prompt and seed with instruments on, never timed into the results.

    `memory_growth_bytes` is its peak less the resident size before it, after the heap was trimmed.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What was generated, and whether every round generated it.

    `first_difference` is (round, position): the first token that differs from round 0, counted from 0.
    """

    text: str
    sha256: str
    equal: bool
    first_difference: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInfo:
    """The workload: which prompt, with which limits."""

    name: str
    content_sha256: str
    limits: Limits
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one forward pass reads and multiplies, counted from the loaded modules.

    `read_bytes` are the stored bytes of all weights, shared ones once; of a table that is only looked up (an embedding
    that is not the output head too) one row. `parameters` are the weights that each token is multiplied with if it
    went through every expert, without the output head; None where they are packed so that their number is not told.
    `head_parameters` are those of the output head, which a prefill needs for its last position only.
    `expert_parameters` are those of each experts module, by its qualified name; empty for a dense model.

    Attention multiplies `pair_flops` for each pair of positions (query, key) in all layers that see the whole text
    together, and `window_pair_flops` in those that see the last `window` positions only; None where it is not told.
    """

    read_bytes: int
    parameters: int | None
    head_parameters: int
    expert_parameters: dict[str, int]
    pair_flops: int | None = None
    window_pair_flops: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine loaded. Bytes are those of the tensors, shared ones counted once.

    `load_s` runs from the call to a usable model and `load_read_bytes` came from the device meanwhile (0: a warm page
    cache, or weights that are mapped and not touched yet). `weights_sha256` is over the names and bytes of the files.
    """

    name: str
    engine: str
    architecture: str | None = None
    source: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    parameter_bytes: int | None = None
    buffer_bytes: int | None = None
    context_length: int | None = None
    vocabulary: int | None = None
    attention: str | None = None
    experts_implementation: str | None = None
    threads: int | None = None
    load_s: float | None = None
    load_read_bytes: int | None = None
    weights_sha256: str | None = None
    work: Work | None = None
    quantization: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    generation: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProbe:
    """What `threads` threads were measured to achieve on `device`, the denominators of MBU and MFU.

    `read_bandwidth` is in bytes/s: the 95th percentile over slices of a buffer much larger than the caches, whose
    interquartile range / median is `read_bandwidth_spread`. `flops` is in FLOP/s by dtype name: the best of
    `F.linear` with a batch of 512 or more. `caches` are bytes by level, all those together that the usable cores have.
    `at_ns` is `time.time_ns`, `boot` names the boot of the system.
    """

    threads: int
    read_bandwidth: float
    read_bandwidth_spread: float
    flops: dict[str, float]
    caches: dict[str, int]
    at_ns: int
    boot: str | None = None
    governor: str | None = None
    device: str = "cpu"
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """The machine as far as it matters to the figures. `usable_cores` is the least of affinity and container quota."""

    cpu: str | None
    logical_cores: int | None
    physical_cores: int | None
    affinity_cores: int | None
    quota_cores: float | None
    usable_cores: float
    memory_bytes: int | None
    memory_limit_bytes: int | None
    system: str
    kernel: str
    architecture: str
    python: str
    virtualization: str | None = None
    governor: str | None = None
    accelerators: tuple[str, ...] = ()
    probe: MachineProbe | None = None


class CautionKind(str, Enum):
    """Why a reader should look twice at a record."""

    OUTPUT_DIFFERS = "output differs between rounds"
    PROFILE_DIFFERS = "output differs under instruments"
    EXPERTS_DO_NOT_ADD_UP = "expert selections do not add up"
    EXPERTS_UNCHECKED = "expert selections are of an unchecked architecture"
    DISTURBED = "rounds were disturbed"
    COLD_FIRST_ROUND = "the first round is much slower"
    FREQUENCY = "the cores' frequency moved between rounds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """One doubt about a record, with its numbers and what to do about it."""

    kind: CautionKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Where a test stands on a curve: `axis` is "prompt_tokens" or "context_depth", `value` is in tokens."""

    axis: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRecord:
    """Everything measured for one prompt in one test.

    `repeated` are disturbed rounds that count for nothing, since others were measured in their place. `config` holds
    the swept options by axis, as they were given; it is empty when nothing is swept.
    """

    nodeid: str
    prompt: PromptInfo
    model: ModelInfo
    machine: MachineInfo
    tokenize_s: float
    warmup_rounds: int
    rounds: tuple[Round, ...]
    output: Output
    repeated: tuple[Round, ...] = ()
    profile: Profile | None = None
    profile_absent: str | None = None
    cautions: tuple[Caution, ...] = ()
    resumed: bool = False
    config: dict[str, str] = field(default_factory=dict)
    curve: CurvePoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstInfo:
    """What this checkout is compared with: a revision as given (`self`: this checkout again) and its commit.

    `dirty` says that this checkout has uncommitted changes; `sequential` that the two sides ran in blocks.
    """

    rev: str
    commit: str
    dirty: bool
    sequential: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRecord:
    """What `system_sampler` saw of one `with` block."""

    counters: Counters
    machine: MachineInfo
