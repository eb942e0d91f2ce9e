"""What torch has allocated on its accelerators, once a program has loaded torch."""

from __future__ import annotations

import sys
from typing import Any

from pytest_infer.measure.counters.kernel_files import Sample, Unavailable
from pytest_infer.records import Quality, Reading, absent

SOURCE = "torch max_memory_allocated, reset before it"


def loaded_torch() -> Any:
    """Return torch if something has imported it, else None: measuring must not pay the seconds of its import."""
    return sys.modules.get("torch")


def backends(torch: Any) -> list[Any]:
    """Return the parts of torch (`torch.cuda`, `torch.xpu`) that have devices and count their memory."""
    found = (getattr(torch, name, None) for name in ("cuda", "xpu"))
    return [b for b in found if b is not None and hasattr(b, "max_memory_allocated") and b.is_available()]


def names() -> tuple[str, ...]:
    """Return the accelerators' names as torch gives them; none before torch is loaded, or for one that cannot be used.

    Asking starts the driver, which fails for a device in exclusive use by another process.
    """
    torch = loaded_torch()
    if torch is None:
        return ()
    try:
        return tuple(str(b.get_device_name(n)) for b in backends(torch) for n in range(b.device_count()))
    except RuntimeError:
        return ()


class DeviceMemory:
    """The peak of torch's own allocations on all accelerators, exact (torch.cuda.memory).

    Torch keeps one peak per device. Each read notes it and resets it, so that nested windows each take the highest of
    the pieces that they span.
    """

    def __init__(self) -> None:
        self._torch: Any = None
        self._backends: list[Any] = []
        self._peaks: list[int] = []

    def read(self) -> Sample | Unavailable:
        """Note the peak since the last read, bytes over all devices, and reset it."""
        if self._torch is None:
            self._torch = loaded_torch()
            if self._torch is None:
                return Unavailable("no accelerator: torch is not loaded")
            self._backends = backends(self._torch)
        if not self._backends:
            return Unavailable("torch has no accelerator that counts its memory")
        try:
            self._peaks.append(sum(map(_peak, self._backends)))
        except RuntimeError as error:
            return Unavailable(f"torch: {error}")
        return {"piece": len(self._peaks)}

    def readings(self, before: Sample | Unavailable, after: Sample | Unavailable) -> dict[str, Reading]:
        """Return the highest peak between two reads; several devices' peaks are added, even if at different times."""
        if isinstance(before, Unavailable):
            return {"device_peak_bytes": absent(before.reason, SOURCE)}
        if isinstance(after, Unavailable):
            return {"device_peak_bytes": absent(after.reason, SOURCE)}
        peak = max(self._peaks[int(before["piece"]) : int(after["piece"])])
        several = sum(backend.device_count() for backend in self._backends) > 1
        quality = Quality.ESTIMATED if several else Quality.EXACT
        return {"device_peak_bytes": Reading(value=peak, source=SOURCE, quality=quality)}

    def close(self) -> None:
        """Forget what was noted."""
        self._peaks.clear()


def _peak(backend: Any) -> int:
    total = 0
    for device in range(backend.device_count()):
        total += int(backend.max_memory_allocated(device))
        backend.reset_peak_memory_stats(device)
    return total
