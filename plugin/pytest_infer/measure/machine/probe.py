"""The machine's probe: how fast it reads memory and multiplies matrices, by the threads and kernels that models use."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pytest_infer import untrusted
from pytest_infer.measure.counters.contention import RunQueue
from pytest_infer.measure.counters.kernel_files import Sources, Unavailable
from pytest_infer.measure.machine import host
from pytest_infer.measure.machine.description import governor
from pytest_infer.metrics import timing
from pytest_infer.records import MachineProbe
from pytest_infer.units import bandwidth, percent

DTYPES = ("float32", "bfloat16", "float16")
SLICE_BYTES = 32 << 20
LEAST_BYTES = 256 << 20
CACHES, LEAST_CACHES = 8, 4
"""The buffer is so many times as large as the last caches together, at least: almost none of it stays there."""
MOST_ON_DEVICE = 4 << 30
"""An accelerator's buffer: read at 5 TB/s it takes 1 ms, of which starting a kernel and waiting for it are 1 or 2 %."""
LEAST_WIDTH, MOST_WIDTH = 512, 8192
_BANDWIDTH_S, _GEMM_S = 0.25, 0.2
_LONG_ENOUGH_S = 0.02
_LEAST_READS = 2  # one has no spread
_SIZE_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}

STEADY = 0.25
"""Reads that spread wider were disturbed: on a quiet machine they spread by 4 to 13 %, beside busy loops by 90 %."""
WAITED = 0.1
"""So were those whose threads waited longer for a core: of two that take turns with others every read is as slow."""
REPEATS = 2
"""A probe that was disturbed is made so often again."""

Clock = Callable[[], int]


def measure(threads: int, device: str = "cpu", flops: Mapping[str, float] | None = None) -> MachineProbe | Unavailable:
    """Probe the machine, or say why that is impossible; below 2 s (0.5 s with `flops` from before) but for huge caches.

    Memory: `torch.sum` over 32 MiB slices of a buffer of 256 MiB or more, on an accelerator over up to 4 GiB at once.
    Matrices: `F.linear` of a square matrix with as many rows as it is wide, from 512 upwards until a call takes 20 ms.
    torch's threads are set for the probe and restored, and what it took of an accelerator's memory is given back.
    """
    levels, free = cache_sizes(), host.available_bytes()
    if device == "cpu" and (free is None or buffer_bytes(levels, free) is None):
        return Unavailable(f"too little memory is free: 4 times the probe's {least_bytes(levels) >> 20} MiB are needed")
    try:
        import torch  # noqa: PLC0415  # the plugin alone must not load it
    except ImportError as error:
        return Unavailable(f"PyTorch, which measures it, cannot be loaded here: {error}")
    try:
        size = buffer_bytes(levels, free or 0) if device == "cpu" else device_buffer_bytes(torch, device)
        if size is None:
            return Unavailable(f"less than {4 * LEAST_BYTES >> 20} MiB are free on {device}")
        with _set_threads(torch, threads), torch.inference_mode():
            rates, waited = _watched(partial(_read_rates, torch, device, size))
            known = dict(flops) if flops else _gemm_rates(torch, device)
    except Exception as error:  # noqa: BLE001 - of torch, a driver, or for want of memory
        return Unavailable(f"the probe failed: {untrusted.failure(error)}")
    finally:
        _give_back(torch, device)
    level, spread = summarized(rates)
    return MachineProbe(
        threads=threads,
        read_bandwidth=level,
        read_bandwidth_spread=spread,
        flops=known,
        caches=levels if device == "cpu" else device_caches(torch, device),
        at_ns=time.time_ns(),
        boot=boot(),
        governor=governor(),
        device=device,
        instructions=instructions(torch),
        waited=waited,
    )


def unsteady(made: MachineProbe) -> str | None:
    """Return what shows that a probe was disturbed, or None."""
    if made.waited is not None and made.waited > WAITED:
        return f"{bandwidth(made.read_bandwidth)} while its threads waited {percent(100 * made.waited)} of the time"
    if made.read_bandwidth_spread > STEADY:
        return f"{bandwidth(made.read_bandwidth)} ± {percent(100 * made.read_bandwidth_spread)}"
    return None


def steady(make: Callable[[], MachineProbe | Unavailable]) -> tuple[MachineProbe | Unavailable, list[MachineProbe]]:
    """Return the first probe that was not disturbed, of three, or why there is none; and those that were."""
    disturbed: list[MachineProbe] = []
    for _ in range(1 + REPEATS):
        made = make()
        if isinstance(made, Unavailable) or unsteady(made) is None:
            return made, disturbed
        disturbed.append(made)
    seen = ", ".join(filter(None, map(unsteady, disturbed)))
    why = f"its reads disagree, and again when repeated ({seen}): something else uses the machine"
    return Unavailable(why), disturbed


