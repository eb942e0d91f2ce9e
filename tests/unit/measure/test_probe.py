"""The probe's loops on a clock that only the work moves; the real one is in tests/real."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.measure.machine import host, probe
from pytest_infer.measure.machine.probe import LEAST_BYTES, LEAST_WIDTH, MOST_ON_DEVICE, MOST_WIDTH, SLICE_BYTES
from pytest_infer.records import Reading, absent


class Machine:
    """Reads and multiplies at a given rate, on its own clock."""

    def __init__(self) -> None:
        self.ns = 0

    def now(self) -> int:
        return self.ns

    def spending(self, ns: int) -> Callable[[], None]:
        def work() -> None:
            self.ns += ns

        return work


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_each_read_is_timed_by_itself_and_the_first_pass_is_left_out(machine: Machine) -> None:
    passes: list[int] = []

    def read() -> None:
        passes.append(1)
        machine.ns += 100_000_000 if len(passes) <= 2 else 1_000_000  # the first touch of a page is slow

    rates = probe.timed_reads([read, read], 1000, lambda: None, machine.now)
    assert set(rates) == {1000 / 1e-3}
    assert len(rates) == len(passes) - 2
    assert len(rates) * 1_000_000 >= 0.25e9


def test_a_slow_machine_still_reads_everything_once(machine: Machine) -> None:
    reads = [machine.spending(400_000_000), machine.spending(800_000_000)]
    assert probe.timed_reads(reads, 4, lambda: None, machine.now) == [10, 5]


def test_what_waiting_for_the_device_takes_counts(machine: Machine) -> None:
    rates = probe.timed_reads([lambda: None], 1000, machine.spending(1_000_000_000), machine.now)
    assert rates == [1000, 1000]  # twice, however slow: one read has no spread
    assert probe.summarized(rates) == (1000, 0)


@pytest.mark.parametrize("flops_per_s", [1e9, 180e9, 5e12, 1e15])
def test_the_rate_of_any_machine_is_found(machine: Machine, flops_per_s: float) -> None:
    widths: list[int] = []

    def prepare(width: int) -> Callable[[], None]:
        widths.append(width)
        return machine.spending(round(2e9 * width**3 / flops_per_s))

    assert probe.best_rate(prepare, lambda: None, machine.now) == pytest.approx(flops_per_s, rel=0.01)
    assert widths[0] == LEAST_WIDTH
    assert widths[-1] <= MOST_WIDTH
    # No wider than the first width whose call takes 20 ms.
    assert all(2 * width**3 / flops_per_s < 0.02 for width in widths[:-1])


def test_the_best_call_counts(machine: Machine) -> None:
    times = iter([30_000_000, 90_000_000, 45_000_000, 30_000_000, 60_000_000, 90_000_000])

    def prepare(_width: int) -> Callable[[], None]:
        def call() -> None:
            machine.ns += next(times)

        return call

    assert probe.best_rate(prepare, lambda: None, machine.now) == pytest.approx(2 * LEAST_WIDTH**3 / 0.03)


def test_a_kernel_that_is_loaded_with_its_first_call_takes_no_time_from_the_measurement(machine: Machine) -> None:
    """The first call of each width takes 0.3 s, more than all that is measured; each other one 10 µs to start."""

    def prepare(width: int) -> Callable[[], None]:
        times = iter([300_000_000])

        def call() -> None:
            machine.ns += next(times, 10_000 + round(2e9 * width**3 / 800e12))

        return call

    assert probe.best_rate(prepare, lambda: None, machine.now) == pytest.approx(800e12, rel=0.02)


class Card:
    """torch with a card that tells its free memory."""

    def __init__(self, free: int) -> None:
        self.emptied: list[str] = []
        self.cuda = SimpleNamespace(mem_get_info=lambda _device: (free, 2**40), empty_cache=self._empty)
        self.cuda.get_device_properties = lambda _device: SimpleNamespace(L2_cache_size=60 << 20)
        self.mps = SimpleNamespace()

    def device(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(type=name.partition(":")[0])

    def _empty(self) -> None:
        self.emptied.append("cuda")


@pytest.mark.parametrize(
    ("free", "size"), [(140 << 30, 4 << 30), (8 << 30, 2 << 30), (1 << 30, 256 << 20), (900 << 20, None)]
)
def test_the_buffer_on_a_card(free: int, size: int | None) -> None:
    card = Card(free)
    assert probe.device_buffer_bytes(card, "cuda:1") == size
    assert probe.device_buffer_bytes(card, "mps:0") == 1 << 30  # which does not tell
    assert probe.device_caches(card, "cuda:1") == {"L2": 60 << 20}
    assert probe.device_caches(card, "mps:0") == {}
    probe._give_back(card, "cuda:1")
    probe._give_back(card, "mps:0")
    assert card.emptied == ["cuda"]


def test_the_level_is_high_and_the_spread_that_of_the_middle_half() -> None:
    level, spread = probe.summarized([float(n) for n in range(101)])
    assert level == 95
    assert spread == (75 - 25) / 50


@pytest.mark.parametrize(
    ("caches", "free", "expected"),
    [
        ({}, 2**40, LEAST_BYTES),
        ({"L2": 2**20, "L3": 32 << 20}, 2**40, 256 << 20),
        ({"L3": 64 << 20}, 2**40, 512 << 20),
        # As of an EPYC 9684X: 1 GiB would lie in them.
        ({"L3": 1152 << 20}, 2**40, 9216 << 20),
        ({"L3": 1152 << 20}, 20 << 30, 5 << 30),
        ({"L3": 1152 << 20}, 18 << 30, 4608 << 20),
        ({"L3": 1152 << 20}, 17 << 30, None),
        ({"L3": 64 << 20}, 4 * (300 << 20), 288 << 20),
        ({"L3": 32 << 20}, 4 * LEAST_BYTES - 1, None),
    ],
)
def test_the_buffer(caches: dict[str, int], free: int, expected: int | None) -> None:
    size = probe.buffer_bytes(caches, free)
    assert size == expected
    assert size is None or size % SLICE_BYTES == 0


@pytest.mark.parametrize(("caches", "said"), [({}, "256 MiB"), ({"L3": 1152 << 20}, "4608 MiB")])
def test_what_a_container_leaves_is_the_limit_of_the_buffer(
    monkeypatch: pytest.MonkeyPatch, caches: dict[str, int], said: str
) -> None:
    # 300 MiB are free, a quarter of which is less than the smallest buffer.
    monkeypatch.setattr(host, "available_bytes", lambda: 300 << 20)
    monkeypatch.setattr(probe, "cache_sizes", lambda: caches)
    made = probe.measure(1)
    assert isinstance(made, Unavailable)
    assert f"the probe's {said} are needed" in made.reason


def test_an_accelerator_reads_its_buffer_at_once() -> None:
    assert probe.slice_size("cpu", MOST_ON_DEVICE) == SLICE_BYTES
    # 4 GiB take 1.4 ms at 3 TB/s; of 32 MiB the start of a kernel, some 10 µs, would be half of the time.
    assert probe.slice_size("cuda:0", MOST_ON_DEVICE) == MOST_ON_DEVICE
    assert probe.slice_size("mps:0", MOST_ON_DEVICE) == MOST_ON_DEVICE


def test_a_torch_that_does_not_tell_its_instructions() -> None:
    assert probe.instructions(SimpleNamespace(cpu=SimpleNamespace())) == ()
    told = SimpleNamespace(cpu=SimpleNamespace(get_capabilities=lambda: {"avx2": True, "amx": False, "l1": 32768}))
    assert probe.instructions(told) == ("avx2",)


def test_a_boot_has_one_name(proc) -> None:
    proc.write("sys/kernel/random/boot_id", "0f3c\n")
    assert probe.boot(proc.root) == "0f3c"
    proc.remove("sys/kernel/random/boot_id")
    assert probe.boot(proc.root).isdigit()


@pytest.mark.parametrize(("waits", "share"), [((0, 30), 0.75), ((5, 5), 0.0), ((5, None), None)])
def test_how_long_the_threads_of_a_probe_waited(
    monkeypatch: pytest.MonkeyPatch, waits: tuple[int, int | None], share: float | None
) -> None:
    class Queue:
        def __init__(self) -> None:
            self.left = list(waits)

        def read(self) -> int | None:
            return self.left.pop(0)

        def readings(self, before: int, after: int | None) -> dict[str, Reading]:
            return {"run_queue_wait_s": absent("-") if after is None else Reading(value=after - before, source="-")}

        def close(self) -> None:
            self.left.clear()

    used = iter([2.0, 12.0])
    monkeypatch.setattr(probe, "RunQueue", Queue)
    monkeypatch.setattr(probe.time, "process_time", lambda: next(used))
    assert probe._watched(lambda: [1.0, 2.0]) == ([1.0, 2.0], share)
