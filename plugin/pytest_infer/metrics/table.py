"""The table: every metric once, with its unit, direction, kind, definition, source, and where it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pytest_infer.errors import OptionError, alternatives
from pytest_infer.metrics import experts, timing
from pytest_infer.records import Counters, ExpertUsage, Profile, PromptRecord, Reading, Round, TokenTrace, absent
from pytest_infer.units import Unit


class Direction(str, Enum):
    """Which way is better; EXACT figures have no noise and any difference counts."""

    LOWER = "lower"
    HIGHER = "higher"
    NEUTRAL = "neutral"
    EXACT = "exact"


class Kind(str, Enum):
    """How a figure comes about: from stamps of the clock, from a count, or from samples of a changing quantity."""

    TIMED = "timed"
    COUNTED = "counted"
    SAMPLED = "sampled"


Figure = Reading | float | str | None
"""What a metric reads: a reading with its source, or a bare value of the metric's own source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of the table.

    `read` returns one figure a timed round, or a single one for a metric of the prompt as a whole.
    `absent` says why there may be none.
    """

    key: str
    label: str
    unit: Unit
    direction: Direction
    kind: Kind
    definition: str
    source: str
    read: Callable[[PromptRecord], list[Figure]]
    absent: str = "not measured"


Read = Callable[[PromptRecord], list[Figure]]


def _trace(read: Callable[[TokenTrace], float | None]) -> Read:
    return lambda record: [read(r.trace) for r in record.rounds]


def _percentile(percent: int) -> Read:
    return _trace(lambda trace: timing.percentile(timing.inter_token_latencies_s(trace), percent))


def _counter(read: Callable[[Counters], Reading]) -> Read:
    return lambda record: [read(r.counters) for r in record.rounds]


def _once(read: Callable[[PromptRecord], Figure]) -> Read:
    return lambda record: [read(record)]


def _profile(read: Callable[[Profile], Figure]) -> Read:
    def figure(record: PromptRecord) -> Figure:
        if record.profile is None:
            return absent(record.profile_absent or "no profile round")
        return read(record.profile)

    return _once(figure)


def _experts(read: Callable[[ExpertUsage], float | str | None]) -> Read:
    def figure(profile: Profile) -> Figure:
        if profile.experts is None:
            return absent(profile.experts_absent or "not recorded")
        return read(profile.experts)

    return _profile(figure)


def _cores_used(record: PromptRecord, r: Round) -> Figure:
    cpu = r.counters.cpu_s
    return cpu if cpu.value is None else cpu.value / r.counters.wall_s


def _utilization(record: PromptRecord, r: Round) -> Figure:
    used = _cores_used(record, r)
    return 100 * used / record.machine.usable_cores if isinstance(used, float) else used


def _memory_percent(_record: PromptRecord, r: Round) -> Figure:
    rss, limit = r.counters.rss_bytes, r.counters.memory_limit_bytes
    if rss.value is None or not limit.value:
        return rss if rss.value is None else limit
    return 100 * rss.value / limit.value


def _per_round(read: Callable[[PromptRecord, Round], Figure]) -> Read:
    return lambda record: [read(record, r) for r in record.rounds]


def _rest(record: PromptRecord, r: Round) -> Figure:
    """Return peak less weights, buffers and cache: activations, the interpreter, libraries."""
    peak = r.counters.peak_rss_bytes
    if record.profile is None or record.profile.kv_cache_bytes.value is None or record.model.parameter_bytes is None:
        return absent("the engine tells neither its tensors' nor its cache's size")
    if (record.model.device or "cpu") != "cpu":
        return absent(f"the weights are on {record.model.device}, not in this process's memory")
    if peak.value is None:
        return peak
    weights = record.model.parameter_bytes + (record.model.buffer_bytes or 0)
    return peak.value - weights - record.profile.kv_cache_bytes.value


def _model_bytes(record: PromptRecord) -> float | None:
    if record.model.parameter_bytes is None:
        return None
    return record.model.parameter_bytes + (record.model.buffer_bytes or 0)


def _hottest(usage: ExpertUsage) -> str:
    return " ".join(experts.label(share) for share in experts.hottest(usage, 3))


def _timed(key: str, label: str, definition: str, read: Read, *, absent: str = "no token was generated") -> Metric:
    return Metric(
        key=key,
        label=label,
        unit=Unit.SECONDS,
        direction=Direction.LOWER,
        kind=Kind.TIMED,
        definition=definition,
        source="time.perf_counter_ns",
        read=read,
        absent=absent,
    )


def _rate(key: str, label: str, definition: str, read: Read, *, absent: str = "no token was generated") -> Metric:
    return Metric(
        key=key,
        label=label,
        unit=Unit.TOKENS_PER_SECOND,
        direction=Direction.HIGHER,
        kind=Kind.TIMED,
        definition=definition,
        source="time.perf_counter_ns",
        read=read,
        absent=absent,
    )


def _counted(
    key: str,
    label: str,
    unit: Unit,
    direction: Direction,
    definition: str,
    source: str,
    read: Read,
    *,
    kind: Kind = Kind.COUNTED,
    absent: str = "not measured",
) -> Metric:
    return Metric(
        key=key,
        label=label,
        unit=unit,
        direction=direction,
        kind=kind,
        definition=definition,
        source=source,
        read=read,
        absent=absent,
    )


_ONE_TICK = "all tokens came at once: there is no second tick"
_IO = "/proc/self/io"
_STATUS = "/proc/self/status"

METRICS: tuple[Metric, ...] = (
    # tokens
    _counted(
        "prompt_tokens", "prompt", Unit.TOKENS, Direction.EXACT,
        "ids fed to the model", "engine", _trace(lambda t: t.prompt_tokens),
    ),
    _counted(
        "generated_tokens", "generated", Unit.TOKENS, Direction.EXACT,
        "ids produced; an end-of-sequence id counts", "clock", _trace(timing.generated_tokens),
    ),
    _counted(
        "total_tokens", "tokens", Unit.TOKENS, Direction.EXACT,
        "prompt + generated", "clock", _trace(lambda t: t.prompt_tokens + timing.generated_tokens(t)),
    ),
    _counted(
        "requested_tokens", "requested", Unit.TOKENS, Direction.EXACT,
        "the limit on generated tokens", "suite", _trace(lambda t: t.requested_tokens),
    ),
    # times
    _timed("ttft_s", "TTFT", "first tick − start; start is read when the ids are ready", _trace(timing.ttft_s)),
    _timed(
        "prefill_s", "prefill",
        "the prompt's forward pass and the choice of the first token: TTFT, unless the engine tells them apart",
        _trace(timing.prefill_s),
    ),
    _timed("decode_s", "decode", "last tick − first tick", _trace(timing.decode_s), absent=_ONE_TICK),
    _timed("total_s", "total", "last tick − start", _trace(timing.total_s)),
    _timed("tpot_s", "TPOT", "decode / (n − 1); n less the first tick's tokens when ticks bring several",
           _trace(timing.tpot_s), absent=_ONE_TICK),
    _timed("itl_p50_s", "ITL p50", "median gap between ticks", _percentile(50), absent=_ONE_TICK),
    _timed("itl_p90_s", "ITL p90", "90th percentile of the gaps, linear interpolation", _percentile(90), absent=_ONE_TICK),
    _timed("itl_p95_s", "ITL p95", "95th percentile of the gaps", _percentile(95), absent=_ONE_TICK),
    _timed("itl_p99_s", "ITL p99", "99th percentile of the gaps", _percentile(99), absent=_ONE_TICK),
    _timed(
        "itl_max_s", "ITL max", "longest gap between ticks",
        _trace(lambda t: max(timing.inter_token_latencies_s(t), default=None)), absent=_ONE_TICK,
    ),
    _timed("tokenize_s", "tokenise", "text to ids, once, outside every round", _once(lambda record: record.tokenize_s)),
    _timed(
        "load_s", "load", "from the call to a usable model; model.load_read_bytes says what came from the device",
        _once(lambda record: record.model.load_s), absent="the engine did not say",
    ),
    # rates
    _rate("overall_throughput", "overall", "(prompt + generated) / total", _trace(timing.overall_throughput)),
    _rate("prefill_throughput", "prefill", "prompt / prefill", _trace(timing.prefill_throughput)),
    _rate("decode_throughput", "decode", "(n − 1) / decode = 1 / TPOT", _trace(timing.decode_throughput), absent=_ONE_TICK),
    # memory
    _counted(
        "peak_rss_bytes", "peak memory", Unit.BYTES, Direction.LOWER,
        "kernel high-water mark of resident memory over the round, reset before it",
        f"{_STATUS} VmHWM after /proc/self/clear_refs", _counter(lambda c: c.peak_rss_bytes),
    ),
    _counted("rss_bytes", "memory used", Unit.BYTES, Direction.LOWER, "resident memory after the round",
             f"{_STATUS} VmRSS", _counter(lambda c: c.rss_bytes)),
    _counted("rss_anon_bytes", "anonymous", Unit.BYTES, Direction.LOWER, "of it anonymous: heap, copied weights",
             f"{_STATUS} RssAnon", _counter(lambda c: c.rss_anon_bytes)),
    _counted("rss_file_bytes", "file-backed", Unit.BYTES, Direction.NEUTRAL, "of it file-backed: mapped weights, libraries",
             f"{_STATUS} RssFile + RssShmem", _counter(lambda c: c.rss_file_bytes)),
    _counted("swap_bytes", "swapped", Unit.BYTES, Direction.LOWER, "of the process, swapped out", f"{_STATUS} VmSwap",
             _counter(lambda c: c.swap_bytes)),
    _counted("memory_percent", "memory %", Unit.PERCENT, Direction.LOWER,
             "resident / usable by this process: the container's limit where there is one",
             f"{_STATUS} VmRSS, cgroup memory.max", _per_round(_memory_percent)),
    _counted("system_memory_percent", "system memory %", Unit.PERCENT, Direction.NEUTRAL,
             "(total − available) / total of the whole system", "/proc/meminfo",
             _counter(lambda c: c.system_memory_percent), kind=Kind.SAMPLED),
    _counted("model_bytes", "model", Unit.BYTES, Direction.LOWER, "parameters + buffers, shared tensors once", "engine",
             _once(_model_bytes), absent="the engine did not say"),
    _counted("kv_cache_bytes", "KV cache", Unit.BYTES, Direction.LOWER, "the cache's tensors after the last token", "engine",
             _profile(lambda p: p.kv_cache_bytes)),
    _counted("rest_bytes", "rest", Unit.BYTES, Direction.LOWER, "peak − model − KV cache", "derived", _per_round(_rest)),
    _counted("memory_growth_bytes", "growth", Unit.BYTES, Direction.LOWER,
             "profile round: peak − resident before it, heap trimmed first", f"{_STATUS} VmHWM",
             _profile(lambda p: p.memory_growth_bytes)),
    _counted("pss_bytes", "PSS", Unit.BYTES, Direction.LOWER, "proportional share, after the profile round",
             "/proc/self/smaps_rollup", _profile(lambda p: p.pss_bytes)),
    _counted("uss_bytes", "USS", Unit.BYTES, Direction.LOWER, "private to this process, after the profile round",
             "/proc/self/smaps_rollup", _profile(lambda p: p.uss_bytes)),
    # CPU
    _counted("cpu_s", "CPU time", Unit.SECONDS, Direction.LOWER, "user + system time of all threads",
             "CLOCK_PROCESS_CPUTIME_ID", _counter(lambda c: c.cpu_s)),
    _counted("cpu_user_s", "user", Unit.SECONDS, Direction.LOWER, "of it in user mode", "getrusage(RUSAGE_SELF)",
             _counter(lambda c: c.cpu_user_s)),
    _counted("cpu_system_s", "system", Unit.SECONDS, Direction.LOWER, "of it in the kernel", "getrusage(RUSAGE_SELF)",
             _counter(lambda c: c.cpu_system_s)),
    _counted("cpu_children_s", "children", Unit.SECONDS, Direction.LOWER, "CPU time of children that ended in the round",
             "getrusage(RUSAGE_CHILDREN)", _counter(lambda c: c.cpu_children_s)),
    _counted("cores_used", "cores used", Unit.CORES, Direction.NEUTRAL, "CPU time / wall time of the round", "derived",
             _per_round(_cores_used)),
    _counted("cpu_utilization", "CPU", Unit.PERCENT, Direction.NEUTRAL,
             "cores used / usable cores (affinity and container quota)", "derived", _per_round(_utilization)),
    _counted("frequency_hz", "frequency", Unit.HERTZ, Direction.NEUTRAL, "mean over the cores, before and after the round",
             "/sys cpufreq scaling_cur_freq", _counter(lambda c: c.frequency_hz), kind=Kind.SAMPLED),
    # disk
    _counted("read_bytes", "disk read", Unit.BYTES, Direction.LOWER, "bytes that came from the device, mapped files too",
             f"{_IO} read_bytes", _counter(lambda c: c.read_bytes)),
    _counted("write_bytes", "disk write", Unit.BYTES, Direction.LOWER, "bytes on their way to the device",
             f"{_IO} write_bytes", _counter(lambda c: c.write_bytes)),
    _counted("read_ops", "read ops", Unit.COUNT, Direction.LOWER, "operations that reached the device", "cgroup io.stat rios",
             _counter(lambda c: c.read_ops)),
    _counted("write_ops", "write ops", Unit.COUNT, Direction.LOWER, "operations that reached the device",
             "cgroup io.stat wios", _counter(lambda c: c.write_ops)),
    _counted("read_chars", "asked to read", Unit.BYTES, Direction.NEUTRAL, "bytes that read calls returned; not mapped files",
             f"{_IO} rchar", _counter(lambda c: c.read_chars)),
    _counted("write_chars", "asked to write", Unit.BYTES, Direction.NEUTRAL, "bytes given to write calls", f"{_IO} wchar",
             _counter(lambda c: c.write_chars)),
    _counted("read_calls", "read calls", Unit.COUNT, Direction.NEUTRAL, "read system calls", f"{_IO} syscr",
             _counter(lambda c: c.read_calls)),
    _counted("write_calls", "write calls", Unit.COUNT, Direction.NEUTRAL, "write system calls", f"{_IO} syscw",
             _counter(lambda c: c.write_calls)),
    _counted("minor_faults", "minor faults", Unit.COUNT, Direction.LOWER, "page faults served from memory",
             "getrusage(RUSAGE_SELF)", _counter(lambda c: c.minor_faults)),
    _counted("major_faults", "major faults", Unit.COUNT, Direction.LOWER, "page faults that waited for a device",
             "getrusage(RUSAGE_SELF)", _counter(lambda c: c.major_faults)),
    # disturbance
    _counted("run_queue_wait_s", "waited for a core", Unit.SECONDS, Direction.LOWER,
             "time its threads were ready but not running, summed", "/proc/self/task/*/schedstat",
             _counter(lambda c: c.run_queue_wait_s)),
    _counted("involuntary_switches", "involuntary switches", Unit.COUNT, Direction.LOWER, "times it was taken off a core",
             "getrusage(RUSAGE_SELF)", _counter(lambda c: c.involuntary_switches)),
    _counted("voluntary_switches", "voluntary switches", Unit.COUNT, Direction.NEUTRAL, "times it gave a core up",
             "getrusage(RUSAGE_SELF)", _counter(lambda c: c.voluntary_switches)),
    _counted("steal_s", "steal", Unit.SECONDS, Direction.LOWER, "time the hypervisor took, all cores", "/proc/stat",
             _counter(lambda c: c.steal_s)),
    _counted("other_cpu_s", "other processes", Unit.SECONDS, Direction.LOWER, "CPU time of all other processes", "/proc/stat",
             _counter(lambda c: c.other_cpu_s)),
    _counted("pressure_cpu_s", "CPU pressure", Unit.SECONDS, Direction.LOWER, "time that some task waited for a core",
             "/proc/pressure/cpu", _counter(lambda c: c.pressure_cpu_s)),
    _counted("pressure_memory_s", "memory pressure", Unit.SECONDS, Direction.LOWER, "time that some task waited for memory",
             "/proc/pressure/memory", _counter(lambda c: c.pressure_memory_s)),
    _counted("pressure_io_s", "I/O pressure", Unit.SECONDS, Direction.LOWER, "time that some task waited for I/O",
             "/proc/pressure/io", _counter(lambda c: c.pressure_io_s)),
    # experts
    _counted("expert_selections", "expert selections", Unit.COUNT, Direction.EXACT,
             "MoE sites × tokens processed × top-k; tokens processed = prompt + generated − 1",
             "pre-hook on the experts modules, profile round", _experts(experts.selections)),
    _counted("expert_imbalance", "expert imbalance", Unit.RATIO, Direction.NEUTRAL,
             "max / mean selections within a site, averaged over the sites", "derived", _experts(experts.imbalance)),
    _counted("hottest_experts", "hottest experts", Unit.TEXT, Direction.NEUTRAL,
             "the three experts with the largest share of their site's selections (L layer, E expert)", "derived",
             _experts(_hottest)),
    # output
    _counted("output_sha256", "output", Unit.TEXT, Direction.EXACT, "SHA-256 of the generated ids", "clock",
             _once(lambda record: record.output.sha256)),
)  # fmt: skip


def by_key(key: str) -> Metric:
    """Return the metric of that key; raise OptionError naming the known ones."""
    for metric in METRICS:
        if metric.key == key:
            return metric
    raise OptionError(alternatives("metric", key, (m.key for m in METRICS)))