def _watched(read: Callable[[], list[float]]) -> tuple[list[float], float | None]:
    """Return what was read, and the share of their time for which this process's threads waited for a core."""
    queue = RunQueue()
    try:
        before, used = queue.read(), time.process_time()
        rates = read()
        waited = queue.readings(before, queue.read())["run_queue_wait_s"].value
        used = time.process_time() - used
    finally:
        queue.close()
    return rates, waited / (waited + used) if waited is not None and waited + used > 0 else None


def instructions(torch: Any) -> tuple[str, ...]:
    """Return the instruction sets that torch found in the processor; none where torch has no such list (2.6)."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return tuple(sorted(name for name, there in capabilities.items() if there is True))


def summarized(rates: list[float]) -> tuple[float, float]:
    """Return the 95th percentile of rates, and their interquartile range / median."""
    low, middle, high = statistics.quantiles(rates, n=4, method="inclusive")
    return timing.percentile(rates, 95) or middle, (high - low) / middle


def buffer_bytes(levels: Mapping[str, int], free_bytes: int) -> int | None:
    """Return the size of the buffer to read, in whole slices and a quarter of `free_bytes` at most, else None."""
    size = min(max(LEAST_BYTES, CACHES * _largest(levels)), free_bytes // 4) // SLICE_BYTES * SLICE_BYTES
    return size if size >= least_bytes(levels) else None


def least_bytes(levels: Mapping[str, int]) -> int:
    """Return the size of the smallest buffer whose bandwidth is not that of these caches."""
    return max(LEAST_BYTES, LEAST_CACHES * _largest(levels))


def _largest(levels: Mapping[str, int]) -> int:
    return max(levels.values(), default=0)


def device_buffer_bytes(torch: Any, device: str) -> int | None:
    """Return the size of the buffer to read on an accelerator: a quarter of what is free there at most, else None."""
    backend = getattr(torch, torch.device(device).type, None)
    told = getattr(backend, "mem_get_info", None)
    free = MOST_ON_DEVICE if told is None else int(told(device)[0])
    size = min(MOST_ON_DEVICE, free // 4) // SLICE_BYTES * SLICE_BYTES
    return size if size >= LEAST_BYTES else None


def device_caches(torch: Any, device: str) -> dict[str, int]:
    """Return bytes by level of an accelerator's caches, {} where it does not tell: a CPU's hold none of its memory."""
    describe = getattr(getattr(torch, torch.device(device).type, None), "get_device_properties", None)
    size = None if describe is None else getattr(describe(device), "L2_cache_size", None)
    return {"L2": int(size)} if size else {}


def _give_back(torch: Any, device: str) -> None:
    """Return to an accelerator what torch's allocator keeps of it: another process may need it."""
    empty = getattr(getattr(torch, torch.device(device).type, None), "empty_cache", None)
    if empty is not None:
        with suppress(RuntimeError):
            empty()


def cache_sizes(sys_folder: Path = Path("/sys"), cpus: set[int] | None = None) -> dict[str, int]:
    """Return bytes by level ("L1d", "L1i", "L2", "L3"), a cache that cores share counted once; {} where unknown.

    `cpus` are the cores that count, by default those that this process may run on. In a virtual machine these
    are the values that the host shows its guest. Source: Documentation/ABI/testing/sysfs-devices-system-cpu, cpu/cache.
    """
    if cpus is None:
        ask = getattr(os, "sched_getaffinity", None)
        cpus = set() if ask is None else Sources().ask("cpus", lambda: ask(0), "sched_getaffinity") or set()
    seen: dict[tuple[str, str], int] = {}
    for cpu in sorted(cpus):
        for level, shared, size in _caches_of(sys_folder / f"devices/system/cpu/cpu{cpu}/cache"):
            seen[level, shared] = size
    levels: dict[str, int] = {}
    for (level, _), size in sorted(seen.items()):
        levels[level] = levels.get(level, 0) + size
    return levels


