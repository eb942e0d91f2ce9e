"""The NVIDIA cards that this process may use, as NVML tells them; nothing is started on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pytest_infer.measure.counters.nvml import visible

_MW = 1e3
_PROCESSORS, _MEMORY = 1, 2
"""NVML_CLOCK_SM and NVML_CLOCK_MEM (NVML API reference, nvmlClockType_t)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card; None where NVML does not tell. Limits of its power are the one in force and that of its maker."""

    name: str
    memory_bytes: int | None = None
    free_bytes: int | None = None
    driver: str | None = None
    power_limit_w: float | None = None
    power_default_w: float | None = None
    clocks_mhz: tuple[int, int] | None = None
    """Of the processors and of the memory, as they are set for work (NVML's application clocks)."""
    ecc: bool | None = None
    divided: bool = False
    """Whether it is cut into parts (MIG), of which each process has one."""


def describe(nvml: Any = None) -> tuple[Card, ...]:
    """Return the cards; none without NVML's binding (`nvidia-ml-py`) or a driver. `nvml` is a parameter for tests."""
    try:
        if nvml is None:
            import pynvml as nvml  # type: ignore[import-not-found, no-redef]  # noqa: PLC0415  # on few machines
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - of a library or a driver that is not there
        return ()
    try:
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        parts = "MIG-" in (wanted or "")
        return tuple(_card(nvml, handle) for handle in visible(nvml, None if parts else wanted))
    except Exception:  # noqa: BLE001 - as above
        return ()
    finally:
        nvml.nvmlShutdown()


def settings(cards: Iterable[Card]) -> dict[str, str] | None:
    """Return what of the cards' state changes speed, those that differ with commas between; None without a card."""
    told: dict[str, list[str]] = {}
    for card in cards:
        for name, value in (
            ("driver", card.driver),
            ("power_limit", None if card.power_limit_w is None else f"{card.power_limit_w:g} W"),
            ("card_clocks", None if card.clocks_mhz is None else "{} and {} MHz".format(*card.clocks_mhz)),
            ("ecc", None if card.ecc is None else ("off", "on")[card.ecc]),
        ):
            if value is not None and value not in told.setdefault(name, []):
                told[name].append(value)
    return {name: ", ".join(values) for name, values in told.items() if values} or None


def _card(nvml: Any, handle: Any) -> Card:
    def told(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception:  # noqa: BLE001 - what this card, this driver or this binding does not have
            return None

    memory = told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    limit = told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    usual = told(lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))
    processors = told(lambda: nvml.nvmlDeviceGetApplicationsClock(handle, _PROCESSORS))
    memory_clock = told(lambda: nvml.nvmlDeviceGetApplicationsClock(handle, _MEMORY))
    ecc = told(lambda: nvml.nvmlDeviceGetEccMode(handle))
    mig = told(lambda: nvml.nvmlDeviceGetMigMode(handle))
    return Card(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        driver=_text(told(nvml.nvmlSystemGetDriverVersion)),
        power_limit_w=None if limit is None else limit / _MW,
        power_default_w=None if usual is None else usual / _MW,
        clocks_mhz=None if None in (processors, memory_clock) else (processors, memory_clock),
        ecc=None if ecc is None else bool(ecc[0]),
        divided=bool(mig and mig[0]),
    )


def _text(told: Any) -> Any:
    return told.decode() if isinstance(told, bytes) else told
