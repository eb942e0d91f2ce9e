"""Device memory by a torch that is made of fakes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pytest_infer.measure.counters import accelerator
from pytest_infer.measure.counters.accelerator import DeviceMemory
from pytest_infer.records import Quality


class Backend:
    """Devices that each keep the peak of what was allocated since it was set back, as torch.cuda does."""

    def __init__(self, devices: int = 1) -> None:
        self.started = True
        self.held = [0] * devices
        self.peaks = [0] * devices

    def allocate(self, size: int, device: int = 0) -> None:
        self.held[device] += size
        self.peaks[device] = max(self.peaks[device], self.held[device])

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return self.started

    def memory_reserved(self, device: int) -> int:
        return 2 * self.held[device]

    def mem_get_info(self, device: int) -> tuple[int, int]:
        return 1000 - 2 * self.held[device], 1000

    def device_count(self) -> int:
        return len(self.held)

    def get_device_name(self, device: int) -> str:
        return f"Fast {device}"

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"{device}-of-torch")

    def max_memory_allocated(self, device: int) -> int:
        return self.peaks[device]

    def reset_peak_memory_stats(self, device: int) -> None:
        if not self.started:
            raise RuntimeError(f"Allocator not initialized for device {device}: did you call init?")
        self.peaks[device] = self.held[device]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Backend()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=backend))
    return backend


def test_the_peak_of_a_window_is_its_own(cuda: Backend) -> None:
    memory = DeviceMemory()
    cuda.allocate(900)
    cuda.allocate(-800)
    before = memory.read()
    cuda.allocate(50)
    cuda.allocate(-50)
    reading = memory.readings(before, memory.read())["device_peak_bytes"]
    assert (reading.value, reading.quality) == (150, Quality.EXACT)


def test_a_window_within_another_takes_nothing_from_it(cuda: Backend) -> None:
    memory = DeviceMemory()
    outer = memory.read()
    cuda.allocate(700)
    cuda.allocate(-700)
    inner = memory.read()
    cuda.allocate(20)
    inner_end = memory.read()
    outer_end = memory.read()
    assert memory.readings(inner, inner_end)["device_peak_bytes"].value == 20
    assert memory.readings(outer, outer_end)["device_peak_bytes"].value == 700


def test_several_devices_are_added_which_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(2)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=backend))
    memory = DeviceMemory()
    before = memory.read()
    backend.allocate(10, 0)
    backend.allocate(30, 1)
    reading = memory.readings(before, memory.read())["device_peak_bytes"]
    assert (reading.value, reading.quality) == (40, Quality.ESTIMATED)
    assert accelerator.names() == ("Fast 0", "Fast 1")


def test_of_several_devices_one_that_is_used_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(8)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=backend))
    memory = DeviceMemory()
    before = memory.read()
    backend.allocate(30, 5)
    reading = memory.readings(before, memory.read())["device_peak_bytes"]
    assert (reading.value, reading.quality) == (30, Quality.EXACT)


def test_a_window_in_which_the_device_is_first_used(cuda: Backend) -> None:
    # As torch does it: nothing can be reset before anything was allocated.
    cuda.started = False
    memory = DeviceMemory()
    before = memory.read()
    cuda.started = True
    cuda.allocate(70)
    assert memory.readings(before, memory.read())["device_peak_bytes"].value == 70


def test_a_device_that_nothing_uses_has_no_peak(cuda: Backend) -> None:
    cuda.started = False
    memory = DeviceMemory()
    assert memory.readings(memory.read(), memory.read())["device_peak_bytes"].value == 0


def test_an_allocator_that_counts_nothing(cuda: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    memory = DeviceMemory()
    before = memory.read()
    cuda.allocate(70)
    reading = memory.readings(before, memory.read())["device_peak_bytes"]
    assert reading.value is None
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" in str(reading.reason)


def test_what_a_process_holds_of_a_device_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(3)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=backend))
    monkeypatch.setattr(accelerator, "CONTEXT_BYTES", 10)
    assert accelerator.share() is None
    backend.allocate(100, 1)
    backend.allocate(200, 2)
    # Of two devices the one that has less room for another such process; one that is not used is not asked.
    assert accelerator.share() == accelerator.Share(held=410, free=600)
    backend.started = False
    assert accelerator.share() is None
    monkeypatch.delitem(sys.modules, "torch")
    assert accelerator.share() is None


def test_torch_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    off = SimpleNamespace(is_available=lambda: False, max_memory_allocated=None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=off))
    memory = DeviceMemory()
    reading = memory.readings(memory.read(), memory.read())["device_peak_bytes"]
    assert reading.value is None
    assert "no accelerator" in str(reading.reason)
    assert accelerator.names() == ()


def test_a_device_that_another_process_has_for_itself(cuda: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_device: int) -> str:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(cuda, "get_device_name", busy)
    assert accelerator.names() == ()


def test_torch_is_not_loaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    memory = DeviceMemory()
    before = memory.read()
    assert "not loaded" in str(memory.readings(before, memory.read())["device_peak_bytes"].reason)
    assert accelerator.names() == ()
    assert "torch" not in sys.modules
    # Loaded within a window, it has no peak of all of it.
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Backend()))
    assert "not loaded" in str(memory.readings(before, memory.read())["device_peak_bytes"].reason)


def test_a_driver_that_fails_is_a_reason(cuda: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_device: int) -> int:
        raise RuntimeError("CUDA error: the device is lost")

    monkeypatch.setattr(cuda, "max_memory_allocated", fail)
    memory = DeviceMemory()
    assert "the device is lost" in str(memory.readings(memory.read(), memory.read())["device_peak_bytes"].reason)


def test_the_devices_in_use_are_those_that_hold_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(devices=3)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=backend))
    assert accelerator.in_use() == frozenset()
    backend.allocate(5, device=1)
    backend.allocate(5, device=2)
    assert accelerator.in_use() == {"GPU-1-of-torch", "GPU-2-of-torch"}
    backend.started = False
    assert accelerator.in_use() == frozenset()


def test_a_torch_that_does_not_tell_devices_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    backend.allocate(5)
    monkeypatch.setattr(Backend, "get_device_properties", lambda *_: SimpleNamespace(name="A"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=backend))
    assert accelerator.in_use() == frozenset()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert accelerator.in_use() == frozenset()
