"""The table: every metric once, with its unit, direction, kind, definition, source, and where it is read."""

from __future__ import annotations

from dataclasses import replace

from pytest_infer.errors import OptionError, alternatives
from pytest_infer.metrics import experts, fidelity, load, loading, read, roofline, timing
from pytest_infer.metrics.metric import Column, Direction, Fact, Kind, Metric
from pytest_infer.metrics.read import Read
from pytest_infer.units import Unit

_CLOCK = "time.perf_counter_ns"
_NO_TOKEN = "no token was generated"  # noqa: S105 - a reason, not a secret
_ONE_TICK = "all tokens came at once: there is no second tick"


def _time(
    key: str, label: str, read: Read, definition: str, absent: str = _NO_TOKEN, fact: Fact | None = None
) -> Metric:
    return Metric(key, label, Unit.SECONDS, Direction.LOWER, Kind.TIMED, read, definition, _CLOCK, absent, fact=fact)


def _rate(key: str, label: str, read: Read, definition: str, fact: Fact, absent: str = _NO_TOKEN) -> Metric:
    unit = Unit.TOKENS_PER_SECOND
    return Metric(key, label, unit, Direction.HIGHER, Kind.TIMED, read, definition, _CLOCK, absent, fact=fact)


def _count(key: str, label: str, unit: Unit, direction: Direction, read: Read, definition: str, source: str) -> Metric:
    return Metric(key, label, unit, direction, Kind.COUNTED, read, definition, source)


def _sample(key: str, label: str, unit: Unit, read: Read, definition: str, source: str) -> Metric:
    return Metric(key, label, unit, Direction.NEUTRAL, Kind.SAMPLED, read, definition, source)


def _distance(
    key: str, label: str, unit: Unit, direction: Direction, definition: str, source: str = fidelity.BOTH
) -> Metric:
    return _count(key, label, unit, direction, read.once(fidelity.of_both(key)), definition, source)


def _level(
    key: str,
    label: str,
    unit: Unit,
    direction: Direction,
    read: Read,
    definition: str,
    absent: str = "no request was answered",
) -> Metric:
    source = "stamps of the load generator, time.time"
    return Metric(f"{load.PREFIX}{key}", label, unit, direction, Kind.TIMED, read, definition, source, absent)


_B, _S, _N = Unit.BYTES, Unit.SECONDS, Unit.COUNT
_LOWER, _NEUTRAL, _EXACT = Direction.LOWER, Direction.NEUTRAL, Direction.EXACT
_STATUS, _IO = "/proc/self/status", "/proc/self/io"
_LOGITS = fidelity.LOGITS
_CPU = "CLOCK_PROCESS_CPUTIME_ID"
_PERF = "perf_event_open(2), user mode"
_METRICS = "the server's /metrics"
_SELF, _CHILDREN = "getrusage(RUSAGE_SELF)", "getrusage(RUSAGE_CHILDREN)"

