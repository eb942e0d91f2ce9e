"""Energy, power and use of NVIDIA devices through NVML, where its Python binding is installed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_infer import untrusted
from pytest_infer.measure.counters import accelerator
from pytest_infer.measure.counters.kernel_files import Sample, Unavailable, difference, now
from pytest_infer.records import Quality, Reading, absent

_MJ, _MW = 1e3, 1e3
_NS = 1e9
LONG_S = 1.0
"""The energy counter moves every 20 to 100 ms: of a window that is shorter than this it tells an estimate."""
_ENERGY, _POWER, _USE = "NVML total energy consumption", "NVML power usage", "NVML utilization rates"


class Nvml:
    """The devices that CUDA_VISIBLE_DEVICES lets this process use; the values cover whole devices.

    Of several only those count on which torch holds memory, as far as torch knows of any. Read through `nvidia-ml-py`
    (module pynvml, NVML API reference). Power is the mean of the last second on most cards since Ampere, and use means
    that any kernel ran. `nvml` and `in_use` are parameters for tests.
    """

    def __init__(self, nvml: Any = None, in_use: Callable[[], Collection[str]] = accelerator.in_use) -> None:
        self._nvml, self._in_use = nvml, in_use
        self._handles: list[Any] = []
        self._uuids: list[str] = []
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
            wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
            if "MIG-" in (wanted or ""):
                self._unavailable = Unavailable("NVML counts whole devices, and this process has a part of one (MIG)")
                return
            self._handles = visible(self._nvml, wanted)
            if len(self._handles) > 1:
                self._uuids = [_uuid(self._nvml, handle) for handle in self._handles]
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
        """Return what each call gives of each device; what one of them does not support is left out of all."""
        if not self._handles:
            return self._unavailable
        sample: Sample = {}
        for key, call in (
            ("mj", self._nvml.nvmlDeviceGetTotalEnergyConsumption),
            ("mw", self._nvml.nvmlDeviceGetPowerUsage),
            ("use", lambda handle: self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        ):
            try:
                told = {f"{key}{place}": call(handle) for place, handle in enumerate(self._handles)}
            except self._nvml.NVMLError:
                continue
            sample |= told
            if key == "mj":
                sample["ns"] = time.perf_counter_ns()
        return sample

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the joules between two samples, and power (W) and use (percent) at the second."""
        used = self._in_use() if self._uuids else ()
        places = [place for place, uuid in enumerate(self._uuids) if uuid in used] or range(len(self._handles))
        before, after = (_together(sample, places) for sample in (before, after))
        use = now(after, "use", _USE, Quality.SAMPLED)
        power = now(after, "mw", _POWER, Quality.SAMPLED)
        return {
            "device_energy_j": _joules(before, after),
            "device_power_w": _divided(power, _MW),
            "device_utilization": _divided(use, len(places)),
        }

    def close(self) -> None:
        """Let go of the library."""
        if self._handles:
            self._handles = []
            self._unavailable = Unavailable("NVML was closed")
            self._nvml.nvmlShutdown()


def _together(sample: Sample | Unavailable, places: Sequence[int]) -> Sample | Unavailable:
    """Return a sample's values of these devices, added."""
    if isinstance(sample, Unavailable):
        return sample
    told = {key for key in ("mj", "mw", "use") if f"{key}0" in sample}
    time_of = {"ns": sample["ns"]} if "ns" in sample else {}
    return {key: sum(sample[f"{key}{place}"] for place in places) for key in told} | time_of


def _joules(before: Sample | Unavailable, after: Sample | Unavailable) -> Reading:
    used, took = (difference(before, after, key, _ENERGY, per_unit=unit) for key, unit in (("mj", _MJ), ("ns", _NS)))
    if used.value is None or took.value is None or took.value >= LONG_S:
        return used
    if not used.value:
        return absent("the counter, which moves every 20 to 100 ms, did not within the round", _ENERGY)
    return replace(used, quality=Quality.ESTIMATED)


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


def visible(nvml: Any, wanted: str | None) -> list[Any]:
    """Return the handles of the devices that CUDA may use: numbers or UUIDs, up to the first that is neither.

    The beginning of a UUID is enough for CUDA where only one device's is like it (CUDA C++ guide, variables).
    """
    every = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    if wanted is None:
        return every
    handles: list[Any] = []
    for name in (part.strip() for part in wanted.split(",")):
        if name.isdigit():
            meant = every[int(name) : int(name) + 1]
        else:
            meant = [h for h in every if name.startswith("GPU-") and _uuid(nvml, h).startswith(name)]
        if len(meant) != 1:
            break
        handles += meant
    return handles


def _uuid(nvml: Any, handle: Any) -> str:
    told = nvml.nvmlDeviceGetUUID(handle)
    return told.decode() if isinstance(told, bytes) else str(told)
