"""Energy, power and use of NVIDIA devices through NVML, where its Python binding is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pytest_infer import untrusted
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference, now
from pytest_infer.records import Quality, Reading

_MJ, _MW = 1e3, 1e3
_ENERGY, _POWER, _USE = "NVML total energy consumption", "NVML power usage", "NVML utilization rates"


class Nvml:
    """All devices that CUDA_VISIBLE_DEVICES lets this process use; the values cover whole devices.

    Read through `nvidia-ml-py` (module pynvml, NVML API reference). The energy counter moves every 20 to 100 ms, so it
    is meaningful for windows of a second or more; use means that any kernel ran. `nvml` is a parameter for tests.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._handles: list[Any] = []
        self._unavailable = Unavailable("")
        if nvml is None:
            try:
                import pynvml  # type: ignore[import-not-found]  # noqa: PLC0415  # optional, and there on few machines

                self._nvml = pynvml
            except ImportError:
                self._unavailable = Unavailable("no NVML: nvidia-ml-py is not installed")
                return
            except Exception as error:  # noqa: BLE001 - of a library that is there and cannot be loaded
                self._unavailable = Unavailable(f"no NVML: {untrusted.failure(error)}")
                return
        try:
            self._nvml.nvmlInit()
            self._handles = _visible(self._nvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
        except Exception as error:  # noqa: BLE001 - NVMLError, and what comes of a driver that it does not know
            self._unavailable = Unavailable(f"no NVML: {untrusted.reason(error)}")
            return
        if not self._handles:
            self._unavailable = Unavailable("no NVIDIA device is visible")
        elif _ambiguous(self._nvml, os.environ):
            self._handles = []
            self._unavailable = Unavailable(
                "CUDA numbers the fastest device 0 and NVML goes by the bus: set CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )

    def read(self) -> Sample | Unavailable:
        """Return what each call gives, devices together; a call that a device does not support leaves its value out."""
        if not self._handles:
            return self._unavailable
        sample: Sample = {}
        for key, call in (
            ("mj", self._nvml.nvmlDeviceGetTotalEnergyConsumption),
            ("mw", self._nvml.nvmlDeviceGetPowerUsage),
            ("use", lambda handle: self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        ):
            try:
                sample[key] = sum(call(handle) for handle in self._handles)
            except self._nvml.NVMLError:
                continue
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the joules between two samples, and power (W) and use (percent) at the second."""
        use = now(after, "use", _USE, Quality.SAMPLED)
        power = now(after, "mw", _POWER, Quality.SAMPLED)
        return {
            "device_energy_j": difference(before, after, "mj", _ENERGY, per_unit=_MJ),
            "device_power_w": _divided(power, _MW),
            "device_utilization": _divided(use, len(self._handles)),
        }

    def close(self) -> None:
        """Let go of the library."""
        if self._handles:
            self._handles = []
            self._unavailable = Unavailable("NVML was closed")
            self._nvml.nvmlShutdown()


def _divided(reading: Reading, by: float) -> Reading:
    if reading.value is None:
        return reading
    return Reading(value=reading.value / by, source=reading.source, quality=reading.quality)


def _ambiguous(nvml: Any, environ: Mapping[str, str]) -> bool:
    """Return whether numbers choose among unlike devices in an order that is not NVML's (CUDA C++ guide, variables)."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES", "")
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or not any(
        name.strip().isdigit() for name in chosen.split(",")
    ):
        return False
    every = range(nvml.nvmlDeviceGetCount())
    return len({nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(number)) for number in every}) > 1


def _visible(nvml: Any, wanted: str | None) -> list[Any]:
    """Return the handles of the devices that CUDA may use: numbers or UUIDs, up to the first that is neither."""
    count = nvml.nvmlDeviceGetCount()
    if wanted is None:
        return [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
    handles: list[Any] = []
    for name in (part.strip() for part in wanted.split(",")):
        if name.isdigit() and int(name) < count:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith(("GPU-", "MIG-")):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(name))
        else:
            break
    return handles