# fmt: off
METRICS: tuple[Metric, ...] = (
    # tokens
    _count("prompt_tokens", "prompt", Unit.TOKENS, _EXACT, read.trace(timing.prompt_tokens),
           "ids fed to the model", "engine"),
    _count("generated_tokens", "generated", Unit.TOKENS, _EXACT, read.trace(timing.generated_tokens),
           "ids produced; an end-of-sequence id counts", "clock"),
    _count("total_tokens", "tokens", Unit.TOKENS, _EXACT,
           read.trace(timing.total_tokens), "prompt + generated", "clock"),
    _count("cached_tokens", "prompt cached", Unit.TOKENS, _NEUTRAL, read.reported(lambda said: said.cached),
           "tokens of the prompt that a server says it had in its cache", "the server"),
    _count("requested_tokens", "requested", Unit.TOKENS, _EXACT, read.trace(lambda t: t.requested_tokens),
           "the limit on generated tokens", "suite"),
    # times
    replace(_time("ttft_s", "TTFT", read.trace(timing.ttft_s),
                  "first tick − start; start is read when the ids are ready and the device is idle", fact=Fact.PREFILL),
            column=Column("TTFT", scattered=True)),
    _time("prefill_s", "prefill", read.trace(timing.prefill_s),
          "the prompt's forward pass and the choice of the first token: TTFT, unless the engine tells them apart",
          fact=Fact.PREFILL),
    _time("decode_s", "decode", read.trace(timing.decode_s), "last tick − first tick", _ONE_TICK, Fact.DECODE),
    _time("total_s", "total", read.trace(timing.total_s), "last tick − start", fact=Fact.TOTAL),
    _time("tpot_s", "TPOT", read.trace(timing.tpot_s),
          "decode / (n − 1); n less the first tick's tokens when ticks bring several", _ONE_TICK, Fact.DECODE),
    replace(_time("itl_p50_s", "ITL p50", read.percentile(50), "median gap between ticks", _ONE_TICK, Fact.DECODE),
            column=Column("ITL p50", brief=False)),
    _time("itl_p90_s", "ITL p90", read.percentile(90),
          "90th percentile of the gaps, linear between order statistics", _ONE_TICK),
    _time("itl_p95_s", "ITL p95", read.percentile(95), "95th percentile of the gaps", _ONE_TICK),
    replace(_time("itl_p99_s", "ITL p99", read.percentile(99), "99th percentile of the gaps", _ONE_TICK),
            column=Column("ITL p99")),
    _time("itl_max_s", "ITL max", read.trace(lambda t: max(timing.inter_token_latencies_s(t), default=None)),
          "longest gap between ticks", _ONE_TICK),
    _time("tokenize_s", "tokenise", read.once(lambda record: record.tokenize_s),
          "text to ids, once, outside every round"),
    _time("load_s", "loading", read.once(lambda record: record.model.load_s),
          "from the call to a usable model; what is mapped may be read by the first run only", "not timed"),
    _time("first_run_extra_s", "first-run extra", read.once(loading.first_run_extra),
          "first warm-up's total − median total of the rounds: lazy initialisation, compilation, mapped weights"),
    # loading
    _count("load_cache", "loaded", Unit.TEXT, _NEUTRAL, read.once(loading.cache),
           "cold: under 1 % of the weight files' pages were in the page cache before; warm: over 99 %; else mixed",
           "mincore(2)"),
    _count("load_cached_percent", "cached before loading", Unit.PERCENT, _NEUTRAL,
           read.once(loading.reading(loading.cached_percent)),
           "pages of the weight files that were in the page cache before loading", "mincore(2)"),
    _count("load_read_bytes", "loading read", _B, _LOWER, read.once(loading.reading(lambda it: it.read_bytes)),
           "bytes that came from the device during loading", f"{_IO} read_bytes"),
    _count("first_run_read_bytes", "first-run read", _B, _LOWER, read.once(loading.first_run_read),
           "bytes that came from the device during the first warm-up round", f"{_IO} read_bytes"),
    _count("load_peak_rss_bytes", "loading peak", _B, _LOWER, read.once(loading.reading(lambda it: it.peak_rss_bytes)),
           "high-water mark of resident memory over loading", f"{_STATUS} VmHWM, reset through /proc/self/clear_refs"),
    _count("load_rss_anon_bytes", "anonymous after loading", _B, _LOWER,
           read.once(loading.reading(lambda it: it.rss_anon_bytes)),
           "resident right after loading: heap, copied weights", f"{_STATUS} RssAnon"),
    _count("loaded_anon_bytes", "anonymous by loading", _B, _LOWER,
           read.once(loading.reading(lambda it: it.anon_growth_bytes)),
           "anonymous memory that loading added: copied weights, what was imported", f"{_STATUS} RssAnon"),
    _count("load_rss_file_bytes", "file-backed after loading", _B, _NEUTRAL,
           read.once(loading.reading(lambda it: it.rss_file_bytes)),
           "resident right after loading: libraries, weights that are mapped and were touched",
           f"{_STATUS} RssFile + RssShmem"),
    # rates
    _rate("overall_throughput", "overall", read.trace(timing.overall_throughput), "(prompt + generated) / total",
          Fact.TOTAL),
    _rate("prefill_throughput", "prefill", read.trace(timing.prefill_throughput), "prompt / prefill", Fact.PREFILL),
    replace(_rate("decode_throughput", "decode", read.trace(timing.decode_throughput), "(n − 1) / decode = 1 / TPOT",
                  Fact.DECODE, _ONE_TICK), column=Column("decode", bare=True, scattered=True)),
    _rate("total_prefill_throughput", "total prefill", read.all_sequences(timing.prefill_throughput),
          "sequences of the batch × prefill throughput", Fact.PREFILL),
    _rate("total_decode_throughput", "total decode", read.all_sequences(timing.decode_throughput),
          "sequences of the batch × decode throughput: each step brings a token to each of them", Fact.DECODE,
          _ONE_TICK),
    # memory
    replace(_count("peak_rss_bytes", "peak memory", _B, _LOWER, read.counter(lambda c: c.peak_rss_bytes),
                   "high-water mark of resident memory over the round, reset before it",
                   f"{_STATUS} VmHWM, reset through /proc/self/clear_refs"), column=Column("peak", bare=True),
            fact=Fact.MEMORY),
    _count("rss_bytes", "memory used", _B, _LOWER, read.counter(lambda c: c.rss_bytes),
           "resident memory after the round", f"{_STATUS} VmRSS"),
    _count("rss_anon_bytes", "anonymous", _B, _LOWER, read.counter(lambda c: c.rss_anon_bytes),
           "of it anonymous: heap, copied weights", f"{_STATUS} RssAnon"),
    _count("rss_file_bytes", "file-backed", _B, _NEUTRAL, read.counter(lambda c: c.rss_file_bytes),
           "of it file-backed: mapped weights, libraries", f"{_STATUS} RssFile + RssShmem"),
    _count("peak_file_bytes", "peak file-backed", _B, _NEUTRAL, read.per_round(read.file_backed),
           "of the peak pages of mapped files (libraries, weights), which the kernel can drop; not shared memory; "
           "as they are right after the round", f"{_STATUS} RssFile"),
    _count("mapped_weights_bytes", "mapped weights", _B, _NEUTRAL, read.profile(lambda p: p.mapped_weights_bytes),
           "resident pages of the model's own files, after the profile round", "/proc/self/smaps Rss - Anonymous"),
    _count("swap_bytes", "swapped", _B, _LOWER, read.counter(lambda c: c.swap_bytes),
           "of the process, swapped out", f"{_STATUS} VmSwap"),
    _count("memory_percent", "memory %", Unit.PERCENT, _LOWER, read.per_round(read.memory_percent),
           "resident / usable by this process: the container's limit where there is one",
           f"{_STATUS} VmRSS, cgroup memory.max"),
    Metric("system_memory_percent", "system memory %", Unit.PERCENT, _NEUTRAL, Kind.SAMPLED,
           read.counter(lambda c: c.system_memory_percent), "(total − available) / total of the whole system",
           "/proc/meminfo"),
    replace(_count("model_bytes", "model", _B, _LOWER, read.once(read.model_bytes),
                   "parameters + buffers, shared tensors once", "engine"), repeatable=True),
    replace(_count("kv_cache_bytes", "KV cache", _B, _LOWER, read.profile(lambda p: p.kv_cache_bytes),
                   "the cache's tensors after the last token", "engine"), repeatable=True),
    _count("rest_bytes", "rest", _B, _LOWER, read.per_round(read.rest), "peak − model − KV cache",
           f"{_STATUS} VmHWM, engine"),
    _count("memory_growth_bytes", "growth", _B, _LOWER, read.profile(lambda p: p.memory_growth_bytes),
           "profile round: peak − resident before it, heap trimmed first", f"{_STATUS} VmHWM"),
    _count("pss_bytes", "PSS", _B, _LOWER, read.profile(lambda p: p.pss_bytes),
           "proportional share, after the profile round", "/proc/self/smaps_rollup"),
    _count("uss_bytes", "USS", _B, _LOWER, read.profile(lambda p: p.uss_bytes),
           "private to this process, after the profile round", "/proc/self/smaps_rollup"),
    _count("nonfinite_logits", "non-finite logits", _N, _EXACT, read.profile(lambda p: p.nonfinite_logits),
           "forward passes of the profile round whose logits hold NaN or +∞, or nothing finite", "engine"),
    # CPU
    _count("cpu_s", "CPU time", _S, _LOWER, read.counter(lambda c: c.cpu_s), "user + system time of all threads", _CPU),
    _count("cpu_user_s", "user", _S, _LOWER, read.counter(lambda c: c.cpu_user_s), "of it in user mode", _SELF),
    _count("cpu_system_s", "system", _S, _LOWER, read.counter(lambda c: c.cpu_system_s), "of it in the kernel", _SELF),
    _count("cpu_children_s", "children", _S, _LOWER, read.counter(lambda c: c.cpu_children_s),
           "CPU time of children that ended in the round", _CHILDREN),
    _count("cores_used", "cores used", Unit.CORES, _NEUTRAL, read.per_round(read.cores_used),
           "CPU time / wall time of the round", _CPU),
    replace(_count("cpu_utilization", "CPU", Unit.PERCENT, _NEUTRAL, read.per_round(read.utilization),
                   "cores used / usable cores (affinity and container quota)", _CPU),
            column=Column("CPU", brief=False)),
    Metric("frequency_hz", "frequency", Unit.HERTZ, _NEUTRAL, Kind.SAMPLED, read.counter(lambda c: c.frequency_hz),
           "mean before and after the round over at most 8 cpufreq policies, spread evenly",
           "/sys cpufreq scaling_cur_freq"),
    _count("client_cores", "client", Unit.CORES, _NEUTRAL, read.per_round(read.client_cores),
           "CPU time of this process / wall time of the round, where a server does the work", _CPU),
    _count("client_wait_s", "client wait", _S, _NEUTRAL, read.counter(lambda c: c.client_wait_s),
           "time that threads of this process waited for a core, where a server does the work",
           "/proc/self/task/*/schedstat"),
    # work of the CPU
    _count("instructions", "instructions", _N, _LOWER, read.counter(lambda c: c.instructions),
           "instructions that all threads retired; a greedy run repeats to about 0.1 %", _PERF),
    _count("cycles", "cycles", _N, _LOWER, read.counter(lambda c: c.cycles), "core cycles of all threads", _PERF),
    _count("cache_misses", "cache misses", _N, _LOWER, read.counter(lambda c: c.cache_misses),
           "accesses that the last-level cache did not hold", _PERF),
    _count("branch_misses", "branch misses", _N, _LOWER, read.counter(lambda c: c.branch_misses),
           "branches that were predicted wrongly", _PERF),
    # disk
    _count("read_bytes", "disk read", _B, _LOWER, read.counter(lambda c: c.read_bytes),
           "bytes that came from the device, mapped files too", f"{_IO} read_bytes"),
    _count("write_bytes", "disk write", _B, _LOWER, read.counter(lambda c: c.write_bytes),
           "bytes on their way to the device", f"{_IO} write_bytes"),
    _count("read_ops", "read ops", _N, _LOWER, read.counter(lambda c: c.read_ops),
           "operations of the control group that reached the device", "cgroup io.stat rios"),
    _count("write_ops", "write ops", _N, _LOWER, read.counter(lambda c: c.write_ops),
           "operations of the control group that reached the device", "cgroup io.stat wios"),
    _count("read_chars", "asked to read", _B, _NEUTRAL, read.counter(lambda c: c.read_chars),
           "bytes that read calls returned; not mapped files", f"{_IO} rchar"),
    _count("write_chars", "asked to write", _B, _NEUTRAL, read.counter(lambda c: c.write_chars),
           "bytes given to write calls", f"{_IO} wchar"),
    _count("read_calls", "read calls", _N, _NEUTRAL, read.counter(lambda c: c.read_calls),
           "read system calls", f"{_IO} syscr"),
    _count("write_calls", "write calls", _N, _NEUTRAL, read.counter(lambda c: c.write_calls),
           "write system calls", f"{_IO} syscw"),
    _count("minor_faults", "minor faults", _N, _LOWER, read.counter(lambda c: c.minor_faults),
           "page faults served from memory", _SELF),
    _count("major_faults", "major faults", _N, _LOWER, read.counter(lambda c: c.major_faults),
           "page faults that waited for a device", _SELF),
    # disturbance
    _count("run_queue_wait_s", "waited for a core", _S, _LOWER, read.counter(lambda c: c.run_queue_wait_s),
           "time its threads were ready but not running, summed", "/proc/self/task/*/schedstat"),
    _count("involuntary_switches", "involuntary switches", _N, _LOWER, read.counter(lambda c: c.involuntary_switches),
           "times it was taken off a core", _SELF),
    _count("voluntary_switches", "voluntary switches", _N, _NEUTRAL, read.counter(lambda c: c.voluntary_switches),
           "times it gave a core up", _SELF),
    _count("steal_s", "steal", _S, _LOWER, read.counter(lambda c: c.steal_s),
           "time the hypervisor took, all cores", "/proc/stat"),
    _count("other_cpu_s", "other processes", _S, _LOWER, read.counter(lambda c: c.other_cpu_s),
           "CPU time of all other processes", "/proc/stat"),
    _count("pressure_cpu_s", "CPU pressure", _S, _LOWER, read.counter(lambda c: c.pressure_cpu_s),
           "time that some task waited for a core", "cgroup cpu.pressure, else /proc/pressure/cpu"),
    _count("pressure_memory_s", "memory pressure", _S, _LOWER, read.counter(lambda c: c.pressure_memory_s),
           "time that some task waited for memory", "cgroup memory.pressure, else /proc/pressure/memory"),
    _count("pressure_io_s", "I/O pressure", _S, _LOWER, read.counter(lambda c: c.pressure_io_s),
           "time that some task waited for I/O", "cgroup io.pressure, else /proc/pressure/io"),
    _count("thermal_throttles", "thermal throttles", _N, _LOWER, read.counter(lambda c: c.thermal_throttles),
           "times that a processor slowed down because of its heat", "/sys thermal_throttle package_throttle_count"),
    # what a server tells of itself
    _count("server_prompt_tokens", "server prompt", Unit.TOKENS, _NEUTRAL,
           read.counter(lambda c: c.server_prompt_tokens),
           "tokens of prompts in the round, all clients': looked up in the cache; of llama-server, computed",
           _METRICS),
    _count("server_cached_tokens", "server cached", Unit.TOKENS, _NEUTRAL,
           read.counter(lambda c: c.server_cached_tokens),
           "tokens of prompts that its cache held in the round, all clients'", _METRICS),
    _sample("server_running", "server running", _N, read.counter(lambda c: c.server_running),
            "requests that ran right before the round: other clients'", _METRICS),
    _sample("server_waiting", "server queued", _N, read.counter(lambda c: c.server_waiting),
            "requests that waited right before the round: other clients'", _METRICS),
    _sample("server_kv_usage", "server KV cache", Unit.PERCENT, read.counter(lambda c: c.server_kv_usage),
            "of its KV cache in use right after the round", _METRICS),
    # experts
    _count("expert_selections", "expert selections", _N, _EXACT, read.experts(experts.selections),
           "MoE sites × tokens processed × top-k; tokens processed = prompt + generated − 1",
           "pre-hook on the experts modules, profile round"),
    _count("expert_imbalance", "expert imbalance", Unit.RATIO, _NEUTRAL, read.experts(experts.imbalance),
           "max / mean selections within a site, averaged over the sites", "derived"),
    _count("expert_entropy", "expert entropy", Unit.RATIO, _NEUTRAL, read.experts(experts.entropy),
           "−Σ p ln p / ln E of a site's shares, averaged over the sites; 1 is perfectly even", "derived"),
    _count("expert_coverage_percent", "hot quarter", Unit.PERCENT, _NEUTRAL, read.experts(experts.hot_quarter),
           "selections that the most used quarter of a site's experts serves, averaged over the sites", "derived"),
    _count("hottest_experts", "hottest experts", Unit.TEXT, _NEUTRAL, read.experts(read.hottest),
           "the three experts with the largest share of their site's selections (L layer, E expert)", "derived"),
    # the limit of the machine
    replace(_count("step_bytes", "bytes a step", _B, _LOWER, read.once(roofline.step),
                   "what a decode step must read: weights, of the experts only those selected, and the KV cache",
                   "modules, experts and KV cache of the profile round"), repeatable=True),
    Metric("mbu", "MBU", Unit.RATIO, Direction.HIGHER, Kind.TIMED, read.per_round(roofline.utilization),
           "step_bytes / (TPOT × read bandwidth of the probe): 1 is the machine's limit", "derived"),
    Metric("decode_ceiling", "decode ceiling", Unit.TOKENS_PER_SECOND, _NEUTRAL, Kind.SAMPLED,
           read.once(roofline.decode_ceiling), "read bandwidth of the probe / step_bytes", "derived"),
    Metric("mfu", "prefill MFU", Unit.RATIO, Direction.HIGHER, Kind.TIMED,
           read.per_round(roofline.prefill_utilization),
           "operations that the prompt needs / (prefill × GEMM rate of the probe for the dtype)", "derived"),
    # energy and accelerators
    _count("energy_j", "energy", Unit.JOULES, _LOWER, read.counter(lambda c: c.energy_j),
           "of all processor packages and their memory, other processes included",
           "/sys/class/powercap intel-rapl energy_uj"),
    _count("device_energy_j", "device energy", Unit.JOULES, _LOWER, read.counter(lambda c: c.device_energy_j),
           "of the accelerators in use, other processes included", "NVML total energy consumption"),
    Metric("device_power_w", "device power", Unit.WATTS, _NEUTRAL, Kind.SAMPLED,
           read.counter(lambda c: c.device_power_w), "right after the round, the accelerators in use together",
           "NVML power usage"),
    Metric("device_utilization", "device busy", Unit.PERCENT, _NEUTRAL, Kind.SAMPLED,
           read.counter(lambda c: c.device_utilization),
           "time in which any kernel ran, over the driver's last sample period; mean of the accelerators in use",
           "NVML utilization rates"),
    _count("device_peak_bytes", "device peak", _B, _LOWER, read.counter(lambda c: c.device_peak_bytes),
           "most that torch had allocated on the accelerators within the round",
           "torch max_memory_allocated, reset before it"),
    # fidelity
    replace(_count("nll", "NLL", Unit.NATS, _LOWER, read.profile(fidelity.alone(fidelity.nll)),
                   "−mean ln p of the generated tokens, or of those that were followed", _LOGITS), repeatable=True),
    replace(_count("perplexity", "perplexity", Unit.RATIO, _LOWER, read.profile(fidelity.perplexity),
                   "exp of −mean ln p of the tokens of a fixed text, in windows", "forward passes over the text"),
            repeatable=True),
    _count("entropy", "entropy", Unit.NATS, _NEUTRAL, read.profile(fidelity.alone(fidelity.entropy)),
           "−Σ p ln p of the next token, mean over positions; tokens beyond the 64 likeliest count as one", _LOGITS),
    _count("margin", "least margin", Unit.NATS, _NEUTRAL, read.profile(fidelity.alone(fidelity.margin)),
           "ln p of the likeliest token − ln p of the second, least over positions: how near the output was to another",
           _LOGITS),
    _distance("kl", "KL", Unit.NATS, _LOWER,
              "KL(reference ‖ this) = Σ p ln(p / q) of the next token, mean over positions; with --infer-against "
              "exact, else a lower bound from the 64 likeliest tokens"),
    _distance("kl_p99", "KL p99", Unit.NATS, _LOWER, "99th percentile of the same over positions"),
    _distance("top1", "top-1", Unit.PERCENT, Direction.HIGHER, "positions whose likeliest token is the reference's"),
    _distance("logprob_rms", "log-prob. RMS", Unit.NATS, _LOWER,
              "√mean (ln q − ln p)² of the reference's tokens"),
    _distance("first_divergence", "first divergence", Unit.TOKENS, _NEUTRAL,
              "tokens before the first that this replaces the reference's by; all where there is none"),
    _distance("experts_changed", "experts changed", Unit.PERCENT, _LOWER,
              "(site, token) whose set of chosen experts is not the reference's", fidelity.EXPERTS),
    _distance("gate_shift", "gate shift", Unit.RATIO, _LOWER,
              "largest change of a gate weight; an expert that was not chosen has none", fidelity.EXPERTS),
    # load
    _level("s_per_token", "system's time per token", _S, _LOWER, load.each(load.s_per_token),
           "steady part of a repetition / output tokens of the answers that ended in it, all requests together"),
    _level("throughput", "system's throughput", Unit.TOKENS_PER_SECOND, Direction.HIGHER, load.each(load.throughput),
           "output tokens of the answers that ended in the steady part / its length"),
    _level("ttft_p50_s", "TTFT p50 under load", _S, _LOWER, load.each_percentile(50, load.ttfts_s),
           "median over requests; from when a request was due (of streams: sent) to its first token"),
    _level("ttft_p99_s", "TTFT p99 under load", _S, _LOWER, load.each_percentile(99, load.ttfts_s),
           "99th percentile of the same"),
    _level("tpot_p50_s", "TPOT p50 under load", _S, _LOWER,
           load.each_percentile(50, load.tpots_s, "no answer has two tokens"),
           "median over requests of (last − first token) / (tokens − 1): the stamps between them are not told"),
    _level("latency_p50_s", "latency p50", _S, _LOWER, load.each_percentile(50, load.latencies_s),
           "median over requests; from when a request was due (of streams: sent) to the end of its answer"),
    _level("latency_p99_s", "latency p99", _S, _LOWER, load.each_percentile(99, load.latencies_s),
           "99th percentile of the same"),
    _level("misses", "misses", Unit.PERCENT, _LOWER, load.each(load.misses),
           "1 − goodput / offered rate: late by an objective, failed or cancelled"),
    _level("goodput", "goodput", Unit.REQUESTS_PER_SECOND, Direction.HIGHER, load.each(load.good_rate),
           "requests due in the steady part that were answered as the objectives ask / its length"),
    _level("offered", "offered rate", Unit.REQUESTS_PER_SECOND, _NEUTRAL, load.each(load.offered_rate),
           "requests due in the steady part / its length"),
    _level("in_flight", "in flight", Unit.RATIO, _NEUTRAL, load.each(load.in_flight),
           "mean number of requests that were due (of streams: sent) and had not ended"),
    _level("dispatch_p99_s", "dispatch delay p99", _S, _NEUTRAL,
           load.each_percentile(99, load.dispatch_s, "only a rate has a schedule"),
           "99th percentile over requests of sent − due: what the sender itself adds"),
    _level("cached_percent", "prompt cached", Unit.PERCENT, _NEUTRAL,
           load.each(load.cached_percent, "the server does not say"),
           "tokens of the prompts that the server says it had cached"),
    # output
    _count("output_sha256", "output", Unit.TEXT, _EXACT, read.once(read.output),
           "SHA-256 of the generated ids in decimal, commas between them; of the text where there are no ids", "clock"),
)
# fmt: on


def columns() -> dict[str, Column]:
    """Return the columns of the summary by the keys of their metrics, in order."""
    return {metric.key: metric.column for metric in METRICS if metric.column is not None}


def by_key(key: str) -> Metric:
    """Return the metric of that key; raise OptionError naming the known ones."""
    for metric in METRICS:
        if metric.key == key:
            return metric
    raise OptionError(alternatives("metric", key, (m.key for m in METRICS), "pytest-infer metrics"))
