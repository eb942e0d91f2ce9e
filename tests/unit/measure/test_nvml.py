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

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return {"GPU-one": 1}[uuid]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        return self.mj[handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self.mw[handle]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=self.use[handle])


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_energy_power_and_use_of_all_devices() -> None:
    library = Library()
    nvml = Nvml(library)
    before = nvml.read()
    library.mj = [3000, 550]
    readings = nvml.readings(before, nvml.read())
    assert readings["device_energy_j"].value == 2.5
    assert readings["device_energy_j"].quality is Quality.EXACT
    assert readings["device_power_w"].value == 180
    assert readings["device_utilization"].value == 50
    assert readings["device_utilization"].quality is Quality.SAMPLED
    nvml.close()
    assert library.down


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


@pytest.mark.parametrize(("visible", "watts"), [("1", 30), ("0", 150), ("GPU-one", 30), ("1,0", 180), ("0,-1,1", 150)])
def test_the_devices_that_cuda_may_use(monkeypatch: pytest.MonkeyPatch, visible: str, watts: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = Nvml(Library())
    assert nvml.readings(nvml.read(), nvml.read())["device_power_w"].value == watts


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