def _caches_of(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Yield level, the cores that share it, and bytes of each cache of one core."""
    sources = Sources()
    for index in sources.matching("caches", folder, "index*"):
        level, kind, shared = (sources.text("caches", index / name) for name in ("level", "type", "shared_cpu_list"))
        number = sources.read("caches", index / "size", _bytes_of)
        if level is None or kind is None or shared is None or number is None:
            continue
        letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
        yield f"L{level}{letter}", shared, number


def _bytes_of(text: str) -> int:
    size = text.strip()
    return int(size.rstrip("KMG")) * _SIZE_UNITS.get(size[-1:], 1)


def boot(proc: Path = Path("/proc")) -> str:
    """Return a name of this boot of the system: Linux's own, elsewhere the second in which it started.

    Where neither can be read each process counts as a boot of its own: no probe from before one is then believed.
    """
    sources = Sources()
    told = sources.text("boot", proc / "sys/kernel/random/boot_id")
    told = told or sources.ask("boot", lambda: str(round(psutil.boot_time())), "/proc/stat")
    return told or f"not known, process {os.getpid()} at {time.monotonic_ns()}"


@contextmanager
def _set_threads(torch: Any, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def _waiter(torch: Any, device: str) -> Callable[[], None]:
    """Return a function that waits for the device."""
    return (lambda: None) if device == "cpu" else (lambda: torch.accelerator.synchronize(device))


def _read_rates(torch: Any, device: str, size: int) -> list[float]:
    """Return the bytes per second of each slice's read."""
    import numpy as np  # noqa: PLC0415  # not by merely loading the plugin

    if device == "cpu":
        # numpy asks for huge pages, which torch's own allocation does not.
        buffer = torch.from_numpy(np.empty(size // 4, dtype=np.float32)).fill_(1)
    else:
        buffer = torch.ones(size // 4, device=device)
    slice_bytes = slice_size(device, size)
    reads: list[Callable[[], object]] = [partial(torch.sum, part) for part in buffer.split(slice_bytes // 4)]
    return timed_reads(reads, slice_bytes, _waiter(torch, device))


def slice_size(device: str, size: int) -> int:
    """Return how much of a buffer of `size` bytes is read at a time.

    An accelerator reads all of it at once: it reads 32 MiB in the time that starting a kernel and waiting for it takes.
    """
    return SLICE_BYTES if device == "cpu" else size


def timed_reads(
    reads: list[Callable[[], object]], size: int, wait: Callable[[], None], now: Clock = time.perf_counter_ns
) -> list[float]:
    """Return size / time of each read, cycling through them for a quarter of a second, the first pass left out."""
    for read in reads:
        read()
    wait()
    rates: list[float] = []
    end_ns = now() + round(_BANDWIDTH_S * timing.NS)
    while len(rates) < max(len(reads), _LEAST_READS) or now() < end_ns:
        for read in reads:
            started = now()
            read()
            wait()
            rates.append(size * timing.NS / (now() - started))
    return rates


def _gemm_rates(torch: Any, device: str) -> dict[str, float]:
    """Return the best FLOP/s of each dtype that the device can multiply."""
    rates: dict[str, float] = {}
    for name in DTYPES:
        # Not every device knows every dtype.
        with suppress(RuntimeError):
            rates[name] = best_rate(_multiplier(torch, name, device), _waiter(torch, device))
    return rates


def _multiplier(torch: Any, dtype: str, device: str) -> Callable[[int], Callable[[], object]]:
    """Return a function: width to a call that multiplies width rows with a square matrix."""

    def prepare(width: int) -> Callable[[], object]:
        # Equal numbers flip fewer bits: a card that its power limits multiplies ones faster than weights.
        made = torch.ones if device == "cpu" else torch.randn
        x, weight = (made(width, width, dtype=getattr(torch, dtype), device=device) for _ in range(2))
        return lambda: torch.nn.functional.linear(x, weight)

    return prepare


def best_rate(
    prepare: Callable[[int], Callable[[], object]], wait: Callable[[], None], now: Clock = time.perf_counter_ns
) -> float:
    """Return the most operations per second of width x width matrices, 2 width**3 a call.

    The width is doubled until a call takes 20 ms, then the call is repeated until a fifth of a second is over. The
    first call of a width is not timed, nor is it part of that: it prepares a kernel, which an accelerator loads then.
    """
    width, best = LEAST_WIDTH, 0.0
    call = prepared(prepare, width, wait)
    end_ns = now() + round(_GEMM_S * timing.NS)
    while True:
        started = now()
        call()
        wait()
        took_ns = now() - started
        best = max(best, 2 * width**3 * timing.NS / took_ns)
        if now() >= end_ns:
            return best
        if took_ns < _LONG_ENOUGH_S * timing.NS and width < MOST_WIDTH:
            width *= 2
            begun = now()
            call = prepared(prepare, width, wait)
            end_ns += now() - begun


def prepared(
    prepare: Callable[[int], Callable[[], object]], width: int, wait: Callable[[], None]
) -> Callable[[], object]:
    """Return a call that has been made once."""
    call = prepare(width)
    call()
    wait()
    return call
