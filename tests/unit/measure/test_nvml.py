"""NVML by a library that is made of fakes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pytest_infer.measure.counters.nvml import Nvml
from pytest_infer.records import Quality


class NVMLError(Exception):
    pass


class Library:
    """Two devices whose counters a test sets."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.mj, self.mw, self.use = [1000, 50], [150_000, 30_000], [90, 10]
        self.down = False
        self.names = ["A", "A"]

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.names[handle]

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.down = True

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        return number

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:  # noqa: N802
        return ["GPU-zero", b"GPU-one"][handle]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self.mj[handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self.mw[handle]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=self.use[handle])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(ns=0)
    made.perf_counter_ns = lambda: made.ns
    monkeypatch.setattr("pytest_infer.measure.counters.nvml.time", made)
    return made


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_energy_power_and_use_of_all_devices(clock: SimpleNamespace) -> None:
    library = Library()
    nvml = Nvml(library)
    before = nvml.read()
    library.mj = [3000, 550]
    clock.ns += 1_500_000_000
    readings = nvml.readings(before, nvml.read())
    assert readings["device_energy_j"].value == 2.5
    assert readings["device_energy_j"].quality is Quality.EXACT
    assert readings["device_power_w"].value == 180
    assert readings["device_utilization"].value == 50
    assert readings["device_utilization"].quality is Quality.SAMPLED
    nvml.close()
    assert library.down


@pytest.mark.parametrize(
    ("used", "joules", "watts", "percent"),
    [
        (["GPU-one"], 0.5, 30, 10),
        (["GPU-zero", "GPU-one"], 2.5, 180, 50),
        ([], 2.5, 180, 50),
        (["GPU-other"], 2.5, 180, 50),
    ],
)
def test_idle_devices_beside_the_used_ones_count_for_nothing(
    clock: SimpleNamespace, used: list[str], joules: float, watts: float, percent: float
) -> None:
    library = Library()
    nvml = Nvml(library, lambda: frozenset(used))
    before = nvml.read()
    library.mj = [3000, 550]
    clock.ns += 1_500_000_000
    readings = nvml.readings(before, nvml.read())
    told = [readings[f"device_{name}"].value for name in ("energy_j", "power_w", "utilization")]
    assert told == [joules, watts, percent]


@pytest.mark.parametrize(
    ("visible", "order", "told"),
    [("1", None, False), ("1", "PCI_BUS_ID", True), ("GPU-one", None, True), (None, None, True)],
)
def test_numbers_of_unlike_devices_count_only_in_nvmls_order(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, order: str | None, *, told: bool
) -> None:
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    library = Library()
    library.names = ["A", "B"]
    nvml = Nvml(library)
    power = nvml.readings(nvml.read(), nvml.read())["device_power_w"]
    assert (power.value is not None) is told
    assert told or "CUDA_DEVICE_ORDER=PCI_BUS_ID" in (power.reason or "")


@pytest.mark.parametrize(
    ("visible", "watts"),
    [
        ("1", 30),
        ("0", 150),
        ("GPU-one", 30),
        ("GPU-o", 30),  # as many letters as tell it apart
        ("1,0", 180),
        ("0,-1,1", 150),
        ("GPU-zero,7,GPU-one", 150),
    ],
)
def test_the_devices_that_cuda_may_use(monkeypatch: pytest.MonkeyPatch, visible: str, watts: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = Nvml(Library())
    assert nvml.readings(nvml.read(), nvml.read())["device_power_w"].value == watts


@pytest.mark.parametrize("visible", ["", "GPU-", "GPU-two", "-1"])
def test_no_device_is_meant(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = Nvml(Library())
    readings = nvml.readings(nvml.read(), nvml.read())
    assert {reading.reason for reading in readings.values()} == {"no NVIDIA device is visible"}


def test_a_part_of_a_device_has_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7f1a0")
    nvml = Nvml(Library())
    readings = nvml.readings(nvml.read(), nvml.read())
    assert all(reading.value is None and "MIG" in str(reading.reason) for reading in readings.values())


@pytest.mark.parametrize(("mj", "told"), [(0, None), (60, 0.06)])
def test_a_round_shorter_than_the_steps_of_the_energy_counter(
    clock: SimpleNamespace, mj: int, told: float | None
) -> None:
    library = Library()
    nvml = Nvml(library)
    before = nvml.read()
    library.mj[0] += mj
    clock.ns += 80_000_000
    energy = nvml.readings(before, nvml.read())["device_energy_j"]
    assert energy.value == told
    assert energy.quality is Quality.ESTIMATED if told else "did not" in str(energy.reason)


def test_no_device_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    nvml = Nvml(Library())
    readings = nvml.readings(nvml.read(), nvml.read())
    assert {reading.reason for reading in readings.values()} == {"no NVIDIA device is visible"}


def test_a_device_without_an_energy_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_handle: int) -> int:
        raise NVMLError("Not Supported")

    library = Library()
    monkeypatch.setattr(library, "nvmlDeviceGetTotalEnergyConsumption", unsupported)
    nvml = Nvml(library)
    readings = nvml.readings(nvml.read(), nvml.read())
    assert readings["device_energy_j"].value is None
    assert readings["device_energy_j"].reason
    assert readings["device_power_w"].value == 180


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NVMLError("Driver Not Loaded")

    library = Library()
    monkeypatch.setattr(library, "nvmlInit", fail)
    nvml = Nvml(library)
    assert nvml.readings(nvml.read(), nvml.read())["device_power_w"].reason == "no NVML: Driver Not Loaded"
    nvml.close()
    assert not library.down


def test_a_binding_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # an import of it then fails
    nvml = Nvml()
    assert "not installed" in str(nvml.readings(nvml.read(), nvml.read())["device_energy_j"].reason)
